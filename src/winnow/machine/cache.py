"""The last-level cache of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def last_level_cache() -> int:
    """Bytes of the largest cache this machine reports, 32 MB where it reports none."""
    sizes = [_bytes(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    if sys.platform == "darwin":
        for name in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize"):
            value = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
            sizes.append(int(value) if value.isdigit() else 0)
    return max(sizes, default=0) or 32 << 20


def _bytes(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    digits = text.rstrip("KMG")
    return int(digits) * unit if digits.isdigit() else 0
