"""Where jobs run, without Ray."""

import subprocess
import sys

import pytest

from winnow.errors import InputError
from winnow.run.executor import Local, executor_named


def add(shared, item):
    if item < 0:
        raise ValueError("negative")
    return shared + item


def test_local_is_a_loop_over_the_items():
    told = []
    assert Local().map(add, 10, iter([3, 1, 2])) == [13, 11, 12]
    assert Local().map(add, 10, [3, 1], lambda index, result: told.append((index, result))) == [13, 11]
    assert told == [(0, 13), (1, 11)]
    assert Local().map(add, 10, []) == []
    assert Local.local


def test_local_tells_what_ended_before_an_error():
    told = []
    with pytest.raises(ValueError, match="negative"):
        Local().map(add, 10, [3, -1, 2], lambda *t: told.append(t))
    assert told == [(0, 13)]


def test_executors_by_name():
    assert isinstance(executor_named("local"), Local)
    with pytest.raises(InputError, match="no executor 'slurm': choose one of local, ray"):
        executor_named("slurm")
    with pytest.raises(InputError, match="local executor takes no workers, threads"):
        executor_named("local", workers=2, threads=1)
    with pytest.raises(InputError, match="ray executor takes no cores: its options are address, workers, threads"):
        executor_named("ray", cores=2)


def test_ray_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import of something absent comes to
    with pytest.raises(InputError, match=r"pip install 'winnow-nn\[ray\]'"):
        executor_named("ray")


def test_ray_is_not_imported_unless_asked_for():
    code = (
        "import sys, winnow, winnow.run.executor, winnow.run.executor_ray, winnow.tickets.search\n"
        "winnow.run.executor.executor_named('local').map(print, 1, [2])\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'ray']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
