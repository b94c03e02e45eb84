"""Feeding a task's inputs through a model: batches in a fixed order, and how a model is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data.images import image_transform
from winnow.data.records import Records, map_tensors, tensor_items
from winnow.data.text import Batch
from winnow.data.tokens import encode, pad
from winnow.forward.model import forward_parameters

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

    def share(self, batches: int) -> float:
        """Which share of all that the model is fed - tokens with their padding, or records - its first batches are."""
        texts = self._encoded
        fed = [len(rows) * (max(len(texts[i]["input_ids"]) for i in rows) if texts else 1) for rows in self._plan]
        return sum(fed[:batches]) / max(sum(fed), 1)

    def _batch(self, rows: np.ndarray, model: nn.Module) -> Batch:
        if self._encoded is not None:
            return pad([self._encoded[i] for i in rows], self._processor)
        if self._convert is not None:
            pixels = self._convert(self.records.subset(rows).inputs)
            return {"pixel_values": pixels} if "pixel_values" in forward_parameters(model) else (pixels,)
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
