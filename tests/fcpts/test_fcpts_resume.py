"""Training that was killed goes on from its checkpoint and ends bit-for-bit equal to training that was not."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import winnow
from places import SUPPORT
from small import convnet, images, trained
from winnow.train.distil import loop

STEPS = 17


class Killed(Exception):
    pass


def weights_file(folder: Path) -> bytes:
    return (folder / "model.winnow.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)


@pytest.fixture(scope="module")
def model():
    return trained(convnet(), *images())


def kill_at(monkeypatch, step):
    """The next run stops at this step of whatever loop reaches it first; later ones do not."""
    work, left = loop.Loop._step, [step]

    def counted(self, done):
        if left[0] == 0:
            left[0] = -1
            raise Killed
        left[0] -= 1
        return work(self, done)

    monkeypatch.setattr(loop.Loop, "_step", counted)


def compress(model, out, **options):
    settings = {"steps": STEPS, "refresh": 5, **options.pop("settings", {})}
    if options["method"] == "distil":
        del settings["refresh"]
    return winnow.compress(
        model, images(), sparsity=0.7, baselines="none", speed=False, out=out, settings=settings, task="none", **options
    )


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for method in ("fcpts", "distil"):
        compress(model, folder / method, method=method)
    return folder


@pytest.mark.parametrize(
    ("method", "step"), [("fcpts", 0), ("fcpts", 5), ("fcpts", 8), ("fcpts", STEPS - 1), ("distil", 6)]
)
def test_resumed_is_bit_for_bit_equal(model, whole, tmp_path, monkeypatch, method, step):
    kill_at(monkeypatch, step)
    with pytest.raises(Killed):
        compress(model, tmp_path / "cut", method=method)
    # Learned masks are stored where the bridge has just looked at the weights, every 5 steps here.
    stored = step if method == "distil" else step // 5 * 5
    assert bool(list((tmp_path / "cut.work").rglob("fit.safetensors"))) is (stored > 0)
    taken = []
    work = loop.Loop._step
    monkeypatch.setattr(loop.Loop, "_step", lambda self, done: (taken.append(1), work(self, done)))
    compress(model, tmp_path / "cut", method=method)
    assert len(taken) == STEPS - stored
    for file in ("model.winnow.safetensors", "recipe.yaml"):
        assert (tmp_path / "cut" / file).read_bytes() == (whole / method / file).read_bytes()
    assert not (tmp_path / "cut.work").exists()


def test_other_seeds_are_resumed_too(model, tmp_path, monkeypatch):
    settings = {"seeds": 2}
    whole = compress(model, tmp_path / "whole", method="fcpts", settings=settings).report.allocation
    kill_at(monkeypatch, STEPS + 6)
    with pytest.raises(Killed):
        compress(model, tmp_path / "cut", method="fcpts", settings=settings)
    cut = compress(model, tmp_path / "cut", method="fcpts", settings=settings).report.allocation
    assert [x.rates for x in cut.layers] == [x.rates for x in whole.layers]
    assert cut.losses == whole.losses
    assert weights_file(tmp_path / "cut") == weights_file(tmp_path / "whole")


def test_a_time_limit_counts_what_was_spent_before(model, tmp_path, monkeypatch):
    ticks = itertools.count()  # a clock of its own: every look at it takes a tick
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 1000))

    def run(name):
        return winnow.compress(
            model, images(), sparsity=0.7, method="distil", time=0.3, baselines="none", speed=False, task="none", out=tmp_path / name
        ).report.allocation  # fmt: skip

    whole = run("whole")
    assert 0.3 <= whole.seconds < 0.32 and whole.steps > 20
    kill_at(monkeypatch, whole.steps // 2)
    with pytest.raises(Killed):
        run("cut")
    cut = run("cut")
    assert abs(cut.steps - whole.steps) <= 1 and 0.3 <= cut.seconds < 0.32


def test_candidates_that_differ_in_values_share_one_training(model, monkeypatch):
    trainings = []
    work = loop.Loop.run
    monkeypatch.setattr(loop.Loop, "run", lambda self: (trainings.append(1), work(self))[1])
    result = winnow.compress(
        model, images(), eval=images(seed=3), sparsity=0.7, method="fcpts", settings={"steps": 4}, speed=False
    )
    names = {o.name for o in result.outcomes if o.candidate.kind.startswith("pruned")}
    assert names == {"s70", "s70-int8", "s70-int4-g128"} and len(trainings) == 1
    masks = [o.pruned.packed("conv2.weight").keep() for o in result.outcomes if o.name in names]
    assert all(torch.equal(m, masks[0]) for m in masks)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from small import convnet, images, trained
import winnow
from winnow.train.distil import loop
loop.SAVE_EVERY = -1.0
work = loop.Loop._step
def told(self, done):
    print("step", flush=True)
    return work(self, done)
loop.Loop._step = told
winnow.compress(
    trained(convnet(), *images()), images(), sparsity=0.8, method="fcpts", settings=dict(steps=60, refresh=7),
    task="none", baselines="none", speed=False, out={out!r},
)
"""


def start(out: Path) -> subprocess.Popen:
    script = SCRIPT.format(tests=str(SUPPORT), out=str(out))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.slow
def test_a_killed_process_started_again_ends_equal(tmp_path):
    whole, _ = start(tmp_path / "whole").communicate(timeout=300)
    assert whole.split().count("step") == 60
    process = start(tmp_path / "cut")
    assert process.stdout is not None
    for _ in range(25):
        assert process.stdout.readline().strip() == "step"
    time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rest, _ = start(tmp_path / "cut").communicate(timeout=300)
    spared = 60 - rest.split().count("step")
    assert spared >= 21 and spared % 7 == 0
    assert weights_file(tmp_path / "cut") == weights_file(tmp_path / "whole")
