"""Instant Soup Pruning against a separate implementation in numpy, and soups worked out by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elsewhere import Elsewhere, Stopped
from isp_samples import Killer, mlp, noisy, rows, same_tickets, search, sgd, training
from winnow.errors import InputError
from winnow.masks.global_ranking import global_magnitude
from winnow.masks.mask import MaskSet
from winnow.run.store import Store
from winnow.settings import read_settings
from winnow.tickets.method import levels
from winnow.tickets.methods.isp.candidates import Pool
from winnow.tickets.methods.isp.denoise import adjust, denoise, disagreement, unanimous
from winnow.tickets.methods.isp.isp import isp, isp_matched, isp_plain
from winnow.tickets.methods.isp.look_ahead import scores
from winnow.tickets.methods.isp.plan import IspSettings, plan_isp, seed_steps
from winnow.train.task.run import Run

AGGREGATES = ["vote", "mean_abs", "forecast", "union", "intersect", "literal"]


# --- a separate implementation: numpy, float64, derivatives and AdamW by hand, masks as 0/1 arrays ---


class Numpy:
    """tanh MLP of three layers, cross entropy, all rows in every step; the first two weights are prunable."""

    def __init__(self, model: nn.Module) -> None:
        self.theta = [p.detach().numpy().copy() for p in model.parameters()]  # W1 b1 W2 b2 W3 b3
        x, y = rows()
        self.x, self.t = x.double().numpy(), np.eye(4)[y.numpy()]

    def gradient(self, theta):
        w1, b1, w2, b2, w3, b3 = theta
        h1 = np.tanh(self.x @ w1.T + b1)
        h2 = np.tanh(h1 @ w2.T + b2)
        z = h2 @ w3.T + b3
        p = np.exp(z - z.max(1, keepdims=True))
        d3 = (p / p.sum(1, keepdims=True) - self.t) / len(self.x)
        d2 = (d3 @ w3) * (1 - h2**2)
        d1 = (d2 @ w2) * (1 - h1**2)
        return [d1.T @ self.x, d1.sum(0), d2.T @ h1, d2.sum(0), d3.T @ h2, d3.sum(0)]

    @staticmethod
    def fresh(theta):
        return {"m": [np.zeros_like(a) for a in theta], "v": [np.zeros_like(a) for a in theta], "t": 0}

    def step(self, theta, masks, state, lr, decay):
        """One step of AdamW, gradients clipped to norm 1, on mask * theta."""
        full = [masks[0], 1, masks[1], 1, 1, 1]
        theta = [a * m for a, m in zip(theta, full)]
        gradients = [g * m for g, m in zip(self.gradient(theta), full)]
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        state["t"] += 1
        found = []
        for i, (a, g) in enumerate(zip(theta, gradients)):
            g = g * min(1.0, 1.0 / (norm + 1e-6))
            state["m"][i] = 0.9 * state["m"][i] + 0.1 * g
            state["v"][i] = 0.999 * state["v"][i] + 0.001 * g**2
            m, v = state["m"][i] / (1 - 0.9 ** state["t"]), state["v"][i] / (1 - 0.999 ** state["t"])
            a = a * (1 - lr * (decay if a.ndim > 1 else 0.0))
            found.append((a - lr * m / (np.sqrt(v) + 1e-8)) * full[i])
        return found


def flat(theta, state=None, curvature=0.0):
    """Magnitudes, or w^2 v^curvature under a root, v as AdamW has it."""
    if not curvature:
        return np.concatenate([np.abs(theta[0]).ravel(), np.abs(theta[2]).ravel()])
    return np.sqrt(np.concatenate([(theta[i] ** 2 * state["v"][i] ** curvature).ravel() for i in (0, 2)]))


def lowest_go(order_keys, keep, zeros):
    """Keep vector with ``zeros`` zeros: what is gone first, then by the keys (the last one first), then by index."""
    order = np.lexsort((*order_keys, keep))  # stable, so equals go by index
    found = np.ones_like(keep)
    found[order[:zeros]] = False
    return found


def reference(
    model, *, steps, lr, decay, sparsity, rate, seed, count, ahead, multipliers, decays, how, budget, average=False,
    curvature=0.0,
):  # fmt: skip
    net = Numpy(model)
    theta, state = net.theta, net.fresh(net.theta)
    n1, n2 = theta[0].size, theta[2].size
    numel, keep = n1 + n2, np.ones(n1 + n2, bool)
    target = round(sparsity * numel)
    k = math.ceil(math.log(1 - sparsity) / math.log(1 - rate))
    per_round, at, done = [], 0, 0

    def matrices():
        return [keep[:n1].reshape(theta[0].shape), keep[n1:].reshape(theta[2].shape)]

    while (~keep).sum() < target:
        for _ in range(seed * (done + 1)):
            theta = net.step(theta, matrices(), state, lr * (1 - at / steps), decay)
            at += 1
        gone = int((~keep).sum())
        zeros = target if done + 1 == k else round((1 - (1 - rate) ** (done + 1)) * numel)
        if how == "union" or (how == "intersect" and done + 1 < k):
            zeros = min(target, gone + round(rate * (numel - gone)))
        candidates, magnitudes, ends = [], [], []
        for j in range(count):
            other, own = [a.copy() for a in theta], net.fresh(theta)
            for _ in range(ahead):
                other = net.step(
                    other, matrices(), own, lr * (1 - at / steps) * multipliers[j % len(multipliers)], decays
                )
            magnitudes.append(flat(other, own, curvature))
            ends.append(other)
            candidates.append(lowest_go((magnitudes[-1],), keep, zeros))
        main = flat(theta, state, curvature)
        if count == 0 or how == "literal":
            new = lowest_go((main,), keep, zeros)
        elif how == "vote":
            new = lowest_go((main, np.sum(candidates, axis=0)), keep, zeros)
        elif how == "mean_abs":
            new = lowest_go((np.mean(magnitudes, axis=0),), keep, zeros)
        elif how == "forecast":
            ahead_of = [a + 4.0 * (np.mean([e[i] for e in ends], axis=0) - a) for i, a in enumerate(theta)]
            new = lowest_go((flat(ahead_of),), keep, zeros)
        elif how == "union":
            new = np.any(candidates, axis=0) & keep
            more = seed * (done + 2) * (done + 3) // 2 <= budget * steps and done + 1 < 2 * k
            more = more and (done + 2) * count * ahead <= 0.5 * steps
            if target - (~new).sum() < 0.05 * numel or not (done + 1 < k or more):
                new = lowest_go((main,), new, target)
        else:
            new = np.all(candidates, axis=0) & keep
            if (~new).sum() > target:
                new = lowest_go((main, new), keep, target)
        assert not (new & ~keep).any()
        keep = new
        if average:
            theta = [np.mean([e[i] for e in ends], axis=0) for i in range(len(theta))]
        done += 1
        per_round.append(int((~keep).sum()))
        theta = [theta[0] * matrices()[0], theta[1], theta[2] * matrices()[1], *theta[3:]]
        for name in ("m", "v"):
            state[name][0], state[name][2] = state[name][0] * matrices()[0], state[name][2] * matrices()[1]
    masked_at = at
    while at < steps:
        theta = net.step(theta, matrices(), state, lr * (1 - at / steps), decay)
        at += 1
    return keep, theta, per_round, masked_at


def tanh() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def double_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0].double()), batch[1])


@pytest.mark.parametrize(
    ("how", "average", "curvature", "ahead"),
    [
        *((how, False, 0.0, 4) for how in [*AGGREGATES, "plain"]),
        ("vote", True, 0.0, 4), ("forecast", True, 0.0, 4), ("union", False, 0.0, 1),  # a union with more rounds than K
        ("plain", False, 1.0, 4), ("vote", False, 0.5, 4), ("mean_abs", False, 1.0, 4), ("mean_abs", True, 0.5, 4),
        ("intersect", False, 0.5, 4), ("literal", False, 1.0, 4),
    ],
)  # fmt: skip
def test_against_numpy(how, average, curvature, ahead):
    model = tanh()
    data = training(model, steps=40, size=1000, lr=0.03, weight_decay=0.1, loss=double_entropy)  # all rows in a step
    given = {"rate": 0.35, "seed_steps": 2, "candidates": 4, "look_ahead": ahead}
    given |= {"multipliers": (0.5, 1, 2, 4), "decays": (0.3,), "budget": 0.8}
    find = isp_plain if how == "plain" else isp
    aggregate = {"curvature": curvature} | ({} if how == "plain" else {"aggregate": how, "average": average})
    (found,) = find(search(data, sparsities=(0.7,), **given, **aggregate))
    keep, theta, rounds, masked_at = reference(
        tanh(), steps=40, lr=0.03, decay=0.1, sparsity=0.7, rate=0.35, seed=2, count=0 if how == "plain" else 4, ahead=ahead,
        multipliers=(0.5, 1, 2, 4), decays=0.3, how=how, budget=0.8, average=average, curvature=curvature,
    )  # fmt: skip
    masks = torch.cat([m.unpack().flatten() for m in found.masks.values()]).numpy()
    assert [r.zeros for r in found.history] == rounds and found.history[-1].step == masked_at
    assert (masks == keep).all()
    for ours, theirs in zip(found.model.parameters(), theta):
        assert np.allclose(ours.detach().numpy(), theirs, rtol=1e-7, atol=1e-9)
    count = 0 if how == "plain" else 4
    assert (found.cost.main, found.cost.look_ahead) == (40, len(rounds) * count * ahead)
    if how == "union":
        assert len(rounds) > 3 if ahead == 1 else len(rounds) == 3


def test_the_ways_differ():
    """Otherwise the comparison above would say little."""
    given = {"rate": 0.35, "seed_steps": 2, "candidates": 4, "look_ahead": 4, "decays": (0.3,), "budget": 0.8}
    data = training(tanh(), steps=40, size=1000, lr=0.03, loss=double_entropy)
    ways = [*((how, 0.0) for how in AGGREGATES), ("vote", 0.5), ("mean_abs", 0.5), ("mean_abs", 1.0), ("literal", 1.0)]
    found = [next(isp(search(data, sparsities=(0.7,), aggregate=a, curvature=c, **given))).masks for a, c in ways]
    assert sum(a == b for i, a in enumerate(found) for b in found[:i]) == 0


# --- soups by hand ---


def soup_of(*keeps: str) -> list[MaskSet]:
    return [MaskSet({"w": torch.tensor([[c == "1" for c in k]])}) for k in keeps]


def text(masks: MaskSet) -> str:
    return "".join("1" if k else "0" for k in masks["w"].unpack()[0])


WEIGHTS = {"w": torch.tensor([[0.5, -0.1, 0.3, 0.0, 0.2, -0.9, 0.0, 0.4]])}
KEEPS = {"w": torch.tensor([[True, True, True, True, True, True, False, True]])}  # the seventh is gone
#                votes:  3 1 2 0 1 3 0 2
CANDIDATES = soup_of("11100100", "10001101", "10100101")


def by_hand(how: str, zeros: int, most: int | None = None, total=None) -> str:
    return text(denoise(how, Pool(CANDIDATES, total), WEIGHTS, KEEPS, zeros, most=most))


def test_vote_by_hand():
    assert by_hand("vote", 4) == "10100101"  # no vote: 4th, 7th; one vote: 2nd and 5th
    assert by_hand("vote", 3) == "10101101"  # one vote each: |-0.1| goes, 0.2 stays
    assert by_hand("vote", 5) == "10000101"  # two votes: 0.3 goes, 0.4 stays
    # Gone weights go first, also before one without a vote that is exactly zero.
    assert by_hand("vote", 1) == "11111101"
    assert by_hand("vote", 2) == "11101101"


def test_mean_by_hand():
    total = {"w": torch.tensor([[3.0, 2.0, 0.0, 5.0, 1.0, 4.0, 9.0, 6.0]])}  # what is gone is gone, whatever it says
    assert by_hand("mean_abs", 1, total=total) == "11111101"
    assert by_hand("mean_abs", 3, total=total) == "11010101"
    assert by_hand("mean_abs", 4, total=total) == "10010101"


def test_union_and_intersection_by_hand():
    assert by_hand("union", 4) == "11101101"  # kept by any
    assert by_hand("intersect", 4, most=8) == "10000100"  # kept by all
    assert by_hand("intersect", 4, most=5) == "10000101"  # six zeros would pass the limit: 0.4 stays
    assert by_hand("intersect", 4) == "10100101"  # and 0.3
    assert text(adjust(soup_of("11101101")[0], WEIGHTS, 5)) == "10000101"  # 0.1, 0.2, 0.3 besides


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_literal_is_plain_magnitude_whatever_the_candidates_say(seed, count):
    """Ties and zeros included."""
    generator = torch.Generator().manual_seed(seed)
    weights = {n: torch.randint(-4, 5, (5, 7), generator=generator) / 4 for n in ("a", "b")}
    keeps = {n: torch.rand(5, 7, generator=generator) > 0.3 for n in weights}
    gone = sum(int((~k).sum()) for k in keeps.values())
    zeros = gone + int(torch.randint(70 - gone, (1,), generator=generator))
    pool = Pool()
    for _ in range(count):
        other = {n: torch.randn(5, 7, generator=generator) for n in weights}
        pool.masks.append(MaskSet(global_magnitude(other, keeps, zeros)))
    assert denoise("literal", pool, weights, keeps, zeros) == MaskSet(global_magnitude(weights, keeps, zeros))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(AGGREGATES))
def test_soups_are_exact_and_monotone(seed, count, how):
    generator = torch.Generator().manual_seed(seed)
    weights = {n: torch.randint(-3, 4, (4, 9), generator=generator).float() for n in ("a", "b")}
    keeps = {n: torch.rand(4, 9, generator=generator) > 0.4 for n in weights}
    gone = sum(int((~k).sum()) for k in keeps.values())
    zeros = gone + int(torch.randint(72 - gone, (1,), generator=generator))
    most = min(zeros + 5, 72)
    pool = Pool(total={n: torch.zeros(4, 9) for n in weights})
    for _ in range(count):
        other = {n: torch.randn(4, 9, generator=generator).abs() for n in weights}
        pool.masks.append(MaskSet(global_magnitude(other, keeps, zeros)))
        for n in weights:
            pool.total[n] += other[n]
    mean = {n: total / count for n, total in pool.total.items()}
    found = denoise(how, pool, weights, keeps, zeros, most=most, mean=mean)
    low, high = {"union": (gone, zeros), "intersect": (zeros, most)}.get(how, (zeros, zeros))
    assert low <= found.zeros <= high
    assert not any(bool((found[n].unpack() & ~keeps[n]).any()) for n in keeps)
    if count == 1 and how != "literal":
        assert found == pool.masks[0]


def test_disagreement_and_unanimity_by_hand():
    # pairs differ in 4, 2 and 2 places; 7 weights were active; 3 zeros were asked for beside the one gone
    assert disagreement(CANDIDATES, 7) == pytest.approx((4 + 2 + 2) / 3 / 7)
    assert unanimous(CANDIDATES, 1, 4) == pytest.approx(1 / 3)
    assert disagreement(CANDIDATES[:1], 7) == 0.0 and unanimous(CANDIDATES, 4, 4) == 1.0


# --- the schedule ---


@pytest.mark.parametrize(
    ("sparsity", "rate", "rounds"), [(0.8, 0.15, 10), (0.8, 0.1, 16), (0.5, 0.15, 5), (0.9, 0.2, 11), (0.1, 0.15, 1)]
)
def test_rounds_of_the_paper(sparsity, rate, rounds):
    found = levels([sparsity], rate)
    assert len(found) == rounds and found[-1] == sparsity
    assert found[:-1] == pytest.approx([1 - (1 - rate) ** i for i in range(1, rounds)])


@given(st.floats(0.01, 0.99), st.floats(0.02, 0.9))
def test_levels_against_the_formula(sparsity, rate):
    found = levels([sparsity], rate)
    exact = math.log(1 - sparsity) / math.log(1 - rate)
    assert len(found) in (math.ceil(exact), max(1, math.floor(exact)))
    assert all(a < b for a, b in zip([0.0, *found], found)) and found[-1] == sparsity
    # The last round prunes at most a quarter of a round more than the others.
    last = (1 - found[-1]) / (1 - (found[-2] if len(found) > 1 else 0.0))
    assert last >= (1 - rate) ** 1.25 - 1e-9


@given(st.integers(1, 5000), st.integers(1, 400), st.integers(1, 20), st.floats(0.05, 0.9))
def test_seed_steps_keep_within_the_budget(total, epoch, rounds, budget):
    chosen = IspSettings(budget=budget)
    triangle = rounds * (rounds + 1) // 2
    if triangle > budget * total + 1e-9:
        with pytest.raises(InputError, match="steps or more") as error:
            seed_steps(total, epoch, rounds, chosen, 0.15)
        # A higher rate makes fewer rounds, but never fewer than one.
        assert ("or a rate above 0.15." in str(error.value)) == (budget * total + 1e-9 >= 1)
        return
    seed = seed_steps(total, epoch, rounds, chosen, 0.15)
    assert 1 <= seed <= max(1, epoch / 10 + 0.5) and seed * triangle <= budget * total + 1e-6
    if seed < round(epoch / 10):
        assert (seed + 1) * triangle > budget * total - 1e-6


def test_the_advice_of_a_refused_budget_works():
    with pytest.raises(
        InputError, match=r"10 rounds need 55 steps and may take 25% of 100: give 220 steps or more"
    ) as error:
        seed_steps(100, 391, 10, IspSettings(), 0.15)
    assert "\n" not in str(error.value)
    assert seed_steps(220, 391, 10, IspSettings(), 0.15) == 1
    with pytest.raises(InputError, match=r"1 round needs 1 step and may take 25% of 3: give 4 steps or more\.$"):
        plan_isp(IspSettings(), 0.8, 3, 10)
    assert plan_isp(IspSettings(), 0.8, 4, 10).seed_steps == 1
    with pytest.raises(InputError, match="give 5 or less, or 1320 steps"):
        seed_steps(1100, 391, 10, IspSettings(seed_steps=6), 0.15)
    assert seed_steps(1320, 391, 10, IspSettings(seed_steps=6), 0.15) == 6
    assert seed_steps(8602, 391, 10, IspSettings(), 0.15) == 39  # the paper's CIFAR-10


def test_presets():
    assert IspSettings() == IspSettings(preset="clip")
    bert = IspSettings(preset="bert")
    for given_settings, figures in (
        (bert, (0.1, 30, 4)),
        (IspSettings(), (0.15, 50, 5)),
        (IspSettings(preset="bert", rate=0.3), (0.3, 30, 4)),
    ):
        plan = plan_isp(given_settings, 0.8, 8602, 391)  # the paper's CIFAR-10
        assert (plan.rate, plan.look_ahead, plan.candidates) == figures and not plan.fewer + plan.shorter
        assert plan.levels == levels([0.8], figures[0])
    assert plan_isp(IspSettings(), 0.8, 8602, 391).thrown == 2500
    assert IspSettings.model_validate(bert.model_dump()) == bert
    for wrong in ({"preset": "gpt"}, {"multipliers": ()}, {"multipliers": (0.0,)}, {"candidates": 0}, {"unknown": 1}):
        with pytest.raises(ValueError):
            IspSettings(**wrong)


@given(
    st.integers(4, 3000), st.floats(0.05, 0.97), st.integers(1, 400), st.sampled_from(("clip", "bert")), st.booleans()
)
def test_a_short_training_gets_rounds_and_candidates_that_fit(steps, sparsity, epoch, preset, extended):
    """A quarter of T before the last mask and half of T for candidates, unless not even one step of two of them fits."""
    plan = plan_isp(IspSettings(preset=preset), sparsity, steps, epoch, extended=extended)
    count = len(plan.levels)
    total = steps + plan.thrown if extended else steps
    assert plan.levels[-1] == sparsity and all(a < b for a, b in pairwise(plan.levels))
    assert plan.seed_steps * count * (count + 1) / 2 <= 0.25 * total
    assert plan.thrown <= 0.5 * steps or (plan.look_ahead, plan.candidates) == (1, 2)
    paper = {"clip": (0.15, 50, 5), "bert": (0.1, 30, 4)}[preset]
    assert plan.rate >= paper[0] and plan.look_ahead <= paper[1] and plan.candidates <= paper[2]
    if plan.rate > paper[0]:  # one round more would not fit
        assert (count + 1) * (count + 2) / 2 > 0.25 * steps


def test_what_is_named_is_taken_as_it_is():
    plan = plan_isp(IspSettings(rate=0.4, candidates=7, look_ahead=90), 0.8, 100, 20)
    assert (plan.rate, plan.candidates, plan.look_ahead) == (0.4, 7, 90) and not plan.fewer + plan.shorter
    with pytest.raises(InputError, match="rounds need"):
        plan_isp(IspSettings(rate=0.01), 0.8, 100, 20)
    short = plan_isp(IspSettings(preset="bert"), 0.8, 200, 50)
    assert short.fewer == (
        "16 rounds that each prune 10% of what is left would take more than 25% of the 200 steps: 9 rounds of 16% instead."
    )
    assert short.shorter == (
        "Each candidate is trained 2 steps ahead, not 30: 9 rounds of 4 candidates are to stay within 50% of the 200 steps."
    )
    longer = plan_isp(IspSettings(preset="bert"), 0.7, 60, 12, extended=True)  # the control has no candidates
    assert longer.shorter == (
        "20 more steps than 60, as many as candidates would take: 5 rounds of 4 candidates, each trained 1 step ahead, "
        "not 30, to stay within 50% of the 60 steps."
    )


@pytest.mark.parametrize("how", AGGREGATES)
def test_counts_are_exact_and_masks_monotone(monkeypatch, how):
    masks: list[MaskSet] = []
    work = Run.prune
    monkeypatch.setattr(Run, "prune", lambda run, keeps: (work(run, keeps), masks.append(run.attached.masks))[0])
    (found,) = isp(search(training(steps=40), sparsities=(0.83,), aggregate=how, candidates=3))
    wanted = [round(s * 264) for s in levels([0.83], 0.4)]
    if how in ("vote", "mean_abs", "literal"):
        assert [m.zeros for m in masks] == wanted
    assert masks[-1].zeros == found.zeros == round(0.83 * 264) and masks[-1] == found.masks
    for before, after in pairwise(masks):
        assert before.zeros < after.zeros
        assert not any(bool((after[n].unpack() & ~before[n].unpack()).any()) for n in before)
    assert [r.zeros for r in found.history] == [m.zeros for m in masks]
    assert [r.number for r in found.history] == list(range(1, len(masks) + 1))
    for r, m in zip(found.history, masks):
        assert 0 < r.disagreement < 1 and 0 < r.unanimous < 1
        assert r.steps == r.step + r.number * 3 * 2
        assert r.densities == {n: k.nonzeros / k.numel for n, k in m.items()}
    assert found.history[-1].step <= 0.5 * 40


def test_literal_equals_no_candidates_and_both_are_one_training():
    """Also the main training's randomness: batches, dropout, augmentation, batch norms."""
    given = training(steps=24, loss=noisy)
    (plain,) = isp_plain(search(given, seed_steps=2))
    (literal,) = isp(search(given, seed_steps=2, aggregate="literal", candidates=3))
    assert plain.masks == literal.masks
    ours, theirs = plain.model.state_dict(), literal.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert [r.zeros for r in plain.history] == [r.zeros for r in literal.history]
    assert (plain.cost.look_ahead, literal.cost.look_ahead) == (0, 2 * 3 * 2)
    assert "as printed" in literal.notes[-1]
    (vote,) = isp(search(given, seed_steps=2, candidates=3))
    assert vote.masks != plain.masks


