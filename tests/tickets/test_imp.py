"""Iterative pruning and its rewinding kinds against a loop written out, their costs, disk and restarts; Lottery Pool."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from baseline_samples import cross_entropy, find, network, same, task
from winnow.errors import FormatError, InputError
from winnow.run.store import Store
from winnow.seeding import seed_of
from winnow.tickets.method import levels
from winnow.tickets.methods.imp import ImpSettings, Restart, RewindSettings, Way, lengths, most_rounds, trajectory
from winnow.tickets.methods.lottery_pool import _loss, mixed
from winnow.tickets.search import Search
from winnow.train.examples import Examples, divided
from winnow.train.task.batches import Whole
from winnow.train.task.run import Run

KINDS = ["imp", "imp-rewind", "lrr"]
NUMEL = 10 * 12 + 12 * 12


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr)


def smooth(steps: int = 5, **more):
    """Whole-batch gradient descent in float64: the order of examples matters to the last bits only."""
    model = network(batch_norm=False).double()
    return task(model, steps=steps, rows=24, size=24, lr=0.3, clip=None, optimizer=sgd, **more)


def written_out(training, counts: list[int], kind: str, rewind: float = 0.0, lengths: list[int] | None = None):
    """Masks and weights of every training, by a loop of its own."""
    lengths = lengths or [training.steps] * len(counts)
    (x, y) = training.examples.joined
    names = ["0.weight", "2.weight"]
    theta = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    masks = {n: torch.ones_like(theta[n]) for n in names}
    start, found, early, first = theta, [], None, round(rewind * lengths[0])
    for level in range(len(counts)):
        model, steps = copy.deepcopy(training.model), lengths[level]
        begin = first if level else 0
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(start[n] * masks.get(n, 1))
        for t in range(begin, steps):
            if level == 0 and t == first:
                early = {n: p.detach().clone() for n, p in model.named_parameters()}
            loss = cross_entropy(model, (x, y))
            for (n, p), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters()))):
                p.data -= training.lr * (1 - t / steps) * g * masks.get(n, 1)
        trained = {n: p.detach().clone() for n, p in model.named_parameters()}
        found.append((trained, {n: m.bool() for n, m in masks.items()}))
        if level + 1 < len(counts):
            scores = torch.cat([torch.where(masks[n] > 0, trained[n].abs(), -1.0).flatten() for n in names])
            keep = torch.ones_like(scores)
            keep[scores.argsort(stable=True)[: counts[level + 1]]] = 0
            masks = {n: part.reshape(masks[n].shape) for n, part in zip(names, keep.split([120, 144]))}
        start = {"imp": theta, "imp-rewind": early, "lrr": trained}[kind]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_against_a_loop_written_out(kind):
    training, rewind = smooth(), 0.4 if kind == "imp-rewind" else 0.0
    targets = [0.5, 0.8]
    counts = [0] + [round(s * NUMEL) for s in levels(targets, 0.3)]
    expected = written_out(training, counts, kind, rewind)
    tickets = find(kind, training, targets, rate=0.3, **({"rewind": rewind} if rewind else {}))
    assert [t.zeros for t in tickets] == [132, 211]
    for ticket, number in zip(tickets, (counts.index(132), counts.index(211))):
        weights, masks = expected[number]
        for name, mask in masks.items():
            assert torch.equal(ticket.masks[name].unpack(), mask)
        for name, p in ticket.model.named_parameters():
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-9, atol=1e-12)
        assert [r.zeros for r in ticket.history] == counts[1 : number + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_those_of_all_trainings_so_far(kind):
    steps, rewind = 6, 0.5
    extra = {"rewind": rewind} if kind == "imp-rewind" else {}
    tickets = find(kind, task(steps=steps), [0.5, 0.75], rate=0.5, **extra)
    for ticket, rounds in zip(tickets, (1, 2)):
        later = 3 if extra else steps
        assert ticket.cost.main == steps + rounds * later  # (K + 1) T, less what rewinding saves
        assert (ticket.cost.look_ahead, ticket.cost.extra) == (0, 0)
        densities = [1.0, 0.5, 0.25][: rounds + 1]
        spent = [steps, later, later]
        assert ticket.cost.weighted == pytest.approx(sum(d * n for d, n in zip(densities, spent)))
        assert [r.steps for r in ticket.history] == [steps + i * later for i in range(rounds)]
        assert [r.number for r in ticket.history] == [*range(1, rounds + 1)]
    assert tickets[0].cost is not tickets[1].cost


def test_the_default_rate_at_ninety_percent_takes_twelve_trainings():
    training = task(steps=1)
    (ticket,) = find("imp", training, [0.9], rate=0.2)
    assert ticket.cost.main == 1 + len(levels([0.9], 0.2)) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_goes_mostly_to_the_ticket_and_each_target_pays_its_own(kind):
    training = task(steps=100)
    tickets = find(
        kind, training, [0.5, 0.8], rate=0.3, budget=1.5, **({"rewind": 0.0} if kind == "imp-rewind" else {})
    )
    for ticket, rounds in zip(tickets, (len(levels([0.5], 0.3)), len(levels([0.8], 0.3)))):
        each = 30 // rounds  # a fifth of 150 steps finds the mask
        assert ticket.cost.main == 120 + rounds * each
        assert [r.step for r in ticket.history] == [each] * rounds  # each with its own decay, to the end
        assert [r.steps for r in ticket.history] == [each * n for n in range(1, rounds + 1)]
    with pytest.raises(InputError, match="larger budget"):
        find(kind, task(steps=4), [0.8], rate=0.2, budget=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_shared_equally(kind):
    training = task(steps=20)
    tickets = find(kind, training, [0.5, 0.8], rate=0.3, budget=1.5, last=None)
    for ticket, rounds in zip(tickets, (len(levels([0.5], 0.3)), len(levels([0.8], 0.3)))):
        share = 30 // (rounds + 1) if kind != "imp-rewind" else ticket.history[0].step
        assert 30 - (rounds + 1) < ticket.cost.main <= 30
        assert [r.step for r in ticket.history] == [share] * rounds


@pytest.mark.parametrize(("kind", "last"), [("imp", 0.5), ("imp", None), ("imp-rewind", 0.6), ("lrr", 0.7)])
def test_trainings_of_a_budget_decay_to_their_own_ends(kind, last):
    training, rewind = smooth(steps=20), 0.25 if kind == "imp-rewind" else 0.0
    extra = {"rewind": rewind} if rewind else {}
    counts = [0] + [round(s * NUMEL) for s in levels([0.6], 0.4)]  # two rounds: three trainings of 40 steps
    # of 40: 20 and 10 each; 13 each; 24, and 16 = 9 + 7 with two steps rewound to, which the last does not take; 28 and 6
    lengths = {0.5: [10, 10, 20], None: [13, 13, 13], 0.6: [9, 9, 26], 0.7: [6, 6, 28]}[last]
    expected, _ = written_out(training, counts, kind, rewind, lengths)[-1]
    (ticket,) = find(kind, training, [0.6], rate=0.4, budget=2.0, last=last, **extra)
    first = round(rewind * lengths[0])
    assert ticket.cost.main == sum(lengths) - 2 * first <= 40
    for name, p in ticket.model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-9, atol=1e-12)


@given(
    st.sampled_from(KINDS), st.floats(0.05, 6), st.sampled_from([None, 0.1, 0.5, 0.8, 0.95]), st.integers(1, 400),
    st.integers(2, 14), st.floats(0, 0.9),
)  # fmt: skip
def test_a_budget_is_never_exceeded_and_hardly_left_over(kind, budget, last, steps, trainings, rewind):
    rewind = rewind if kind == "imp-rewind" else 0.0
    kept = RewindSettings(budget=budget, last=last, rewind=rewind)
    try:
        found = lengths(kept, steps, trainings, rewind)
    except InputError:
        rounds = most_rounds(kept, steps)
        assert rounds < trainings - 1 or rounds == 1
        return
    first = round(rewind * found[0])
    spent = sum(found) - (trainings - 1) * first
    # a step too many or too few for every training: the early step is rounded too
    assert budget * steps - 2 * trainings <= spent <= budget * steps + trainings * 0.5 + 1e-6
    assert rewind or spent <= budget * steps + 1e-6
    assert len(set(found[:-1])) == 1 and min(found) >= 1


def test_most_rounds_leave_a_step_to_each_training():
    for last, steps in itertools.product((None, 0.5, 0.8), range(6, 60)):
        kept = ImpSettings(budget=1.5, last=last)
        most = most_rounds(kept, steps)
        assert min(lengths(kept, steps, most + 1)) >= 1
        with pytest.raises(InputError, match="larger budget"):
            lengths(kept, steps, most + 2)


@pytest.mark.parametrize("kind", KINDS)
def test_only_weights_that_are_asked_for_stay_on_disk(kind, tmp_path):
    store, training, most = Store(tmp_path / "work"), task(steps=3), [0]

    def look(step, total, text):
        most[0] = max(most[0], len(list(store.root.glob("*/run.safetensors"))))

    find(kind, training, [0.5, 0.85], rate=0.3, store=store, progress=lambda label: look)
    assert most[0] == (2 if kind == "lrr" else 1)  # the first ticket, and for lrr where the next training begins
    counts = [0] + [round(s * NUMEL) for s in levels([0.5, 0.85], 0.3)]
    left = {p.parent.name for p in store.root.glob("*/run.safetensors")}
    wanted = {counts.index(132), len(counts) - 1}
    assert left == {f"ticket-round-{n}" for n in wanted}
    assert not list(store.root.glob("*/early.safetensors"))


def test_weights_that_somebody_deleted_are_missed(tmp_path):
    store, training = Store(tmp_path / "work"), task(steps=3)
    find("imp", training, [0.5], rate=0.5, store=store)
    next(store.root.glob("*-1/run.safetensors")).unlink()
    with pytest.raises(FormatError, match="delete the store and run again"):
        find("imp", training, [0.5], rate=0.5, store=store)


def test_a_stopped_search_keeps_its_finished_tickets(tmp_path):
    store, training = Store(tmp_path / "work"), task(steps=3)
    entry = Search("imp", training, [0.5, 0.85], ImpSettings(rate=0.5), store)
    from winnow.tickets.methods.imp import imp

    (first,) = itertools.islice(imp(entry), 1)
    with torch.no_grad():
        first.model[0].weight.zero_()  # what the owner does with a ticket changes nothing of what follows
    same(find("imp", training, [0.5, 0.85], store=store), find("imp", training, [0.5, 0.85]))


def test_learning_rate_rewinding_goes_on_from_trained_weights_in_a_new_order():
    training = task(steps=4)
    search = Search("lrr", training, [0.5], ImpSettings(rate=0.5))
    way = Way.to(search, [0.5], 0.5)
    kept = [
        (t.run.position().state, t.run.stream)
        for t in trajectory(search, way.zeros, [0, 1], steps=[4, 4], restart=Restart(onwards=True), name="t")
    ]
    assert [stream for _, stream in kept] == ["main", ("round", 1)]
    ((_, imp_stream), *_) = [
        (t, t.run.stream) for t in trajectory(search, way.zeros, [1], steps=[4, 4], restart=Restart(), name="t")
    ]
    assert imp_stream == "main"  # the same training again: only the mask differs


# Lottery Pool


def test_mixing_is_linear_and_leaves_counters_alone():
    first = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(9)}
    found = mixed(first, second, 0.25)
    assert found["w"].tolist() == [0.75, 1.0] and int(found["n"]) == 3


def test_pool_against_greedy_mixing_written_out():
    training = task(steps=5, lr=0.1, rows=80, size=20)
    targets, grid = [0.3, 0.6], (0.05, 0.1, 0.3)
    tickets = find("lottery-pool", training, targets, rate=0.2, grid=grid, fine_tune=0.0, holdout=0.25)
    rest, held = divided(training.examples, 0.25, training.seed)
    search = Search("imp", training.replaced(examples=rest), targets, ImpSettings(rate=0.2))
    way = Way.to(search, targets, 0.2)
    states = [
        t.run.position().state
        for t in trajectory(
            search, way.zeros, range(len(way.zeros)), steps=[5] * len(way.zeros), restart=Restart(), name="t"
        )
    ]
    batch = training.examples.take(held.numbers)
    names = ["0.weight", "3.weight"]

    order = rest.order(torch.Generator().manual_seed(seed_of(training.seed, "recalibrate")))

    def pruned(state, zeros):
        scores = torch.cat([state[n].abs().flatten() for n in names])
        keep = torch.ones_like(scores)
        keep[scores.argsort(stable=True)[:zeros]] = 0
        parts = keep.split([120, 144])
        found = state | {n: state[n] * p.reshape(state[n].shape) for n, p in zip(names, parts)}
        # mean and variance of what the first layer puts out, the plain average over mini-batches
        outputs = [rest.take(i)[0] @ found["0.weight"].T + found["0.bias"] for i in order]
        found["1.running_mean"] = torch.stack([o.mean(0) for o in outputs]).mean(0)
        found["1.running_var"] = torch.stack([o.var(0) for o in outputs]).mean(0)
        found["1.num_batches_tracked"] = torch.tensor(len(order))
        return found

    @torch.no_grad()
    def loss(state):
        model = copy.deepcopy(training.model).eval()
        model.load_state_dict(state)
        return float(cross_entropy(model, batch))

    taken = []
    for ticket, number in zip(tickets, way.targets):
        best, count = states[number], 0
        for other in reversed(states[:number]):
            tried = [
                pruned(
                    {n: (1 - a) * t + a * other[n] if t.is_floating_point() else t for n, t in best.items()},
                    ticket.zeros,
                )
                for a in grid
            ]
            newcomer = min(tried, key=loss)
            if loss(newcomer) < loss(best):
                best, count = newcomer, count + 1
        taken.append(count)
        assert ticket.notes[0].startswith(f"{count} of {number} earlier tickets")
        for name, t in ticket.model.state_dict().items():
            torch.testing.assert_close(t, best[name], rtol=1e-5, atol=1e-6)
        assert sum(int((ticket.model.state_dict()[n] == 0).sum()) for n in names) == ticket.zeros
        passes = (1 + number * len(grid)) * held.parts + number * len(grid) * len(order)
        assert len(order) == 3 and ticket.cost.extra == -(-passes // 3) and ticket.cost.main == 5 * (number + 1)
    assert any(taken), "nothing was mixed: the test shows nothing"


def test_held_back_examples_are_never_trained_on():
    training, seen = task(steps=12), []
    training = training.replaced(loss=lambda m, b: (seen.append(b[0]) if m.training else None, cross_entropy(m, b))[1])
    find("lottery-pool", training, [0.5], holdout=0.2)
    _, held = divided(training.examples, 0.2, training.seed)
    (x, _) = training.examples.joined
    rows = {tuple(r.tolist()) for r in torch.cat(seen)}
    assert len(held.numbers) == 12 and not rows & {tuple(r.tolist()) for r in x[held.numbers]}
    assert len(rows) == 48


@pytest.mark.parametrize("size", [1, 7])
def test_divided_examples_are_all_there_once(size):
    x = torch.arange(30.0)[:, None]
    examples = Examples([(x, x)], size)
    rest, held = divided(examples, 0.3, 0)
    for part, count in ((rest, 21), (held, 9)):
        generator = torch.Generator().manual_seed(3)
        drawn = [part.take(i)[0].flatten() for i in part.order(generator)]
        assert len(drawn) == part.parts and max(len(d) for d in drawn) <= size
        assert len(torch.cat(drawn).unique()) == count == part.count
        assert torch.equal(torch.cat([b[0].flatten() for _, b in part.all()]), part.numbers.float())
    assert not set(rest.numbers.tolist()) & set(held.numbers.tolist())


def test_divided_batches_stay_whole():
    batches = [(torch.zeros(n, 2 + n), torch.zeros(n)) for n in (3, 4, 5, 6)]
    rest, held = divided(Examples(batches, 4), 0.25, 0)
    assert (rest.parts, held.parts) == (3, 1)
    widths = {b[0].shape[1] for part in (rest, held) for _, b in part.all()}
    assert widths == {5, 6, 7, 8}
    with pytest.raises(InputError, match="only one"):
        divided(Examples(batches[:1], 1).__class__([(torch.zeros(1, 2), torch.zeros(1))], 1), 0.5, 0)


def test_the_pools_loss_is_the_mean_over_examples_of_whole_batches():
    """Batches that are drawn whole count by their rows, padded and short ones alike."""
    x, y = task(rows=120).examples.joined
    batches = [{"x": x[a:b], "y": y[a:b]} for a, b in itertools.pairwise((0, 3, 60, 62, 100, 120))]

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    training = task().replaced(examples=Whole(batches), loss=loss)
    _, held = divided(training.examples, 0.8, 0)
    run = Run(training)
    chosen = [batches[int(n)] for n in held.numbers]
    assert len(chosen) == 4 and len({len(b["x"]) for b in chosen}) > 2
    every = {k: torch.cat([b[k] for b in chosen]) for k in ("x", "y")}
    found = _loss(run, held)
    assert found == pytest.approx(float(loss(run.model, every).detach()), rel=1e-6)
    over_batches = sum(float(loss(run.model, b).detach()) for b in chosen) / 4
    assert abs(found - over_batches) > 1e-3


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norms_survive_the_mix(frozen):
    model = network()
    model[1].requires_grad_(not frozen)
    with torch.no_grad():
        model[1].running_mean.fill_(0.25)
    (ticket,) = find("lottery-pool", task(model, steps=4), [0.6], fine_tune=0.0)
    norm = ticket.model[1]
    assert isinstance(norm, nn.BatchNorm1d) and bool((norm.running_var > 0).all())
    assert norm.track_running_stats and not ticket.model.training
    assert bool((norm.running_mean == 0.25).all()) == frozen  # frozen statistics stay, in every mixture
