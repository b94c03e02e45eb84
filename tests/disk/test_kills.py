"""A kill at any point, or a disk that fills up, costs nothing but time: the same command again ends as if nothing had been."""

import os
import random
import signal
import subprocess
import sys

import pytest

from accidents import Forge, figures, give
from winnow.errors import WinnowError, disk_errors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def forge():
    made = Forge()
    yield made
    made.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return give(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def whole(forge, given, tmp_path_factory):
    """Of a job: what it writes when nothing happens, how many operations it takes, and how many seconds; and in ``beside``
    what it leaves beside that."""
    known, beside = {}, {}

    def found(job):
        if job not in known:
            out = tmp_path_factory.mktemp("whole") / "out"
            code, said, count, seconds = forge(job, out, given)
            assert code == 0, said
            known[job], beside[job] = (figures(out), count, seconds), figures(out.with_name("out.work"))
        return known[job]

    found.beside = beside

    return found


def ends_the_same(forge, job, out, given, right, beside):
    code, said, _, _ = forge(job, out, given)
    assert code == 0, said
    assert figures(out) == right
    assert figures(out.with_name("out.work")) == beside[job]  # of a compression, its other candidates
    left = [p.name for p in out.parent.iterdir() if p.name != "out.work" or not beside[job]]
    assert left == ["out"]


@pytest.mark.parametrize("before", ["nothing", "an output"])
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.long])])
def test_a_kill_before_every_operation(forge, given, whole, tmp_path, before, step):
    """Of the least job that owns an output: made, marked, filled, published, cleaned up, with and without a folder to replace."""
    right, count, _ = whole("place")
    if before == "an output":
        out = tmp_path / "counted" / "out"
        assert forge("place", out, given)[0] == 0
        count = forge("place", out, given)[2]
    assert count > 40
    for at in range(random.Random(before).randint(1, step), count + 1, step):
        out = tmp_path / str(at) / "out"
        if before == "an output":
            assert forge("place", out, given)[0] == 0
        code, said, _, _ = forge("place", out, given, at=at)
        assert code == -signal.SIGKILL, (at, said)
        ends_the_same(forge, "place", out, given, right, whole.beside)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.long])])
def test_no_space_at_any_operation(forge, given, whole, tmp_path, step):
    """Of the least job again: told in one sentence, or made up for; the output of before is there, whole, at every moment."""
    right, _, _ = whole("place")
    out = tmp_path / "out"
    assert forge("place", out, given)[0] == 0
    count = forge("place", out, given)[2]
    for at in range(random.Random(step).randint(1, step), count + 1, step):
        code, said, _, _ = forge("place", out, given, full=at)
        assert code in (0, 1, 2) and "\n" not in said and (code == 0) == (not said), (at, said)
        assert figures(out) == right, at
    ends_the_same(forge, "place", out, given, right, whole.beside)


@pytest.mark.parametrize(("job", "times"), [("compress", 4), ("export", 6), ("find_ticket", 2), ("run", 2)])
def test_the_disk_fills_up(forge, given, whole, tmp_path, job, times):
    """One sentence, exit code 1 (2 where it is seen before the work), the earlier output whole; with space again it ends the same."""
    right, count, _ = whole(job)
    out, rng = tmp_path / "out", random.Random(job)
    assert forge(job, out, given)[0] == 0
    for at in sorted(rng.sample(range(1, count), times)):
        code, said, _, _ = forge(job, out, given, full=at)
        assert code in (0, 1, 2) and "\n" not in said, said
        assert code == 0 or said, at
        assert figures(out) == right
    ends_the_same(forge, job, out, given, right, whole.beside)


@pytest.mark.parametrize(
    ("job", "sizes"), [("compress", (0, 3000)), ("export", (0, 3000)), ("find_ticket", (3000,)), ("run", (3000,))]
)
def test_the_system_refuses_to_let_files_grow(forge, given, whole, tmp_path, job, sizes):
    """The same by the kernel, for writers in other languages too."""
    pytest.importorskip("resource")
    right, _, _ = whole(job)
    out = tmp_path / "out"
    for largest in sizes:
        code, said, _, _ = forge(job, out, given, largest=largest)
        assert code in (1, 2) and said and "\n" not in said, said
        assert not out.exists()
    ends_the_same(forge, job, out, given, right, whole.beside)


@pytest.mark.parametrize("job", ["compress", "export"])
def test_killed_twice(forge, given, whole, tmp_path, job):
    _kills(forge, given, whole, tmp_path, job, random.Random(f"twice {job}"), 1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("job", ["compress", "export", "find_ticket", "run"])
def test_forty_kills(forge, given, whole, tmp_path, job):
    """Ten for every verb, by operations and by time, in new outputs and over earlier ones, some of them twice in a row."""
    _kills(forge, given, whole, tmp_path, job, random.Random(f"forty {job}"), 10)


def _kills(forge, given, whole, tmp_path, job, rng, times):
    right, count, seconds = whole(job)
    for number in range(times):
        out = tmp_path / str(number) / "out"
        if number % 3 == 2:
            assert forge(job, out, given)[0] == 0
        if number % 5 == 4:
            forge(job, out, given, after=rng.uniform(0, seconds))
        else:
            low = count * number // times  # spread, the end included, where folders get their names and work goes away
            code, said, _, _ = forge(
                job, out, given, at=rng.randint(low + 1, max(low + 1, count * (number + 1) // times - 1))
            )
            assert code == -signal.SIGKILL or (code == 0 and number % 3 == 2), said
        if number % 2 == 0:
            forge(job, out, given, at=rng.randint(1, count))
        ends_the_same(forge, job, out, given, right, whole.beside)


OUTSIDE = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from winnow.errors import disk_errors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with disk_errors(Path(sys.argv[1])):
    save_file({"a": torch.zeros(10000)}, sys.argv[1])
"""


def test_what_other_libraries_say_of_the_disk_is_one_sentence(tmp_path):
    """safetensors and tokenizers raise exceptions of their own, which carry the system's number in words."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", OUTSIDE, tmp_path / "a"], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("winnow.errors.WinnowError: ") and "cannot be written" in last
    for number, says in ((28, "the disk is full"), (13, "no permission"), (30, "no permission"), (5, "check the path and the disk")):  # fmt: skip
        with pytest.raises(WinnowError, match=says), disk_errors(tmp_path / "a"):
            raise RuntimeError(f"I/O error: something (os error {number})")
    with pytest.raises(RuntimeError, match="of another kind"), disk_errors(tmp_path / "a"):
        raise RuntimeError("of another kind")
