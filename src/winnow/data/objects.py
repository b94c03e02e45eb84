"""In-memory data as records: lists, arrays, tensors, data sets and loaders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from winnow.data.images import as_pixels, decode
from winnow.data.records import Records, first_tensor, map_tensors, parse_labels
from winnow.data.tables import LABEL_COLUMNS, table_records
from winnow.errors import InputError

Arguments = Callable[[], Mapping[str, inspect.Parameter]]  # of a model's forward, by name
_INPUT_KEYS = ("x", "X", "images", "image", "data", "pixel_values")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target")
_SPLIT_KEYS = ("{s}_images", "{s}_x", "x_{s}", "X_{s}", "images_{s}", "{s}_data", "{s}")
_SPLIT_LABELS = ("{s}_labels", "{s}_y", "y_{s}", "labels_{s}", "{s}_targets")


def object_records(
    data: Any,
    *,
    column: str | None,
    label: str | None,
    limit: int | None,
    name: str = "data",
    forward: Arguments | None = None,
) -> Records:
    """Records from whatever holds data in memory; the forms, and ``forward``, are listed in :func:`winnow.data.open_data`."""
    if isinstance(data, Records):
        return data
    if isinstance(data, (torch.Tensor, np.ndarray)):
        return _arrays(data, None, name)
    if isinstance(data, tuple) and (several := _several(data, forward)) is not None:
        return _inputs(*several, name)
    if isinstance(data, tuple) and len(data) == 2 and all(_is_array(part) for part in data):
        return _arrays(data[0], data[1], name)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], list) and _is_array(data[1]):
        return _labelled(data[0], data[1], name)
    if isinstance(data, Mapping):
        return _mapping(dict(data), column, label, name, forward)
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return _hub_table(data, column, label, name)
    if isinstance(data, (list, tuple)) and data and isinstance(data[0], (str, dict)) and not _holds_tensors(data[0]):
        return _listed(data, column, label, name)
    if isinstance(data, (list, tuple)) and data and _is_text_pair(data[0]):
        return Records("pairs", [_pair(pair, row, name) for row, pair in enumerate(data)], name=name)
    if isinstance(data, torch.utils.data.DataLoader):
        return _batches(data, limit, name)
    if isinstance(data, (torch.utils.data.Dataset, list, tuple)) or hasattr(data, "__iter__"):
        return _items(data, column, label, limit, name)
    raise InputError(
        f"data cannot be read from a {type(data).__name__}: give texts, dicts, tensors, (x, y), a Dataset or a DataLoader."
    )


def npz_keys(
    keys: Sequence[str], split: str | None, column: str | None, label: str | None, name: str
) -> tuple[str, str | None]:
    """The keys of the inputs and the labels of an .npz file."""
    for asked, option in ((column, "column"), (label, "label")):
        if asked is not None and asked not in keys:
            raise InputError(f"{name} has no array {asked!r}: give --{option} one of {', '.join(keys)}.", option=option)
    splits = (split,) if split else ("train",)
    inputs = [key.format(s=s) for s in splits for key in _SPLIT_KEYS]
    targets = [key.format(s=s) for s in splits for key in _SPLIT_LABELS]
    plain = [] if split else list(_INPUT_KEYS)
    x = column or next((key for key in [*plain, *inputs] if key in keys), None)
    apart = [key for key in keys if key != label and key not in _LABEL_KEYS]
    if x is None and split is None and len(apart) == 1:
        x = apart[0]
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


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray)) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], (int, float, np.number))
    )


def _arrays(x: Any, y: Any, name: str) -> Records:
    labels = None
    if np.ndim(x) == 0:
        raise InputError(f"{name} is a single number: give a tensor whose first dimension counts examples.")
    if y is not None:
        labels = _label_array(y, name)
        if len(labels) != len(x):
            raise InputError(f"{name}: {len(x)} inputs and {len(labels)} labels: give one label per input.")
    array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) and x.dtype == torch.uint8 else x
    pixels = as_pixels(array) if isinstance(array, np.ndarray) else None
    if pixels is not None:
        return Records("images", pixels, labels, name=name)
    return Records("tensors", (_tensor(x, name),), labels, name=name)


def _tensor(x: Any, name: str) -> torch.Tensor:
    if isinstance(x, torch.Tensor):
        return x.detach().cpu()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: an array of {array.dtype} is not model input: give numbers.")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32) if array.dtype == np.float64 else array))


def _label_array(y: Any, name: str) -> np.ndarray:
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
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def keywords(keys: Sequence[str], label: str | None, forward: Arguments | None) -> tuple[list[str], str | None] | None:
    """(inputs, labels) where each of several arrays, but for the labels, is an argument of the model's forward.

    What is called as labels are counts as such unless the forward cannot do without it.
    """
    if forward is None or len(keys) < 2:
        return None
    takes = forward()
    asked = {key for key, p in takes.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    needed = {key for key in asked if takes[key].default is inspect.Parameter.empty}
    labels = label or next((key for key in _LABEL_KEYS if key in keys and key not in needed), None)
    inputs = [key for key in keys if key != labels]
    if not inputs or not set(inputs) <= asked or not needed <= set(inputs):
        return None
    return inputs, labels


def _several(data: tuple[Any, ...], forward: Arguments | None) -> tuple[Any, Any] | None:
    """(inputs, labels) of ((x1, x2), y), of ({"a": x1, "b": x2}, y), or of as many arrays as the forward needs."""
    if len(data) == 2 and _is_array(data[1]) and _row_of_arrays(data[0]):
        parts = list(data[0].values()) if isinstance(data[0], Mapping) else data[0]
        apart = not isinstance(data[0], list) or len(data[0]) != len(data[1])  # a list may hold one array an example
        if apart and all(len(part) == len(data[1]) for part in parts):
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


def _row_of_arrays(part: Any) -> bool:
    """Several inputs of one example each: arrays, by position or by name."""
    parts = list(part.values()) if isinstance(part, Mapping) else part if isinstance(part, (tuple, list)) else []
    return len(parts) > 0 and all(isinstance(p, (torch.Tensor, np.ndarray)) and np.ndim(p) > 0 for p in parts)


def _inputs(inputs: Any, labels: Any, name: str) -> Records:
    """Records of several inputs, with labels or without."""
    if isinstance(inputs, Mapping):
        return _keywords({str(k): _tensor(v, name) for k, v in inputs.items()}, labels, name)
    tensors = {str(i): _tensor(v, name) for i, v in enumerate(inputs)}
    found = _keywords(tensors, labels, name)
    found.inputs = tuple(found.inputs.values())
    return found


def _mapping(
    data: dict[str, Any], column: str | None, label: str | None, name: str, forward: Arguments | None
) -> Records:
    if all(_is_array(v) for v in data.values()) and column is None and "input_ids" in data:
        labels = data.pop(label or "labels", None)
        return _keywords({k: _tensor(v, name) for k, v in data.items()}, labels, name)
    if data and any(isinstance(v, (list, tuple)) and v and isinstance(v[0], str) for v in data.values()):
        if len({len(v) for v in data.values()}) > 1:
            raise InputError(
                f"{name}: the columns {', '.join(map(str, data))} differ in length: give one cell per record in each."
            )
        rows = [dict(zip(data, row)) for row in zip(*data.values())]
        return table_records(list(data), rows, column=column, label=label, name=name)
    keys = [k for k, v in data.items() if _is_array(v)]
    if column is None and len(keys) == len(data) and (found := keywords(keys, label, forward)) is not None:
        inputs, given = found
        return _inputs({key: data[key] for key in inputs}, None if given is None else data[given], name)
    if keys:
        x, y = npz_keys(keys, None, column, label, name)
        return _arrays(data[x], None if y is None else data[y], name)
    raise InputError(
        f"{name}: a dict must hold columns of texts or arrays of numbers: it holds {', '.join(map(str, data)) or 'nothing'}."
    )


def _keywords(tensors: dict[str, torch.Tensor], labels: Any, name: str) -> Records:
    sizes = {key: tensor.shape[0] for key, tensor in tensors.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"{name}: the tensors differ in their first dimension ({sizes}): give one row per example in each."
        )
    per_example = None
    if labels is not None and (np.ndim(labels) == 1 or np.shape(labels)[1:] == (1,)):
        per_example = _label_array(labels, name)
        if len(per_example) not in sizes.values():
            raise InputError(
                f"{name}: {next(iter(sizes.values()), 0)} inputs and {len(per_example)} labels: give one label per input."
            )
    return Records("tensors", tensors, per_example, name=name)


def _listed(data: Sequence[Any], column: str | None, label: str | None, name: str) -> Records:
    rows = [row if isinstance(row, dict) else {"text": row} for row in data]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return table_records(keys, rows, column=column, label=label, name=name)


def _labelled(texts: list[Any], labels: Any, name: str) -> Records:
    """(texts, labels) or (pairs, scores)."""
    records = object_records(texts, column=None, label=None, limit=None, name=name)
    records.labels = _label_array(labels, name)
    if len(records.labels) != len(records):
        raise InputError(f"{name}: {len(records)} inputs and {len(records.labels)} labels: give one label per input.")
    return records


def _is_text_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item)


def _pair(item: Any, row: int, name: str) -> tuple[str, str]:
    if not _is_text_pair(item):
        raise InputError(f"{name}: record {row} is not a pair of texts like the others: mend it.")
    return item[0], item[1]


def _holds_tensors(item: Any) -> bool:
    return isinstance(item, dict) and any(isinstance(v, (torch.Tensor, np.ndarray)) for v in item.values())


def _hub_table(data: Any, column: str | None, label: str | None, name: str) -> Records:
    names = list(data.column_names)
    image = column if column is not None else next((k for k in ("image", "img", "pixel_values") if k in names), None)
    if image in names and type(data.features[image]).__name__ == "Image":
        key = label or next((k for k in (*LABEL_COLUMNS, "fine_label") if k in names), None)
        if key is not None and key not in names:
            raise InputError(f"{name} has no column {key!r}: give --label one of {', '.join(names)}.", option="label")
        labels, words = parse_labels(list(data[key]), name, key) if key else (None, None)
        records = Records("images", [decode(item) for item in data[image]], labels, words, name=name)
    else:
        columns = {key: list(data[key]) for key in names}
        rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
        records = table_records(names, rows, column=column, label=label, name=name)
        key = label or next((k for k in LABEL_COLUMNS if k in names), None)
    words = getattr(data.features.get(key), "names", None) if key else None
    if records.labels is not None and words:
        records.label_names = tuple(words)
    return records


def _items(data: Iterable[Any], column: str | None, label: str | None, limit: int | None, name: str) -> Records:
    """Items of a Dataset or an iterable: texts, dicts, x or (x, y), stacked."""
    if not hasattr(data, "__len__") and limit is None:
        raise InputError(f"{name} does not say how long it is: give a limit (--limit).")
    total = len(data) if hasattr(data, "__len__") else None  # type: ignore[arg-type]
    if total is not None and hasattr(data, "__getitem__"):
        items = [data[i] for i in range(total)]  # type: ignore[index]
    else:
        items = list(islice(iter(data), limit))
    if not items:
        raise InputError(f"{name} is empty: give at least two records.")
    if isinstance(items[0], (str, dict)) and not _holds_tensors(items[0]):
        return _listed(items, column, label, name)
    if isinstance(items[0], dict):
        return _merged([{k: torch.as_tensor(v)[None] for k, v in item.items()} for item in items], name)
    if isinstance(items[0], (tuple, list)):
        if len(items[0]) == 2 and np.ndim(items[0][1]) == 0 and _row_of_arrays(items[0][0]):
            labels = np.asarray([torch.as_tensor(item[1]).item() for item in items])
            return _inputs(_rows_joined([item[0] for item in items], name), labels, name)
        if len(items[0]) == 2 and np.ndim(items[0][1]) == 0:
            inputs = [item[0] for item in items]
            return _arrays(_stack(inputs, name), np.asarray([torch.as_tensor(item[1]).item() for item in items]), name)
        return _merged([tuple(torch.as_tensor(part)[None] for part in item) for item in items], name)
    return _arrays(_stack(items, name), None, name)


def _rows_joined(rows: list[Any], name: str) -> Any:
    """Examples of several inputs each, as one tensor an input, in the container of an example."""
    if isinstance(rows[0], Mapping):
        return {key: _stack([row[key] for row in rows], name) for key in rows[0]}
    return tuple(_stack(list(parts), name) for parts in zip(*rows))


def _stack(items: list[Any], name: str) -> Any:
    if any(type(item).__module__.startswith("PIL.") for item in items):
        items = [decode(item) for item in items]
    tensors = [torch.as_tensor(np.asarray(item)) if not isinstance(item, torch.Tensor) else item for item in items]
    if len({tuple(tensor.shape) for tensor in tensors}) > 1:
        raise InputError(
            f"{name}: examples differ in shape ({tuple(tensors[0].shape)} and others): bring them to one shape."
        )
    return torch.stack(tensors)


def _batches(loader: Any, limit: int | None, name: str) -> Records:
    """Batches of a DataLoader: x, (x, y) or dicts, joined along the first dimension."""
    try:
        len(loader)
    except TypeError:
        if limit is None:
            raise InputError(f"{name} does not say how long it is: give a limit (--limit).") from None
    collected: list[Any] = []
    labels: list[Any] = []
    count = 0
    for batch in loader:
        if (
            isinstance(batch, (tuple, list))
            and len(batch) == 2
            and _row_of_arrays(batch[0])
            and not _row_of_arrays(batch)
        ):
            labels.append(torch.as_tensor(batch[1]))
            batch = batch[0]
            batch = tuple(batch) if isinstance(batch, list) else batch
        if isinstance(batch, torch.Tensor):
            batch = (batch,)
        if isinstance(batch, Mapping):
            batch = dict(batch)
        elif not (isinstance(batch, (tuple, list)) and all(isinstance(part, torch.Tensor) for part in batch)):
            if isinstance(batch, (tuple, list)) and batch and all(isinstance(part, str) for part in batch):
                collected.extend(batch)
                continue
            raise InputError(
                f"{name}: a DataLoader must yield tensors, (x, y) or dicts of tensors, not {type(batch).__name__}."
            )
        else:
            batch = tuple(batch)
        collected.append(batch)
        count += first_tensor(batch).shape[0]
        if limit is not None and count >= limit:
            break
    if not collected:
        raise InputError(f"{name} is empty: give at least two records.")
    if isinstance(collected[0], str):
        return _listed(collected, None, None, name)
    if labels:
        first = collected[0]
        keys = list(first) if isinstance(first, dict) else range(len(first))
        joined = {key: _join([batch[key] for batch in collected], None, name) for key in keys}
        return _inputs(joined if isinstance(first, dict) else tuple(joined.values()), torch.cat(labels), name)
    return _merged(collected, name)


def _merged(batches: list[Any], name: str) -> Records:
    first = batches[0]
    if isinstance(first, tuple):
        columns = [_join(list(parts), None, name) for parts in zip(*batches)]
        if len(columns) == 2 and columns[1].ndim == 1:
            return _arrays(columns[0], columns[1], name)
        return _arrays(columns[0], None, name) if len(columns) == 1 else Records("tensors", tuple(columns), name=name)
    texts = [k for k, v in first.items() if not isinstance(v, torch.Tensor)]
    if texts:
        raise InputError(f"{name}: {', '.join(texts)} of a batch is not a tensor: yield tensors that the model takes.")
    joined = {key: _join([batch[key] for batch in batches], "attention_mask" in first, name) for key in first}
    return _keywords(joined, joined.pop("labels", None), name)


def _join(parts: list[torch.Tensor], padded: bool | None, name: str) -> torch.Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        if not padded or {len(shape) for shape in shapes} != {1}:
            raise InputError(
                f"{name}: batches differ in shape {sorted(shapes)[:2]}: pad them and add an attention_mask."
            )
        # The mask is padded with zeros too, so the padding never counts.
        width = max(shape[0] for shape in shapes)
        parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    return map_tensors((torch.cat(parts),), lambda t: t.detach().cpu())[0]
