"""The names that ``--with`` takes, and the contenders behind each: dense, compiled, int8, other runtimes, packed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.data.records import map_tensors
from winnow.errors import InputError
from winnow.masks.unwrap import working_copy
from winnow.records import speed as speed_schema
from winnow.speed.contender import Contender, TorchContender, Unavailable
from winnow.speed.makers import HALF, Maker, Makers, enough, said
from winnow.speed.workload import Work

if TYPE_CHECKING:
    from winnow.kernels.modules import PackedLayer

FAMILIES = ("dense", "bf16", "compile", "int8", "onnx", "openvino", "packed", "accelerated")
BF16_CHANGES = "rounds weights and activations to bfloat16"


def families(names: Sequence[str]) -> list[str]:
    """The families asked for, in the order they are shown; dense is always among them.

    Raises:
        InputError: a name that is none.
    """
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise InputError(f"--with {unknown[0]!r} is not known: choose from {', '.join(FAMILIES)}.")
    return [name for name in FAMILIES if name == "dense" or name in names]


def makers(given: Makers) -> Iterator[tuple[str, Maker]]:
    """(name, function that builds it) of every contender, dense float32 first. A function raises Unavailable."""
    asked = families(given.names)
    size = sum(p.numel() for p in given.dense.parameters())
    yield "dense float32", lambda: _dense(given, torch.float32)
    if given.bf16:
        yield "dense bfloat16", lambda: _dense(given, HALF, need=2 * size)
    if "compile" in asked:
        for dtype in given.dtypes:
            yield f"compiled {said(dtype)}", lambda dtype=dtype: _compiled(given, dtype, 3 * dtype.itemsize * size)  # type: ignore[misc]
    if "int8" in asked:
        yield "torch int8", lambda: _torch_int8(given, 5 * size)
    if "onnx" in asked or "openvino" in asked:
        from winnow.speed.runtimes import onnx_makers

        yield from onnx_makers(given, asked, 12 * size)
    if "packed" in asked:
        for dtype in given.dtypes:
            yield f"packed {said(dtype)}", lambda dtype=dtype: _packed(given, dtype)  # type: ignore[misc]
    if "accelerated" in asked:
        for dtype in given.dtypes:
            yield f"accelerated {said(dtype)}", lambda dtype=dtype: _accelerated(given, dtype, 8 * size)  # type: ignore[misc]


def read_bytes(model: nn.Module) -> int:
    """Bytes of the weights one forward reads: everything but lookup tables that are not a head too."""
    from winnow.kernels.swap import packed_layers

    tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    tables -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    packed = packed_layers(model).values()
    seen = {id(p): p for p in model.parameters() if id(p) not in tables and p.device.type != "meta"}
    return sum(p.numel() * p.element_size() for p in seen.values()) + sum(m.matrix.nbytes for m in packed)


def _in(given: Makers, dtype: torch.dtype) -> nn.Module:
    """The dense model, or a copy of it in another type: the other contenders share the one in float32."""
    return given.dense if dtype == torch.float32 else working_copy(given.dense).to(dtype)


def _dense(given: Makers, dtype: torch.dtype, need: int = 0) -> Contender:
    enough(need)
    model = _in(given, dtype)
    size = given.subject.file_bytes(given.subject.base)
    note = None
    if given.subject.artifact is not None and given.subject.base == "artifact":
        size, note = given.subject.dense_bytes(), "its file size is reckoned: no dense file was given"
    about = given.about(
        f"dense {said(dtype)}", dtype, None if dtype == torch.float32 else BF16_CHANGES,
        weight_bytes=read_bytes(model), file_bytes=size, note=note,
    )  # fmt: skip
    return TorchContender(about, model, given.subject.base)


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


def _compiled(given: Makers, dtype: torch.dtype, need: int) -> Contender:
    enough(need)
    model = working_copy(given.dense).to(dtype)
    changes = "reorders sums" if dtype == torch.float32 else BF16_CHANGES
    about = given.about(f"compiled {said(dtype)}", dtype, changes, weight_bytes=read_bytes(model))
    return Compiled(about, model, given.subject.base, run=torch.compile(model))


def _torch_int8(given: Makers, need: int) -> Contender:
    enough(need)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn.quantized.dynamic import Linear
        from torch.ao.quantization import quantize_dynamic

        model = quantize_dynamic(given.dense, {nn.Linear}, dtype=torch.qint8)
    layers = [m for m in model.modules() if isinstance(m, Linear)]
    if not layers:
        raise Unavailable("the model has no nn.Linear that torch could quantize")
    rest = read_bytes(model)
    about = speed_schema.Contender(
        name="torch int8", kind="quantized", weights="int8, a scale a tensor", changes="rounds weights and activations to int8",
        kernels={"torch int8": len(layers)}, weight_bytes=rest + sum(m.weight().numel() for m in layers),
    )  # fmt: skip
    return TorchContender(about, model, given.subject.base)


def kernels_of(layers: Iterable[PackedLayer]) -> dict[str, int]:
    """Kernel -> packed layers that can come to run on it, whatever the rows of x."""
    from winnow.kernels import native

    isa = native.isa() if native.available() else "reference"
    return dict(Counter(f"{way} {layer.matrix.values} {isa}" for layer in layers for _, way in layer.ways))


def _packed(given: Makers, dtype: torch.dtype) -> Contender:
    from winnow.kernels.swap import packed_layers

    subject = given.subject
    if subject.artifact is None:
        raise Unavailable(f"{subject.source.spec} is not a folder that winnow compress wrote")
    model = subject.packed(dtype)
    layers = packed_layers(model)
    if not layers:
        raise Unavailable("no layer of this model can stay packed")
    about = speed_schema.Contender(
        name=f"packed {said(dtype)}", kind=subject.packed_kind(), weights=subject.weights(),
        changes=None if dtype == torch.float32 else "computes in bfloat16", kernels=kernels_of(layers.values()),
        weight_bytes=read_bytes(model), file_bytes=subject.file_bytes("artifact"),
    )  # fmt: skip
    return TorchContender(about, model)


def _accelerated(given: Makers, dtype: torch.dtype, need: int) -> Contender:
    from winnow.kernels.dispatch import Decisions, accelerate

    subject = given.subject
    enough(need)
    model = subject.packed(dtype) if subject.artifact is not None else _in(given, dtype)
    fast = accelerate(
        model, rows=given.rows, example=_example(given.work[0], dtype), threads=given.threads, progress=given.progress
    )
    decided: Decisions = fast.winnow_dispatch  # type: ignore[assignment]
    about = speed_schema.Contender(
        name=f"accelerated {said(dtype)}", kind=subject.packed_kind(), weights=subject.weights(),
        changes=None if dtype == torch.float32 else "computes in bfloat16",
        kernels=dict(Counter(kernel for d in decided for kernel in dict.fromkeys(d.kernel.values()))),
        file_bytes=subject.file_bytes("artifact"),
    )  # fmt: skip
    made = TorchContender(about, fast)
    made.decisions = {d.name: d.kernel for d in decided}
    return made


def _example(work: Work, dtype: torch.dtype) -> Any:
    return map_tensors(work.inputs[0], lambda t: t.to(dtype) if t.is_floating_point() else t)
