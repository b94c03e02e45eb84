"""The quick measurement that ends a compression: one input through the dense model and through the packed one."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.compression.outcome import Outcome
from winnow.data.records import map_tensors
from winnow.data.text import Batch
from winnow.errors import InputError
from winnow.machine.memory import available_memory
from winnow.masks.unwrap import working_copy
from winnow.records.compression import Speed

if TYPE_CHECKING:
    from winnow.compression.setup import Setup
    from winnow.speed.workload import Work

PATIENCE = 20.0  # seconds that it may take at most
SPENT = 6.0  # seconds of rounds
ROUNDS = (6, 15)  # at least, at most
SLOT = 0.005  # seconds a contender is called for in a row, where calls are shorter
LAYER = 0.25  # seconds of timing for each distinct layer
TOKENS, PROMPT, SHORTEST = 8, 120, 16


def quick_speed(setup: Setup, outcome: Outcome) -> Speed:
    """Times the dense model and the accelerated packed one of ``outcome`` at batch 1, alternating, in a few seconds.

    The result says why where nothing was measured: no measurement is worth failing a compression for.
    """
    what, started = "one call", time.perf_counter()
    try:
        problem = _problem(setup)
        if problem is None:
            what, work = _work(setup)
            if work is not None:
                return _measured(setup, outcome, what, work, started)
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


def _measured(setup: Setup, outcome: Outcome, what: str, work: Work, started: float) -> Speed:
    from winnow.kernels.dispatch import accelerate
    from winnow.kernels.micro import MicroTimer
    from winnow.records import speed as speed_schema
    from winnow.speed.contender import TorchContender
    from winnow.speed.race import race

    assert outcome.pruned is not None
    with outcome.pruned.in_place(setup.host, setup.scope) as model:
        training = model.training
        model.eval()
        try:
            dense = TorchContender(speed_schema.Contender(name="dense", kind="dense", weights=""), model)
            took = _once(dense, work)
            if 4 * ROUNDS[0] * took > PATIENCE:
                return Speed(what=what, missing=f"one call takes {took:.1f} s; `winnow bench` measures it")
            example = work.inputs[0] if work.tokens is None else {"input_ids": work.tokens[:, :1]}
            packed, kept = _packed_copy(setup, outcome, model)
            if not kept:
                return Speed(what=what, missing="no layer is of a kind and size that packed kernels help")
            distinct = {(x.rows, x.cols, round(20 * x.sparsity)) for x in outcome.pruned.layers}
            if LAYER * 4 * len(distinct) > PATIENCE:
                fast, runs_on, kernels = packed, "packed", {}
            else:
                rows = (1,) if work.tokens is not None else (work.case.length or 1,)
                fast, runs_on = (
                    accelerate(packed, rows=rows, example=example, timer=MicroTimer(LAYER), progress=False),
                    "accelerated",
                )
                decided: Any = fast.winnow_dispatch
                kernels = dict(Counter(kernel for d in decided for kernel in dict.fromkeys(d.kernel.values())))
            quick = TorchContender(speed_schema.Contender(name="fast", kind="pruned", weights=""), fast)
            rounds = max(ROUNDS[0], min(ROUNDS[1], int(SPENT / max(4 * took, 1e-9))))
            with torch.inference_mode():
                truth = {"artifact": {work.case.name: dense.output(work)}}
            found = race([dense, quick], [work], truth, rounds, slot=SLOT)
            if ("fast", work.case.name) in found.dropped:
                return Speed(what=what, missing=found.dropped["fast", work.case.name])
            if found.interrupted:
                raise KeyboardInterrupt
            first, second = found.measures
        finally:
            model.train(training)
    return Speed(
        what=what, dense=first.times, fast=second.times, runs_on=runs_on, kernels=kernels, ratio=second.ratio,
        ratio_low=second.ratio_low, ratio_high=second.ratio_high, difference=second.difference,
        arithmetic=str(next(model.parameters()).dtype).removeprefix("torch."), threads=torch.get_num_threads(),
        seconds=time.perf_counter() - started,
    )  # fmt: skip


def _once(dense: Any, work: Work) -> float:
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


def _work(setup: Setup) -> tuple[str, Work | None]:
    """One input of the calibration data, else a random one; of a decoder, a prompt and what follows it."""
    from winnow.records.speed import Case
    from winnow.speed.workload import Work, random_batch

    kind = setup.prepared.kind
    batch = _first(setup.prepared.batches[0]) if setup.prepared.batches else None
    if batch is None and kind != "tensors":
        with suppress(InputError):
            batch = random_batch(setup.source, kind, 1, PROMPT + TOKENS, 0)
    if batch is None:
        return "one call", None
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    length = None if ids is None else int(ids.shape[1])
    case = Case(name="quick", what="forward", batch=1, length=length, unit="requests")
    if kind == "causal-lm" and ids is not None and length is not None and length >= SHORTEST:
        prompt = min(PROMPT, length - TOKENS)
        case = case.model_copy(update={"what": "decode", "length": prompt, "unit": "tokens"})
        return f"one token after {prompt}", Work(
            case, [{"input_ids": ids[:, :prompt]}], ids[:, prompt : prompt + TOKENS]
        )
    if length is not None:
        return f"a text of {length} tokens", Work(case, [batch])
    return "one image" if kind in ("vision", "clip") else "one input", Work(case, [batch])


def _first(batch: Batch) -> Batch:
    """The first row of a batch, its padding cut off."""
    one = map_tensors(batch, lambda tensor: tensor[:1])
    mask = one.get("attention_mask") if isinstance(one, dict) else None
    if mask is None or mask.ndim != 2:
        return one
    width, kept = mask.shape[1], max(int(mask.sum()), 1)
    return map_tensors(
        one, lambda tensor: tensor[:, :kept] if tensor.ndim == 2 and tensor.shape[1] == width else tensor
    )
