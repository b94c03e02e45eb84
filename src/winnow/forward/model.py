"""Calls a model on a batch and reads its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from winnow.data.records import map_tensors
from winnow.data.text import Batch
from winnow.errors import InputError
from winnow.forward import batch as plain
from winnow.forward.modes import eval_mode


def forward_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a model's forward by name."""
    try:
        return dict(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return {}


def call(model: nn.Module, batch: Batch, **settings: Any) -> Any:
    """The model's output for a batch, on the model's device; floating-point tensors follow its arithmetic.

    Of a dict and of ``settings``, what forward does not take is left out; a forward that takes none of the dict's names
    gets its first tensor.
    """
    device = plain.device_of(model)
    batch = map_tensors(batch, lambda tensor: tensor.to(device))
    names = forward_parameters(model)
    settings = {key: value for key, value in settings.items() if key in names}
    if isinstance(batch, dict) and not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in names.values()):
        batch = {key: tensor for key, tensor in batch.items() if key in names} or (next(iter(batch.values())),)
    return plain.call(model, batch, **settings)


def logits_of(output: Any) -> torch.Tensor:
    """The logits in a model's output: ``.logits``, the output itself, or its first tensor."""
    logits = _field(output, "logits")
    if logits is None:
        logits = _first_tensor(output)
    if logits is None:
        raise InputError(
            f"the model returned a {type(output).__name__} without logits: use a model with an output head."
        )
    return logits


def has_logits(output: Any) -> bool:
    """Whether an output can be read as logits: a tensor, or one that names them."""
    return isinstance(output, torch.Tensor) or _field(output, "logits") is not None


def embeddings_of(output: Any, batch: Batch) -> torch.Tensor:
    """One vector of length 1 per example [n, width]: hidden states averaged over the tokens that
    ``attention_mask`` of the batch does not call padding.

    An output that already is [n, width] is only normalised; of a model of images and texts, both embeddings are joined.
    """
    towers = [_field(output, "image_embeds"), _field(output, "text_embeds")]
    if towers[0] is not None and towers[1] is not None:
        joined = torch.cat(
            [torch.nn.functional.normalize(tower.float(), dim=-1) for tower in towers if tower is not None], -1
        )
        return torch.nn.functional.normalize(joined, dim=-1)
    hidden = _field(output, "last_hidden_state")
    hidden = hidden if hidden is not None else _first_tensor(output)
    if hidden is None or hidden.ndim not in (2, 3):
        raise InputError("the model returned no hidden states: similarity needs an encoder without an output head.")
    hidden = hidden.float()
    if hidden.ndim == 3:
        mask = batch.get("attention_mask") if isinstance(batch, dict) else None
        weights = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.to(hidden.device).float()
        hidden = (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
    return torch.nn.functional.normalize(hidden, dim=-1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and inference mode inside, every module's own mode again afterwards."""
    with eval_mode(model), torch.inference_mode():
        yield


def _field(output: Any, name: str) -> torch.Tensor | None:
    value = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
    return value if isinstance(value, torch.Tensor) else None


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    parts: Sequence[Any] = (
        tuple(output.values()) if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    )
    return next((part for part in parts if isinstance(part, torch.Tensor)), None)
