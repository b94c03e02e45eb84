"""Records: data of any form, as the one value that tasks and calibration read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from winnow.errors import InputError

Kind = Literal["text", "pairs", "images", "tensors"]
_CLASSES = 1 << 31  # more classes than any model has
_LARGEST = 1 << 63  # what 64 bits hold
EOS = "eos"  # documents that stand apart: joined by the tokenizer's own delimiter


@dataclass(eq=False)
class Records:
    """Examples with (maybe) labels.

    ===========  ==========================================================================================
    kind         inputs
    ===========  ==========================================================================================
    ``text``     list of str
    ``pairs``    list of (str, str)
    ``images``   uint8 array [n, H, W] or [n, H, W, C], or a sequence of uint8 arrays of their own sizes
    ``tensors``  tuple of tensors (positional model inputs) or dict of tensors (keywords), first dimension n
    ===========  ==========================================================================================

    ``labels`` is None, int64 class numbers or float64 scores, one per record; ``label_names`` names the classes.
    ``joiner`` is what stands between two texts when they are concatenated: ``"eos"`` for documents, otherwise a string
    such as a newline, for the lines of one running text. ``part_of`` names the split these records are a part of, if any.
    """

    kind: Kind
    inputs: Any
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None
    name: str = "data"
    joiner: str = EOS
    part_of: str | None = None

    def __len__(self) -> int:
        if self.kind != "tensors":
            return len(self.inputs)
        return int(first_tensor(self.inputs).shape[0])

    @property
    def running(self) -> bool:
        """Whether the records are the lines of one running text, in order."""
        return self.kind == "text" and self.joiner != EOS

    def subset(self, indices: Iterable[int]) -> Records:
        """The records at ``indices``, in that order."""
        index = np.asarray(list(indices), dtype=np.int64)
        if self.kind == "tensors":
            rows = torch.from_numpy(index)
            inputs = map_tensors(self.inputs, lambda tensor: tensor[rows])
        elif isinstance(self.inputs, np.ndarray):
            inputs = self.inputs[index]
        elif hasattr(self.inputs, "subset"):
            inputs = self.inputs.subset(index)
        else:
            inputs = [self.inputs[i] for i in index]
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[index])

    def limited(self, limit: int | None) -> Records:
        """At most ``limit`` records, evenly spaced (files are often sorted by class or source)."""
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise InputError(f"a limit of {limit} records leaves no data: give 2 or more.")
        return self.subset(evenly_spaced(len(self), limit))

    @cached_property
    def digests(self) -> list[bytes]:
        """16 bytes per record that depend on its input alone: equal inputs, equal digests, whatever the label."""
        return [_digest(parts) for parts in self._contents()]

    @cached_property
    def sha256(self) -> str:
        """A hash of all inputs and labels in order."""
        whole = hashlib.sha256(f"{self.kind}:{self.joiner}:{len(self)}".encode())
        for digest in self.digests:
            whole.update(digest)
        if self.labels is not None:
            whole.update(np.ascontiguousarray(self.labels).tobytes())
        return whole.hexdigest()

    def _contents(self) -> Iterable[tuple[bytes, ...]]:
        if self.kind == "text":
            return ((text.strip().encode("utf-8", "surrogatepass"),) for text in self.inputs)
        if self.kind == "pairs":
            return (tuple(s.strip().encode("utf-8", "surrogatepass") for s in pair) for pair in self.inputs)
        if self.kind == "images":
            return ((str(image.shape).encode(), np.ascontiguousarray(image).tobytes()) for image in self.inputs)
        tensors = list(tensor_items(self.inputs).values())
        return (tuple(raw_bytes(tensor[i]) for tensor in tensors) for i in range(len(self)))

    def class_labels(self) -> np.ndarray:
        """Labels as class numbers, int64 [n].

        Raises:
            InputError: there are no labels, they are not whole numbers, or some are negative.
        """
        if self.labels is None:
            raise InputError(f"{self.name} has no labels: name their column with --label.", option="label")
        labels = self.labels
        if labels.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(labels) | (labels != np.round(labels)))
            if bad.size:
                raise InputError(
                    f"{self.name}: label {labels[bad[0]]:g} of record {bad[0]} is not a class number: "
                    "name a column of classes with --label, or give two text columns for a similarity task.",
                    option="label",
                )
            if (far := np.flatnonzero(np.abs(labels) >= _CLASSES)).size:
                raise InputError(
                    f"{self.name}: label {labels[far[0]]:g} of record {far[0]} is not a class number: name a column of classes with --label.",
                    option="label",
                )
        labels = labels.astype(np.int64)
        if labels.min() < 0:
            raise InputError(
                f"{self.name}: label {labels.min()} of record {int(labels.argmin())} is not a class (classes count "
                "from 0): use a split whose labels are public."
            )
        return labels

    def scores(self) -> np.ndarray:
        """Labels as finite numbers, float64 [n].

        Raises:
            InputError: there are no labels, they are names, or some are not finite.
        """
        if self.labels is None:
            raise InputError(f"{self.name} has no scores: name their column with --label.", option="label")
        if self.label_names is not None:
            raise InputError(
                f"{self.name}: labels such as {self.label_names[0]!r} are not scores: use --task classification.",
                option="task",
            )
        scores = self.labels.astype(np.float64)
        if not np.isfinite(scores).all():
            raise InputError(
                f"{self.name}: record {int(np.argmin(np.isfinite(scores)))} has no finite score: remove it."
            )
        return scores


def evenly_spaced(n: int, count: int) -> np.ndarray:
    """``count`` indices evenly spaced over range(n), ascending and distinct."""
    return (np.arange(count, dtype=np.int64) * n) // count


def tensor_items(inputs: Any) -> dict[str, torch.Tensor]:
    """The tensors of positional or keyword inputs in a fixed order."""
    if isinstance(inputs, dict):
        return {key: inputs[key] for key in sorted(inputs)}
    return {str(i): tensor for i, tensor in enumerate(inputs)}


def first_tensor(inputs: Any) -> torch.Tensor:
    return next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]


def map_tensors(inputs: Any, function: Any) -> Any:
    """``function`` of each tensor, in the same container."""
    if isinstance(inputs, dict):
        return {key: function(tensor) for key, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Dtype, shape and contents of a tensor."""
    return f"{tensor.dtype}{tuple(tensor.shape)}".encode() + contents(tensor)


