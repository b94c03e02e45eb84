"""Inputs that no call of a linear layer shows: recurrent weights and parameters that a forward multiplies with itself.

What calibration sees of them is compared with plain loops in float64; what it cannot see is named, counted and not given
the method's name.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import winnow
from winnow.calibrate.walker import Walker
from winnow.masks.scope import find_scope
from winnow.report.compression import tables


def step(layer, into, across, h, c):
    """One time step, float64: the new h and c from x_t W_ih^T + b_ih and h_{t-1} W_hh^T + b_hh."""
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        i, f, g, o = (into + across).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if isinstance(layer, nn.GRU | nn.GRUCell):
        (ri, zi, ni), (rh, zh, nh) = into.chunk(3, 1), across.chunk(3, 1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        return (1 - z) * (ni + r * nh).tanh() + z * h, c
    return (into + across).tanh(), c


def inputs_of_recurrent(layer, x, lengths):
    """Rows that every weight is multiplied with, [n, cols] float64; ``x`` [T, B, in], sequences end at their length."""
    seen: dict[str, list[torch.Tensor]] = {}
    steps, batch = x.shape[:2]
    for depth in range(layer.num_layers):
        sides = []
        for side in ("", "_reverse")[: 2 if layer.bidirectional else 1]:
            names = [f"{key}_l{depth}{side}" for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            w_in, w_across, b_in, b_across = (getattr(layer, name).detach().double() for name in names)
            out = torch.zeros(steps, batch, layer.hidden_size, dtype=torch.float64)
            for b in range(batch):
                h = c = torch.zeros(1, layer.hidden_size, dtype=torch.float64)
                for t in reversed(range(lengths[b])) if side else range(lengths[b]):
                    seen.setdefault(names[0], []).append(x[t, b : b + 1])
                    seen.setdefault(names[1], []).append(h)
                    h, c = step(layer, x[t, b : b + 1] @ w_in.T + b_in, h @ w_across.T + b_across, h, c)
                    out[t, b] = h
            sides.append(out)
        x = torch.cat(sides, 2)
    return {name: torch.cat(rows) for name, rows in seen.items()}


def statistics(model, batches, include, by="block"):
    found = {}
    walker = Walker(model, batches, find_scope(model, include=include), gram=True, by=by)
    walker.walk(lambda unit, stats: found.update(stats))
    return {name: parts[0] for name, parts in found.items()}, walker


def assert_statistics_of(stats, rows):
    assert stats.tokens == len(rows)
    assert torch.allclose(stats.gram.double(), rows.T @ rows, rtol=1e-4, atol=1e-4)
    assert torch.allclose(stats.sum, rows.sum(0), rtol=1e-4, atol=1e-4)
    assert torch.allclose(stats.sum_sq, rows.square().sum(0), rtol=1e-4, atol=1e-4)


class Recurrent(nn.Module):
    def __init__(self, layer, packed=False):
        super().__init__()
        self.layer, self.packed = layer, packed
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 3)

    def forward(self, x, attention_mask=None):
        if self.packed:
            lengths = attention_mask.sum(1)
            packed = pack_padded_sequence(x, lengths, batch_first=self.layer.batch_first, enforce_sorted=False)
            out = pad_packed_sequence(self.layer(packed)[0], batch_first=self.layer.batch_first)[0]
        else:
            out = self.layer(x)[0]
        return self.head(out)


KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@pytest.mark.parametrize("by", ["block", "layer"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_see_x_and_the_state_before(kind, options, by):
    torch.manual_seed(0)
    model = Recurrent(KINDS[kind](5, 4, **options)).eval()
    batches = [torch.randn(6, 3, 5), torch.randn(4, 3, 5)]
    found, walker = statistics(model, batches, ["layer.*"], by)
    wanted: dict[str, list[torch.Tensor]] = {}
    for x in batches:
        x = x.double().transpose(0, 1) if options.get("batch_first") else x.double()
        for name, rows in inputs_of_recurrent(model.layer, x, [len(x)] * x.shape[1]).items():
            wanted.setdefault(name, []).append(rows)
    assert {f"layer.{name}" for name in wanted} == set(found) == walker.watched and not walker.unreached
    for name, rows in wanted.items():
        assert_statistics_of(found[f"layer.{name}"], torch.cat(rows))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_stays_out_of_recurrent_statistics(kind, packed):
    torch.manual_seed(0)
    model = Recurrent(KINDS[kind](5, 4, batch_first=True), packed).eval()
    lengths = [6, 2, 4]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    batch = {"x": torch.randn(3, 6, 5), "attention_mask": mask.long()}
    found, _ = statistics(model, [batch], ["layer.*"])
    for name, rows in inputs_of_recurrent(model.layer, batch["x"].double().transpose(0, 1), lengths).items():
        assert_statistics_of(found[f"layer.{name}"], rows)


class Cells(nn.Module):
    """Two stacked cells that both begin with the same state of zeros."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second, self.head = kind(5, 4), kind(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        zeros = torch.zeros(len(x), 4)
        states = [(zeros, zeros) if isinstance(self.first, nn.LSTMCell) else zeros] * 2
        for t in range(x.shape[1]):
            for i, cell in enumerate((self.first, self.second)):
                below = x[:, t] if i == 0 else states[0][0] if isinstance(states[0], tuple) else states[0]
                states[i] = cell(below, states[i])
        return self.head(states[1][0] if isinstance(states[1], tuple) else states[1])


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_in_a_loop_over_time(kind):
    torch.manual_seed(0)
    model, x = Cells(kind).eval(), torch.randn(3, 6, 5)
    found, _ = statistics(model, [x], ["first.weight*", "second.weight*"])
    rows: dict[str, list[torch.Tensor]] = {}
    h = [torch.zeros(3, 4, dtype=torch.float64)] * 2
    c = list(h)
    for t in range(6):
        below = x[:, t].double()
        for i, name in enumerate(("first", "second")):
            cell = getattr(model, name).double()
            rows.setdefault(f"{name}.weight_ih", []).append(below)
            rows.setdefault(f"{name}.weight_hh", []).append(h[i])
            into, across = F.linear(below, cell.weight_ih, cell.bias_ih), F.linear(h[i], cell.weight_hh, cell.bias_hh)
            h[i], c[i] = (s.detach() for s in step(cell, into, across, h[i], c[i]))
            below = h[i]
    for name, part in rows.items():
        assert_statistics_of(found[name], torch.cat(part))


