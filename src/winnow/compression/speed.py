"""The quick measurement that ends a compression: the packed model against the fastest dense one at hand."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.compression.outcome import Outcome
from winnow.compression.speed_inputs import quick_works
from winnow.errors import InputError
from winnow.machine.load import OtherPrograms
from winnow.machine.memory import available_memory
from winnow.masks.unwrap import working_copy
from winnow.records.compression import Speed, SpeedCase

if TYPE_CHECKING:
    from winnow.compression.setup import Setup
    from winnow.speed.contender import Contender
    from winnow.speed.race import RaceResult
    from winnow.speed.workload import Work

PATIENCE = 30.0  # seconds that it takes at most, on a machine that has nothing else to do
EXPORTS = 15.0  # seconds after its start when no other runtime is begun with: an export cannot be stopped
SPENT = 6.0  # seconds of rounds in each case
ROUNDS = (8, 25)  # at least, at most
SLOT = 0.005  # seconds a contender is called for in a row, where calls are shorter
LAYER = 0.25  # seconds of timing for each distinct layer
COMPARABLE = 0.05  # of the largest output: as far may a dense model in another type be from the one that was given
RUNTIMES = {"ONNX Runtime float32": "onnxruntime", "OpenVINO float32": "openvino"}  # name -> package


def quick_speed(setup: Setup, outcome: Outcome) -> Speed:
    """Times dense models and the accelerated packed one of ``outcome``, alternating, in half a minute.

    The result says why where nothing was measured: no measurement is worth failing a compression for.
    """
    what = "one call"
    try:
        problem = _problem(setup)
        if problem is None:
            works = quick_works(setup)
            if works:
                what = works[0].case.name
                return _measured(setup, outcome, works)
            problem = "there was no data to call the model with"
    except KeyboardInterrupt:
        problem = "stopped by Ctrl-C"
    except Exception as error:  # a model that cannot be copied, swapped or timed is compressed all the same
        problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    return Speed(what=what, missing=problem)


def _problem(setup: Setup) -> str | None:
    if setup.host.streamed or setup.job.ram is not None:
        return "a second model would break --ram; `winnow bench` measures it"
    size = sum(p.numel() * p.element_size() for p in setup.host.model.parameters())
    if 2 * size > available_memory():
        return "a second model needs more memory than is free; `winnow bench` measures it"
    return None


def _measured(setup: Setup, outcome: Outcome, works: list[Work]) -> Speed:
    from winnow.records import speed as speed_schema
    from winnow.speed.contender import TorchContender, dtype_name
    from winnow.speed.race import race

    started, what = time.perf_counter(), works[0].case.name
    with _dense_model(setup, outcome) as model, tempfile.TemporaryDirectory(prefix="winnow-speed-") as scratch:
        kind = dtype_name(next(model.parameters()).dtype)
        dense = TorchContender(speed_schema.Contender(name=kind, kind="dense", weights=kind), model)
        took = {work.case.name: _once(dense, work) for work in works}
        works = [w for w in works if 3 * ROUNDS[0] * took[w.case.name] <= PATIENCE / 2]
        if not works:
            return Speed(what=what, missing=f"one call takes {min(took.values()):.1f} s; `winnow bench` measures it")
        packed, kept = _packed_copy(setup, outcome, model)
        if not kept:
            return Speed(what=what, missing="no layer is of a kind and size that packed kernels help")
        fast, runs_on, kernels = _accelerated(outcome, packed, works)
        quick = TorchContender(speed_schema.Contender(name=runs_on, kind="pruned", weights=""), fast)
        contenders, left_out = _rivals(setup, model, dense, works, Path(scratch), started)
        with torch.inference_mode():
            truth = {"artifact": {work.case.name: dense.output(work) for work in works}}
        cases: list[SpeedCase] = []
        with OtherPrograms() as others:
            for work in works:
                size = len(contenders) + 1
                rounds = max(ROUNDS[0], min(ROUNDS[1], int(SPENT / (size * max(took[work.case.name], SLOT)))))
                found = race([*contenders, quick], [work], truth, rounds, slot=SLOT)
                if found.interrupted:
                    raise KeyboardInterrupt
                if (reason := found.dropped.get((runs_on, work.case.name))) is not None:
                    return Speed(what=what, missing=reason)
                left_out |= {name: reason for (name, _), reason in found.dropped.items()}
                cases.append(speed_case(found, runs_on, left_out))
    first = cases[0]
    seen = {name for case in cases for name in case.dense}
    return Speed(
        what=first.what, dense=first.dense[first.rival], rival=first.rival, fast=first.fast, runs_on=runs_on, kernels=kernels,
        ratio=first.ratio, ratio_low=first.ratio_low, ratio_high=first.ratio_high, difference=first.difference, arithmetic=kind,
        cases=cases, left_out={name: reason for name, reason in left_out.items() if name not in seen},
        others=others.busy, cores=others.cores, threads=torch.get_num_threads(), seconds=time.perf_counter() - started,
    )  # fmt: skip


def speed_case(found: RaceResult, name: str, left_out: dict[str, str]) -> SpeedCase:
    """The one case of a race, whose first contender is the dense model as it was given: the contender ``name`` against the
    fastest dense one, round by round. Dense ones with outputs that are not comparable are entered in ``left_out``."""
    from winnow.measure.latency import paired_ratio

    case, rounds = found.cases[0], found.taken[found.cases[0].name]
    measures = {m.contender: m for m in found.measures}
    own, given = measures.pop(name), found.measures[0].contender
    dense = {}
    for m in measures.values():
        if m.contender != given and (m.difference is None or m.difference > COMPARABLE):
            off = "not a number" if m.difference is None else f"{100 * m.difference:.2g}% away"
            left_out[m.contender] = f"its outputs are {off} from those of {given}"
        else:
            dense[m.contender] = m.times
    rival = min(dense, key=lambda name: dense[name].median)
    ratio = paired_ratio([one[rival] for one in rounds], [one[name] for one in rounds])
    return SpeedCase(
        what=case.name, unit=case.unit, per_call=case.per_call, rounds=len(rounds), dense=dense, fast=own.times, rival=rival,
        ratio=ratio.value, ratio_low=ratio.low, ratio_high=ratio.high, difference=own.difference,
    )  # fmt: skip


@contextmanager
def _dense_model(setup: Setup, outcome: Outcome) -> Iterator[nn.Module]:
    """The pruned model with its zeros in dense weights, in evaluation mode meanwhile."""
    assert outcome.pruned is not None
    with outcome.pruned.in_place(setup.host, setup.scope) as model:
        training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(training)


def _rivals(
    setup: Setup, model: nn.Module, dense: Contender, works: list[Work], scratch: Path, started: float
) -> tuple[list[Contender], dict[str, str]]:
    """The dense model as it was given and whatever else may run it faster here, and why the others are left out."""
    from winnow.records import speed as speed_schema
    from winnow.speed.contender import HALF, BuildContext, TorchContender, Unavailable, dtype_name, require_memory
    from winnow.speed.race import reason
    from winnow.speed.runtimes import onnx_builders
    from winnow.speed.subject import Subject

    size = sum(p.numel() for p in model.parameters())
    other = torch.float32 if dense.name == dtype_name(HALF) else HALF
    whole = [work for work in works if work.tokens is None]  # graphs keep no cache to decode with

    def in_type(dtype: torch.dtype) -> nn.Module:
        if dense.name == dtype_name(dtype):
            return model
        require_memory(size * dtype.itemsize)
        return working_copy(model).to(dtype)

    def typed() -> Contender:
        about = speed_schema.Contender(name=dtype_name(other), kind="dense", weights=dtype_name(other))
        made = TorchContender(about, in_type(other))
        made.output(works[0])  # fails here where the model does not run in that type
        return made

    def graph(name: str) -> Contender:
        subject = Subject(setup.source, None, None)
        context = BuildContext(subject, scratch, torch.get_num_threads(), False, (), in_type(torch.float32), whole)
        made = dict(onnx_builders(context, ("onnx", "openvino"), 12 * size))[name]()
        for work in whole:
            if time.perf_counter() - started > EXPORTS:
                raise Unavailable("its export takes too long here; `winnow bench` measures it")
            with torch.inference_mode():
                made.prepare(work)
        return made

    makers: dict[str, Any] = {dtype_name(other): typed}
    there = {name: package for name, package in RUNTIMES.items() if whole and importlib.util.find_spec(package)}
    makers |= {name: partial(graph, name) for name in there}
    found, left_out = [dense], {}
    for name, make in makers.items():
        try:
            found.append(make())
        except Exception as error:  # whatever runtimes and types raise: the others still run
            left_out[name] = reason(error)
    return found, left_out


def _accelerated(outcome: Outcome, packed: nn.Module, works: list[Work]) -> tuple[nn.Module, str, dict[str, int]]:
    """The packed model with the fastest kernel for each layer where timing them takes no long time, and which ones."""
    from winnow.kernels.dispatch import accelerate
    from winnow.kernels.micro import MicroTimer

    assert outcome.pruned is not None
    distinct = {(x.rows, x.cols, round(20 * x.sparsity)) for x in outcome.pruned.layers}
    rows = tuple(sorted({1 if w.tokens is not None else w.case.batch * (w.case.length or 1) for w in works}))
    if LAYER * 4 * len(distinct) * len(rows) > PATIENCE:
        return packed, "packed", {}
    example = works[0].inputs[0] if works[0].tokens is None else {"input_ids": works[0].tokens[:, :1]}
    fast = accelerate(packed, rows=rows, example=example, timer=MicroTimer(LAYER), progress=False)
    decided: Any = fast.winnow_dispatch
    return fast, "accelerated", dict(Counter(kernel for d in decided for kernel in dict.fromkeys(d.kernel.values())))


def _once(dense: Contender, work: Work) -> float:
    """Seconds of one call, the second one."""
    with torch.inference_mode():
        step = dense.begin(work)()
        step()
        start = time.perf_counter()
        step()
        return time.perf_counter() - start


def _packed_copy(setup: Setup, outcome: Outcome, model: nn.Module) -> tuple[nn.Module, int]:
    """The same modules around the same tensors, packed layers in place of dense ones; and how many there are.

    Layers so small that calling them takes longer than their product stay dense.
    """
    from winnow.kernels.dispatch import SMALLEST
    from winnow.kernels.matrix import PackedMatrix
    from winnow.kernels.swap import pack_layer, swap, why_dense

    assert outcome.pruned is not None
    twin = working_copy(model, [*model.parameters(), *model.buffers()])
    kept = 0
    for name, prunable in setup.scope.prunables.items():
        path = prunable.module
        if not path or prunable.numel < SMALLEST or why_dense(twin, path, name.removeprefix(f"{path}.")) is not None:
            continue
        layer = twin.get_submodule(path)
        try:
            matrix = PackedMatrix.from_packed(outcome.pruned.packed(name))
        except InputError:  # values without a kernel stay dense
            continue
        swap(twin, path, pack_layer(layer, matrix, model.get_parameter(name).dtype))
        kept += 1
    return twin, kept