def contents(tensor: torch.Tensor) -> bytes:
    """The values of a tensor, bit for bit, in row order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _digest(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()[:16]


def parse_labels(values: Sequence[Any], name: str, label: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Cells of a label column as int64 classes, float64 scores, or (names) as classes in sorted order.

    Raises:
        InputError: numbers and words are mixed, a cell is empty, a list or an object, or a number is beyond 64 bits.
    """
    cells = [value.strip() if isinstance(value, str) else value for value in values]
    for row, cell in enumerate(cells):
        if cell is None or cell == "":
            raise InputError(f"{name}: record {row} has an empty label in {label!r}: fill it in or remove the record.")
        if not isinstance(cell, (str, bool, int, float, np.generic)):
            kind = {"dict": "an object", "list": "a list"}.get(type(cell).__name__, f"a {type(cell).__name__}")
            raise InputError(
                f"{name}: the label of record {row} in {label!r} is {kind}: give the name or number of a class, or a score."
            )
        if _whole(str(cell)) and abs(int(str(cell)[:40])) >= _LARGEST:
            raise InputError(
                f"{name}: the label of record {row} in {label!r} is {str(cell)[:24]}, larger than any class number: name the label column."
            )
    if all(isinstance(cell, (bool, int, np.integer, np.bool_)) for cell in cells):
        return np.asarray(cells, dtype=np.int64), None
    if all(isinstance(cell, str) and _whole(cell) for cell in cells):
        return np.asarray([int(cell) for cell in cells], dtype=np.int64), None
    numbers = [_number(cell) for cell in cells]
    words = [row for row, number in enumerate(numbers) if number is None]
    if not words:
        return np.asarray(numbers, dtype=np.float64), None
    # One stray word among numbers is a damaged file; a column of words is a column of class names.
    if len(words) * 2 < len(cells):
        raise InputError(
            f"{name}: label {cells[words[0]]!r} of record {words[0]} is not a number like the others: fix it."
        )
    names = tuple(sorted({str(cell) for cell in cells}))
    code = {word: i for i, word in enumerate(names)}
    return np.asarray([code[str(cell)] for cell in cells], dtype=np.int64), names


def _whole(text: str) -> bool:
    return text.lstrip("+-").isdigit() and text.isascii()


def _number(cell: Any) -> float | None:
    if isinstance(cell, str) and not cell.isascii():
        return None  # digits of other scripts, which Python takes, are words here
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
