"""What a ticket cost, against sums written out by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from winnow.errors import InputError
from winnow.masks.mask import MaskSet
from winnow.tickets.cost import imp_rounds, price, training_flops
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Round, Search, Ticket
from winnow.train.examples import Examples
from winnow.train.task.run import Cost
from winnow.train.task.training import Training


def training(steps: int = 100, size: int = 4) -> Training:
    """An MLP 6 - 10 - 3 on 20 rows; its first matrix (60 weights) is prunable: 120 of 180 FLOPs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    data = (torch.randn(20, 6), torch.randint(3, (20,)))
    return Training(model, Examples([data], size), lambda m, b: F.cross_entropy(m(b[0]), b[1]), steps, lr=1e-3)


def ticket(
    owner: Training, zeros: int, cost: Cost, method: str = "magnitude", history: list[Round] | None = None
) -> Ticket:
    keep = torch.ones(60, dtype=torch.bool)
    keep[:zeros] = False
    return Ticket(method, zeros / 60, zeros, owner.model, MaskSet({"0.weight": keep.view(10, 6)}), cost, history or [])


def test_flops_of_a_training() -> None:
    flops, batch = training_flops(training())
    assert flops.tensors == {"0.weight": 120.0} and flops.rest == 60.0
    assert batch == 4.0
    assert training_flops(training(size=6))[1] == 5.0  # 20 rows in 4 mini-batches


def test_flops_of_inputs_of_several_lengths_are_a_mean() -> None:
    """Batches of 2 x 3 and 4 x 5 tokens that cannot be joined: 26 tokens in 6 examples, padding and all."""
    batches = [(torch.randn(n, t, 6), torch.randint(3, (n, t))) for n, t in ((2, 3), (4, 5))]
    owner = training().replaced(
        examples=Examples(batches, 4), loss=lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten())
    )
    flops, batch = training_flops(owner)
    assert owner.examples.joined is None and batch == 3.0
    assert flops.tensors["0.weight"] == pytest.approx(120 * 26 / 6) and flops.rest == pytest.approx(60 * 26 / 6)


def test_price_by_hand() -> None:
    owner = training()
    cost = Cost(main=100, look_ahead=40, extra=10, weighted=100 * 0.25 + 40 * 0.5 + 10 * 1.0, seconds=12.5)
    found = price(ticket(owner, 45, cost), owner.steps, training_flops(owner))
    assert (found.main, found.look_ahead, found.extra, found.steps) == (100, 40, 10, 150)
    assert found.passes == 1.5 and found.seconds == 12.5
    assert found.dense_flops == 150 * 4 * 3 * 180
    assert found.sparse_flops == pytest.approx(4 * 3 * (150 * 60 + 55 * 120))
    assert found.forward_share == pytest.approx((60 + 120 * 15 / 60) / 180)
    # 0.75 zeros at 20% a round: 0.8^6 = 0.262 is a little more than a quarter left, six rounds and the last
    assert (found.imp_rounds, found.imp_steps) == (6, 700)
    assert found.isp is None


def test_dense_steps_cost_the_same_in_both_accounts() -> None:
    owner = training()
    found = price(ticket(owner, 0, Cost(main=100, weighted=100.0), "dense"), owner.steps, training_flops(owner))
    assert found.sparse_flops == pytest.approx(found.dense_flops)
    assert found.forward_share == 1
    assert (found.imp_rounds, found.imp_steps) == (0, 100)