class Direct(nn.Module):
    """A matrix [7, 5] that some forward multiplies with in one of many ways; a linear layer before and behind it."""

    def __init__(self, way):
        super().__init__()
        self.before, self.way, self.head = nn.Linear(5, 5), way, nn.Linear(7, 3)
        self.matrix = nn.Parameter(torch.randn(7, 5))

    def forward(self, x):
        return self.head(torch.relu(self.way(torch.tanh(self.before(x)), self.matrix)))


WAYS = {
    "F.linear": lambda x, w: F.linear(x, w),
    "matmul": lambda x, w: torch.matmul(x, w.t()),
    "operator": lambda x, w: x @ w.T,
    "the other side": lambda x, w: (w @ x.transpose(-1, -2)).transpose(-1, -2),
    "einsum": lambda x, w: torch.einsum("...i,oi->...o", x, w),
    "with bias": lambda x, w: torch.addmm(torch.ones(7), x.reshape(-1, 5), w.t()).reshape(*x.shape[:-1], 7),
    "one by one": lambda x, w: torch.stack([w @ row for row in x.reshape(-1, 5)]).reshape(*x.shape[:-1], 7),
}


@pytest.mark.parametrize("by", ["block", "layer"])
@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_a_forward_multiplies_with_itself(way, by):
    torch.manual_seed(0)
    model, x = Direct(WAYS[way]).eval(), torch.randn(4, 6, 5)
    rows = torch.tanh(model.before(x)).detach().double().reshape(-1, 5)
    found, walker = statistics(model, [x], ["matrix", "before.weight"], by)
    assert_statistics_of(found["matrix"], rows)
    assert_statistics_of(found["before.weight"], x.double().reshape(-1, 5))
    assert walker.watched == {"matrix"} and not walker.unreached


class Reader(nn.Module):
    """Reads the weight of a linear layer without calling it."""

    def __init__(self):
        super().__init__()
        self.first, self.read, self.head = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.linear(torch.relu(self.first(x)), self.read.weight))


@pytest.mark.parametrize("by", ["block", "layer"])
def test_a_layer_whose_weight_another_module_reads(by):
    torch.manual_seed(0)
    model, x = Reader().eval(), torch.randn(9, 5)
    rows = torch.relu(model.first(x)).detach().double()
    found, walker = statistics(model, [x], [], by)
    assert set(found) == {"first.weight", "read.weight"} and walker.watched == {"read.weight"}
    assert_statistics_of(found["read.weight"], rows)
    assert_statistics_of(found["first.weight"], x.double())


