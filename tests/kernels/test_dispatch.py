"""winnow.accelerate: what runs where is decided by timings that the tests make up, and the outputs are the model's own."""

from __future__ import annotations

import copy
import json
import math
import os
import threading
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import families
from sparse_layers import coded, relative, thinned
from winnow.errors import InputError
from winnow.formats import ArtifactWriter, load, pack
from winnow.forward.batch import call
from winnow.kernels import dispatch, native
from winnow.kernels.cache import TimingCache
from winnow.kernels.contenders import Contender, Layer
from winnow.kernels.decision import choose, timed
from winnow.kernels.dense import Int8Linear, RoundedLayer, RoutedLayer, ShrunkLayer
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.micro import ENOUGH, FEW, MOST, TRIES, TWO, Case, MicroTimer, time_contenders
from winnow.kernels.modules import PackedConv2d, PackedLinear
from winnow.kernels.swap import LayerSpec, pack_layer, swap
from winnow.masks.scope import find_scope
from winnow.masks.structure import Unstructured
from winnow.quantize import Grid, Quantized, round_to_nearest


def accelerate(model, **options):
    """Keeps no timings unless asked to: every call of a test has a timer of its own."""
    return dispatch.accelerate(model, **{"cache": False, **options})


WAYS = ["packed", "expanded", "spmm"]


@pytest.fixture(autouse=True)
def small_models(monkeypatch, tmp_path):
    """Tiny layers count, and nobody's own timings are read or written."""
    monkeypatch.setattr(dispatch, "SMALLEST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def favour(winner, seen=None, at=None):
    """A timer by which the contenders whose label begins with ``winner`` are twice as fast as the others, which are all
    equal; ``at`` gives a winner of its own to numbers of rows."""

    def timer(case, calls, x):
        if seen is not None:
            seen.append((case, list(calls), x))
        best = (at or {}).get(case.rows, winner)
        return {label: 50.0 if label.startswith(best) else 100.0 for label in calls}

    return timer


def forbidden(case, calls, x):
    raise AssertionError("nothing may be timed here")


def mlp(dtype=torch.float32, density=0.4):
    return thinned(nn.Sequential(nn.Linear(24, 33), nn.ReLU(), nn.Linear(33, 17, bias=False)), density).to(dtype)


def convnet():
    return thinned(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1, stride=2))
    )


# Choosing


def contender(label, member=None, way=None):
    return Contender(label, member or label, 0, lambda: nn.Identity(), way)


OFFERED = {
    c.label: c
    for c in [
        contender("dense"),
        contender("packed", "p", "packed"),
        contender("expanded", "p", "expanded"),
        contender("shrunk"),
    ]
}


@pytest.mark.parametrize("time, label", [(94.9, "packed"), (95.1, "dense"), (100.0, "dense"), (120.0, "dense")])
def test_a_layer_changes_only_for_more_than_five_percent(time, label):
    times = {1: {"dense": 100.0, "packed": time, "expanded": 300.0, "shrunk": 300.0}}
    assert choose(OFFERED, times, "speed")[1].label == label


def test_the_given_layer_is_the_one_to_beat_packed_or_not():
    given_packed = {label: OFFERED[label] for label in ["packed", "expanded", "dense"]}
    times = {
        1: {"packed": 100.0, "expanded": 99.0, "dense": 96.0},
        16: {"packed": 90.0, "expanded": 60.0, "dense": 59.0},
    }
    assert [c.label for c in choose(given_packed, times, "speed").values()] == ["expanded", "expanded"]


def test_where_numbers_of_rows_disagree():
    times = {
        1: {"dense": 100.0, "packed": 25.0, "expanded": 200.0, "shrunk": 90.0},
        128: {"dense": 100.0, "packed": 400.0, "expanded": 150.0, "shrunk": 99.0},
    }
    assert {n: c.label for n, c in choose(OFFERED, times, "speed").items()} == {1: "packed", 128: "dense"}
    # One copy: packed takes sqrt(25 * 150) = 61 by geometric mean, shrunk 94, dense 100.
    assert {n: c.label for n, c in choose(OFFERED, times, "memory").items()} == {1: "packed", 128: "expanded"}
    times[128]["expanded"] = 390.0  # now 99: not 5% better
    assert {c.label for c in choose(OFFERED, times, "memory").values()} == {"shrunk"}
    times[1]["shrunk"] = 99.0
    assert {c.label for c in choose(OFFERED, times, "memory").values()} == {"dense"}


def test_what_does_not_run_as_given_at_some_rows_is_recorded_all_the_same():
    conv = thinned(nn.Conv2d(3, 8, 3), 0.4)
    layer = Layer("conv", conv, LayerSpec(conv), {1, 64})
    offered = {label: OFFERED[label] for label in ["packed", "dense"]}
    times = {1: {"dense": 5.0}, 64: {"packed": 10.0, "dense": 8.0}}
    chosen = choose(offered, times, "speed")
    assert timed(layer, offered, times, chosen).reason == "faster than as given: 1.25x at 64 rows"
    times = {1: {"dense": 5.0}}
    assert "does not run at these rows" in timed(layer, offered, times, choose(offered, times, "speed")).reason


def test_never_more_than_two_copies():
    times = {
        1: {"dense": 100.0, "packed": 10.0, "expanded": 500.0, "shrunk": 90.0},
        16: {"dense": 100.0, "packed": 130.0, "expanded": 500.0, "shrunk": 80.0},
        128: {"dense": 100.0, "packed": 130.0, "expanded": 500.0, "shrunk": 300.0},
    }
    # Without shrunk: 10, 100, 100. Without dense: 10, 80, 130. Without packed: 90, 80, 100. The first is the smallest.
    assert {n: c.label for n, c in choose(OFFERED, times, "speed").items()} == {1: "packed", 16: "dense", 128: "dense"}


