"""``accelerate``: every layer of a model on what measured fastest on this machine, and a record of what that is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from winnow.errors import InputError
from winnow.kernels import native
from winnow.kernels.cache import TimingCache
from winnow.kernels.contenders import DENSEST, Contender, Layer, assemble, contenders, worth_timing
from winnow.kernels.decision import Decision, Decisions, choose, timed, unchanged
from winnow.kernels.dense import Substitute
from winnow.kernels.load import load
from winnow.kernels.micro import Case, MicroTimer, Timer
from winnow.kernels.modules import PackedLayer
from winnow.kernels.survey import TRAINING, record_shapes, weighted_layers
from winnow.kernels.swap import LayerSpec, swap
from winnow.machine.cache import last_level_cache
from winnow.masks.unwrap import plain_module, working_copy
from winnow.terminal.progress import watch

SMALLEST = 32_768  # weights; a smaller product takes less time than calling it
VALUES = ("bfloat16",)  # types that a user may allow beside a layer's own


def accelerate(
    model: nn.Module | Path | str,
    *,
    rows: int | Sequence[int] = (1, 16, 128),
    values: str | Sequence[str] = "keep",
    activations: Literal["keep", "int8"] = "keep",
    prefer: Literal["speed", "memory"] = "speed",
    threads: int | None = None,
    example: Any = None,
    factory: Any = None,
    cache: bool | Path | str = True,
    timer: Timer | None = None,
    progress: Callable[[int, int, str], object] | bool | None = None,
) -> nn.Module:
    """A copy of ``model`` for inference whose layers run on what measured fastest on this machine.

    The modules are copied and share all parameters and buffers with the given model, which stays as it is. Each linear
    layer, Conv1D and 2-D convolution that has something to gain is timed as it is, packed, and in the other ways that
    the arguments allow, with its weights out of the caches unless the whole model fits them; it is replaced only where
    that was faster by more than 5%. ``winnow_dispatch`` of the result lists what each layer runs on, and why.

    Args:
        model: a dense model with zeros in it, one from ``winnow.load(DIR, packed=True)``, or the folder itself.
        rows: rows of x (batch x sequence) that calls will have. A call with another number runs as with the next larger.
        values: "keep", or value types that layers may be rounded to: "bfloat16" (then x may be rounded to it as well).
        activations: "int8" lets layers with integer values round x to int8 row by row.
        prefer: "speed" may keep a second copy of a layer's weights where numbers of rows disagree; "memory" keeps one, never
            larger than the given one.
        threads: of torch, while timing; default: as set now. Run the model with the same number.
        example: what the model is called with (a tensor, a tuple of arguments, a dict of named ones). Its numbers of rows
            are timed too; convolutions are left as they are without it.
        factory: builds the model of a folder that is no transformers model, as in :func:`winnow.load`.
        cache: keep timings in ``~/.cache/winnow`` (or in this folder), and use those kept there.
        timer: takes the timings, by default :class:`winnow.kernels.micro.MicroTimer`.
        progress: bars or lines by itself, True or False (see :func:`winnow.terminal.progress.watch`), or a function (layers
            done, layers, name).

    Layers in training mode and those that are shared, tied, hooked or of a class of their own are left alone. Zeros are
    not multiplied: where x holds NaN or infinity, y may lack it. Loading a state dict changes shared parameters, in the
    given model too. Raises InputError for anything that cannot be used as given, a model in training mode too.
    """
    counts = _counts(rows)
    allowed = _allowed(values)
    _one_of("activations", activations, ("keep", "int8"))
    _one_of("prefer", prefer, ("speed", "memory"))
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise InputError(f"threads={threads!r} is not a number of threads: give 1 or more")
    if isinstance(model, (str, Path)):
        model = load(model, factory, packed=True)
    elif factory is not None:
        raise InputError("factory builds the model of a folder: leave it out when you pass the model itself")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"accelerate takes a torch module or a folder of winnow compress, not a {type(model).__name__}"
        )
    model = plain_module(model)
    # Another tree of modules around the same tensors.
    fast = working_copy(model, [*model.parameters(), *model.buffers()])
    before = {decision.name: decision for decision in getattr(model, "winnow_dispatch", ())}
    decided: dict[str, Decision] = {}
    # Not inference_mode: what is packed here may be used where gradients flow, too.
    with _told(progress) as told, native.torch_threads(threads), torch.inference_mode(False), torch.no_grad():
        found = list(weighted_layers(fast))
        reasons = {reason for _, _, reason in found}
        if TRAINING in reasons and None not in reasons:  # nothing would be done
            raise InputError(
                "the model is in training mode, and accelerate is for inference: call model.eval() first, on a copy if you "
                "go on training it"
            )
        traffic = sum(_weight_bytes(module) for _, module, _ in found)
        dispatcher = _Dispatcher(allowed, activations, prefer, TimingCache.open(cache), timer or MicroTimer(), traffic)
        shapes = None
        if example is not None:
            shapes = record_shapes(fast, {path: module for path, module, reason in found if reason is None}, example)
        for done, (path, module, reason) in enumerate(found):
            told(done, len(found), path)
            seen = None if shapes is None else shapes.get(path, [])
            decided[path], new = dispatcher.decide(path, module, reason, counts, seen)
            if isinstance(module, Substitute):
                decided[path] = before.get(path, decided[path])
            if new is module:
                continue
            if path:
                swap(fast, path, new)
            else:
                fast = new.train(module.training)
        told(len(found), len(found), "")
        dispatcher.cache.save()
    fast.winnow_dispatch = Decisions(decided.values())  # type: ignore[assignment]
    return fast


@contextlib.contextmanager
def _told(progress: Callable[[int, int, str], object] | bool | None) -> Iterator[Callable[[int, int, str], object]]:
    """Who is told of each layer: the caller's own function, or a stage of :func:`watch`."""
    if callable(progress):
        yield progress
    else:
        with watch(progress) as stages:
            yield stages("timing layers")