def test_the_matched_control_has_the_steps_of_the_candidates(monkeypatch):
    rates: list[float] = []
    work = Run.one

    def one(run, optimizer, *args, **options):
        rates.append(optimizer.param_groups[0]["lr"])
        return work(run, optimizer, *args, **options)

    monkeypatch.setattr(Run, "one", one)
    (found,) = isp_matched(search(training(steps=20), "isp-matched", candidates=3, look_ahead=4))
    k, total = len(found.history), 20 + len(found.history) * 3 * 4
    (soup,) = isp(search(training(steps=20), candidates=3, look_ahead=4))
    assert found.cost.main == soup.cost.steps == total and found.cost.look_ahead == 0 and k == len(soup.history) == 2
    assert rates[:total] == pytest.approx([0.01 * (1 - i / total) for i in range(total)])


def test_several_sparsities_are_runs_of_their_own():
    given = training(steps=24)
    both = list(isp(search(given, sparsities=(0.4, 0.7))))
    assert [t.zeros for t in both] == [round(0.4 * 264), round(0.7 * 264)]
    for sparsity, ticket in zip((0.4, 0.7), both):
        same_tickets([ticket], list(isp(search(given, sparsities=(sparsity,)))))
    assert both[0].cost.main == both[1].cost.main == 24