@settings(deadline=None)
@given(
    st.dictionaries(
        st.integers(1, 300),
        st.fixed_dictionaries({label: st.floats(1, 1000) for label in OFFERED}),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["speed", "memory"]),
)
def test_choices_hold_what_they_promise(times, prefer):
    chosen = choose(OFFERED, times, prefer)
    assert chosen.keys() == times.keys()
    members = {c.member for c in chosen.values()}
    assert len(members) <= (2 if prefer == "speed" else 1)
    if prefer == "speed":
        for n, c in chosen.items():
            assert c.label == "dense" or times[n][c.label] < 0.95 * times[n]["dense"]
        if len(members) == 1:
            for n in times:
                best = min(times[n].values())
                assert times[n][chosen[n].label] <= best or 0.95 * times[n]["dense"] <= best
    else:
        logs = sum(math.log(times[n][c.label] / times[n]["dense"]) for n, c in chosen.items())
        assert members == {"dense"} or logs / len(times) < math.log(0.95) + 1e-9


# Timing


class Clock:
    """Time passes only where a call takes some."""

    def __init__(self):
        self.now = 0
        self.calls = []

    def __call__(self):
        return self.now

    def contender(self, name, *durations):
        def run(x):
            self.calls.append(name)
            # The first call is not timed.
            self.now += durations[min(max(self.calls.count(name) - 2, 0), len(durations) - 1)]

        return run


def raced(clock, contenders, limit=10**9, prepare=lambda call, x: None):
    return time_contenders(contenders, torch.zeros(1), prepare, limit, clock)


def test_the_median_of_the_timed_calls():
    clock = Clock()
    a, b = clock.contender("a", 100, 101, 1000), clock.contender("b", 99, 102, 100)
    assert raced(clock, {"a": a, "b": b}) == {"a": 1000, "b": 100}
    clock = Clock()
    found = raced(clock, {"a": clock.contender("a", 9, 5, 7, 7)})
    assert found == {"a": 7} and clock.calls.count("a") == 1 + FEW


@pytest.mark.parametrize(
    "cache, cold, between",
    [(1 << 20, True, 0), (9 << 20, True, 0), (10 << 20, False, 8 << 20), (1 << 30, False, 8 << 20)],
)
def test_what_is_read_between_two_calls_of_a_layer(monkeypatch, cache, cold, between):
    """9 MB of weights, of which one small layer is timed; an embedding is not read whole."""
    monkeypatch.setattr(dispatch, "last_level_cache", lambda: cache)
    model = nn.Module()
    model.table, model.big, model.small = (
        nn.Embedding(9000, 256),
        nn.Linear(1024, 2304 - 64),
        thinned(nn.Linear(256, 256)),
    )
    accelerate(model.eval(), rows=1, timer=favour("x", seen := []))
    assert [(case.cold, case.between) for case, _, _ in seen] == [(cold, between)]
    assert ("cold" if cold else f"between={between}") in seen[0][0].key


def test_who_is_clearly_slower_is_not_called_again():
    clock = Clock()
    contenders = {name: clock.contender(name, time) for name, time in {"a": 100, "b": 160, "c": 500, "d": 120}.items()}
    assert raced(clock, contenders) == {"a": 100, "b": 160, "c": 500, "d": 120}
    counted = {name: clock.calls.count(name) - 1 for name in contenders}
    assert counted == {"a": ENOUGH, "b": FEW, "c": TWO, "d": ENOUGH}


def test_calls_that_were_interrupted_are_timed_again():
    """Every other call of "a" loses the processor for a while, every call of "b", and none of "c"."""
    clock, lost = Clock(), []
    inner = {name: clock.contender(name, time) for name, time in {"a": 100, "b": 104, "c": 106}.items()}

    def run(name, x):
        inner[name](x)
        count = clock.calls.count(name)
        if (name == "a" and count % 2) or name == "b":
            lost.append(name)
            clock.now += 5000 + (0 if count % 3 else 1000)

    calls = {name: lambda x, name=name: run(name, x) for name in inner}
    found = time_contenders(calls, torch.zeros(1), lambda call, x: None, 10**9, clock, lambda: len(lost))
    assert found == {"a": 100, "b": 5104, "c": 106}  # of "b" nothing better is known than its shortest time
    assert clock.calls.count("b") == 1 + TRIES * TWO
    calm = [name for name in clock.calls if name == "a"]
    assert len(calm) > MOST  # the interrupted ones were repeated


def test_near_ties_are_measured_longer_and_the_limit_holds():
    clock = Clock()
    raced(clock, {"a": clock.contender("a", 100), "b": clock.contender("b", 104)})
    assert clock.calls.count("a") == clock.calls.count("b") == 1 + MOST
    clock = Clock()
    raced(clock, {"a": clock.contender("a", 100), "b": clock.contender("b", 104)}, limit=10)
    assert clock.calls.count("a") == 1 + FEW


def test_contenders_take_turns_and_are_prepared_for():
    clock, prepared = Clock(), []
    contenders = {"a": clock.contender("a", 100), "b": clock.contender("b", 104)}
    raced(clock, contenders, prepare=lambda call, x: prepared.append(call))
    assert clock.calls[:10] == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert prepared[:4] == [contenders[name] for name in "abba"] and len(prepared) == 2 * MOST


@pytest.mark.parametrize("cold", [True, False])
def test_the_timer_gives_microseconds_and_leaves_x_as_it_is(cold, monkeypatch):
    monkeypatch.setattr("winnow.kernels.micro.flush_bytes", lambda: 4096)
    clock = Clock()
    case = Case("linear", (2, 3), "float32", "float32", 0.5, (1.0, 1.0), 1, None, True, "keep", cold, 1, 2048)
    x = torch.randn(4)
    before = x.clone()
    found = MicroTimer(clock=clock, interruptions=lambda: 0)(
        case, {"a": clock.contender("a", 3000), "b": clock.contender("b", 7000)}, x
    )
    assert found == {"a": 3.0, "b": 7.0} and torch.equal(x, before)
    # Where weights may stay in the caches, every timed call comes after one that is not timed.
    assert clock.calls.count("b") == 1 + FEW * (1 if cold else 2)