# --- what cannot be seen --------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """One layer that is seen, two matrices whose inputs are not (used the other way round, scaled), and one that is
    recomputed at each call and stays dense."""

    def __init__(self):
        super().__init__()
        self.seen, self.normed = nn.Linear(12, 16), weight_norm(nn.Linear(16, 16))
        self.turned = nn.Parameter(torch.randn(16, 14) / 4)
        self.scaled = nn.Parameter(torch.randn(10, 14) / 4)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.normed(torch.relu(self.seen(x))))
        return self.head(torch.relu(F.linear(torch.relu(x @ self.turned), 2 * self.scaled)))


UNSEEN = ["turned", "scaled"]


def compress(model, x, method, **options):
    return winnow.compress(model, x, sparsity=0.5, method=method, task="none", speed=False, **options)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps", "owl"])
def test_what_is_not_seen_is_counted_and_named(method, tmp_path):
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(64, 12)
    result = compress(model, x, method, include=UNSEEN)
    (note,) = [n for n in result.report.notes if "magnitude" in n]
    assert "2 of 3 tensors" in note and method in note and all(name in note for name in UNSEEN)
    assert {x.name: x.method for x in result.report.layers} == {
        "seen.weight": None,
        **dict.fromkeys(UNSEEN, "magnitude"),
    }
    table = tables.layers(result.report)
    column = [c.title for c in table.columns].index("Method")
    shown = {row.name: row.cells[column][0] for row in table.rows}
    assert shown == {"seen.weight": method, **dict.fromkeys(UNSEEN, "magnitude")}
    # And magnitude it is: nothing kept is smaller than what went, row by row where the method compares rows.
    for name in UNSEEN:
        after, before = result.model.get_parameter(name).detach(), model.get_parameter(name).detach()
        pairs = zip(after, before, strict=True) if method in ("wanda", "owl") else [(after, before)]
        for got, was in pairs:
            assert torch.equal(got[got != 0], was[got != 0])
            assert was[got == 0].abs().max() <= was[got != 0].abs().min()


def test_magnitude_has_nothing_to_explain():
    torch.manual_seed(0)
    result = compress(Mixed().eval(), torch.randn(64, 12), "magnitude", include=UNSEEN)
    assert not any("calibration saw" in n for n in result.report.notes)
    assert all(layer.method is None for layer in result.report.layers)
    assert "Method" not in [c.title for c in tables.layers(result.report).columns]


def test_unseen_tensors_are_not_emptied_where_layers_compete():
    torch.manual_seed(0)
    for allocation in ("global", "owl"):
        result = compress(Mixed().eval(), torch.randn(64, 12), "wanda", include=UNSEEN, allocation=allocation)
        rates = {layer.name: layer.sparsity for layer in result.report.layers}
        assert min(rates.values()) > 0.1 and max(rates.values()) < 0.9, (allocation, rates)


def test_a_run_that_goes_on_names_them_too(tmp_path):
    from winnow.compression.hosts import Loaded
    from winnow.compression.prune import Pruner
    from winnow.compression.recipe import Recipe
    from winnow.models.source import open_model

    torch.manual_seed(0)
    host = Loaded(open_model(Mixed().eval()))
    scope = find_scope(host.model, include=UNSEEN)
    host.begin(scope)
    recipe = Recipe(method="wanda", score="wanda", group="row", sparsity=0.5, zeros=scope.numel // 2)
    zeros = {name: p.numel // 2 for name, p in scope.prunables.items()}
    notes = []
    for _ in range(2):
        host.restore(scope)
        notes.append(Pruner(host, scope, recipe, zeros, [torch.randn(64, 12)], folder=tmp_path).run().notes)
    assert notes[0] == notes[1] and any("2 of 3 tensors" in n for n in notes[0])


class Routed(nn.Module):
    """Experts in one parameter; the last is never chosen."""

    class Experts(nn.Module):
        def __init__(self, count, width):
            super().__init__()
            self.up, self.down = (nn.Parameter(torch.randn(count, width, width) / 3) for _ in range(2))

        def forward(self, x, chosen):
            out = torch.zeros_like(x)
            for i in chosen.unique().tolist():
                rows = (chosen == i).nonzero().squeeze(1)
                out[rows] = F.linear(torch.relu(F.linear(x[rows], self.up[i])), self.down[i])
            return out

    def __init__(self, count=5, width=8):
        super().__init__()
        self.router, self.experts, self.head = nn.Linear(width, count), self.Experts(count, width), nn.Linear(width, 3)
        with torch.no_grad():
            self.router.bias[-1] = -1e4

    def forward(self, x):
        return self.head(x + self.experts(x, self.router(x).argmax(-1)))


def test_experts_that_no_token_reached_are_counted():
    torch.manual_seed(0)
    result = compress(Routed().eval(), torch.randn(256, 8), "sparsegpt")
    methods = {layer.name: layer.method for layer in result.report.layers}
    assert methods == dict.fromkeys(("experts.up", "experts.down"), "magnitude in 1 of 5 parts")
    (note,) = [n for n in result.report.notes if "magnitude" in n]
    assert "experts.up (1 of 5 experts)" in note and "experts.down (1 of 5 experts)" in note