def test_the_main_training_uses_one_schedule_without_rewinding(monkeypatch):
    seen = []
    work = Run.one

    def one(run, optimizer, step, stream, share=1.0):
        seen.append((stream == "main", step, optimizer.param_groups[0]["lr"], id(optimizer)))
        return work(run, optimizer, step, stream, share)

    monkeypatch.setattr(Run, "one", one)
    list(isp(search(training(steps=20), seed_steps=2, multipliers=(3.0,), candidates=1)))
    main = [s for s in seen if s[0]]
    assert [s[1] for s in main] == list(range(20)) and len({s[3] for s in main}) == 1
    assert [s[2] for s in main] == pytest.approx([0.01 * (1 - i / 20) for i in range(20)])
    ahead = [s for s in seen if not s[0]]
    assert [s[2] for s in ahead] == pytest.approx(
        [0.03 * 18 / 20] * 2 + [0.03 * 14 / 20] * 2
    )  # of the current rate, constant


def test_decays_are_drawn_anew_in_every_round_and_for_every_seed(monkeypatch):
    drawn = []
    work = Run.one

    def one(run, optimizer, step, stream, share=1.0):
        if stream != "main" and step == 0:
            drawn.append(optimizer.param_groups[0]["weight_decay"])
        return work(run, optimizer, step, stream, share)

    monkeypatch.setattr(Run, "one", one)
    decays = tuple(i / 1000 for i in range(100))
    for seed in (0, 1):
        list(isp(search(training(steps=12, seed=seed), decays=decays, candidates=4, look_ahead=1)))
    rounds = [tuple(drawn[i : i + 4]) for i in range(0, len(drawn), 4)]
    assert len(rounds) == len(set(rounds)) == 4