@given(st.integers(1, 60), st.integers(0, 400), st.integers(0, 400), st.integers(0, 50), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_sparse_never_exceeds_dense(zeros: int, main: int, ahead: int, extra: int, density: float) -> None:
    owner = training()
    steps = main + ahead + extra
    one = ticket(owner, min(zeros, 59), Cost(main, ahead, extra, steps * density))
    found = price(one, owner.steps, training_flops(owner))
    assert 0 <= found.sparse_flops <= found.dense_flops * (1 + 1e-12)
    assert found.sparse_flops >= found.dense_flops * 60 / 180 * (1 - 1e-12)


def test_rule_of_isp() -> None:
    """M is the step of the last mask, against the steps of the main training whatever T is."""
    owner = training()
    history = [Round(1, 5, 20, 60), Round(2, 15, 30, 120)]
    plain = ticket(owner, 30, Cost(main=100, look_ahead=100, weighted=120.0), "isp", history)
    late = replace(plain, history=[*history[:1], Round(2, 30, 30, 120)])
    longer = replace(late, method="isp-matched", cost=Cost(main=200, weighted=150.0))
    every, counted = [plain, late, longer, replace(plain, method="imp")], training_flops(owner)
    rules = [price(t, owner.steps, counted).isp for t in every]
    assert [None if r is None else (r.rounds, r.mask_steps, r.look_ahead, r.total, r.share, r.kept) for r in rules] == [
        (2, 15, 100, 200, 0.15, True),
        (2, 30, 100, 200, 0.30, False),
        (2, 30, 0, 200, 0.15, True),
        None,
    ]


@pytest.mark.parametrize(("sparsity", "expected"), [(0.0, 0), (0.2, 1), (0.5, 3), (0.8, 7), (0.9, 11)])
def test_rounds_of_imp(sparsity: float, expected: int) -> None:
    """ln(1 - S) / ln 0.8 = 0, 1, 3.1, 7.2, 10.3; a quarter of a round more is taken in the last."""
    assert imp_rounds(sparsity) == expected


def test_planned_steps() -> None:
    owner = training(steps=200)

    def planned(method: str, **given: object) -> int:
        return METHODS[method].planned_steps(METHODS[method].settings_class(**given), owner, 0.8)

    assert planned("dense") == planned("magnitude") == planned("random") == 200
    assert planned("snip", batches=3) == 203
    assert planned("grasp", batches=6) == 200 + 3 * 5  # one for g, two for H g; all 20 rows are five mini-batches
    assert planned("grasp", batches=3) == 200 + 3 * 5  # ten of each of three classes are more than there are
    assert planned("synflow", iterations=7) == 207
    assert planned("imp") == planned("lrr") == 8 * 200
    assert planned("imp", rate=0.5) == 4 * 200  # 0.5^2 is too much left, and 2.32 rounds are three
    assert planned("imp", budget=1.5, last=None) == 8 * 37  # of 300, as many steps each
    assert planned("imp", budget=1.5) == 240 + 7 * 8  # four fifths for the last
    # one whole training and 7 of nine tenths: 300 / 7.3 = 41 steps, of which 4 are not taken again
    assert planned("imp-rewind", budget=1.5, rewind=0.1, last=None) == 41 + 7 * 37
    assert planned("imp-rewind", budget=1.5, rewind=0.1) == 240 + 9 + 6 * 8  # 60 / (1 + 6 * 0.9) = 9
    # 2 of 20 rows are held back, one mini-batch: seven tickets at seven shares each, and the ticket itself
    assert planned("lottery-pool", fine_tune=0.1) == 8 * 200 + 20 + 17
    assert planned("lottery-pool", holdout=0.5, grid=(0.5,)) == 8 * 200 + 8  # 8 times 3 mini-batches
    assert planned("imp-rewind", rewind=0.1) == 200 + 7 * 180
    # ln 0.2 / ln 0.85 = 9.9: ten rounds, whose 55 steps are more than a quarter of T: nine
    assert planned("isp", candidates=3, look_ahead=5) == planned("isp-matched", candidates=3, look_ahead=5) == 200 + 135
    assert planned("isp") == 200 + 9 * 5 * 2  # candidates of two steps: half of T is 100
    assert planned("isp-plain") == 200
    assert planned("isp", candidates=3, look_ahead=5, aggregate="union") == 200 + 135  # already more than half of T
    assert planned("isp", rate=0.5, candidates=2, look_ahead=5, aggregate="union") == 200 + 6 * 10  # twice three rounds
    assert planned("isp-matched", rate=0.5, candidates=2, look_ahead=5, aggregate="union") == 200 + 3 * 10
    assert planned("earlybird", patience=0.2) == planned("gradual") == planned("progressive") == 200


def test_planned_steps_of_a_length_alone() -> None:
    """As a dry run asks, which has no data yet."""
    short: Any = SimpleNamespace(steps=7)
    assert METHODS["dense"].planned_steps(None, short, 0.5) == 7
    pool = METHODS["lottery-pool"]
    assert pool.planned_steps(pool.settings_class(), short, 0.5) == 4 * 7  # but the mixing


ISP = {"candidates": 2, "look_ahead": 3, "rate": 0.4}


@pytest.mark.parametrize(
    ("method", "given"),
    [
        *((m, ISP) for m in ("isp", "isp-plain", "isp-matched")),
        ("imp", {}),
        ("isp", {}),
        ("snip", {"batches": 3}),
        ("grasp", {"batches": 1}),
        ("grasp", {"batches": 9}),
        ("synflow", {"iterations": 5}),
        ("earlybird", {"every": 2, "queue": 2}),
        ("imp", {"budget": 2.5}),
        ("imp", {"budget": 2.5, "last": None}),
        ("imp-rewind", {"budget": 2.5, "rewind": 0.3}),
        ("lottery-pool", {"budget": 2.5, "fine_tune": 0.2, "holdout": 0.4, "grid": (0.3, 0.5)}),
    ],
)
def test_plans_are_what_methods_take(method: str, given: dict[str, Any]) -> None:
    owner = training(steps=48)
    kind = METHODS[method].settings_class(**given)
    (found,) = METHODS[method].finder(Search(method, owner, [0.6], kind))
    cost = price(found, owner.steps, training_flops(owner))
    assert cost.steps == METHODS[method].planned_steps(kind, owner, 0.6)
    assert cost.sparse_flops <= cost.dense_flops * (1 + 1e-9)
    if method == "imp" and not given:
        assert cost.steps == cost.imp_steps
    if method.startswith("isp"):
        assert cost.isp is not None and cost.isp.kept


@pytest.mark.parametrize("how", ["union", "intersect"])
@pytest.mark.parametrize("given", [ISP, ISP | {"look_ahead": 8}, ISP | {"multipliers": (1.0, 100.0)}, {}])
def test_plans_of_soups_that_miss_their_counts_are_the_most(how: str, given: dict[str, Any]) -> None:
    owner = training(steps=96)
    kind = METHODS["isp"].settings_class(aggregate=how, **given)
    (found,) = METHODS["isp"].finder(Search("isp", owner, [0.6], kind))
    assert owner.steps < found.cost.steps <= METHODS["isp"].planned_steps(kind, owner, 0.6) <= 1.5 * owner.steps


@pytest.mark.parametrize(("sparsities", "match"), [([0.5, 0.5001], "0.5 and 0.5001 are both 30 zeros in 60 weights: leave"), ([0.6, 0.5], "do not rise")])  # fmt: skip
def test_sparsities_that_are_one(sparsities: list[float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Search("magnitude", training(), sparsities, None)