@dataclass
class _Dispatcher:
    """Decides layer by layer; identical layers are timed once."""

    allowed: tuple[str, ...]
    activations: str
    prefer: str
    cache: TimingCache
    timer: Timer
    traffic: int  # bytes of weights that one forward pass reads

    def decide(
        self, path: str, module: nn.Module, reason: str | None, counts: set[int], seen: list[torch.Size] | None
    ) -> tuple[Decision, nn.Module]:
        """What the layer at ``path`` runs on, and the module that does it (itself, where it stays as it is)."""
        if reason is not None:
            return unchanged(path, module, reason, counts), module
        layer = Layer(path, module, LayerSpec(module), set(counts))
        _add_seen(layer, seen)
        reason = self._skip(layer)
        if reason is not None:
            return unchanged(path, module, reason, layer.rows or counts, layer), module
        offered = contenders(layer, self.allowed, self.activations, self.prefer)
        if len(offered) == 1:
            return unchanged(path, module, _nothing_offered(layer), layer.rows, layer), module
        times = {count: self._times(layer, offered, count) for count in sorted(layer.rows)}
        chosen = choose(offered, times, self.prefer)
        return timed(layer, offered, times, chosen), assemble(layer, chosen)

    def _skip(self, layer: Layer) -> str | None:
        """Why a layer is not worth timing, None where it is."""
        spec = layer.spec
        if spec.numel < SMALLEST and not layer.packed:  # a packed one has a call of its own to be rid of
            return f"small: {spec.numel} weights take less time than the call" if spec.numel else "empty"
        if spec.geometry is not None and not layer.rows:
            return "its speed depends on the size of x: pass example="
        if not layer.packed and not bool(torch.isfinite(layer.weight()).all()):
            return "its weight holds NaN or infinity"
        return None

    def _times(self, layer: Layer, offered: dict[str, Contender], count: int) -> dict[str, float]:
        case = _case(layer, count, self.activations, self.traffic)
        timed = {label: c for label, c in offered.items() if worth_timing(c, count)}
        known = self.cache.get(case.key, set(timed))
        if known is None:
            calls = {label: _call(c) for label, c in timed.items()}
            known = self.timer(case, calls, layer.sample(count))
            self.cache.put(case.key, known)
        return known


def _weight_bytes(module: nn.Module) -> int:
    if isinstance(module, PackedLayer):
        return module.matrix.nbytes
    weight = getattr(module, "weight", None)
    return weight.numel() * weight.element_size() if isinstance(weight, torch.Tensor) and not is_lazy(weight) else 0


def _call(contender: Contender) -> Callable[[torch.Tensor], object]:
    """Runs the contender; its module is made at the first call."""
    module = once(contender.module)
    return lambda x: module()(x)


def _case(layer: Layer, count: int, activations: str, traffic: int) -> Case:
    cold = traffic >= last_level_cache()
    spec = layer.spec
    geometry = [] if spec.geometry is None else [n for pair in spec.geometry for n in pair]
    return Case(
        kind=spec.kind,
        shape=(spec.rows, spec.cols, *geometry, *layer.inputs.get(count, ())),
        dtype=layer.dtype,
        values=layer.values,
        density=round(20 * layer.density) / 20,
        live=(round(20 * layer.live_rows / spec.rows) / 20, round(20 * layer.live_cols / spec.cols) / 20),
        block=layer.matrix.block if layer.packed else 1,
        group=layer.matrix.group if layer.packed else None,
        bias=layer.module.bias is not None,
        activations=activations,
        cold=cold,
        rows=count,
        between=0 if cold or traffic < 1 << 20 else 1 << round(math.log2(traffic)),
    )


def _add_seen(layer: Layer, seen: list[torch.Size] | None) -> None:
    """Adds the numbers of rows that the layer had in the example; a convolution has no others."""
    if layer.spec.geometry is not None:
        layer.rows.clear()
    for shape in seen or ():
        count = layer.spec.count(torch.empty(shape, device="meta"))
        if count:
            layer.rows.add(count)
            if layer.spec.geometry is not None:
                layer.inputs[count] = tuple(shape)


def _nothing_offered(layer: Layer) -> str:
    if layer.packed:
        return "no other way is allowed"
    if layer.density == 1:
        return "nothing is pruned"
    return f"{1 - layer.density:.0%} zeros are too few to pay (at least {1 - DENSEST:.0%})"


def _counts(rows: Any) -> set[int]:
    counts = [rows] if isinstance(rows, int) and not isinstance(rows, bool) else rows
    if isinstance(counts, (list, tuple, set, frozenset, range)) and counts:
        numbers = [n for n in counts if isinstance(n, int) and not isinstance(n, bool) and n >= 1]
        if len(numbers) == len(counts):
            return set(numbers)
    raise InputError(f"rows={rows!r} is not a list of numbers of rows of x: give 1 or more, such as rows=(1, 16, 128)")


def _allowed(values: Any) -> tuple[str, ...]:
    named = [values] if isinstance(values, str) else values
    if not isinstance(named, (list, tuple, set, frozenset)) or any(v not in ("keep", *VALUES) for v in named):
        raise InputError(
            f"values={values!r} is unknown: use keep or bfloat16; for int8 or int4, compress the model with that and "
            "accelerate the folder"
        )
    return tuple(v for v in VALUES if v in named)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}={value!r} is unknown: use {' or '.join(known)}")
