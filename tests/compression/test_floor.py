"""A quality that the dense model itself does not have is refused before the work that could not reach it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import winnow
from command import refused
from command import winnow as command
from small import classifier, points, trained, write_points
from winnow.compression.prune import Pruner
from winnow.compression.verb import require_floor
from winnow.errors import GateError, InputError

X, Y = points(60, seed=5)
Y = np.where(np.arange(60) < 6, (Y + 1) % 3, Y)  # six that no model gets right


@pytest.fixture(scope="module")
def model():
    return trained(classifier(), *points())


@pytest.mark.parametrize("budget", [dict(sparsity=0.5), dict(max_drop=20)])
def test_a_floor_above_the_dense_model_is_said_before_the_work(model, tmp_path, monkeypatch, budget):
    monkeypatch.setattr(Pruner, "run", lambda *_: pytest.fail("pruned"))
    with torch.no_grad():
        own = 100 * float((model(X).argmax(1) == torch.as_tensor(Y)).double().mean())
    assert 50 < own < 100
    job = dict(data=points(), eval=(X, Y), method="magnitude", out=tmp_path / "out", **budget)
    with pytest.raises(GateError, match=rf"the dense model itself reaches accuracy {own:.2f}%: no compression can satisfy floor=99\.9") as error:  # fmt: skip
        winnow.compress(model, floor=99.9, **job)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
    with pytest.raises(pytest.fail.Exception):  # at the floor itself there is work to do
        winnow.compress(model, floor=own, **job)


def test_where_lower_is_better():
    task = SimpleNamespace(scale=1.0, metric="perplexity", higher_is_better=False, unit="")
    setup = SimpleNamespace(job=SimpleNamespace(floor=40.0), prepared=SimpleNamespace(task=task))
    with pytest.raises(GateError, match=r"perplexity 43\.20: no compression can satisfy floor=40.* a floor above that"):
        require_floor(setup, SimpleNamespace(value=43.2))
    require_floor(setup, SimpleNamespace(value=40.0))
    with pytest.raises(GateError, match="not a number"):
        require_floor(setup, SimpleNamespace(value=math.nan))


def test_on_the_command_line(tmp_path):
    write_points(tmp_path, 80, 60)
    job = [
        "compress",
        "small:classifier",
        "--data",
        "train.npz",
        "--eval",
        "test.npz",
        "--sparsity",
        "0.5",
        "--out",
        "out",
    ]
    said = refused(command(*job, "--floor", "99.9", cwd=tmp_path), 3)
    assert "no compression can satisfy --floor 99.9" in said
    with np.load(tmp_path / "test.npz") as data, torch.no_grad():
        own = 100 * np.mean(classifier()(torch.tensor(data["x"])).argmax(1).numpy() == data["y"])
    assert f"reaches accuracy {own:.2f}" in said


def test_a_floor_without_a_measure_is_refused(model):
    with pytest.raises(InputError, match="floor needs data to measure on"):
        winnow.compress(model, None, sparsity=0.5, method="magnitude", floor=80)
