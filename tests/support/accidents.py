"""Kills and full disks at chosen points: jobs that write folders, run in forks of one process that is ready to work."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

CHANGING = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "open", "fsync", "link", "sendfile")


class Meter:
    """Counts operations of the file system, and at number ``at`` does what it is there for."""

    def __init__(self, at: int | None, act) -> None:
        self.at, self.act, self.count = at, act, 0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()


class _File:
    """A file open for writing whose writes count."""

    def __init__(self, file, meter: Meter) -> None:
        self._file, self._meter = file, meter

    def write(self, data):
        self._meter.tick()
        return self._file.write(data)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._file, name)


@contextmanager
def metered(meter: Meter, names=CHANGING, writes: bool = True):
    """Has every operation in ``names``, and every write to a file that Python opened, counted."""
    kept = {name: getattr(os, name) for name in names}
    opened = builtins.open

    def counted(call):
        def operation(*given, **options):
            meter.tick()
            return call(*given, **options)

        return operation

    def opening(file, mode="r", *given, **options):
        found = opened(file, mode, *given, **options)
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return found
        meter.tick()
        return _File(found, meter) if writes else found

    # pathlib of Python 3.10 calls what these names stood for when it was imported.
    accessor = getattr(pathlib, "_NormalAccessor", None)
    bound = {name: call for name, call in vars(accessor).items() if name in {*names, "open"}} if accessor else {}
    for name, call in bound.items():
        setattr(accessor, name, staticmethod(opening if name == "open" else counted(call)))
    for name, call in kept.items():
        setattr(os, name, counted(call))
    builtins.open = io.open = opening
    try:
        yield meter
    finally:
        for name, call in kept.items():
            setattr(os, name, call)
        builtins.open = io.open = opened
        for name, call in bound.items():
            setattr(accessor, name, call)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- jobs: each writes ``out`` in the current folder, from nothing but its own code and what lies in ``given`` ----------

RECIPE = """\
model: small:classifier
data: {given}/train.npz
eval: {given}/test.npz
stages:
  - train: {{steps: 2}}
  - ticket: {{method: magnitude, sparsity: 60%, steps: 2, start: model}}
  - compress: {{values: int8, baselines: none, speed: false, samples: 16}}
"""


def place(out: Path, given: Path) -> None:
    """The least that owns an output: two stages, a folder of two files."""
    from winnow.disk.files import write_text
    from winnow.formats.output import OutputFolder
    from winnow.run.store import Store

    store = Store(out.with_name(out.name + ".work"))
    for number in range(2):
        key = f"stage-{number:016x}"
        file = store.folder(key) / "unit-a.bin"
        if store.read(key) is None:
            write_text(file, f"stage {number}\n")
            store.write(key, {"number": number}, files=[file])
    folder = OutputFolder(out)
    try:
        for number in range(2):
            write_text(folder.path / f"{number}.txt", (store.folder(f"stage-{number:016x}") / "unit-a.bin").read_text())
        folder.publish()
    finally:
        folder.discard()
    store.remove()


def compress(out: Path, given: Path) -> None:
    import winnow
    from small import classifier, points

    winnow.compress(
        classifier(), points(80), eval=points(60, seed=5), sparsity=0.6, method="sparsegpt", samples=32, baselines="rtn", keep=("int8-rtn",),
        speed=False, out=out,
    )  # fmt: skip


def export(out: Path, given: Path) -> None:
    import winnow

    winnow.export_dense(given / "packed", out, shard_bytes=9000)


def find_ticket(out: Path, given: Path) -> None:
    import winnow
    from small import classifier, points

    winnow.find_ticket(classifier(), points(64), sparsity=0.5, method="imp", settings={"rate": 0.3}, steps=2, batch=16, out=out)  # fmt: skip


def run(out: Path, given: Path) -> None:
    from winnow.pipeline.verb import run_recipe

    run_recipe(given / "recipe.yaml", out)


JOBS = {f.__name__: f for f in (place, compress, export, find_ticket, run)}


def give(folder: Path) -> Path:
    """What the jobs read."""
    import winnow
    from small import classifier, write_points

    write_points(folder, 80, 60)
    (folder / "recipe.yaml").write_text(RECIPE.format(given=folder))
    winnow.compress(classifier(), None, sparsity=0.5, method="magnitude", baselines="none", speed=False, out=folder / "packed")  # fmt: skip
    return folder


# --- the process that forks ---------------------------------------------------------------------------------------------


class Forge:
    """A process with everything imported that does a job in a fork of itself, as often as asked and as a new process would."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "accidents"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def __call__(self, job: str, out: Path, given: Path, **accident) -> tuple[int, str, int, float]:
        """(exit code or -signal, what was said, operations counted, seconds).

        ``at``: kill before operation number ``at``; ``after``: kill after so many seconds; ``full``: no space from operation
        ``full`` on for one operation; ``largest``: no file may grow beyond so many bytes.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([job, str(out), str(given), accident]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended"
        return tuple(json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _child(job: str, out: Path, given: Path, accident: dict, told: int) -> None:
    from winnow.errors import WinnowError

    out.parent.mkdir(exist_ok=True)
    os.chdir(out.parent)  # paths in pages are the same everywhere
    meter = Meter(None, None)
    code, said = 0, ""
    if "at" in accident:
        meter = Meter(accident["at"], lambda: os.kill(os.getpid(), signal.SIGKILL))
    if "full" in accident:
        meter = Meter(accident["full"], full)
    if "largest" in accident:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (accident["largest"],) * 2)
    try:
        with metered(meter):
            JOBS[job](Path(out.name), given)
    except WinnowError as error:
        code, said = error.exit_code, str(error)
    except BaseException:
        import traceback

        code, said = 70, traceback.format_exc()
    os.write(told, json.dumps([said, meter.count]).encode())
    os._exit(code)


def _serve() -> None:
    import safetensors.torch  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    import winnow.cli
    import winnow.compression.verb
    import winnow.pipeline.verb
    import winnow.report.compression.page
    import winnow.tickets.verb  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job, out, given, accident = json.loads(line)
        reading, writing = os.pipe()
        started = time.perf_counter()
        child = os.fork()
        if not child:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _child(job, Path(out), Path(given), accident, writing)
        os.close(writing)
        if "after" in accident:
            time.sleep(accident["after"])
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        said, count = json.loads(answer) if answer else ("", 0)
        result = [os.waitstatus_to_exitcode(status), said, count, time.perf_counter() - started]
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


# --- comparing ----------------------------------------------------------------------------------------------------------

# say when, and how long it took
TIMED = ("report.html", "report.json", "ticket.html", "ticket.json", "ticket-report.json", "run.json")


def figures(folder: Path) -> dict[str, object]:
    """All that a folder says but times: every file's bytes, and of the pages what was measured."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name not in TIMED:
            found[name] = path.read_bytes()
        elif path.suffix == ".html":
            found[name] = None
        else:
            found[name] = _untimed(json.loads(path.read_text()))
    return found


def _untimed(value):
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if k not in LEFT_OUT}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


LEFT_OUT = {"seconds", "step_time", "seconds_total", "created", "timing", "memory", "reused", "machine"}
LEFT_OUT |= {"command", "cost", "folder", "undo", "next_step"}

if __name__ == "__main__":
    _serve()
