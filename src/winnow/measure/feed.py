"""Feeding a task's inputs through a model: batches in a fixed order, and how a model is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data.images import image_transform
from winnow.data.records import Records, map_tensors, tensor_items
from winnow.data.text import Batch
from winnow.data.tokens import encode, pad
from winnow.errors import InputError
from winnow.masks.arithmetic import following

_TOKENS = 4_096  # per batch, padding counted: more only costs memory
_ROWS = 256
_INPUT_BYTES = 8 << 20


class Feed:
    """Records prepared once as model input, served in batches of the same rows every time.

    Batches come as (rows, batch): ``rows`` [m] are the numbers of the records. Texts are sorted by length.
    """

    def __init__(self, records: Records, processor: Any = None, length: int | None = None) -> None:
        self.records = records
        self.n = len(records)
        self._processor = processor
        self._encoded: list[dict[str, list[int]]] | None = None
        self._convert = image_transform(processor) if records.kind == "images" else None
        if records.kind in ("text", "pairs"):
            self._encoded = encode(records.inputs, processor, length or 512)
        self._plan = self._batches_of_rows()

    def batches(self, model: nn.Module, rows_at_most: int | None = None) -> Iterator[tuple[np.ndarray, Batch]]:
        for planned in self._plan:
            step = min(len(planned), rows_at_most or len(planned))
            for first in range(0, len(planned), step):
                rows = planned[first : first + step]
                yield rows, self._batch(rows, model)

    def _batch(self, rows: np.ndarray, model: nn.Module) -> Batch:
        if self._encoded is not None:
            return pad([self._encoded[i] for i in rows], self._processor)
        if self._convert is not None:
            pixels = self._convert(self.records.subset(rows).inputs)
            return {"pixel_values": pixels} if "pixel_values" in accepted(model) else (pixels,)
        index = torch.from_numpy(rows)
        return map_tensors(self.records.inputs, lambda tensor: tensor[index])

    def _batches_of_rows(self) -> list[np.ndarray]:
        if self._encoded is None:
            size = max(1, min(_ROWS, _INPUT_BYTES // max(1, self._row_bytes())))
            return [np.arange(i, min(i + size, self.n)) for i in range(0, self.n, size)]
        lengths = np.asarray([len(row["input_ids"]) for row in self._encoded])
        # Without a padding token a classifier cannot tell where a text ends: one text at a time.
        most = _ROWS if getattr(self._processor, "pad_token_id", None) is not None else 1
        plan: list[np.ndarray] = []
        current: list[int] = []
        for row in np.argsort(lengths, kind="stable"):
            if current and (len(current) >= most or (len(current) + 1) * lengths[row] > _TOKENS):
                plan.append(np.asarray(current))
                current = []
            current.append(int(row))
        return [*plan, np.asarray(current)] if current else plan

    def _row_bytes(self) -> int:
        if self.records.kind == "images":
            pixels = self._convert(self.records.subset([0]).inputs)  # type: ignore[misc]
            return pixels.numel() * 4
        return sum(tensor[0].numel() * tensor.element_size() for tensor in tensor_items(self.records.inputs).values())


def accepted(model: nn.Module) -> dict[str, inspect.Parameter]:
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
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = following(model, map_tensors(batch, lambda tensor: tensor.to(device)))
    names = accepted(model)
    settings = {key: value for key, value in settings.items() if key in names}
    if not isinstance(batch, dict):
        return model(*batch, **settings)
    if not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in names.values()):
        fitting = {key: tensor for key, tensor in batch.items() if key in names}
        if not fitting:
            return model(next(iter(batch.values())), **settings)
        batch = fitting
    return model(**batch, **settings)


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


def embeddings_of(output: Any, mask: torch.Tensor | None) -> torch.Tensor:
    """One vector of length 1 per example [n, width]: hidden states averaged over the tokens that are not padding.

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
        weights = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.to(hidden.device).float()
        hidden = (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)
    return torch.nn.functional.normalize(hidden, dim=-1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and inference mode inside, every module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


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