# What layers run on


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_ways_give_the_outputs_of_the_model(way, dtype):
    model = mlp(dtype)
    fast = accelerate(model, rows=(8, 16), timer=favour(way))
    name = str(dtype).removeprefix("torch.")
    for decision, (rows, cols) in zip(fast.winnow_dispatch, [(33, 24), (17, 33)], strict=True):
        assert decision.kernel == {8: f"{way} {name} {native.isa()}", 16: f"{way} {name} {native.isa()}"}
        assert (decision.rows, decision.cols, decision.values, decision.kind) == (rows, cols, name, "linear")
        assert decision.dense_us == {8: 100, 16: 100} and decision.chosen_us == {8: 50, 16: 50}
        assert decision.changed and decision.reason == "faster than as given: 2.00x at 8 rows, 2.00x at 16 rows"
        assert 0.3 < decision.density < 0.5
    assert [type(fast[i]) for i in (0, 2)] == [PackedLinear, PackedLinear]
    assert fast[0].ways == [(math.inf, way)]
    x = torch.randn(2, 9, 24).to(dtype)
    assert relative(fast(x), model(x)) < (1e-5 if dtype == torch.float32 else 0.02)


def test_the_given_model_is_left_as_it_is_and_shared():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    fast = accelerate(model, timer=favour("packed"))
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear] and not hasattr(model, "winnow_dispatch")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = accelerate(model, timer=favour("dense"))
    assert again is not model and all(a is b for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert fast[0].bias.data_ptr() == model[0].bias.data_ptr()


def test_nothing_faster_nothing_changed():
    fast = accelerate(mlp(), timer=favour("nothing"))
    assert [type(m) for m in fast] == [nn.Linear, nn.ReLU, nn.Linear]
    for decision in fast.winnow_dispatch:
        assert set(decision.kernel.values()) == {"dense float32"} and not decision.changed
        assert decision.reason == "stays: nothing was faster than dense float32 by more than 5%"


def test_a_layer_in_two_forms():
    model = mlp()
    fast = accelerate(model, rows=(1, 16, 128), timer=favour("packed", at={128: "dense"}))
    layer = fast[0]
    assert isinstance(layer, RoutedLayer) and [upto for upto, _ in layer.routes] == [16, math.inf]
    assert layer.weight is model[0].weight and layer.bias is model[0].bias  # the dense copy is the model's own
    assert type(fast[2]) is RoutedLayer
    ran = []
    for _, way in layer.routes:
        forward = way.forward
        way.forward = lambda x, way=way, forward=forward: ran.append(type(way)) or forward(x)
    x = torch.randn(200, 24)
    for rows in (1, 2, 16, 17, 128, 200, 0):
        assert torch.allclose(fast(x[:rows]), model(x[:rows]), atol=1e-5)
    assert ran == [PackedLinear] * 3 + [nn.Linear] * 3 + [PackedLinear]
    ran.clear()
    fast(x[:32].reshape(4, 8, 24))  # rows are counted over all leading dimensions
    assert ran == [nn.Linear]


def test_memory_keeps_one_copy_that_is_not_larger():
    seen = []
    fast = accelerate(mlp(density=0.3), rows=(1, 128), prefer="memory", timer=favour("packed", seen, at={128: "dense"}))
    assert type(fast[0]) is nn.Linear  # packed and expanded take 50 and 100, dense 100 and 50: no gain
    model, _ = coded()
    seen.clear()
    fast = accelerate(model, prefer="memory", values="bfloat16", timer=favour("dense", seen))
    labels = {label for _, calls, _ in seen for label in calls}
    assert labels and all(label.split()[0] in WAYS and "int8" in label for label in labels)
    assert type(fast[0]) is PackedLinear and fast[0].matrix is model[0].matrix


def test_ways_of_one_packed_layer_change_with_the_rows():
    fast = accelerate(mlp(), rows=(1, 16, 128), timer=favour("packed", at={128: "spmm"}))
    assert fast[0].ways == [(16, "packed"), (math.inf, "spmm")]
    assert fast.winnow_dispatch[0].kernel[128].startswith("spmm")


def test_values_are_kept_unless_the_user_allows_others():
    seen = []
    accelerate(mlp(), timer=favour("x", seen))
    assert all(label.split()[1] == "float32" for _, calls, _ in seen for label in calls)
    accelerate(mlp(torch.bfloat16), timer=favour("x", seen := []))
    assert all(label.split()[1] == "bfloat16" for _, calls, _ in seen for label in calls)
    accelerate(coded("int4")[0], timer=favour("x", seen := []))
    assert {label.split()[1] for _, calls, _ in seen for label in calls} == {
        "int4",
        "bfloat16",
    }  # dense, as loaded dense
    accelerate(mlp(), values=("bfloat16",), timer=favour("x", seen := []))
    assert {" ".join(label.split()[:2]) for _, calls, _ in seen for label in calls if len(calls) > 5} == {
        *(f"{way} {values}" for way in ["dense", *WAYS] for values in ["float32", "bfloat16"])
    }


@pytest.mark.parametrize("winner, kind", [("dense bfloat16", RoundedLayer), ("packed bfloat16", PackedLinear)])
def test_rounded_to_bfloat16(winner, kind):
    model = mlp()
    fast = accelerate(model, values="bfloat16", timer=favour(winner))
    assert isinstance(fast[0], kind) and fast[0].weight.dtype == torch.float32 and fast[0].weight.shape == (33, 24)
    assert torch.equal(fast.state_dict()["0.weight"], model[0].weight.bfloat16().float())


def test_an_unpruned_model_may_still_be_rounded():
    model = mlp(density=2.0)
    fast = accelerate(model, values="bfloat16", timer=favour("dense bfloat16", seen := []))
    assert {label for _, calls, _ in seen for label in calls} == {"dense float32", "dense bfloat16"}
    assert type(fast[0]) is RoundedLayer


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv"])
@pytest.mark.parametrize("dead", ["rows", "cols", "both", "all"])
@pytest.mark.parametrize("bias", [True, False])
def test_shrunk_dense(kind, dead, bias):
    if kind == "conv":
        layer = nn.Conv2d(12, 20, (3, 1), padding=(1, 0), bias=bias)
        x = torch.randn(2, 12, 5, 4)
    elif kind == "linear":
        layer, x = nn.Linear(12, 20, bias=bias), torch.randn(2, 3, 12)
    else:
        utils = pytest.importorskip("transformers.pytorch_utils")
        layer, x = utils.Conv1D(20, 12), torch.randn(2, 3, 12)
    with torch.no_grad():
        layer.weight.normal_()
        weight = layer.weight.t() if kind == "conv1d" else layer.weight
        if dead != "cols":
            weight[[0, 3, 19]] = 0
        if dead != "rows":
            weight[:, [1, 2, 11]] = 0
        if dead == "all":
            weight.zero_()
    model = nn.Sequential(layer).eval()
    fast = accelerate(model, example=x, rows=6, timer=favour("shrunk"))
    assert type(fast[0]) is ShrunkLayer and all(
        label == "shrunk dense" for label in fast.winnow_dispatch[0].kernel.values()
    )
    rows, cols = (17 if dead != "cols" else 20), (9 if dead != "rows" else 12)
    assert fast[0].filters.shape[:2] == ((1, 1) if dead == "all" else (rows, cols))
    assert torch.allclose(fast(x), model(x), atol=1e-5)
    found = fast.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    changed = {name: torch.randn_like(tensor) for name, tensor in found.items()}
    other = copy.deepcopy(model)
    other.load_state_dict(changed)
    fast = copy.deepcopy(fast)
    fast.load_state_dict(changed)
    assert fast[0].filters.shape[:2] == (20, 12) and relative(fast(x), other(x)) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_torch_int8_takes_the_codes_as_they_are(bias):
    model, weight = coded(bias=bias)
    fast = accelerate(model, timer=favour("torch int8"))
    assert type(fast[0]) is Int8Linear and set(fast.winnow_dispatch[0].kernel.values()) == {"torch int8"}
    x = torch.randn(7, 64).bfloat16()
    assert relative(fast(x), x.double() @ weight.T + (model[0].bias.double() if bias else 0)) < 0.01
    before, after = model.state_dict(), fast.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    fast.load_state_dict(after)
    with pytest.raises(RuntimeError, match="does not fit exactly"):
        fast.load_state_dict({name: torch.randn_like(tensor) for name, tensor in after.items()})


@pytest.mark.parametrize(
    "build",
    [
        lambda: coded("int4")[0],
        lambda: coded(dtype=torch.float32)[0],
        lambda: coded(cols=40)[0],
        lambda: mlp(torch.bfloat16),
    ],
    ids=["int4", "float32", "40 columns", "no codes"],
)
def test_torch_int8_only_where_it_is_the_same_and_safe(build):
    accelerate(build(), timer=favour("x", seen := []))
    assert seen and not any("torch int8" in calls for _, calls, _ in seen)


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_int8_activations_only_when_allowed(values):
    model, _ = coded(values)
    accelerate(model, timer=favour("x", seen := []))
    assert not any("activations" in label for _, calls, _ in seen for label in calls)
    label = f"packed {values} {native.isa()} int8 activations"
    fast = accelerate(model, activations="int8", timer=favour(label, seen := []))
    assert fast[0].activations == "int8" and fast.winnow_dispatch[0].kernel[1] == label
    assert model[0].activations == "keep" and fast[0].matrix is model[0].matrix


@pytest.mark.parametrize("values, dtype", [("int8", torch.bfloat16), ("int4", torch.float32)])
def test_a_packed_layer_goes_dense_where_dense_is_faster(values, dtype):
    model, weight = coded(values, dtype)
    fast = accelerate(model, rows=(1, 16), timer=favour("dense"))
    assert type(fast[0]) is nn.Linear and torch.equal(fast[0].weight, weight.to(dtype))
    fast = accelerate(model, rows=(1, 16), timer=favour("packed", at={16: "dense"}))
    assert type(fast[0]) is RoutedLayer and fast[0].routes[0][1].matrix is model[0].matrix
    assert type(model[0]) is PackedLinear
    # Equal times: it stays packed.
    assert type(accelerate(model, timer=favour("nothing"))[0]) is PackedLinear


@pytest.mark.parametrize("way", ["spmm", "expanded", "dense bfloat16"])
def test_convolutions_need_an_example(way):
    model = convnet()
    alone = accelerate(model, timer=forbidden)
    assert [d.reason for d in alone.winnow_dispatch] == ["stays: its speed depends on the size of x: pass example="] * 2
    x = torch.randn(2, 3, 8, 8)
    model.train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="training mode"):  # its parameters take gradients
        accelerate(model, example=x, timer=favour(way))
    model.requires_grad_(False)
    fast = accelerate(model, example=x, values="bfloat16", timer=favour(way, seen := []))
    assert fast.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert [(case.rows, case.shape[-4:]) for case, _, _ in seen] == [(128, (2, 3, 8, 8)), (32, (2, 8, 8, 8))]
    kind = PackedConv2d if way in WAYS else RoundedLayer
    assert type(fast[0]) is kind and type(fast[3]) is kind
    fast.eval(), model.eval()
    for shape in [(2, 3, 8, 8), (1, 3, 5, 7)]:
        x = torch.randn(shape)
        assert relative(fast(x), model(x)) < (1e-5 if kind is PackedConv2d else 0.03)


