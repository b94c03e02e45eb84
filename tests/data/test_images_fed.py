"""Images given as bytes: what the model sees of them is what the person says, and the plan says it too."""

import numpy as np
import pytest
import torch
from torch import nn

import winnow
from small import ConvNet, images, trained
from winnow.errors import InputError

MEAN, STD = (0.4,), (0.25,)
QUICK = dict(method="magnitude", sparsity=0.5, baselines="none", speed=False, samples=32)


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """uint8 [n, 8, 8] whose normalised values are close to ``x`` [n, 1, 8, 8]."""
    return (((x * STD[0] + MEAN[0]) * 255).round().clamp(0, 255)).to(torch.uint8).numpy()[:, 0]


@pytest.fixture(scope="module")
def fed():
    torch.manual_seed(0)
    x, y = images(160)
    given = as_bytes(x)
    seen = (torch.tensor(given).float()[:, None] / 255 - MEAN[0]) / STD[0]
    return trained(ConvNet(), seen, y), given, y, seen


def accuracy(model: nn.Module, x: torch.Tensor, y: np.ndarray) -> float:
    with torch.no_grad():
        return 100 * float((model(x).argmax(1).numpy() == y).mean())


def test_mean_and_deviation_are_used(fed):
    model, given, y, seen = fed
    result = winnow.compress(model, (given[80:], y[80:]), eval=(given[:80], y[:80]), mean=MEAN, std=STD, **QUICK)
    dense = next(c for c in result.report.candidates if c.kind == "dense")
    assert dense.quality == pytest.approx(accuracy(model, seen[:80], y[:80]))
    assert any("0.4" in n and "0.25" in n for n in result.report.remarks)
    measured = winnow.evaluate(model, (given[:80], y[:80]), mean="0.4", std="0.25")
    assert measured.value == pytest.approx(dense.quality)


def test_without_them_it_is_said_how_they_are_fed(fed):
    model, given, y, _ = fed
    plain = torch.tensor(given).float()[:, None] / 255
    measured = winnow.evaluate(model, (given[:80], y[:80]))
    assert measured.value == pytest.approx(accuracy(model, plain[:80], y[:80]))
    assert any("0 to 1" in n and "--mean" in n for n in measured.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(mean=0.4), "go together"), (dict(mean=102.0, std=64.0), "divide"), (dict(mean="a,b", std="1"), "no list"),
        (dict(mean=0.4, std=0.0), "above 0"), (dict(mean=float("nan"), std=0.2), "no list"),
    ],
)  # fmt: skip
def test_what_they_cannot_be(fed, options, words):
    model, given, y, _ = fed
    with pytest.raises(InputError, match=words):
        winnow.evaluate(model, (given[:40], y[:40]), **options)


def test_they_are_for_bytes(fed):
    model, _, y, seen = fed
    with pytest.raises(InputError, match="images given as bytes"):
        winnow.evaluate(model, (seen[:40], y[:40]), mean=0.4, std=0.2)
