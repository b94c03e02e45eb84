"""Masks chosen once, gradual and progressive pruning, EarlyBird."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import winnow.tickets.methods.earlybird
from baseline_samples import find, network, same, task
from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.run.store import Store
from winnow.tickets.methods.earlybird import EarlyBirdSettings, distance, largest_distance
from winnow.tickets.search import Search
from winnow.train.attach import attach
from winnow.train.methods.gradual import Gradual

NUMEL = 10 * 12 + 12 * 12


def test_magnitude_takes_the_smallest_pretrained_weights():
    training = task(steps=1)
    (ticket,) = find("magnitude", training, [0.7])
    start = torch.cat([training.model[i].weight.detach().abs().flatten() for i in (0, 3)])
    kept = torch.cat([m.unpack().flatten() for m in ticket.masks.values()])
    assert float(start[kept].min()) >= float(start[~kept].max())
    assert (ticket.cost.main, ticket.cost.steps) == (1, 1)


def test_random_masks_depend_on_the_seed_alone():
    masks = [find("random", task(steps=1, seed=seed), [0.5])[0].masks for seed in (0, 0, 1)]
    assert dict(masks[0]) == dict(masks[1]) != dict(masks[2])
    per_layer = masks[0].table
    assert all(0.3 < layer.sparsity < 0.7 for layer in per_layer)  # not by magnitude, not layer by layer
    assert {layer.zeros for layer in per_layer} != {60, 72}


# Gradual and progressive


def test_gradual_follows_the_cubic():
    steps, target = 24, 0.9
    (ticket,) = find("gradual", task(steps=steps), [target], begin=0.125, end=0.75, every=4)
    begin, end, final = 3, 18, round(target * NUMEL)
    expected = []
    for t in (7, 11, 15, 18):
        expected.append((t, round(final * (1 - (1 - (t - begin) / (end - begin)) ** 3))))
    assert [(r.step, r.zeros) for r in ticket.history] == expected
    assert expected[-1][1] == final
    assert ticket.cost.main == steps
    edges = [0, *(t for t, _ in expected), steps]
    densities = [1.0, *(1 - z / NUMEL for _, z in expected)]
    assert ticket.cost.weighted == pytest.approx(sum((b - a) * d for a, b, d in zip(edges, edges[1:], densities)))


def test_gradual_equals_the_hook_for_other_peoples_loops():
    """The same counts and masks as ``attach(..., Gradual(...))`` in a plain loop on the same batches."""
    training = task(network().double(), steps=10, rows=12, size=12, clip=None)
    (ticket,) = find("gradual", training, [0.75], begin=0.0, end=0.8, every=3)
    model = network().double()
    optimizer = training.optimizer(model.parameters(), training.lr, 0.0)
    attached = attach(model, optimizer, Gradual(0.75, end=8, every=3))
    model.train()
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * (1 - step / 10)
        optimizer.zero_grad()
        training.loss(model, training.examples.joined).backward()
        optimizer.step()
    assert dict(attached.masks) == dict(ticket.masks)
    for name, p in attached.detach().named_parameters():
        torch.testing.assert_close(ticket.model.get_parameter(name), p, rtol=1e-7, atol=1e-9)


def test_a_round_at_the_very_end_is_told_once(tmp_path):
    store, training = Store(tmp_path / "work"), task(steps=4)
    first = find("gradual", training, [0.5], end=1.0, every=2, store=store)
    assert [r.step for r in first[0].history] == [2, 4]
    same(find("gradual", training, [0.5], end=1.0, every=2, store=store), first)


def test_gradual_needs_steps_between_begin_and_end():
    with pytest.raises(InputError, match="move them apart"):
        find("gradual", task(steps=4), [0.5], begin=0.5, end=0.5)


def test_progressive_takes_equal_points_and_no_rewind():
    training = task(steps=20)
    (ticket,) = find("progressive", training, [0.75], step_points=20.0, interval=3)
    points = [round(0.2 * r * NUMEL) for r in (1, 2, 3)]
    assert [(r.step, r.zeros) for r in ticket.history] == [(3, points[0]), (6, points[1]), (9, points[2]), (12, 198)]
    assert ticket.cost.main == 20
    (shared,) = find("progressive", training, [0.75], step_points=20.0)
    assert [r.step for r in shared.history] == [2, 5, 8, 10]  # half of T
    (exact,) = find("progressive", training, [0.6], step_points=20.0)  # 3 rounds: 60 / 20 is not 3.0000001
    assert len(exact.history) == 3
    with pytest.raises(InputError, match="4 rounds take 24 of 20 steps"):
        find("progressive", training, [0.75], step_points=20.0, interval=6)


def test_progressive_masks_only_lose_weights():
    (ticket,) = find("progressive", task(steps=12), [0.8], step_points=10.0)
    zeros = [r.zeros for r in ticket.history]
    assert zeros == sorted(zeros) and zeros[-1] == 211
    shares = [sum(r.densities.values()) for r in ticket.history]
    assert shares == sorted(shares, reverse=True)


# EarlyBird


def scripted(monkeypatch, script: list[float]) -> None:
    """Makes the mask at the n-th check differ from the first weights' mask in ``script[n]`` of all weights."""
    shapes, calls = {"0.weight": (12, 10), "3.weight": (12, 12)}, iter(script)

    def masks(matrices, keeps, zeros, max_rate):
        flat = torch.arange(NUMEL) >= zeros  # the first weights go ...
        moved = round(next(calls) * NUMEL / 2)
        flat[:moved], flat[NUMEL - moved :] = True, False  # ... and 2 * moved of all differ: the count stays
        if not moved:
            flat = torch.arange(NUMEL) >= zeros
        parts = flat.split([120, 144])
        return {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts)}

    monkeypatch.setattr(winnow.tickets.methods.earlybird, "global_magnitude", masks)


