"""Tables in memory - pandas DataFrames - and dicts of splits, such as the ``DatasetDict`` of the ``datasets`` package.

Both are known by what they can do: neither package is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from winnow.data.arrays import array_records
from winnow.data.records import Records, parse_labels
from winnow.data.tables import LABEL_COLUMNS, PAIR_COLUMNS, TEXT_COLUMNS, table_records
from winnow.errors import InputError

TRAIN = ("train", "training")
HELD_OUT = ("validation", "valid", "val", "dev", "test")  # the labels of a public test split are often hidden


def is_frame(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("columns", "iloc", "isna"))


def is_hub_table(data: Any) -> bool:
    """Whether it is a ``datasets.Dataset``."""
    return hasattr(data, "column_names") and hasattr(data, "features")


def is_splits(data: Any) -> bool:
    """Whether it is a dict of tables by the name of the split."""
    return isinstance(data, Mapping) and bool(data) and all(is_frame(v) or is_hub_table(v) for v in data.values())


def train_split(data: Any, name: str = "data") -> Any:
    """Of a dict of splits the one to train and calibrate on; anything else as it is.

    Raises:
        InputError: several splits, and none is called train.
    """
    return _split(data, TRAIN, name) if is_splits(data) else data


def held_out_split(data: Any, name: str = "the evaluation data") -> Any:
    """Of a dict of splits the one to measure on; anything else as it is.

    Raises:
        InputError: several splits, and none is called validation or test.
    """
    return _split(data, HELD_OUT, name) if is_splits(data) else data


def both_splits(data: Any, evaluation: Any) -> tuple[Any, Any]:
    """Data and evaluation data, where either may be a dict of splits: what is held out in ``data`` is the evaluation data
    unless others are given; None where there are none.

    Raises:
        InputError: it is not clear which split is which.
    """
    if evaluation is None and is_splits(data):
        found = [name for name in HELD_OUT if name in data]
        evaluation = data[found[0]] if found else None
    return train_split(data), held_out_split(evaluation)


def _split(data: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    found = next((name for name in names if name in data), None)
    if found is None and len(data) > 1:
        listed = ", ".join(map(str, data))
        first = next(iter(data))
        raise InputError(
            f"{what} has the splits {listed}, none called {names[0]}: give one of them, as data[{first!r}]."
        )
    return data[next(iter(data)) if found is None else found]


def frame_records(data: Any, column: str | None, label: str | None, name: str) -> Records:
    """Rows of a DataFrame: of texts like those of a file; of numbers, all columns but the label are the input.

    Raises:
        InputError: no rows, a column that is not there, a missing value, or columns that are neither.
    """
    header = [str(c) for c in data.columns]
    if len(set(header)) < len(header):
        raise InputError(f"{name} has two columns of one name: rename one of them.")
    if not len(data):
        raise InputError(f"{name} is empty: give at least two records.")
    cells = {key: _cells(data.iloc[:, i]) for i, key in enumerate(header)}
    chosen = label if label is not None else next((k for k in header if k.lower() in LABEL_COLUMNS), None)
    usual = {*TEXT_COLUMNS, *(key for pair in PAIR_COLUMNS for key in pair)}
    inputs = [key for key in header if key != chosen]
    numeric = {k: all(isinstance(v, (int, float)) or v is None for v in cells[k]) for k in inputs}
    if column is None and inputs and all(numeric.values()) and not usual & {k.lower() for k in inputs}:
        if label is not None and label not in header:
            raise InputError(
                f"{name} has no column {label!r}: give --label one of {', '.join(header)}.", option="label"
            )
        missing = next((k for k in inputs if None in cells[k]), None)
        if missing is not None:
            raise InputError(f"{name}: column {missing!r} has missing values: fill them in or drop the rows.")
        x = np.asarray([cells[k] for k in inputs], dtype=np.float32).T
        records = array_records(x, None, name)
        if chosen is not None:
            records.labels, records.label_names = parse_labels(cells[chosen], name, chosen)
        return records
    rows = [dict(zip(header, row)) for row in zip(*cells.values())]
    return table_records(header, rows, column=column, label=label, name=name)


def _cells(series: Any) -> list[Any]:
    """Plain Python values, None where one is missing."""
    return [None if gone else value for value, gone in zip(series.tolist(), series.isna().tolist())]
