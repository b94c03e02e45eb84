"""A killed run, started again, continues where it stood and ends bit-for-bit equal to an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import winnow
from places import SUPPORT
from small import points

SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from small import classifier, points, trained
import winnow
from winnow.compression import prune
work = prune.Pruner._prune
def slower(*args, **kwargs):  # so that a kill lands inside the run, wherever that is
    print("block", flush=True)
    time.sleep(0.05)
    return work(*args, **kwargs)
prune.Pruner._prune = slower
model = trained(classifier(), *points())
winnow.compress(model, points(), eval=points(seed=5), sparsity=0.6, method="sparsegpt", samples=64, out={out!r})
print("done", flush=True)
"""


def start(out: Path) -> subprocess.Popen:
    script = SCRIPT.format(tests=str(SUPPORT), out=str(out))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)


def finish(process: subprocess.Popen) -> list[str]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return out.split()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    blocks = finish(start(out)).count("block")
    return out, blocks


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_is_bit_for_bit_equal(uninterrupted, tmp_path):
    whole, blocks = uninterrupted
    out, rng = tmp_path / "out", random.Random(0)
    done_before_kill = 0
    for _ in range(2):
        process = start(out)
        assert process.stdout is not None
        for _ in range(rng.randint(2, blocks // 2 - 2)):
            assert process.stdout.readline().strip() == "block"
            done_before_kill += 1
        time.sleep(rng.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists() and (tmp_path / "out.work").is_dir()
    rest = finish(start(out)).count("block")
    # Each kill costs at most the block it interrupted.
    assert blocks - done_before_kill <= rest <= blocks - done_before_kill + 2
    assert (out / "model.winnow.safetensors").read_bytes() == (whole / "model.winnow.safetensors").read_bytes()
    left = {p.name for p in (tmp_path / "out.work").iterdir()}  # the candidates that were not written, and nothing else
    assert all(name == ".winnow.json" or name.startswith("candidate-") for name in left)


def test_another_recipe_never_takes_over_stored_blocks(tmp_path):
    from small import classifier
    from winnow.run.store import Store, stage_key

    a = stage_key("prune", recipe={"zeros": 1}, model="x")
    assert a == stage_key("prune", model="x", recipe={"zeros": 1})
    assert a != stage_key("prune", recipe={"zeros": 2}, model="x")
    assert a != stage_key("prune", recipe={"zeros": 1}, model="y")
    store = Store(tmp_path / "s")
    assert store.read(a) is None
    store.write(a, {"v": [1, 2]})
    assert store.read(a) == {"v": [1, 2]}
    (tmp_path / "s" / f"{a}.json").write_text("{half")
    assert store.read(a) is None
    model = classifier()
    result = winnow.compress(model, points(), sparsity=0.5, method="wanda", baselines="none", samples=32)
    again = winnow.compress(model, points(), sparsity=0.5, method="wanda", baselines="none", samples=64)
    assert not torch.equal(result.model.blocks[2].up.weight, again.model.blocks[2].up.weight)