@pytest.mark.parametrize(
    ("script", "drawn", "still"),
    [
        # Random masks of 50% differ in half of all weights: 0.05 of them is a distance of 0.1.
        ([0.4, 0.0, 0.0, 0.0, 0.0], 4, True),  # the third zero agrees with the two before it
        ([0.0, 0.0, 0.4, 0.4, 0.02, 0.4, 0.4, 0.4], 8, True),
        ([0.0, 0.04, 0.0], 3, True),  # within the tolerance of both
        ([0.0, 0.06, 0.0, 0.0, 0.0], 5, True),
        ([0.0, 0.4] * 10, 10, False),  # never still: patience ends at half of T
    ],
)
def test_earlybird_draws_when_the_mask_stands_still(monkeypatch, script, drawn, still):
    scripted(monkeypatch, script)
    training = task(steps=20)
    (ticket,) = find("earlybird", training, [0.5], every=1, queue=3, tolerance=0.1, patience=0.5)
    assert ticket.history[0].step == drawn
    assert ("when it had converged" in ticket.notes[0]) == still
    assert ticket.cost.main == 20
    assert ticket.cost.weighted == pytest.approx(drawn + (20 - drawn) * 0.5)  # dense until then


def test_earlybird_goes_on_with_weights_and_schedule():
    training = task(steps=8, clip=None)
    (ticket,) = find("earlybird", training, [0.5], every=3, queue=2, tolerance=1e-9, patience=0.5)
    assert ticket.history[0].step == 4
    run = Search("x", training, [0.5], None).run("x")
    run.advance_to(4)
    flat = torch.cat([m.abs().flatten() for m in run.attached.matrices().values()])
    limit = flat.sort().values[131]
    run.prune({n: m.abs() > limit for n, m in run.attached.matrices().items()})
    run.advance_to(8)
    assert all(torch.equal(t, run.model.state_dict()[n]) for n, t in ticket.model.state_dict().items())


def mask_of(keep: torch.Tensor) -> MaskSet:
    return MaskSet({"w": keep[: len(keep) // 2][None], "v": keep[len(keep) // 2 :].reshape(2, -1)})


@given(st.floats(0.01, 0.99), st.integers(0, 99))
def test_random_masks_are_at_distance_one_at_any_sparsity(sparsity, seed):
    generator = torch.Generator().manual_seed(seed)
    count = 20_000
    kept = max(1, round((1 - sparsity) * count))
    one, two = (mask_of(torch.randperm(count, generator=generator) < kept) for _ in range(2))
    # so many kept by both by chance, give or take five standard deviations
    share = kept / count
    spread = 5 * (count * share**2 * (1 - share) ** 2) ** 0.5 + 1
    assert abs(distance(one, two) - 1) <= 2 * spread / (2 * count * share * (1 - share))
    assert distance(one, one) == 0.0


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9, 0.95, 0.99])
def test_masks_with_little_in_common_do_not_stand_still(sparsity):
    """Those with half of what they keep in common, at the published queue and tolerance, whatever the sparsity."""
    kept = round((1 - sparsity) * 1000)
    one = torch.arange(1000) < kept
    two = one.clone()
    moved = min(kept // 2, 1000 - kept)
    two[:moved], two[1000 - moved :] = False, True
    assert int(two.sum()) == kept
    found = largest_distance(mask_of(one), [mask_of(two)])
    assert found == pytest.approx(2 * moved / 1000 / (2 * sparsity * (1 - sparsity)))
    assert found >= EarlyBirdSettings().tolerance


def test_the_largest_distance_is_that_of_the_farthest():
    a, b, c = (mask_of(torch.tensor(k, dtype=torch.bool)) for k in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]))
    assert largest_distance(a, [a, b]) == 1.0 and largest_distance(a, [b, c, a]) == 2.0
    assert largest_distance(a, [a]) == 0.0 and largest_distance(a, []) is None
    nothing = mask_of(torch.ones(4, dtype=torch.bool))
    assert largest_distance(nothing, [nothing]) == 0.0