def test_a_convolution_in_two_forms():
    model = convnet()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, small):
            return self.net(x), self.net(small)

    x, small = torch.randn(2, 3, 8, 8), torch.randn(1, 3, 4, 4)
    whole = Twice().eval()
    timer = favour("spmm", at={128: "dense", 32: "dense"})
    for example in [(x, small), {"x": x, "small": small}]:
        fast = accelerate(whole, example=example, timer=timer)
        layer = fast.net[0]
        assert type(layer) is RoutedLayer and [upto for upto, _ in layer.routes] == [16, math.inf]
        for a, b in zip(fast(x, small), whole(x, small)):
            assert relative(a, b) < 1e-5


def test_an_example_adds_its_rows():
    fast = accelerate(mlp(), rows=4, example=torch.randn(3, 7, 24), timer=favour("packed", seen := []))
    assert sorted({case.rows for case, _, _ in seen}) == [4, 21] and fast.winnow_dispatch[0].kernel.keys() == {4, 21}
    with pytest.raises(InputError, match="does not run on the example"):
        accelerate(mlp(), example=torch.randn(3, 25), timer=forbidden)
    with pytest.raises(InputError, match="does not run on the example"):
        accelerate(mlp(), example={"nothing": 1}, timer=forbidden)


# What is left alone


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Sharing(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.embed.weight
        self.crossed = nn.Linear(16, 16)
        self.crossed.weight = nn.Parameter(self.embed.weight.data.t())
        self.one = nn.Linear(16, 16)
        self.two = self.one
        self.hooked = nn.Linear(16, 16)
        self.hooked.register_forward_hook(lambda module, x, y: 3 * y)
        self.own = Own(16, 16)
        self.replaced = nn.Linear(16, 16)
        self.replaced.forward = lambda x: x
        self.full = nn.Linear(16, 16)
        self.broken = nn.Linear(16, 16)
        self.frozen = nn.Linear(16, 16, dtype=torch.float64)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.attention = nn.MultiheadAttention(16, 2)
        self.plain = nn.Linear(16, 16)

    def forward(self, ids):
        x = self.crossed(self.tied(self.embed(ids)))
        x = self.replaced(self.own(self.hooked(self.two(self.one(x)))))
        x = self.plain(self.normed(self.full(x)))
        return self.attention(x, x, x)[0]


def test_what_is_left_alone_and_why():
    model = thinned(Sharing())
    with torch.no_grad():
        model.full.weight.fill_(1.0).fill_diagonal_(0.0)
        model.broken.weight[3, 3] = math.nan
    fast = accelerate(model, timer=favour("packed"))
    one = fast.winnow_dispatch[2]
    assert (one.name, one.kind, one.rows, one.cols, one.values) == ("one", "linear", 16, 16, "float32")
    assert one.density == int(model.one.weight.count_nonzero()) / 256
    assert one.kernel == dict.fromkeys((1, 16, 128), "dense float32") and not one.changed
    reasons = {d.name: d.reason.removeprefix("stays: ") for d in fast.winnow_dispatch}
    assert reasons == {
        "tied": "its weight is tied to another layer's",
        "crossed": "its weight is tied to another layer's",
        "one": "the same layer as two",
        "hooked": "hooks are registered on it",
        "own": "Own has no packed kernel",
        "replaced": "its forward is replaced",
        "full": "6% zeros are too few to pay (at least 15%)",
        "broken": "its weight holds NaN or infinity",
        "frozen": "its weight is float64",
        "normed": reasons["normed"],
        "attention.out_proj": reasons["attention.out_proj"],
        "plain": reasons["plain"],
    }
    assert "weight" in reasons["normed"] or "Parametrized" in reasons["normed"]
    assert "MultiheadAttention" in reasons["attention.out_proj"]
    assert type(fast.plain) is PackedLinear and reasons["plain"].startswith("faster")
    assert sum(type(m) is PackedLinear for m in fast.modules()) == 1
    ids = torch.arange(8)
    assert torch.allclose(fast(ids), model(ids), atol=1e-5)
    assert fast.one is fast.two and fast.tied.weight is fast.embed.weight is model.embed.weight


def test_small_unpruned_and_training_layers(monkeypatch):
    monkeypatch.setattr(dispatch, "SMALLEST", 600)
    fast = accelerate(mlp(), timer=favour("packed"))
    assert type(fast[0]) is PackedLinear and type(fast[2]) is nn.Linear
    assert "small: 561 weights" in fast.winnow_dispatch[1].reason
    fast = accelerate(mlp(density=2.0), timer=forbidden)
    assert fast.winnow_dispatch[0].reason == "stays: nothing is pruned"
    with pytest.raises(InputError, match=r"training mode.*model.eval\(\)"):
        accelerate(mlp().train(), timer=forbidden)
    half = mlp()
    half[0].train()
    fast = accelerate(half, timer=forbidden)  # a part of the model in training is left alone, and listed
    assert "in training" in fast.winnow_dispatch[0].reason
    once = accelerate(mlp(), rows=(1, 8), timer=favour("packed", at={8: "dense"}))
    again = accelerate(once, timer=forbidden)
    assert again.winnow_dispatch[0] == once.winnow_dispatch[0] and type(again[0]) is RoutedLayer
    del once.winnow_dispatch
    assert "accelerated already" in accelerate(once, timer=forbidden).winnow_dispatch[0].reason


def test_a_small_packed_layer_goes_dense_where_that_wins():
    layer = thinned(nn.Linear(24, 33))
    model = nn.Sequential(pack_layer(layer))
    fast = accelerate(model, timer=favour("dense"))
    assert type(fast[0]) is nn.Linear and torch.equal(fast[0].weight, layer.weight)


def test_a_model_that_is_one_layer():
    layer = thinned(nn.Linear(24, 33))
    fast = accelerate(layer, timer=favour("packed"))
    assert type(fast) is PackedLinear and fast.winnow_dispatch[0].name == "" and not hasattr(layer, "winnow_dispatch")
    assert fast.winnow_dispatch.table()[0]["layer"] == "(the model)"


def test_the_table_is_text():
    fast = accelerate(mlp(), rows=(1, 64), timer=favour("packed", at={64: "dense"}))
    line = fast.winnow_dispatch.table()[0]
    assert line["layer"] == "0" and line["shape"] == "33 x 24" and line["against dense"] == "2.00x 1.00x"
    assert line["runs on"] == f"packed float32 {native.isa()} (to 1), dense float32 (to 64)"
    assert all(isinstance(text, str) for text in line.values())


# Whole models


@pytest.mark.parametrize("way", ["packed", "expanded", "spmm", "two forms"])
@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "cnn",
        "encoder",
        *(pytest.param(name, marks=pytest.mark.hf) for name in ["bert", "llama", "gpt2", "t5", "opt", "vit"]),
    ],
)
def test_outputs_of_whole_models(name, way):
    family = families.family(name)
    model = thinned(family.build(), 0.6)
    batches = family.batches()
    example = batches[0] if isinstance(batches[0], (dict, torch.Tensor)) else batches[0][0]
    timer = favour(way) if way != "two forms" else favour("packed", at={n: "dense" for n in (1, 3, 15, 27)})
    fast = accelerate(model, rows=(1, 9, 15), example=example, timer=timer)
    kinds = {type(m) for m in fast.modules()}
    assert kinds & (
        {RoutedLayer} if way == "two forms" and name != "cnn" else {PackedLinear, PackedConv2d, RoutedLayer}
    )
    with torch.inference_mode():
        for batch in batches:
            for found, expected in zip(tensors(call(fast, batch)), tensors(call(model, batch)), strict=True):
                assert found.shape == expected.shape and relative(found, expected) < 1e-4
    found, expected = fast.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[key].dtype == t.dtype and torch.equal(found[key], t) for key, t in expected.items())
    family.build().load_state_dict(found)
    fast.load_state_dict(expected)


