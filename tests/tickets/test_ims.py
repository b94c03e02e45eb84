"""Instant Model Soup: candidates, the choice of their shares, and the dense training after it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from elsewhere import Elsewhere
from isp_samples import Killed, Killer, mlp, rows, training
from winnow.disk import files
from winnow.errors import FormatError
from winnow.measure.evaluation import Evaluation
from winnow.run.store import Store
from winnow.tickets.methods.ims import ImsSettings, _jobs, candidate, instant_model_soup
from winnow.train.task import run as run_module
from winnow.train.task.run import Run

FEW = {"sparsities": (0.2, 0.5), "look_ahead": 3, "grid": (0.0, 0.25, 0.5, 1.0)}


def held_out(model: nn.Module) -> float:
    """Minus the mean loss on rows that are not trained on."""
    assert not model.training
    x, y = rows(100, seed=9)
    return -float(nn.functional.cross_entropy(model(x), y).detach())


def plain() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def value_of(state) -> float:
    model = plain()
    model.load_state_dict(state)
    return held_out(model.eval())


@pytest.mark.parametrize("scope", ["all", "kept"])
def test_shares_against_trying_them_by_hand(scope):
    given = training(plain(), steps=6, lr=0.05)
    settings = ImsSettings(**FEW, ims_scope=scope)
    found = instant_model_soup(given, settings, validate=held_out)
    soup = {n: t.clone() for n, t in plain().state_dict().items()}
    assert found.start == pytest.approx(value_of(soup))
    best, alphas, metrics = value_of(soup), [], []
    for job in _jobs(given, settings):
        state, cost = candidate(given, job)
        zeros = sum(int((state[n] == 0).sum()) for n in ("0.weight", "2.weight"))
        assert zeros == job.zeros and cost.look_ahead == 3 and cost.weighted == pytest.approx(3 * (1 - job.zeros / 264))
        # The mask is that of the pretrained weights: the lowest magnitudes of both matrices together.
        theta = torch.cat([plain().state_dict()[n].abs().flatten() for n in ("0.weight", "2.weight")])
        limit = theta.sort().values[job.zeros]
        mixtures = {0.0: soup}
        for alpha in (0.25, 0.5, 1.0):
            mixtures[alpha] = {n: (1 - alpha) * t + alpha * state[n] for n, t in soup.items()}
            if scope == "kept":
                for n in ("0.weight", "2.weight"):
                    gone = plain().state_dict()[n].abs() < limit
                    mixtures[alpha][n] = torch.where(gone, soup[n], mixtures[alpha][n])
        values = {a: value_of(m) for a, m in mixtures.items()}
        alpha = max(values, key=lambda a: (round(values[a], 6), -a))
        soup, best = mixtures[alpha], values[alpha]
        alphas.append(alpha)
        metrics.append(best)
    assert found.alphas == alphas and any(alphas) and found.metrics == pytest.approx(metrics, abs=1e-5)
    run = Run(given)
    run.model.load_state_dict(soup)
    run.advance_to(6)
    for ours, theirs in zip(found.model.parameters(), run.model.parameters()):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert (found.cost.main, found.cost.look_ahead) == (6, 6) and found.evaluations == 1 + 2 * 3
    assert not found.model.training


def test_the_scopes_differ():
    given = training(plain(), steps=6, lr=0.05)
    models = [
        instant_model_soup(given, ImsSettings(**FEW, ims_scope=s), validate=held_out).model for s in ("all", "kept")
    ]
    assert not torch.equal(models[0][0].weight, models[1][0].weight)


@pytest.mark.parametrize("metric", [lambda model: 1.0, lambda model: float("nan")])
def test_candidates_that_do_not_help_are_left_out(metric):
    """Then it is the ordinary dense training, bit for bit; ties and NaN are no help."""
    given = training(steps=6)
    found = instant_model_soup(given, ImsSettings(**FEW), validate=metric)
    assert found.alphas == [0.0, 0.0]
    run = Run(given)
    run.advance_to(6)
    ours, theirs = found.model.state_dict(), run.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_batch_norms_of_a_mixture_are_its_own():
    """Running statistics are those of the mixture's activations on training examples, not a mixture of statistics."""
    given = training(steps=6, size=40)
    settings = ImsSettings(sparsities=(0.3,), look_ahead=3, grid=(0.5,), recalibrate=4)
    states = []

    def validate(model):
        states.append({n: t.clone() for n, t in model.state_dict().items()})
        return float(len(states))  # later is better: the mixture is taken

    found = instant_model_soup(given, settings, validate=validate)
    assert found.alphas == [0.5] and len(states) == 2
    start = mlp().state_dict()
    assert all(torch.equal(states[0][n], t) for n, t in start.items())
    mixed = states[1]
    x, _ = rows()
    hidden = x @ mixed["0.weight"].T + mixed["0.bias"]
    assert torch.allclose(mixed["1.running_mean"], hidden.mean(0), atol=1e-5)  # 4 x 40 rows: all of them
    assert torch.allclose(mixed["1.running_var"], hidden.var(0), rtol=0.2)
    assert not torch.allclose(start["1.running_mean"], mixed["1.running_mean"], atol=1e-2)
    run = Run(given)
    run.model.load_state_dict(mixed)
    run.advance_to(6)
    ours, theirs = found.model.state_dict(), run.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def same(a, b):
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert (a.alphas, a.metrics, a.start, a.evaluations) == (b.alphas, b.metrics, b.start, b.evaluations)
    assert (a.cost.main, a.cost.look_ahead, a.cost.weighted) == (b.cost.main, b.cost.look_ahead, b.cost.weighted)


