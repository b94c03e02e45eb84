"""One recorded call of a module, and the quiet conditions under which it is repeated to probe it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from winnow.errors import InputError
from winnow.forward.batch import call
from winnow.forward.model import forward_parameters
from winnow.forward.modes import eval_mode

# What a module's own code raises when an argument does not suit it.
ERRORS: tuple[type[Exception], ...] = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Call:
    """The arguments a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def fresh(self) -> Call:
        """The same call again: tensors and stateful objects (a key-value cache) copied."""
        return Call(_copy(self.args), _copy(self.kwargs))

    def shifted(self, generator: torch.Generator, scale: float = 1.0) -> Call:
        """The call with its first floating-point matrix (the hidden states) replaced by noise ``scale`` its size."""
        done = False

        def shift(value: Any) -> Any:
            nonlocal done
            if done or not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1):
                return value
            done = True
            return noise(value, generator) * (scale * value.float().std(correction=0).clamp_min(1e-3)).to(value.dtype)

        return Call(tuple(map(shift, self.args)), {k: shift(v) for k, v in self.kwargs.items()})


def noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal values in the shape, type and place of a tensor (drawn on the CPU: the same everywhere)."""
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _copy(value: Any) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_copy, value))
    if isinstance(value, list):
        return [_copy(v) for v in value]
    if type(value) is dict:
        return {k: _copy(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return value.detach().clone()  # a block may write into its input
    if value is None or isinstance(value, (nn.Module, bool, int, float, str, torch.dtype, torch.device)):
        return value
    return copy.deepcopy(value)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every floating-point tensor of an output, however nested."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (tuple, list)) else []


@contextmanager
def probing_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and the plain kernels: no dropout, no fused path that skips submodules or blends features."""
    blocked = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with eval_mode(module, fastpath=False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.enabled = blocked  # type: ignore[assignment]


def forward(model: nn.Module, example: Any) -> Any:
    """Calls a model on an example: a mapping becomes keyword arguments, a tuple or list positional ones.

    Floating-point tensors follow the model's arithmetic.
    """
    if isinstance(example, Mapping) and "use_cache" in forward_parameters(model):
        example = {"use_cache": False, **example}
    return call(model, example)


def crop_example(example: Any, rows: int = 2, tokens: int = 16) -> Any:
    """The first rows of a batch, and of token sequences a stretch that is not padding: enough to probe with."""
    listed = example if isinstance(example, (tuple, list)) else [example]
    tensors = example if isinstance(example, Mapping) else dict(enumerate(listed))
    mask = tensors.get("attention_mask") if isinstance(example, Mapping) else None
    start = int(mask[0].bool().float().argmax()) if isinstance(mask, torch.Tensor) and mask.dim() == 2 else 0
    cropped: dict[Any, Any] = {}
    for key, value in tensors.items():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            value = value[:rows]
            if value.dim() == 2 and not value.is_floating_point():
                begin = max(0, min(start, value.shape[1] - tokens))
                value = value[:, begin : begin + tokens]
        cropped[key] = value
    if isinstance(example, Mapping):
        return cropped
    return tuple(cropped.values()) if isinstance(example, (tuple, list)) else cropped[0]


def record_blocks(model: nn.Module, example: Any, paths: Collection[str]) -> dict[str, Call]:
    """The call each named module gets in a forward on a small piece of the example, or on all of it if that fails.

    Raises InputError when the model does not run on the example.
    """
    try:
        return record(model, lambda: forward(model, crop_example(example)), paths)
    except ERRORS:
        try:
            return record(model, lambda: forward(model, example), paths)
        except ERRORS as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"the model cannot be run on the example: give what its forward takes ({why})") from error


def record(model: nn.Module, run: Callable[[], Any], paths: Collection[str]) -> dict[str, Call]:
    """The first call of each named module while ``run`` runs; modules that are never called are left out."""
    calls: dict[str, Call] = {}

    def keep(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in calls:
            calls[path] = Call(_copy(args), _copy(kwargs))

    with ExitStack() as stack, probing_mode(model), torch.no_grad():
        for path in paths:
            hook = model.get_submodule(path).register_forward_pre_hook(partial(keep, path), with_kwargs=True)
            stack.callback(hook.remove)
        run()
    return calls