def tensors(output):
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    found = [output] if isinstance(output, torch.Tensor) else output
    return [t for t in found if isinstance(t, torch.Tensor) and t.is_floating_point()]


@pytest.mark.hf
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_generate(name):
    family = families.family(name)
    model = thinned(family.build(), 0.6)
    fast = accelerate(model, rows=(1, 4, 16), timer=favour("packed", at={16: "dense", 4: "expanded"}))
    assert any(isinstance(m, RoutedLayer) for m in fast.modules())
    assert fast.dtype == model.dtype and fast.device == model.device
    assert fast.num_parameters() <= model.num_parameters()
    ids = torch.arange(3, 15).reshape(2, 6)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        assert torch.equal(fast.generate(ids, **options), model.generate(ids, **options))
        assert torch.equal(
            fast.generate(ids[:1], **{**options, "attention_mask": torch.ones_like(ids[:1])}, num_beams=2),
            model.generate(ids[:1], **{**options, "attention_mask": torch.ones_like(ids[:1])}, num_beams=2),
        )


def dead():
    model = mlp()
    with torch.no_grad():
        model[0].weight[:9] = 0
        model[2].weight[:, :9] = 0
    return model


VARIANTS = pytest.mark.parametrize(
    "build, options",
    [
        pytest.param(mlp, {"timer": favour("packed")}, id="packed"),
        pytest.param(mlp, {"timer": favour("packed", at={8: "dense"})}, id="two forms"),
        pytest.param(mlp, {"timer": favour("dense bfloat16"), "values": "bfloat16"}, id="rounded"),
        pytest.param(dead, {"timer": favour("shrunk")}, id="shrunk"),
        pytest.param(dead, {"timer": favour("packed", at={8: "shrunk"})}, id="two substitutes"),
        pytest.param(lambda: coded()[0], {"timer": favour("torch int8")}, id="int8"),
        pytest.param(lambda: coded()[0], {"timer": favour("torch int8", at={8: "dense"})}, id="int8 in two forms"),
    ],
)