def test_killed_anywhere_it_ends_equal(monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)
    killer = Killer(monkeypatch)
    given = training(steps=6)
    whole = instant_model_soup(given, ImsSettings(**FEW), validate=held_out)
    assert killer.taken == 2 * 3 + 6
    for at in range(killer.taken):
        store = Store(tmp_path / f"step-{at}")
        killer.arm(at)
        with pytest.raises(Killed):
            instant_model_soup(given, ImsSettings(**FEW), validate=held_out, store=store)
        killer.arm(-1)
        same(instant_model_soup(given, ImsSettings(**FEW), validate=held_out, store=store), whole)
        assert killer.taken == (12 - at // 3 * 3 if at < 6 else 12 - at)
    for at in (0, 2, 5):  # within the validations
        left = at

        def validate(model):
            nonlocal left
            left -= 1
            if left == -1:
                raise Killed
            return held_out(model)

        store = Store(tmp_path / f"validation-{at}")
        with pytest.raises(Killed):
            instant_model_soup(given, ImsSettings(**FEW), validate=validate, store=store)
        same(instant_model_soup(given, ImsSettings(**FEW), validate=held_out, store=store), whole)


def test_a_damaged_soup_is_named(tmp_path):
    given = training(steps=2)
    instant_model_soup(given, ImsSettings(**FEW), validate=held_out, store=Store(tmp_path))
    (file,) = tmp_path.rglob("soup.safetensors")
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(FormatError, match=r"delete it and run again\.$"):
        instant_model_soup(given, ImsSettings(**FEW), validate=held_out, store=Store(tmp_path))


def test_candidates_elsewhere_are_the_same():
    given = training(steps=4)
    here = instant_model_soup(given, ImsSettings(**FEW), validate=held_out)
    same(instant_model_soup(given, ImsSettings(**FEW), validate=held_out, executor=Elsewhere()), here)


def test_what_is_told():
    def evaluate(model):
        return Evaluation("accuracy", held_out(model), 0.0, 1.0, np.zeros(1), np.zeros(1), 1)

    told = []

    def progress(label):
        return lambda step, total, text: told.append((label, step, total))

    given = training(steps=2, evaluate=evaluate)
    found = instant_model_soup(given, ImsSettings(**FEW), validate=held_out, progress=progress)
    assert found.evaluation is not None and found.evaluation.value == pytest.approx(held_out(found.model))
    assert told == [("soup", 1, 2), ("soup", 2, 2), ("train", 1, 2), ("train", 2, 2)]


def test_settings():
    assert ImsSettings().sparsities == (0.1, 0.2, 0.3, 0.5) and ImsSettings().look_ahead == 100
    for wrong in ({"sparsities": ()}, {"sparsities": (1.0,)}, {"grid": (1.5,)}, {"ims_scope": "some"}):
        with pytest.raises(ValueError):
            ImsSettings(**wrong)
    assert math.isclose(sum(ImsSettings().grid), 5.5)
