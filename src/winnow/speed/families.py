"""The names that ``--with`` takes, and the contenders behind each: dense, compiled, int8, other runtimes, packed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.kernels import native
from winnow.kernels.dispatch import Decisions, accelerate
from winnow.kernels.swap import packed_layers
from winnow.masks.unwrap import working_copy
from winnow.records import speed as speed_schema
from winnow.settings import not_known
from winnow.speed.contender import (
    HALF,
    BuildContext,
    Builder,
    Contender,
    TorchContender,
    Unavailable,
    cast,
    dtype_name,
    require_memory,
)
from winnow.speed.names import FAMILIES
from winnow.speed.runtimes import onnx_builders
from winnow.speed.workload import Work

BF16_CHANGES = "rounds weights and activations to bfloat16"


def families(names: Sequence[str]) -> list[str]:
    """The families asked for, in the order they are shown; dense is always among them.

    Raises:
        InputError: a name that is none.
    """
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise InputError(f"--with {not_known(unknown[0], FAMILIES)}.")
    return [name for name in FAMILIES if name == "dense" or name in names]


def builders(context: BuildContext) -> Iterator[tuple[str, Builder]]:
    """(name, function that builds it) of every contender, dense float32 first. A function raises Unavailable."""
    requested = families(context.names)
    size = sum(p.numel() for p in context.dense.parameters())
    yield "dense float32", partial(_dense, context, torch.float32)
    if context.bf16:
        yield "dense bfloat16", partial(_dense, context, HALF, need=2 * size)
    if "compile" in requested:
        for dtype in context.dtypes:
            yield f"compiled {dtype_name(dtype)}", partial(_compiled, context, dtype, 3 * dtype.itemsize * size)
    if "int8" in requested:
        yield "torch int8", partial(_torch_int8, context, 5 * size)
    if "onnx" in requested or "openvino" in requested:
        yield from onnx_builders(context, requested, 12 * size)
    if "packed" in requested:
        for dtype in context.dtypes:
            yield f"packed {dtype_name(dtype)}", partial(_packed, context, dtype)
    if "accelerated" in requested:
        for dtype in context.dtypes:
            yield f"accelerated {dtype_name(dtype)}", partial(_accelerated, context, dtype, 8 * size)


def read_bytes(model: nn.Module) -> int:
    """Bytes of the weights one forward reads: everything but lookup tables that are not a head too."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    tables -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    packed = packed_layers(model).values()
    seen = {id(p): p for p in model.parameters() if id(p) not in tables and p.device.type != "meta"}
    return sum(p.numel() * p.element_size() for p in seen.values()) + sum(m.matrix.nbytes for m in packed)


def _in(context: BuildContext, dtype: torch.dtype) -> nn.Module:
    """The dense model, or a copy of it in another type: the other contenders share the one in float32."""
    return context.dense if dtype == torch.float32 else working_copy(context.dense).to(dtype)


def _dense(context: BuildContext, dtype: torch.dtype, need: int = 0) -> Contender:
    require_memory(need)
    model = _in(context, dtype)
    size = context.subject.file_bytes(context.subject.base)
    note = None
    if context.subject.artifact is not None and context.subject.base == "artifact":
        size, note = context.subject.dense_bytes(), "its file size is computed: no dense file was given"
    about = context.about(
        f"dense {dtype_name(dtype)}", dtype, None if dtype == torch.float32 else BF16_CHANGES,
        weight_bytes=read_bytes(model), file_bytes=size, note=note,
    )  # fmt: skip
    return TorchContender(about, model, context.subject.base)


class Compiled(TorchContender):
    """torch.compile with frozen weights. Freezing is a setting of the compiler: it is on while this one compiles."""

    def prepare(self, work: Work) -> None:
        with freezing():
            super().prepare(work)
            if work.tokens is not None:  # the cache grows: the second call compiles for any length
                step = self.begin(work)()
                for _ in range(min(3, work.tokens.shape[1])):
                    step()


@contextmanager
def freezing() -> Iterator[None]:
    import torch._dynamo
    import torch._inductor.config as inductor

    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    with inductor.patch(freezing=True), torch._dynamo.config.patch({limit: 64}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compiled(context: BuildContext, dtype: torch.dtype, need: int) -> Contender:
    require_memory(need)
    model = working_copy(context.dense).to(dtype)
    changes = "different summation order" if dtype == torch.float32 else BF16_CHANGES
    about = context.about(f"compiled {dtype_name(dtype)}", dtype, changes, weight_bytes=read_bytes(model))
    return Compiled(about, model, context.subject.base, run=torch.compile(model))


def _torch_int8(context: BuildContext, need: int) -> Contender:
    require_memory(need)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn.quantized.dynamic import Linear
        from torch.ao.quantization import quantize_dynamic

        model = quantize_dynamic(context.dense, {nn.Linear}, dtype=torch.qint8)
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    if not layers:
        raise Unavailable("the model has no nn.Linear that torch could quantize")
    rest = read_bytes(model)
    about = speed_schema.Contender(
        name="torch int8", kind="quantized", weights="int8, per-tensor scales", changes="rounds weights and activations to int8",
        kernels={"torch int8": len(layers)}, weight_bytes=rest + sum(m.weight().numel() for m in layers),
    )  # fmt: skip
    return TorchContender(about, model, context.subject.base)


def _packed(context: BuildContext, dtype: torch.dtype) -> Contender:
    subject = context.subject
    if subject.artifact is None:
        raise Unavailable(f"{subject.source.spec} is not a folder that winnow compress wrote")
    model = subject.packed(dtype)
    layers = packed_layers(model)
    if not layers:
        raise Unavailable("no layer of this model can stay packed")
    # Kernel -> packed layers that can come to run on it, whatever the rows of x.
    ways = Counter(f"{way} {m.matrix.values} {native.isa()}" for m in layers.values() for _, way in m.ways)
    about = _about_artifact(context, "packed", dtype, kernels=dict(ways), weight_bytes=read_bytes(model))
    return TorchContender(about, model)


def _accelerated(context: BuildContext, dtype: torch.dtype, need: int) -> Contender:
    subject = context.subject
    require_memory(need)
    model = subject.packed(dtype) if subject.artifact is not None else _in(context, dtype)
    example = cast(context.work[0].inputs[0], dtype)
    fast = accelerate(
        model, rows=context.rows, example=example, threads=context.threads, progress=context.progress or False
    )
    decided: Decisions = fast.winnow_dispatch  # type: ignore[assignment]
    kernels = dict(Counter(kernel for d in decided for kernel in dict.fromkeys(d.kernel.values())))
    made = TorchContender(_about_artifact(context, "accelerated", dtype, kernels=kernels), fast)
    made.decisions = {d.name: d.kernel for d in decided}
    return made


def _about_artifact(context: BuildContext, family: str, dtype: torch.dtype, **more: Any) -> speed_schema.Contender:
    subject, changes = context.subject, None if dtype == torch.float32 else "computes in bfloat16"
    return speed_schema.Contender(
        name=f"{family} {dtype_name(dtype)}", kind=subject.packed_kind(), weights=subject.weights(), changes=changes,
        file_bytes=subject.file_bytes("artifact"), **more,
    )  # fmt: skip
