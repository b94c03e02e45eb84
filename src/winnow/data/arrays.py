"""Arrays in memory as records: which of them are inputs, which the labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from winnow.data.images import as_pixels
from winnow.data.records import Records
from winnow.errors import InputError

Arguments = Callable[[], Mapping[str, inspect.Parameter]]  # of a model's forward, by name
_INPUT_KEYS = ("x", "X", "images", "image", "data", "pixel_values")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target")
_SPLIT_KEYS = ("{s}_images", "{s}_x", "x_{s}", "X_{s}", "images_{s}", "{s}_data", "{s}")
_SPLIT_LABELS = ("{s}_labels", "{s}_y", "y_{s}", "labels_{s}", "{s}_targets")


def npz_keys(
    keys: Sequence[str], split: str | None, column: str | None, label: str | None, name: str
) -> tuple[str, str | None]:
    """The keys of the inputs and the labels of an .npz file."""
    for key, option in ((column, "column"), (label, "label")):
        if key is not None and key not in keys:
            raise InputError(f"{name} has no array {key!r}: give --{option} one of {', '.join(keys)}.", option=option)
    splits = (split,) if split else ("train",)
    inputs = [key.format(s=s) for s in splits for key in _SPLIT_KEYS]
    targets = [key.format(s=s) for s in splits for key in _SPLIT_LABELS]
    plain = [] if split else list(_INPUT_KEYS)
    x = column or next((key for key in [*plain, *inputs] if key in keys), None)
    candidates = [key for key in keys if key != label and key not in _LABEL_KEYS]
    if x is None and split is None and len(candidates) == 1:
        x = candidates[0]
    if x is None:
        raise InputError(
            f"{name}: which array holds the inputs is not clear: give --column one of {', '.join(keys)}.",
            option="column",
        )
    if label is not None:
        return x, label
    # The labels that go with the chosen inputs: train_labels beside train_images, y beside x.
    beside = [x.replace(word, other) for word in ("images", "x", "X", "data") for other in ("labels", "y") if word in x]
    return x, next((key for key in [*beside, *(targets if split else _LABEL_KEYS)] if key in keys and key != x), None)


def is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray)) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], (int, float, np.number))
    )


def array_records(x: Any, y: Any, name: str) -> Records:
    if np.ndim(x) == 0:
        raise InputError(f"{name} is a single number: give a tensor whose first dimension counts examples.")
    labels = None if y is None else label_array(y, len(x), name)
    array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) and x.dtype == torch.uint8 else x
    pixels = as_pixels(array) if isinstance(array, np.ndarray) else None
    if pixels is not None:
        return Records("images", pixels, labels, name=name)
    return Records("tensors", (as_tensor(x, name),), labels, name=name)


def as_tensor(x: Any, name: str) -> torch.Tensor:
    if isinstance(x, torch.Tensor):
        return x.detach().cpu()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: an array of {array.dtype} is not model input: give numbers.")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32) if array.dtype == np.float64 else array))


def label_array(y: Any, count: int, name: str) -> np.ndarray:
    """Labels of ``count`` inputs: int64 class numbers or float64 scores [count]."""
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu()
        y = y.float() if y.dtype == torch.bfloat16 else y  # which numpy does not know
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{name}: labels have shape {tuple(array.shape)}: give one number per example.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: labels are of type {array.dtype}: give class numbers or scores.")
    if len(array) != count:
        raise InputError(f"{name}: {count} inputs and {len(array)} labels: give one label per input.")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def keywords(keys: Sequence[str], label: str | None, forward: Arguments | None) -> tuple[list[str], str | None] | None:
    """(inputs, labels) where each of several arrays, but for the labels, is an argument of the model's forward.

    What is called as labels are counts as such unless the forward cannot do without it.
    """
    if forward is None or len(keys) < 2:
        return None
    takes = forward()
    named = {key for key, p in takes.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    needed = {key for key in named if takes[key].default is inspect.Parameter.empty}
    labels = label or next((key for key in _LABEL_KEYS if key in keys and key not in needed), None)
    inputs = [key for key in keys if key != labels]
    if not inputs or not set(inputs) <= named or not needed <= set(inputs):
        return None
    return inputs, labels


def several_inputs(data: tuple[Any, ...], forward: Arguments | None) -> tuple[Any, Any] | None:
    """(inputs, labels) of ((x1, x2), y), of ({"a": x1, "b": x2}, y), or of as many arrays as the forward needs."""
    if len(data) == 2 and is_array(data[1]) and are_arrays(data[0]):
        parts = list(data[0].values()) if isinstance(data[0], Mapping) else data[0]
        separate = not isinstance(data[0], list) or len(data[0]) != len(data[1])  # a list may hold one array an example
        if separate and all(len(part) == len(data[1]) for part in parts):
            return data[0], data[1]
    if forward is None or len(data) < 2 or not all(isinstance(part, (torch.Tensor, np.ndarray)) for part in data):
        return None
    positional = [p for p in forward().values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in positional)
    if needed < 2:
        return None
    if len(data) == needed:
        return data, None
    return (data[:-1], data[-1]) if len(data) == needed + 1 and np.ndim(data[-1]) == 1 else None


def are_arrays(part: Any) -> bool:
    """Several inputs of one example each: arrays, by position or by name."""
    parts = list(part.values()) if isinstance(part, Mapping) else part if isinstance(part, (tuple, list)) else []
    return len(parts) > 0 and all(isinstance(p, (torch.Tensor, np.ndarray)) and np.ndim(p) > 0 for p in parts)


def input_records(inputs: Any, labels: Any, name: str) -> Records:
    """Records of several inputs, with labels or without."""
    if isinstance(inputs, Mapping):
        return named_records({str(k): as_tensor(v, name) for k, v in inputs.items()}, labels, name)
    tensors = {str(i): as_tensor(v, name) for i, v in enumerate(inputs)}
    found = named_records(tensors, labels, name)
    found.inputs = tuple(found.inputs.values())
    return found


def named_records(tensors: dict[str, torch.Tensor], labels: Any, name: str) -> Records:
    sizes = {key: tensor.shape[0] for key, tensor in tensors.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"{name}: the tensors differ in their first dimension ({sizes}): give one row per example in each."
        )
    per_example = None
    if labels is not None and (np.ndim(labels) == 1 or np.shape(labels)[1:] == (1,)):
        per_example = label_array(labels, next(iter(sizes.values()), 0), name)
    return Records("tensors", tensors, per_example, name=name)
