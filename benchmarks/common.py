"""What the benchmark scripts share: pinned threads, alternating runs, memory peaks, and where a figure comes from.

Imports nothing heavy, so that a script can pin the threads before torch is there.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

CACHE = Path(os.environ.get("WINNOW_CACHE", "~/.cache/winnow-benchmarks")).expanduser()
DATA = Path(os.environ.get("WINNOW_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PACKAGES = ("winnow-nn", "torch", "transformers", "numpy", "safetensors")

# Run in a child: writes /proc/self/status at exit, after the module that was asked for has done its work.
_AT_EXIT = """
import atexit, pathlib, runpy, sys
status = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: status.write_text(pathlib.Path("/proc/self/status").read_text()))
sys.argv.pop(0)
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def pin(threads: int) -> None:
    """Fixes the threads of OpenMP and MKL. Call before torch is imported; waiting threads do not spin."""
    if "torch" in sys.modules:
        raise RuntimeError("pin the threads before torch is imported")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses, with the options every script has, and pins the threads."""
    parser.add_argument("--threads", type=int, default=2, help="threads of every contender (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args()
    pin(args.threads)
    return args


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """The type of an option that takes several values with commas between."""
    return lambda text: [kind(part) for part in text.split(",")]


def stop(sentence: str) -> NoReturn:
    """Ends the script with exit code 2: something must be given, set or run first."""
    print(sentence, file=sys.stderr)
    sys.exit(2)


def data(*parts: str) -> Path:
    """A file of the data folder; a sentence and exit code 2 where it is not there."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        stop(f"no {path}: set WINNOW_DATA to the folder of real models and data")
    return path


def script(name: str, *args: str, python: str = sys.executable) -> list[str]:
    """The command of another script of this folder, such as "kernels.contenders", for a process of its own."""
    return [python, "-m", f"benchmarks.{name}", *args]


def command() -> str:
    """The command line of this process, as it may be typed in the repository root."""
    return shlex.join(["python", "-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]])


def heading(packages: Sequence[str] = (), threads: int = 2) -> dict[str, Any]:
    """Prints and returns date, command, machine, load and versions."""
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command(),
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {
            "python": sys.version.split()[0],
            **{n: v for n in (*PACKAGES, *packages) if (v := version_of(n))},
        },
    }
    for key, value in facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{key}: {text}")
    print(flush=True)
    return facts


def alternate(contenders: Mapping[str, Callable[[], Any]], runs: int, note: str = "") -> dict[str, list[float]]:
    """Seconds of every contender, one after the other, the order turned round in every other round.

    A contender that returns a float says how long it took itself; otherwise the whole call is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(runs):
        for name in list(contenders)[:: 1 if i % 2 == 0 else -1]:
            gc.collect()
            started = time.perf_counter()
            own = contenders[name]()
            took = time.perf_counter() - started
            seconds[name].append(own if isinstance(own, float) else took)
            print(f"  {note}{name}, run {i + 1} of {runs}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return seconds


def spread(values: Sequence[float]) -> str:
    """Median and range, for a person."""
    return f"{statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f}, n={len(values)})"


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(over) / statistics.median(under)


def added_peak(work: Callable[[], Any]) -> tuple[int, int]:
    """Bytes resident before ``work``, and how far above that the peak rose during it (Linux)."""
    from winnow.machine.memory import peak_rss, reset_peak, resident

    gc.collect()
    if not reset_peak():
        raise RuntimeError("the peak of the resident set cannot be reset here: this figure needs Linux")
    before = resident()
    work()
    return before, peak_rss() - before


def peak_of(argv: Sequence[str]) -> tuple[int, float]:
    """Peak resident bytes (VmHWM) and seconds of a fresh process that runs a module with arguments."""
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", _AT_EXIT, str(status), *argv], check=True)
        seconds = time.perf_counter() - started
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024, seconds


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def records(file: Path) -> list[dict[str, Any]]:
    """What has been measured: the JSON lines of a file, none where it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def finish(figures: dict[str, Any], file: Path | None) -> None:
    """Writes the figures where --json says."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=2) + "\n")
        print(f"written: {file}")


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")]
    return names[0] if names else "unknown processor"
