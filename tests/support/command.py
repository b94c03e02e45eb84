"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from places import SUPPORT


def winnow(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "winnow", *map(str, args)], capture_output=True, text=True, env=env, cwd=cwd
    )


def refused(done: subprocess.CompletedProcess, code: int = 2) -> str:
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("winnow: ") and lines[0].endswith("."), done.stderr
    return lines[0]
