"""The command line in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from places import SUPPORT

# A line of progress: when, stage, and how far it is.
PROGRESS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .+: (started|done in .+|[\d,]+ of [\d,]+, .+)$")


def winnow(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "winnow", *map(str, args)], capture_output=True, text=True, env=env, cwd=cwd
    )


def refused(done: subprocess.CompletedProcess, code: int = 2) -> str:
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and not PROGRESS.match(line)]
    assert len(lines) == 1 and lines[0].startswith("winnow: ") and lines[0].endswith("."), done.stderr
    return lines[0]