def inputs_of(model, rows):
    first = next(m for m in model.modules() if hasattr(m, "in_features"))
    return torch.randn(rows, first.in_features).to(first.weight.dtype)


@VARIANTS
def test_compiles_without_graph_breaks(build, options):
    model = build()
    fast = accelerate(model, rows=(2, 8), **options)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for rows in (2, 8, 5):
            x = inputs_of(model, rows)
            assert torch.equal(compiled(x), fast(x))


@pytest.mark.hf
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_transformers_compile_without_graph_breaks(name):
    family = families.family(name)
    model = thinned(family.build(), 0.6)
    fast = accelerate(model, rows=(1, 64), timer=favour("packed", at={64: "dense"}))
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    ids = torch.arange(3, 15).reshape(2, 6)
    with torch.inference_mode():
        assert relative(compiled(input_ids=ids).logits, model(input_ids=ids).logits) < 1e-4


@VARIANTS
def test_copies_conversions_and_state_dicts(build, options):
    model = build()
    fast = accelerate(model, rows=(2, 8), **options)
    x = inputs_of(model, 2)
    twin = copy.deepcopy(fast)
    assert torch.equal(twin(x), fast(x)) and len(twin.winnow_dispatch) == len(fast.winnow_dispatch)
    state = fast.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert fast.load_state_dict(state) and torch.equal(fast(x), twin(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict({name: t for name, t in state.items() if name != "0.weight"})
    with pytest.raises(RuntimeError, match="shape"):
        twin.load_state_dict({**state, "0.weight": torch.zeros(2, 2)})
    other = copy.deepcopy(fast).double().to(torch.bfloat16)
    y = other(x.bfloat16())
    assert y.dtype == torch.bfloat16 and relative(y, fast(x)) < 0.03
    assert {t.dtype for t in other.state_dict().values()} == {torch.bfloat16}
    with pytest.raises(InputError, match="CPU"):
        copy.deepcopy(fast).to("meta")


@pytest.mark.parametrize("values", ["int8", "keep"])
def test_a_folder(tmp_path, values):
    model = mlp(torch.bfloat16)
    packed = {}
    for prunable in find_scope(model, include=["*.weight"]).prunables.values():
        matrix = model.get_parameter(prunable.name).detach()
        quantized = round_to_nearest(matrix.float(), Grid(8, None), matrix != 0) if values == "int8" else None
        if quantized is not None:
            matrix = quantized.dequantize().to(matrix.dtype)
        packed[prunable.name] = (prunable, pack(matrix, matrix != 0, Unstructured(), quantized))
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add_model(model, packed)
        folder = writer.finish(None)
    fast = accelerate(folder, factory=lambda: mlp(torch.bfloat16), rows=2, timer=favour("packed", seen := []))
    assert [d.values for d in fast.winnow_dispatch] == ["int8" if values == "int8" else "bfloat16"] * 2
    assert type(fast[0]) is type(fast[2]) is PackedLinear and not fast.training and seen
    assert all(d.density == (model.get_parameter(f"{d.name}.weight") != 0).float().mean() for d in fast.winnow_dispatch)
    x = torch.randn(2, 24).bfloat16()
    assert relative(fast(x), load(folder, factory=lambda: mlp(torch.bfloat16))(x)) < 0.02
    with pytest.raises(InputError, match="factory"):
        accelerate(folder, timer=forbidden)


@pytest.mark.parametrize("winner", ["packed", "dense"])
def test_a_new_bias_reaches_every_form(winner):
    model = mlp()
    fast = copy.deepcopy(accelerate(model, rows=(2, 8), values="bfloat16", timer=favour("dense b", at={8: winner})))
    assert type(fast[0]) is RoutedLayer
    state = {**model.state_dict(), "0.bias": torch.arange(33.0)}
    with torch.no_grad():
        state["0.weight"] = state["0.weight"].bfloat16().float()
        state["2.weight"] = state["2.weight"].bfloat16().float()
    fast.load_state_dict(state)
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    for rows in (2, 8):
        x = torch.randn(rows, 24)
        assert relative(fast(x), model(x)) < 0.02


@VARIANTS
def test_threads_calling_at_once(build, options):
    model = build()
    fast = accelerate(model, rows=(2, 8), **options)
    xs = [inputs_of(model, rows) for rows in (1, 2, 5, 8)]
    with torch.inference_mode():
        expected = [fast(x) for x in xs]
    # torch's own dense product may sum in another order on another thread.
    tolerance = 1e-6 if expected[0].dtype == torch.float32 else 0.01
    wrong = []

    def work(start):
        with torch.inference_mode():
            for k in range(60):
                i = (start + k) % len(xs)
                if relative(fast(xs[i]), expected[i]) > tolerance:
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_reach_x():
    model = mlp()
    fast = accelerate(model, rows=(1, 8), timer=favour("packed", at={8: "dense"}))
    for rows in (1, 8):
        x = torch.randn(rows, 24, requires_grad=True)
        (expected,) = torch.autograd.grad(model(x).square().sum(), x)
        (found,) = torch.autograd.grad(fast(x).square().sum(), x)
        assert relative(found, expected) < 1e-4


# Timings that are kept


def test_timings_are_kept_for_the_next_time(tmp_path):
    model = mlp()
    first = accelerate(model, cache=True, timer=favour("packed", seen := []))
    assert len(seen) == 6
    again = accelerate(model, cache=True, timer=forbidden)
    assert list(again.winnow_dispatch) == list(first.winnow_dispatch)
    file = tmp_path / "cache" / "winnow" / "timings.json"
    machines = json.loads(file.read_text())["machines"]
    (machine,) = machines
    for fact in ("winnow ", "torch ", "threads ", native.isa()):
        assert fact in machine
    assert all(text in key for key in machines[machine] for text in ("linear", "float32", "density=0.40", "rows="))
    # Another number of threads, of rows, or nothing kept at all: timed again.
    with pytest.raises(AssertionError, match="timed"):
        accelerate(model, cache=True, threads=torch.get_num_threads() + 1, timer=forbidden)
    with pytest.raises(AssertionError, match="timed"):
        accelerate(model, cache=True, rows=7, timer=forbidden)
    with pytest.raises(AssertionError, match="timed"):
        accelerate(model, cache=False, timer=forbidden)
    with pytest.raises(AssertionError, match="timed"):
        accelerate(model, cache=True, values="bfloat16", timer=forbidden)
    assert torch.get_num_threads() == int(machine.partition("threads ")[2].split()[0])
    accelerate(model, cache=tmp_path / "elsewhere", timer=favour("packed"))
    assert (tmp_path / "elsewhere" / "timings.json").exists()


def test_identical_layers_are_timed_once():
    model = thinned(nn.Sequential(*(nn.Linear(16, 16) for _ in range(5))), 0.5)
    fast = accelerate(model, rows=(1, 2), timer=favour("packed", seen := []))
    keys = [case.key for case, _, _ in seen]
    assert len(keys) == len(set(keys)) <= 2 * len({round(20 * d.density) for d in fast.winnow_dispatch})
    assert len(fast.winnow_dispatch) == 5


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}', b'{"version": 1, "machines": []}', b"[" * 100_000],
    ids=["empty", "cut", "list", "bytes", "no machines", "machines is a list", "deep"],
)
def test_a_corrupt_cache_costs_one_warning(tmp_path, content):
    file = tmp_path / "cache" / "winnow" / "timings.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="unreadable and are taken again") as caught:
        accelerate(mlp(), cache=True, timer=favour("packed"))
    assert len(caught) == 1
    accelerate(mlp(), cache=True, timer=forbidden)


