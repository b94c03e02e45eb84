"""The machine and the versions a figure was measured with."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """CPU, cores, memory, system, and the versions that are in play. Imports nothing that is not imported already.

    Keys: cpu, cores (logical, that this process may use), ram (bytes), os, python, torch, threads, device; and
    transformers, numpy, winnow where imported.
    """
    import psutil
    import torch

    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "ram": int(psutil.virtual_memory().total),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for name in ("transformers", "numpy", "winnow"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            facts[name] = version
    return facts


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        import subprocess

        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        if name := subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip():
            return name
    return platform.processor() or platform.machine()
