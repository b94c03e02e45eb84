"""Each packed matrix on its own: what every kernel takes when the weights come from memory, and the least it could take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from winnow.errors import InputError
from winnow.formats.reader import Artifact
from winnow.forward.model import call
from winnow.kernels import native
from winnow.kernels.expanded import expand
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.micro import Calls, Case, Timer, flush_bytes
from winnow.kernels.multiply import linear
from winnow.machine.bandwidth import Bandwidth
from winnow.measure.latency import Begin, interleave
from winnow.records.speed import LayerSpeed
from winnow.speed.workload import Work

LINEAR = ("linear", "conv1d", "attention_in")
Progress = Callable[[int, int, str], None]


@torch.inference_mode()
def rows_seen(model: nn.Module, artifact: Artifact, work: Work) -> dict[str, int]:
    """Rows of x that each packed matrix multiplies in one call of a case, by its name; found by running the case once.

    Convolutions and experts are not among them: their product alone is not what they do.
    """
    owners = {p.module: name for name in artifact.pruned_names if (p := artifact.prunable(name)).kind in LINEAR}
    seen: dict[str, int] = {}
    hooks = []
    for path, module in model.named_modules():
        if path in owners:

            def note(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], name: str = owners[path]) -> None:
                x = next((v for v in (*args, *keywords.values()) if isinstance(v, torch.Tensor)), None)
                if x is not None:
                    seen[name] = x.numel() // x.shape[-1]

            hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        batch = work.inputs[0]
        if work.tokens is not None:
            batch = {"input_ids": work.tokens[:, :1]}
        call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: seen[name] for name in artifact.pruned_names if name in seen}


def layer_speeds(
    artifact: Artifact,
    rows: Mapping[str, int],
    bandwidth: Bandwidth,
    *,
    bf16: bool = False,
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> Iterator[LayerSpeed]:
    """Times y = x Wᵀ for every matrix that ``rows`` names, with that many rows of x.

    Layers of the same shape, values and share of zeros (to one part in twenty) are timed once; the others say whose times
    theirs are.
    """
    timer = timer or ColdTimer()
    known: dict[str, LayerSpeed] = {}
    for done, (name, n) in enumerate(rows.items()):
        if progress is not None:
            progress(done, len(rows), name)
        packed = artifact.packed(name)
        try:
            matrix = PackedMatrix.from_packed(packed)
        except InputError:  # values without a kernel: the layer is expanded, and that is the whole model's figure
            continue
        case = _case(matrix, n)
        like = known.get(case.key)
        times = like.times if like is not None else _times(matrix, n, bf16, timer)
        one = LayerSpeed(
            name=name, kind=artifact.prunable(name).kind, rows=matrix.rows, cols=matrix.cols, sparsity=packed.zeros / packed.numel,
            values=matrix.values, inputs=n, packed_bytes=matrix.nbytes, dense_bytes=4 * packed.numel,
            limit=1e3 * bandwidth.seconds(matrix.nbytes), dense_limit=1e3 * bandwidth.seconds(4 * packed.numel),
            times=times, like=like.name if like is not None else None,
        )  # fmt: skip
        known.setdefault(case.key, one)
        yield one
    if progress is not None and rows:
        progress(len(rows), len(rows), "")


class ColdTimer:
    """Median microseconds of every contender, its weights coming from memory, over the same rounds.

    The dispatcher's own timer drops a contender that was slow once; a figure that is printed needs all its rounds.
    Before each call a buffer of twice the last-level cache is written. At least 5 rounds, then as many up to 15 as fit
    ``seconds``.
    """

    def __init__(self, seconds: float = 1.5, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds, self._clock = seconds, clock
        self._buffer: torch.Tensor | None = None

    def __call__(self, case: Case, calls: Calls, x: torch.Tensor) -> dict[str, float]:
        buffer = self._buffer = torch.zeros(flush_bytes() // 4) if self._buffer is None else self._buffer

        def cold(run: Callable[[torch.Tensor], object]) -> Begin:
            def begin() -> Callable[[], object]:
                buffer.add_(1)
                x.mul_(1)  # in a model, the layer before has just written x
                return lambda: run(x)

            return begin

        for run in calls.values():
            run(x)
        end = self._clock() + self._seconds
        taken: dict[str, list[float]] = {name: [] for name in calls}
        begins, once = {name: cold(run) for name, run in calls.items()}, dict.fromkeys(calls, 1)
        for done, one in enumerate(interleave(begins, once, 15, clock=self._clock), 1):
            for name, times in one.items():
                taken[name] += times
            if done >= 5 and self._clock() > end:
                break
        return {name: 1e6 * statistics.median(times) for name, times in taken.items()}


def _case(matrix: PackedMatrix, rows: int, dtype: torch.dtype = torch.float32) -> Case:
    share = round(20 * matrix.density) / 20
    return Case(
        kind="linear", shape=matrix.shape, dtype=str(dtype).removeprefix("torch."), values=matrix.values, density=share,
        live=(1.0, 1.0), block=matrix.block, group=matrix.group, bias=False, activations="keep", cold=True, rows=rows,
    )  # fmt: skip


@torch.inference_mode()
def _times(matrix: PackedMatrix, rows: int, bf16: bool, timer: Timer) -> dict[str, float]:
    """Kernel -> median milliseconds."""
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16)[: 1 + bf16]:
        note = "" if dtype == torch.float32 else ", bfloat16 x"
        dense = expand(matrix, dtype=dtype)
        x = torch.randn(rows, matrix.cols, generator=torch.Generator().manual_seed(0)).to(dtype)
        calls: dict[str, Callable[[torch.Tensor], object]] = {
            f"dense {str(dtype).removeprefix('torch.')}": lambda x, dense=dense: F.linear(x, dense)  # type: ignore[misc]
        }
        for way in matrix.ways():
            calls[f"{way} {matrix.values} {native.isa()}{note}"] = lambda x, way=way: linear(matrix, x, way=way)  # type: ignore[misc]
        case = _case(matrix, rows, dtype)
        found |= {name: micro / 1e3 for name, micro in timer(case, calls, x).items()}
    return found
