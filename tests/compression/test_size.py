"""--size: the file uses the bytes that were allowed, and whatever a rate reaches a size reaches too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import winnow
from small import classifier, convnet, points
from winnow.errors import InputError

QUICK = dict(baselines="none", speed=False, method="magnitude")


def written(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


@pytest.mark.parametrize("values", ["keep", "int8", "int4", "bf16"])
@pytest.mark.parametrize("make", [classifier, convnet, wide])
def test_the_file_of_a_rate_is_reached_by_its_size_and_used(make, values, tmp_path):
    model = make().eval()
    options = dict(QUICK, values=values, group_size=32)
    for rate in (0.35, 0.8, 0.97):
        at = tmp_path / f"rate-{rate}"
        winnow.compress(model, sparsity=rate, out=at, **options)
        size = written(at)
        for asked in (size, round(1.01 * size)):
            out = tmp_path / f"size-{asked}"
            result = winnow.compress(model, size=asked, out=out, **options)
            assert 0.98 * asked <= written(out) <= asked or not result.report.requested.zeros_reached
            assert result.report.sizes.file == written(out)


@pytest.mark.parametrize(
    "options", [dict(allocation="lamp"), dict(structure="block:4x4"), dict(score="wanda", group="row")]
)
def test_whatever_chooses_the_zeros(options, tmp_path):
    model, data = classifier(), points()[0]
    result = winnow.compress(
        model, data, size="16kB", task="none", samples=32, out=tmp_path / "out", **{**QUICK, **options}
    )
    assert 0.98 * 16_000 <= written(tmp_path / "out") <= 16_000
    assert result.report.requested.budget == "weights file of at most 16kB"


def test_a_size_below_what_stays_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="cannot be met"):
        winnow.compress(classifier(), size="4kB", out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_dense_weights_fit_takes_nothing_away(tmp_path):
    result = winnow.compress(classifier(), size="1MB", out=tmp_path / "out", **QUICK)
    assert result.report.requested.zeros_reached == 0
