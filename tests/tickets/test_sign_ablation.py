"""Learned signs against learned magnitudes: the draws by hand, the trainings of the built-in data, the page."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch import nn

import winnow.train.task.run as run_module
from command import winnow
from ticket_inputs import save_bert, sentences, trainer, write_csv
from winnow.demo_data import digits, digits_mlp
from winnow.errors import InputError
from winnow.records.signs import SignReport
from winnow.report.signs.chart import LOOKS
from winnow.report.signs.page import read
from winnow.report.signs.view import view
from winnow.tickets import sign_ablation, training_from
from winnow.tickets.signs.arms import NAMES, drawn, starts
from winnow.train.task.training import sgd


def test_random_weights_have_the_variance_of_their_kept_fan_in():
    keeps = {
        "wide": torch.rand(400, 300, generator=torch.Generator().manual_seed(0)) < 0.1,
        "thin": torch.zeros(200, 200, dtype=torch.bool),
    }
    keeps["thin"][0, 0] = True
    draw = drawn(keeps, 3)
    fan_in = np.mean([sum(row) for row in keeps["wide"].tolist()])
    assert float(draw["wide"].std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
    assert float(draw["thin"].std()) == pytest.approx(math.sqrt(2), rel=0.02)  # never less than one input
    assert abs(float(draw["wide"].mean())) < 0.01
    assert torch.equal(draw["wide"], drawn(keeps, 3)["wide"]) and not torch.equal(draw["wide"], drawn(keeps, 4)["wide"])


def test_arms_share_signs_and_magnitudes_in_pairs():
    learned, draw = {"w": torch.tensor([[1.5, -0.25, 0.5, -2.0]])}, {"w": torch.tensor([[0.1, 0.2, -0.3, -0.4]])}
    begun = starts(learned, {"w": torch.tensor([[9.0, 9, 9, 9]])}, draw)
    assert {n: w["w"].flatten().tolist() for n, w in begun.items()} == {
        "signs": pytest.approx([0.1, -0.2, 0.3, -0.4]), "magnitudes": [1.5, 0.25, -0.5, -2.0],
        "random": pytest.approx([0.1, 0.2, -0.3, -0.4]), "sign-in": pytest.approx([0.1, 0.2, -0.3, -0.4]), "initial": [9.0] * 4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> SignReport:
    """The verb itself, on built-in data, at a size that takes seconds."""
    out = tmp_path_factory.mktemp("signs") / "out"
    done = winnow("signs", "--sparsity", "90%,98%", "--seeds", "3", "--epochs", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "98% sparsity\n" in done.stdout and "learned signs, less learned magnitudes" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == [".winnow.json", "signs.html", "signs.json"]
    assert not out.with_name("out.work").exists()
    found = read(out)
    assert "winnow signs" in found.command and (out / "signs.html").read_text() == view(found).html()
    return found


def test_the_ordering_of_the_published_ablation(report):
    """Signs carry a mask, magnitudes do not (Gadhikar et al. 2025): learned signs are far ahead of random ones."""
    loss = {a.name: a.loss.value for a in report.arms if a.sparsity == 0.98}
    assert loss["signs"] < min(loss["magnitudes"], loss["random"], loss["sign-in"])
    assert loss["sign-in"] < loss["random"]  # and Sign-In trains the random start further
    reached = {a.name: a.figure.value for a in report.arms if a.sparsity == 0.98}
    assert reached["signs"] > reached["magnitudes"] + 5 and report.verdict.answer == "Signs matter more"


def test_figures_are_those_of_the_seeds(report):
    assert set(LOOKS) == set(NAMES)  # each is drawn in a way of its own
    assert report.seeds == [0, 1, 2] and report.levels == [0.9, 0.98] and [a.name for a in report.arms] == [*NAMES] * 2
    arms = {(a.name, a.sparsity): a for a in report.arms}
    for c in report.contrasts:
        one, other = arms[c.first, c.sparsity].values, arms[c.second, c.sparsity].values
        test = ttest_rel(one, other)
        low, high = test.confidence_interval()
        assert (c.gain.value, c.gain.low, c.gain.high) == pytest.approx((np.mean(one) - np.mean(other), low, high))
    for (name, sparsity), arm in arms.items():
        assert arm.figure.value == pytest.approx(np.mean(arm.values)) and len(set(arm.values)) > 1
        run = next(r for r in report.runs if (r.name, r.sparsity) == (name, sparsity))
        assert run.seeds == 3 and [p.step for p in run.points][-1] == report.steps
        assert run.points[-1].kept == 3 * (report.model.prunable - arm.zeros)  # exact, over the seeds
    at = {r.name: r.points[0] for r in report.runs if r.sparsity == 0.98}
    assert at["signs"].alignment == 1.0 and abs(at["random"].alignment - 0.5) < 0.1 and at["teacher"].alignment is None
    assert at["initial"].alignment > 0.8  # magnitude pruning keeps what hardly had to turn
    assert {r.name for r in report.runs if any(p.health is not None for p in r.points)} == {"sign-in"}


def test_an_ablation_that_was_killed_goes_on(tmp_path, monkeypatch):
    """With every training that had ended, and the same figures in the end."""
    given = dict(sparsity=0.9, seeds=1, epochs=1, progress=False)
    whole = sign_ablation(**given)
    steps, real = [], run_module.Run.one

    def one(self, optimizer, step, stream, share=1.0):
        steps.append(step)
        if len(steps) == limit:
            raise KeyboardInterrupt
        return real(self, optimizer, step, stream, share)

    monkeypatch.setattr(run_module.Run, "one", one)
    limit = 3 * whole.steps + 2
    with pytest.raises(KeyboardInterrupt):
        sign_ablation(**given, out=tmp_path / "out")
    done, limit = len(steps), 0
    found = sign_ablation(**given, out=tmp_path / "out")
    assert len(steps) - done == 3 * whole.steps  # three trainings of six had ended
    assert (found.arms, found.runs) == (whole.arms, whole.runs)
    with pytest.raises(InputError, match=r"finished result of another command \(its seeds: 0, here: 0, 1\)"):
        sign_ablation(**(given | {"seeds": 2}), out=tmp_path / "out")


def test_models_of_other_kinds(tmp_path):
    """A function, of which every seed gets weights of its own; a folder, from which every seed starts; one seed, no intervals."""
    (images, labels), (test, answers) = (digits()[part] for part in ("calibration", "test"))
    data, held = {"images": images, "labels": labels}, {"images": test, "labels": answers}
    made = []

    def factory() -> nn.Module:
        made.append(digits_mlp())
        return made[-1]

    found = sign_ablation(
        factory, data, eval=held, sparsity="80%", seeds=2, steps=3, batch=64, lr=0.1, optimizer=sgd, progress=False
    )
    weights = [m.fc1.weight.detach() for m in made]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(
        weights[1], weights[2]
    )  # read once, then a model a seed
    assert found.arms[0].figure.low is None and found.verdict.answer == "Not told apart" and "DigitsMLP" in found.title
    found = sign_ablation(trainer(tmp_path), sparsity=0.5, seeds=1, progress=False)
    assert found.steps == 10 and "BertForSequenceClassification" in found.title
    rows = write_csv(tmp_path / "rows.csv", sentences(60))
    folder = save_bert(tmp_path / "bert")
    found = sign_ablation(folder, rows, sparsity=0.5, seeds=1, steps=2, batch=8, progress=False, out=tmp_path / "out")
    assert any("every seed starts from the same weights" in note for note in found.notes)
    assert str(tmp_path) not in (tmp_path / "out" / "signs.html").read_text()
    assert json.loads((tmp_path / "out" / "signs.json").read_text())["model"]["name"] == "bert"


@pytest.mark.parametrize(
    "given, says",
    [
        (dict(seeds=0), "seeds=1 or more"),
        (dict(sparsity=0), "removes nothing"),
        (dict(data="train.npz"), "no model: give the model"),
        (dict(task="none"), "give labelled data, or evaluation data"),
        (dict(steps=3, epochs=2), "mutually exclusive"),
        (dict(model="training", batch=3), "leave the rest out"),
    ],
)
def test_mistakes_name_their_fix(given, says):
    if given.get("model") == "training":
        images, labels = digits()["calibration"]
        given = given | {"model": training_from(digits_mlp(), {"images": images, "labels": labels}, steps=2)}
    with pytest.raises(InputError, match=says):
        sign_ablation(**given, progress=False)
