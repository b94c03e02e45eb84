"""What is said before the work: what it will take, whether it fits on the disk, and what is odd about budget or data."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch

import winnow
from small import classifier, convnet, points
from winnow.compression import space, timing
from winnow.compression.job import Job
from winnow.compression.setup import set_up
from winnow.compression.stages import complete
from winnow.compression.timing import Group
from winnow.errors import InputError

QUICK = {"baselines": "none", "speed": False, "progress": False}


@pytest.mark.parametrize("labels", ["sorted", "mixed"])
def test_calibration_data_of_one_class_is_told(labels):
    x, y = points(300)
    if labels == "sorted":
        order = np.argsort(y, kind="stable")
        x, y = x[order][:80], y[order][:80]
    options = dict(eval=points(90, seed=5), sparsity=0.5, **QUICK)
    plan = winnow.compress(classifier(), (x, y), dry_run=True, **options)
    told = [note for note in plan.notes if "one label, 0: data sorted by class" in note and "shuffle" in note]
    assert len(told) == (labels == "sorted")
    if told:
        assert set(told) <= set(winnow.compress(classifier(), (x, y), **options).report.notes)
        hidden = torch.full((80,), -1)  # of a test set: there are none
        plan = winnow.compress(classifier(), (x, hidden), dry_run=True, **options)
        assert not any("one label" in note for note in plan.notes)


@pytest.mark.parametrize("budget", [{"bits_per_weight": 3.2}, {"size": "9.5kB"}, {"bits_per_weight": 12.0}])
def test_a_budget_that_zeros_alone_reach_names_the_data_types_that_need_fewer(budget):
    options = dict(**budget, **QUICK)
    plan = winnow.compress(classifier(), points(), dry_run=True, **options)
    told = [note for note in plan.notes if "zeros alone" in note]
    if budget.get("bits_per_weight") == 12.0:  # 66% sparsity
        assert not told
        return
    by_size = "size" in budget  # so small a file is mostly header, which is weighed in the run only
    assert by_size or len(told) == 1
    report = winnow.compress(classifier(), points(), **options).report
    said = re.search(
        r"takes ([\d.]+)% sparsity by zeros alone.*about (\d+)% with `--values int8`", report.verdict.sentence
    )
    assert said, report.verdict.sentence
    chosen = report.picked
    assert float(said[1]) == pytest.approx(100 * chosen.sparsity, abs=0.01) and chosen.sparsity > 0.9
    if by_size:
        return
    # The data type that is named comes to that sparsity for the same budget.
    narrower = winnow.compress(classifier(), points(), values="int8", **options).report.picked
    assert 100 * narrower.sparsity == pytest.approx(float(said[2]), abs=2)
    assert narrower.sparsity < chosen.sparsity


def test_a_disk_that_is_surely_too_small_is_told_before_any_work(tmp_path, monkeypatch):
    out, usage = tmp_path / "deep" / "out", shutil.disk_usage(tmp_path)
    options = dict(sparsity=0.5, out=out, speed=False, progress=False)
    needed = winnow.compress(classifier(), points(), dry_run=True, **options).disk
    result = winnow.compress(classifier(), points(), **options)
    packed = sum(o.pruned.bits_per_weight * 6912 / 8 for o in result.outcomes)
    assert needed == pytest.approx(packed + result.report.sizes.file, rel=0.05)
    other = {**options, "out": tmp_path / "other" / "out"}

    def free(bytes_):
        monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage._replace(free=bytes_))

    free(needed // 2)
    with pytest.raises(
        InputError, match=r"out will take about [\d.]+ kB of disk .* are free there: free some space, or choose"
    ):
        winnow.compress(classifier(), points(), **other)
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match=r"^the temporary folder will take"):
        winnow.compress(classifier(), points(), sparsity=0.5, speed=False, progress=False)
    free(needed)  # enough for the packed weights, whatever else is written
    assert winnow.compress(classifier(), points(), **other).folder == other["out"]


@pytest.mark.parametrize("build", [classifier, convnet])
def test_the_plan_counts_what_the_run_will_do(build, monkeypatch):
    """Seconds of this machine replaced by given ones: what is left are counts, which the run must bear out."""
    image = build is convnet
    x = torch.randn(200, 1, 12, 12) if image else points(200)[0]
    data = (x, torch.arange(200) % 3)
    monkeypatch.setattr(timing, "_forwards", lambda model, batches: 1000.0)
    monkeypatch.setattr(timing, "_evaluation", lambda model, task: 1e6)
    job = Job(build(), data, sparsity=0.5, method="alps", speed=False)
    complete(setup := set_up(job), 0.0)
    result = winnow.compress(build(), data, sparsity=0.5, method="alps", speed=False, progress=False)
    assert setup.plan.total_seconds == pytest.approx(
        1e6 * (1 + len(result.outcomes)), rel=0.02
    )  # dense, and all others
    groups = setup.timing.walks[True].groups
    layers = {(layer.rows, layer.cols) for layer in result.layers}
    assert {(g.rows, g.cols) for g in groups} == layers and setup.timing.walks[True].units == len(result.layers)
    assert setup.timing.norms == image


def test_alps_is_reckoned_by_its_operations(monkeypatch):
    """Of one second per operation: an eigendecomposition for each input, and products and selections for each step."""
    for name in ("product", "passes", "selection", "eigh", "cholesky"):
        monkeypatch.setattr(timing, name, lambda *shape: 0.0)
    recipe = set_up(Job(classifier(), points(), sparsity=0.5, method="alps", speed=False)).recipes[0]
    fresh, shared = Group(48, 24, True), Group(48, 24, False)
    for name, times in (("eigh", 1), ("selection", timing.ROUNDS["alps"])):
        monkeypatch.setattr(timing, name, lambda *shape: 1.0)
        assert timing.solving(recipe, fresh) == times
        assert timing.solving(recipe, shared) == (0 if name == "eigh" else times)
        monkeypatch.setattr(timing, name, lambda *shape: 0.0)
    assert timing.solving(recipe.model_copy(update={"solver": "sparsegpt"}), fresh) == 0.0
