"""In-memory data as records: lists, arrays, tensors, data sets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from winnow.data.arrays import (
    Arguments,
    are_arrays,
    array_records,
    as_tensor,
    input_records,
    is_array,
    keywords,
    label_array,
    named_records,
    npz_keys,
    several_inputs,
)
from winnow.data.frames import frame_records, is_frame, is_hub_table, train_split
from winnow.data.images import decode
from winnow.data.records import Records, first_tensor, parse_labels
from winnow.data.tables import LABEL_COLUMNS, table_records
from winnow.errors import InputError, meant


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
        return array_records(data, None, name)
    if isinstance(data, tuple) and (several := several_inputs(data, forward)) is not None:
        return input_records(*several, name)
    if isinstance(data, tuple) and len(data) == 2 and all(is_array(part) for part in data):
        return array_records(data[0], data[1], name)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], list) and is_array(data[1]):
        records = object_records(data[0], column=None, label=None, limit=None, name=name)  # texts, or pairs
        records.labels = label_array(data[1], len(records), name)
        return records
    data = train_split(data, name)
    if is_frame(data):
        return frame_records(data, column, label, name)
    if isinstance(data, Mapping):
        return _mapping(dict(data), column, label, name, forward)
    if is_hub_table(data):
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
        f"data cannot be read from a {type(data).__name__}: give texts, dicts, tensors, (x, y), a DataFrame, a Dataset or a DataLoader."
    )


def _mapping(
    data: dict[str, Any], column: str | None, label: str | None, name: str, forward: Arguments | None
) -> Records:
    if all(is_array(v) for v in data.values()) and column is None and "input_ids" in data:
        labels = data.pop(label or "labels", None)
        return named_records({k: as_tensor(v, name) for k, v in data.items()}, labels, name)
    if data and any(isinstance(v, (list, tuple)) and v and isinstance(v[0], str) for v in data.values()):
        if len({len(v) for v in data.values()}) > 1:
            raise InputError(
                f"{name}: the columns {', '.join(map(str, data))} differ in length: give one cell per record in each."
            )
        rows = [dict(zip(data, row)) for row in zip(*data.values())]
        return table_records(list(data), rows, column=column, label=label, name=name)
    keys = [k for k, v in data.items() if is_array(v)]
    if column is None and len(keys) == len(data) and (found := keywords(keys, label, forward)) is not None:
        inputs, given = found
        return input_records({key: data[key] for key in inputs}, None if given is None else data[given], name)
    if keys:
        x, y = npz_keys(keys, None, column, label, name)
        return array_records(data[x], None if y is None else data[y], name)
    raise InputError(
        f"{name}: a dict must hold columns of texts or arrays of numbers: it holds {', '.join(map(str, data)) or 'nothing'}."
    )


def _listed(data: Sequence[Any], column: str | None, label: str | None, name: str) -> Records:
    rows = [row if isinstance(row, dict) else {"text": row} for row in data]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return table_records(keys, rows, column=column, label=label, name=name)


def _is_text_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item)


def _pair(item: Any, row: int, name: str) -> tuple[str, str]:
    if not _is_text_pair(item):
        raise InputError(f"{name}: record {row} is not a pair of texts like the others: fix it.")
    return item[0], item[1]


def _holds_tensors(item: Any) -> bool:
    return isinstance(item, dict) and any(isinstance(v, (torch.Tensor, np.ndarray)) for v in item.values())


def _hub_table(data: Any, column: str | None, label: str | None, name: str) -> Records:
    names = list(data.column_names)
    image = column if column is not None else next((k for k in ("image", "img", "pixel_values") if k in names), None)
    if image in names and type(data.features[image]).__name__ == "Image":
        key = label or next((k for k in (*LABEL_COLUMNS, "fine_label") if k in names), None)
        if key is not None and key not in names:
            raise InputError(
                f"{name} has no column {key!r}{meant(key, names)}: give --label one of {', '.join(names)}.",
                option="label",
            )
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
    total = _length(data, limit, name)
    if total is not None and hasattr(data, "__getitem__"):
        items = [data[i] for i in range(total)]
    else:
        items = list(islice(iter(data), limit))
    first = _not_empty(items, name)[0]
    if isinstance(first, (str, dict)) and not _holds_tensors(first):
        return _listed(items, column, label, name)
    if isinstance(first, dict):
        return _merged([{k: torch.as_tensor(v)[None] for k, v in item.items()} for item in items], name)
    if isinstance(first, (tuple, list)) and len(first) == 2 and np.ndim(first[1]) == 0:
        inputs = [item[0] for item in items]
        labels = np.asarray([torch.as_tensor(item[1]).item() for item in items])
        if are_arrays(first[0]):
            return input_records(_by_input(inputs, lambda parts: _stack(parts, name)), labels, name)
        return array_records(_stack(inputs, name), labels, name)
    if isinstance(first, (tuple, list)):
        return _merged([tuple(torch.as_tensor(part)[None] for part in item) for item in items], name)
    return array_records(_stack(items, name), None, name)


def _length(data: Any, limit: int | None, name: str) -> int | None:
    """How many items there are; None where only ``limit`` says when to stop."""
    try:
        return len(data)
    except TypeError:
        if limit is None:
            raise InputError(f"{name} does not say how long it is: give a limit (--limit).") from None
        return None


def _not_empty(items: list[Any], name: str) -> list[Any]:
    if not items:
        raise InputError(f"{name} is empty: give at least two records.")
    return items


def _by_input(rows: list[Any], join: Callable[[list[Any]], torch.Tensor]) -> Any:
    """Rows of several inputs each, as one tensor an input, in the container of a row."""
    if isinstance(rows[0], Mapping):
        return {key: join([row[key] for row in rows]) for key in rows[0]}
    return tuple(join(list(parts)) for parts in zip(*rows))


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
    _length(loader, limit, name)
    collected: list[Any] = []
    labels: list[Any] = []
    count = 0
    for batch in loader:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if pair and are_arrays(batch[0]) and not are_arrays(batch):
            labels.append(torch.as_tensor(batch[1]))
            batch = batch[0]
        if isinstance(batch, torch.Tensor):
            batch = (batch,)
        elif isinstance(batch, (Mapping, tuple, list)):
            batch = dict(batch) if isinstance(batch, Mapping) else tuple(batch)
        if isinstance(batch, tuple) and batch and all(isinstance(part, str) for part in batch):
            collected.extend(batch)
            continue
        if not isinstance(batch, dict) and not (
            isinstance(batch, tuple) and all(isinstance(part, torch.Tensor) for part in batch)
        ):
            kind = type(batch).__name__
            raise InputError(f"{name}: a DataLoader must yield tensors, (x, y) or dicts of tensors, not {kind}.")
        collected.append(batch)
        count += first_tensor(batch).shape[0]
        if limit is not None and count >= limit:
            break
    if isinstance(_not_empty(collected, name)[0], str):
        return _listed(collected, None, None, name)
    if labels:
        inputs = _by_input(collected, lambda parts: _join(parts, padded=False, name=name))
        return input_records(inputs, torch.cat(labels), name)
    return _merged(collected, name)


def _merged(batches: list[Any], name: str) -> Records:
    first = batches[0]
    texts = [k for k, v in first.items() if not isinstance(v, torch.Tensor)] if isinstance(first, dict) else []
    if texts:
        raise InputError(f"{name}: {', '.join(texts)} of a batch is not a tensor: yield tensors that the model takes.")
    padded = isinstance(first, dict) and "attention_mask" in first
    whole = _by_input(batches, lambda parts: _join(parts, padded=padded, name=name))
    if isinstance(whole, dict):
        return named_records(whole, whole.pop("labels", None), name)
    if len(whole) == 2 and whole[1].ndim == 1:
        return array_records(whole[0], whole[1], name)
    return array_records(whole[0], None, name) if len(whole) == 1 else Records("tensors", whole, name=name)


def _join(parts: list[torch.Tensor], *, padded: bool, name: str) -> torch.Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        if not padded or {len(shape) for shape in shapes} != {1}:
            raise InputError(
                f"{name}: batches differ in shape {sorted(shapes)[:2]}: pad them and add an attention_mask."
            )
        # The mask is padded with zeros too, so the padding never counts.
        width = max(shape[0] for shape in shapes)
        parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    return torch.cat(parts).detach().cpu()
