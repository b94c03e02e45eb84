"""OUT.work belongs to one process at a time, and to none once that process is gone."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from winnow.errors import InputError
from winnow.run.store import Store

fcntl = pytest.importorskip("fcntl")

KEY = "stage-0123456789abcdef"

HOLD = """
import sys, time
from pathlib import Path
from winnow.run.store import Store
store = Store(Path(sys.argv[1]))
store.write("stage-0123456789abcdef", {"n": 1})
print("there", flush=True)
sys.stdin.readline()
getattr(store, sys.argv[2])()
print("done", flush=True)
sys.stdin.readline()
"""


def held(root: Path, end: str = "remove") -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, root, end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def go_on(process: subprocess.Popen) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.mark.parametrize("end", ["remove", "release"])
def test_another_process_is_refused_until_the_first_is_done(tmp_path, end):
    root = tmp_path / "cc.work"
    process = held(root, end)
    try:
        with pytest.raises(InputError, match=r"^another run is writing cc: wait for it or choose another out\.$"):
            Store(root)
        assert (root / f"{KEY}.json").exists()
        go_on(process)
        assert root.exists() == (end == "release")
        store = Store(root)
        assert store.read(KEY) == ({"n": 1} if end == "release" else None)
        assert (root / ".lock").exists()
        store.remove()
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate()


def test_a_killed_process_holds_nothing(tmp_path):
    root = tmp_path / "cc.work"
    process = held(root)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (root / ".lock").exists()  # nobody could take it away, and it stops nobody
    store = Store(root)
    assert store.read(KEY) == {"n": 1}
    with pytest.raises(BlockingIOError), open(root / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    store.release()
    assert not (root / ".lock").exists() and (root / f"{KEY}.json").exists()


def test_the_next_try_of_the_same_process_goes_on(tmp_path):
    first = Store(tmp_path / "cc.work")
    second = Store(tmp_path / "cc.work")  # what a kept traceback holds does not stand in its way
    del first
    gc.collect()
    assert (tmp_path / "cc.work" / ".lock").exists()
    second.write(KEY, {})
    second.release()
    second.release()
    assert sorted(p.name for p in (tmp_path / "cc.work").iterdir()) == [".winnow.json", f"{KEY}.json"]
    third = Store(tmp_path / "cc.work")
    third.discard(KEY)
    second.release()
    assert (tmp_path / "cc.work" / ".lock").exists()
    del third
    gc.collect()
    assert list(tmp_path.iterdir()) == []  # where there is nothing to go on from, nothing stays


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    script = (
        "import os, sys, time; from pathlib import Path; from winnow.run.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "child = os.fork()\n"
        "if not child:\n    del store\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n    os._exit(0)\n"
        "sys.stdin.readline()\n"
    )
    root = tmp_path / "cc.work"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(InputError, match="another run"):
            Store(root)
        process.kill()
        process.wait()
        Store(root).remove()
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_without_locks_it_goes_on(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    store = Store(tmp_path / "cc.work")
    store.write(KEY, {})
    assert sorted(p.name for p in store.root.iterdir()) == [".winnow.json", f"{KEY}.json"]
    store.remove()
    assert list(tmp_path.iterdir()) == []


def test_temporary_folders_hold_no_lock(tmp_path):
    """Their files travel between machines."""
    assert list(Store(tmp_path / "job").root.iterdir()) == []