def test_single_entries_that_are_wrong_are_measured_again(tmp_path):
    accelerate(mlp(), cache=True, timer=favour("packed"))
    file = tmp_path / "cache" / "winnow" / "timings.json"
    kept = json.loads(file.read_text())
    cases = next(iter(kept["machines"].values()))
    wrong = [-1, "fast", None, float("nan"), True]
    for case, value in zip(cases, wrong):
        cases[case] = {**cases[case], "dense float32": value}
    cases[list(cases)[5]] = "nonsense"
    file.write_text(json.dumps(kept))
    accelerate(mlp(), cache=True, timer=favour("packed", seen := []))
    assert len(seen) == 6
    file.write_text(json.dumps({"version": 99, "machines": kept["machines"]}))
    accelerate(mlp(), cache=True, timer=favour("packed", seen := []))
    assert len(seen) == 6 and json.loads(file.read_text())["version"] == 1


def test_a_cache_that_cannot_be_written_costs_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot be kept") as caught:
        fast = accelerate(mlp(), cache=blocked / "below", timer=favour("packed"))
    assert len(caught) == 1 and type(fast[0]) is PackedLinear


def test_two_processes_merge_their_timings(tmp_path):
    path = tmp_path / "timings.json"
    one, two, other = TimingCache("m", path), TimingCache("m", path), TimingCache("another", path)
    one.put("a", {"x": 1.0, "y": 2.0})
    two.put("b", {"x": 3.0})
    two.put("a", {"z": 5.0})
    other.put("a", {"x": 9.0})
    for cache in (one, two, other):
        cache.save()
    merged = TimingCache("m", path)
    assert merged.get("a", {"x", "y", "z"}) == {"x": 1.0, "y": 2.0, "z": 5.0}
    assert (
        merged.get("b", {"x"}) == {"x": 3.0} and merged.get("b", {"x", "q"}) is None and merged.get("c", {"x"}) is None
    )
    assert os.listdir(tmp_path) == ["timings.json"]