def test_a_model_of_frozen_parts_and_the_callers_generators():
    model = mlp()
    for p in model[0].parameters():
        p.requires_grad_(False)
    given = training(model, steps=24, exclude=("0.weight",))
    state = torch.get_rng_state()
    (found,) = isp(search(given, candidates=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(found.masks) == ["4.weight"] and torch.equal(found.model[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("steps", "options", "rounds"),
    [
        # ln 0.4 / ln 0.6 = 1.8 is K = 2; candidates may take 60 steps of 120
        (120, {"candidates": 2, "look_ahead": 3}, 4),  # twice K
        (120, {"candidates": 2, "look_ahead": 10}, 3),  # a fourth would be 80 steps
        (120, {"candidates": 3, "look_ahead": 10}, 2),  # all taken by K rounds
        (120, {"candidates": 3, "look_ahead": 20}, 2),  # K rounds take what was given for them, but no more follow
        (120, {"candidates": 2, "look_ahead": 3, "seed_steps": 6}, 3),  # a fourth would be the 60th step, of 42
        (120, {"candidates": None, "look_ahead": None}, 2),  # the preset fills half of T with K rounds
    ],
)
def test_a_union_stays_within_what_others_may_cost(steps, options, rounds):
    """Its candidates hardly agree, so that it takes every round that it may, and adjusts in the last."""
    given = {"aggregate": "union", "budget": 0.35, "multipliers": (1.0, 30.0), "seed_steps": 1} | options
    data = training(steps=steps, lr=0.05)
    plan = plan_isp(IspSettings(rate=0.4, **given), 0.6, steps, 8)
    (found,) = isp(search(data, **given))
    thrown = plan.candidates * plan.look_ahead
    assert plan.most == len(found.history) == rounds and len(plan.levels) == 2
    assert found.cost.look_ahead == rounds * thrown <= max(0.5 * steps, 2 * thrown)
    assert found.zeros == round(0.6 * 264) == found.history[-1].zeros


def test_where_the_matched_control_prunes():
    """t is of its longer training; with the soup's own t the masks fall where the soup's fall."""
    given = IspSettings(rate=0.3, candidates=4, look_ahead=10)
    soup, matched = (plan_isp(given, 0.9, 600, 100, extended=e) for e in (False, True))
    assert (len(soup.levels), soup.seed_steps, matched.seed_steps, matched.thrown) == (7, 5, 7, 280)
    strict = plan_isp(given.model_copy(update={"seed_steps": 5}), 0.9, 600, 100, extended=True)
    assert strict.seed_steps == 5


# --- candidates elsewhere ---


@pytest.mark.parametrize(
    ("how", "average", "curvature"),
    [("vote", False, 0.0), ("mean_abs", True, 0.0), ("forecast", False, 0.0), ("union", False, 0.0), ("mean_abs", False, 0.5)],
)  # fmt: skip
def test_candidates_elsewhere_are_the_same(how, average, curvature):
    given, options = training(steps=24, loss=noisy), {"aggregate": how, "average": average, "curvature": curvature}
    here = list(isp(search(given, candidates=3, **options)))
    found = list(isp(search(given, candidates=3, executor=Elsewhere(), **options)))
    same_tickets(found, here)


@pytest.mark.parametrize("how", ["vote", "mean_abs", "forecast"])
def test_candidates_elsewhere_that_were_finished_are_kept(tmp_path, monkeypatch, how):
    given = training(steps=24)
    here = list(isp(search(given, aggregate=how, candidates=3)))
    killer, store = Killer(monkeypatch), Store(tmp_path)
    with pytest.raises(Stopped):
        list(isp(search(given, aggregate=how, candidates=3, store=store, executor=Elsewhere(stop=2))))
    assert len(list(tmp_path.rglob("candidate-*"))) == 2
    elsewhere, killer.taken = Elsewhere(), 0
    same_tickets(list(isp(search(given, aggregate=how, candidates=3, store=store, executor=elsewhere))), here)
    assert elsewhere.jobs == 3 * len(here[0].history) - 2
    assert not list(tmp_path.rglob("candidate-*"))


# --- curvature ---


@pytest.mark.parametrize(("optimizer", "key"), [("RMSprop", "square_avg"), ("Adagrad", "sum"), ("NAdam", "exp_avg_sq")])
def test_optimizers_with_squares_of_gradients(optimizer, key):
    given = training(steps=24, optimizer=lambda p, lr, decay: getattr(torch.optim, optimizer)(p, lr))
    (found,) = isp_plain(search(given, curvature=1.0))
    assert found.masks != next(isp_plain(search(given))).masks
    run = search(given).run("run", "")
    run.advance_to(3)
    for spent in (False, True):  # the second writes over the optimizer's own
        squares = {n: run.optimizer.state[w][key].double() for n, w in run.attached.weights.items()}
        for name, score in scores(run.attached, run.optimizer, 0.5, spent=spent).items():
            wanted = run.attached.weights[name].detach().double().abs() * squares[name] ** 0.25
            assert torch.allclose(score.double(), wanted, rtol=1e-5, atol=0)


def test_curvature_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match="SGD has none: set curvature to 0"):
        next(isp(search(training(optimizer=sgd), curvature=0.5)))
    model = mlp()
    model[4].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"squared gradients of 4\.weight"):
        next(isp_plain(search(training(model), curvature=0.5)))
    with pytest.raises(InputError, match="method isp: aggregate forecast ranks by magnitudes alone"):
        read_settings(IspSettings, {"aggregate": "forecast", "curvature": 0.5}, "isp")
