"""What is said before the work: what it will take, whether it fits on the disk, and what is odd about budget or data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import winnow
from small import classifier, points

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