# Real timing, without a word on what wins


@pytest.mark.parametrize("cold", [True, False])
def test_measured_for_real(monkeypatch, cold):
    monkeypatch.setattr("winnow.kernels.micro.flush_bytes", lambda: 1 << 20)
    monkeypatch.setattr(dispatch, "last_level_cache", lambda: 0 if cold else 1 << 40)
    for model, options in [
        (dead(), {"values": "bfloat16"}),
        (coded()[0], {"activations": "int8"}),
        (convnet(), {"values": "bfloat16", "example": torch.randn(1, 3, 6, 6)}),
    ]:
        x = options.get("example", inputs_of(model, 4) if "example" not in options else None)
        fast = accelerate(model, rows=(1, 9), timer=MicroTimer(seconds=0.01), **options)
        for decision in fast.winnow_dispatch:
            assert decision.dense_us and all(
                us > 0 for us in (*decision.dense_us.values(), *decision.chosen_us.values())
            )
        assert relative(fast(x), model(x)) < 0.04


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": 3}, "accelerate takes a torch module or a folder"),
        ({"model": None}, "accelerate takes a torch module or a folder"),
        ({"rows": 0}, "rows=0 is not"),
        ({"rows": ()}, "rows="),
        ({"rows": (1, -2)}, "rows="),
        ({"rows": (1, 2.5)}, "rows="),
        ({"rows": "many"}, "rows="),
        ({"rows": True}, "rows="),
        ({"values": "int8"}, "accelerate the folder"),
        ({"values": ("bfloat16", "float8")}, "unknown"),
        ({"values": 3}, "unknown"),
        ({"activations": "int4"}, "activations='int4' is unknown: use keep or int8"),
        ({"prefer": "fast"}, "prefer='fast' is unknown: use speed or memory"),
        ({"threads": 0}, "threads=0"),
        ({"threads": "all"}, "threads='all'"),
        ({"factory": mlp}, "factory builds the model of a folder"),
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        accelerate(**{"model": mlp(), "timer": forbidden, **arguments})
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_model_that_cannot_be_copied():
    class Alone:
        def __deepcopy__(self, memo):
            raise TypeError("there is only one of this")

    model = mlp()
    model.lock = threading.Lock()  # is shared
    assert accelerate(model, timer=favour("packed")).lock is model.lock
    model.alone = Alone()
    with pytest.raises(InputError, match=r"cannot be copied \(there is only one"):
        accelerate(model, timer=forbidden)


def test_progress_is_told():
    told = []
    accelerate(mlp(), timer=favour("packed"), progress=lambda *what: told.append(what))
    assert told == [(0, 2, "0"), (1, 2, "2"), (2, 2, "")]


def test_random_numbers_of_the_caller_are_left_alone():
    model = mlp()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    accelerate(model, timer=favour("packed"), example=torch.ones(2, 24))
    assert torch.equal(torch.rand(4), expected)


def test_codes_survive_the_state_dict():
    """int8 codes at the ends of the range, and a scale that is negative or zero."""
    codes = torch.tensor([[127, -128, 1, 0] * 8, [-127, 5, 0, 64] * 8, [0, 0, 0, 0] * 8], dtype=torch.int8)
    scales = torch.tensor([[0.01], [-0.02], [0.0]], dtype=torch.float16)
    linear = nn.Linear(32, 3, bias=False).bfloat16()
    model = nn.Sequential(linear).eval()
    swap(model, "0", pack_layer(linear, PackedMatrix.from_codes(Quantized(codes, scales, 8, None)), torch.bfloat16))
    fast = accelerate(model, timer=favour("torch int8"))
    assert type(fast[0]) is Int8Linear and torch.equal(fast[0].codes, codes)
    fast.load_state_dict(fast.state_dict())
    assert torch.equal(fast[0].codes[:2], codes[:2])


def test_packed_accelerated_and_quantized_models_are_not_compressed_again():
    import winnow
    from winnow.kernels.swap import require_dense

    wanted = dict(sparsity=0.5, method="magnitude", baselines="none", speed=False)
    packed = nn.Sequential(PackedLinear(PackedMatrix.from_dense(torch.eye(8))), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match=r"packed already.*without packed=True"):
        winnow.compress(packed, **wanted)
    with pytest.raises(InputError, match="packed already"):
        winnow.shrink(packed, torch.ones(2, 8))
    given = nn.Linear(8, 8)
    fast = nn.Sequential(RoundedLayer(LayerSpec(given), given.weight, None), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="accelerated already"):
        winnow.compress(fast, **wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, torch.qint8)
    with pytest.raises(InputError, match=r"quantized already \(\S+ is a Linear\)"):
        winnow.compress(codes, **wanted)
    require_dense(mlp())
