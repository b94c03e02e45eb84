"""Every measure can fail: a model that was destroyed measures clearly worse, and no limit lets it pass."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import winnow
from small import classifier, images, points, save_llama, sentences, trained
from winnow.data import open_data
from winnow.errors import GateError, InputError
from winnow.measure.chance import at_chance, by_frequency, too_good
from winnow.measure.compare import Comparison, compare
from winnow.measure.prepare import prepare
from winnow.measure.quality import open_task, single_output
from winnow.models.source import open_model

QUICK = dict(baselines="none", speed=False, samples=64)


def body(inputs: int, outputs: int) -> nn.Sequential:
    torch.manual_seed(2)
    layers = [nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)]
    return nn.Sequential(*layers)


class Squeezed(nn.Module):
    """One number an example, as [n]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body(10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)[:, 0]


class Picture(nn.Module):
    """One channel an image, [n, 1, h, w]: a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 8), (8, 8), (8, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Series(nn.Module):
    """One number a position, [n, t, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def fitted(model: nn.Module, x: torch.Tensor, target: torch.Tensor, loss) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(x), target).backward()
        optimizer.step()
    return model.eval()


def _flat(n: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    x = torch.randn(n, 10)
    return x, x[:, 0] * 2 - x[:, 1] + 0.5 * x[:, 2] ** 2


def subject(kind: str):
    """(model, data as compress takes it, the metric expected)."""
    x, t = _flat()
    if kind == "regressor":
        return fitted(body(10, 1), x, t[:, None], F.mse_loss), (x, t), "R2"
    if kind == "regressor without scores":
        return fitted(body(10, 1), x, t[:, None], F.mse_loss), x, "R2"
    if kind == "squeezed":
        return fitted(Squeezed(), x, t, F.mse_loss), (x, t), "R2"
    if kind == "ratings":  # whole numbers, and not two classes
        stars = t.clamp(-2, 2).round() + 3
        return fitted(body(10, 1), x, stars[:, None], F.mse_loss), (x, stars.long()), "R2"
    if kind == "denoiser":
        pictures = images(200)[0]
        return fitted(Picture(), pictures, pictures, F.mse_loss), pictures, "R2"
    if kind == "series":
        s = torch.randn(200, 6, 4)
        return fitted(Series(), s, s.sum(-1, keepdim=True), F.mse_loss), s, "R2"
    y = (t > t.median()).long()
    if kind == "one logit":
        return fitted(body(10, 1), x, y[:, None].float(), F.binary_cross_entropy_with_logits), (x, y), "accuracy"
    if kind == "one logit, float labels":
        return (
            fitted(body(10, 1), x, y[:, None].float(), F.binary_cross_entropy_with_logits),
            (x, y.float()),
            "accuracy",
        )
    if kind == "one logit, signs":
        return (
            fitted(body(10, 1), x, y[:, None].float(), F.binary_cross_entropy_with_logits),
            (x, 2 * y - 1),
            "accuracy",
        )
    if kind == "one probability":
        model = nn.Sequential(*body(10, 1), nn.Sigmoid())
        return fitted(model, x, y[:, None].float(), F.binary_cross_entropy), (x, y), "accuracy"
    if kind == "classes":
        x, y = points(500)
        return trained(classifier(), x, y), (x, y), "accuracy"
    if kind == "agreement":
        x, y = points(500)
        return trained(classifier(), x, y), x, "agreement"
    raise AssertionError(kind)


KINDS = (
    "regressor", "regressor without scores", "squeezed", "ratings", "denoiser", "series", "one logit", "one logit, float labels",
    "one logit, signs", "one probability", "classes", "agreement",
)  # fmt: skip


def destroyed(model: nn.Module, how: str) -> nn.Module:
    wreck = copy.deepcopy(model)
    with torch.no_grad():
        for p in wreck.parameters():
            if p.ndim > 1:
                p.copy_(torch.zeros_like(p) if how == "zeroed" else p.flatten()[torch.randperm(p.numel())].view_as(p))
    return wreck


@pytest.mark.parametrize("kind", KINDS)
def test_a_destroyed_model_measures_clearly_worse(kind):
    model, data, metric = subject(kind)
    prepared = prepare(
        open_model(model), None, data, task="auto", column=None, label=None, samples=8, length=None, batch_size=8, seed=0,
        eval_limit=None, select=False, model=model,
    )  # fmt: skip
    task = prepared.task
    assert task.metric == metric
    reference = task.reference(model)
    assert at_chance(task, reference.evaluation) is None
    same = compare(reference.evaluation, task.evaluate(model, reference), higher_is_better=task.higher_is_better)
    assert same.drop == 0 and too_good(same) is None
    for how in ("zeroed", "shuffled"):
        wreck = task.evaluate(destroyed(model, how), reference)
        loss = compare(reference.evaluation, wreck, higher_is_better=task.higher_is_better)
        assert loss.low > 10 and wreck.value < reference.evaluation.value - 0.1, (how, loss)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_within_a_limit_is_near_the_dense_model(kind):
    """Whatever the limit lets pass stays near in an own loop; what is far from it is refused."""
    model, data, metric = subject(kind)
    try:
        result = winnow.compress(model, data, max_drop=15.0, method="magnitude", **QUICK)
    except GateError:
        return
    x = data[0] if isinstance(data, tuple) else data
    with torch.no_grad():
        dense, small = model(x), result.model(x)
    if metric == "R2":
        target = dense if not isinstance(data, tuple) or kind == "ratings" else data[1].view_as(dense)
        left = ((small - target) ** 2).mean() / (target - target.mean(0)).square().mean()
        assert left < 0.35
    else:
        answers = (dense > 0) == (small > 0) if dense.shape[-1] == 1 else dense.argmax(-1) == small.argmax(-1)
        if kind == "one probability":
            answers = (dense > 0.5) == (small > 0.5)
        assert answers.float().mean() > 0.75
    assert result.report.picked.drop_high <= 15.0


def test_r2_by_hand():
    x, t = _flat(60)
    model = body(10, 1).eval()
    records = open_data((x, t))
    task = open_task(records, model_kind="tensors", single=True)
    found = task.evaluate(model)
    with torch.no_grad():
        f = model(x)[:, 0].double().numpy()
    y = t.double().numpy()
    assert found.value == pytest.approx(1 - ((y - f) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-6)
    assert found.per_example.mean() == pytest.approx(found.value) and found.low <= found.value <= found.high
    assert found.details["mse"] == pytest.approx(((y - f) ** 2).mean(), rel=1e-6)
    # Several outputs, each about its own mean, against the dense model's.
    wide, other = body(10, 3).eval(), body(10, 3).eval()
    with torch.no_grad():
        other[4].weight *= 0.9
        a, b = wide(x).double().numpy(), other(x).double().numpy()
    task = open_task(open_data(x), model_kind="tensors", task="regression")
    value = task.evaluate(other, task.reference(wide)).value
    assert value == pytest.approx(1 - ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum(), rel=1e-5)


def test_outputs_that_are_one_number_are_seen():
    x = torch.randn(6, 10)
    cases = [(body(10, 1), x, True), (Squeezed(), x, True), (Picture(), images(4)[0], True), (body(10, 3), x, False)]
    for model, data, single in cases:
        assert single_output(model, open_data(data), model_kind="tensors") is single
    assert single_output(body(7, 1), open_data(x), model_kind="tensors") is None  # said where it is measured


def test_what_cannot_be_measured_so_is_refused_in_one_sentence():
    model, (x, t), _ = subject("regressor")
    with pytest.raises(InputError, match="two or more outputs"):
        winnow.compress(model, x, sparsity=0.5, task="agreement", **QUICK)
    with pytest.raises(InputError, match="task regression"):
        winnow.compress(model, (x, (t.round() + 9).long()), sparsity=0.5, task="classification", **QUICK)
    with pytest.raises(InputError, match="nothing can be explained"):
        winnow.compress(model, (x, torch.full_like(t, 0.25)), sparsity=0.5, **QUICK)
    with pytest.raises(InputError, match="3 numbers"):
        winnow.compress(body(10, 3), (x, t), sparsity=0.5, task="regression", **QUICK)


def test_a_yardstick_at_chance_is_said_and_no_limit_is_kept_by_it():
    x, y = points(400)
    untrained, mixed = classifier().eval(), np.random.default_rng(99).integers(0, 3, len(y))
    result = winnow.compress(trained(classifier(), x, y), (x, mixed), sparsity=0.5, **QUICK)
    assert "no better, with 95% confidence, than always" in result.report.verdict.sentence
    assert result.report.verdict.tone != "good"
    with pytest.raises(GateError, match="can show nothing"):
        winnow.compress(untrained, (x, mixed), max_drop=5, **QUICK)
    # The same answer whatever comes in: agreement with it is no proof.
    with torch.no_grad():
        untrained.head.bias[1] = 50.0
    result = winnow.compress(untrained, x, sparsity=0.9, **QUICK)
    assert "cannot fall" in result.report.verdict.sentence and result.report.picked.drop_high is not None
    assert not result.report.picked.drop_high <= 5
    with pytest.raises(GateError, match="cannot fall"):
        winnow.compress(untrained, x, max_drop=5, **QUICK)


def test_better_than_dense_is_a_sign_of_a_fault_and_not_praised():
    assert too_good(Comparison(-4.0, -6.0, -2.0, False, 100, "")) is not None
    assert too_good(Comparison(-4.0, -9.0, 1.0, False, 100, "")) is None  # by chance
    assert too_good(Comparison(-0.4, -0.5, -0.3, False, 10_000, "")) is None
    assert too_good(Comparison(float("nan"), float("nan"), float("nan"), False, 10, "")) is None


@pytest.mark.hf
def test_a_random_language_model_is_no_yardstick(tmp_path):
    pytest.importorskip("transformers")
    folder = save_llama(tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(sentences(200)))
    with pytest.raises(GateError, match="by the frequency of the tokens"):
        winnow.compress(folder, str(tmp_path / "a.txt"), max_drop=5, length=16, method="magnitude", **QUICK)


def test_perplexity_of_frequencies_by_hand():
    from winnow.measure.language import LanguageModelTask

    task = LanguageModelTask(torch.tensor([[0, 1, 1, 2], [0, 1, 3, 1]]))
    task.vocabulary = 5
    counts, total = {1: 4, 2: 1, 3: 1}, 6
    nll = -sum(c * np.log(c / (total - 1 + 5)) for c in counts.values()) / total
    assert by_frequency(task) == pytest.approx(float(np.exp(nll)))
