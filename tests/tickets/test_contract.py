"""What holds of every ticket method in the registry: a new one is found here by its line there."""

import inspect
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import winnow.train.task.run
from baseline_samples import QUICK, Killed, find, killed_again_and_again, same, task
from winnow.errors import InputError
from winnow.run.store import Store
from winnow.tickets import METHODS, find_ticket
from winnow.tickets.reporting import build

NUMEL = 10 * 12 + 12 * 12
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shares=st.lists(st.floats(0.004, 0.97), min_size=1, max_size=2, unique_by=lambda s: round(s * NUMEL)))
def test_zeros_are_exact(method, shares):
    shares = [0.0] if method == "dense" else sorted(shares)
    for ticket, share in zip(find(method, task(steps=8, rows=12), shares), shares, strict=True):
        kept = {n: m.unpack() for n, m in ticket.masks.items()}
        assert ticket.zeros == min(round(share * NUMEL), NUMEL - 1) == sum(int((~k).sum()) for k in kept.values())
        for name, keep in kept.items():  # m * theta: zero wherever the mask says so
            assert not bool(ticket.model.get_parameter(name).detach()[~keep].any())
        assert not ticket.model.training


@every_method
def test_the_seed_alone_decides_and_nothing_of_the_callers_changes(method):
    training, tickets = task(steps=8), []
    before = {n: t.clone() for n, t in training.model.state_dict().items()}
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.get_rng_state()
        tickets.append(find(method, training, [0.5]))
        assert torch.equal(torch.get_rng_state(), expected)
    same(*tickets)
    assert all(torch.equal(t, before[n]) for n, t in training.model.state_dict().items())
    assert all(p.grad is None for p in training.model.parameters())


@every_method
@pytest.mark.parametrize(("every", "after"), [(-1.0, 2), (1e9, 13)])  # saved at every step, or at ends only
def test_killed_and_resumed_equals_uninterrupted(method, every, after, tmp_path, monkeypatch):
    if method == "dense" and every > 0:
        pytest.skip("one training is over before it is killed")
    monkeypatch.setattr(winnow.train.task.run, "SAVE_EVERY", every)
    training, targets, store = task(steps=8), [0.4, 0.8], Store(tmp_path / "work")
    resumed = killed_again_and_again(method, training, targets, store, after)
    same(resumed, find(method, training, targets))
    assert {f.name for f in tmp_path.rglob("*.safetensors")} <= {"run.safetensors", "next.safetensors"}

    def never(step, total, text):
        raise Killed

    same(resumed, find(method, training, targets, store=store, progress=lambda label: never))  # not one step again


@every_method
def test_priced(method):
    """Before it starts: the steps that it takes, at full length and shortened for a trial."""
    own, rate = METHODS[method], 0.0 if method == "dense" else 0.7
    kept = own.settings_class(**QUICK.get(method, {}))
    for steps, chosen in ((24, kept), (8, kept.shortened(rate, 8, 1 / 3))):
        (ticket,) = find(method, task(steps=steps), [rate], **chosen.model_dump())
        assert ticket.cost.steps == own.planned_steps(chosen, task(steps=steps), rate) >= steps


@every_method
def test_documented(method):
    own = METHODS[method]
    assert own.finder.__doc__ and own.settings_class.__doc__
    assert own.title not in [METHODS[m].title for m in METHODS if m != method]
    assert own.meaning and not own.meaning.endswith(".")
    for kind in own.settings_class.__mro__[:-1]:  # a comment or the class's own words for every setting
        if kind.__module__.startswith("winnow"):
            lines = inspect.getsource(kind).splitlines()
            for name in inspect.get_annotations(kind):
                at = next(i for i, line in enumerate(lines) if re.match(rf"    {name}: ", line))
                assert "#" in lines[at] + lines[at - 1] or f"``{name}``" in (kind.__doc__ or ""), f"{kind}: {name}"
    (ticket,) = find(method, task(steps=8), [0.0 if method == "dense" else 0.5])
    line = build([ticket], None, task(steps=8)).described[method]
    assert (line.title, line.meaning) == (own.title, own.meaning)
    with pytest.raises(InputError, match=rf"choose one of ticket,.*[ ,(]{method}[ ,]"):
        find_ticket(None, sparsity=0.5, method="no such")
