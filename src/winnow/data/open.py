"""open_data: whatever the user calls their data, as records."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from winnow import importing
from winnow.data.arrays import Arguments, keywords, npz_keys
from winnow.data.files import TABLES, read_plain, read_table, require_file, suffix_of, unpack_limit
from winnow.data.images import read_folder
from winnow.data.objects import object_records
from winnow.data.records import Records, evenly_spaced
from winnow.errors import InputError
from winnow.words import size

_TEXT = (".txt", ".text", ".md")
_FORMS = "a .txt, .jsonl, .csv, .tsv or .parquet file (also .gz), an .npz, a folder of images, a Hugging Face name or package.module:function"
_SHORT = 2_000  # characters: one record longer than this can still be cut into passages


def open_data(
    spec: str | Path | Any,
    *,
    column: str | None = None,
    label: str | None = None,
    limit: int | None = None,
    split: str | None = None,
    forward: Arguments | None = None,
) -> Records:
    """Opens data of any supported form.

    ============================  =========================================================================
    spec                          read as
    ============================  =========================================================================
    ``a.txt``                     lines of a running text; documents where lines ``<|endoftext|>`` end them
    ``a.jsonl .csv .tsv .parquet``  the text ``column`` (two with a comma: pairs) and the ``label`` column
    ``a.npz``                     arrays of images or inputs and labels; ``column`` and ``label`` are keys
    a folder                      images, subfolders are classes
    ``org/name`` or ``name:config``  a Hugging Face data set, fetched by the ``datasets`` package
    ``package.module:function``   what the function returns, one of the forms below
    an object                     list of str, dicts or (str, str); (x, y); tensors; DataFrame; Dataset; DataLoader;
                                  DatasetDict (its train split; where evaluation data is not given, its validation or
                                  test split is that)
    ============================  =========================================================================

    Files may also end in ``.gz``. The network is used only for a Hugging Face name.

    Args:
        column: text column(s) by name, or by number from 0 for a csv/tsv without a header line.
        label: label column; without it the usual names (label, score ...) are looked for.
        limit: at most so many records, evenly spaced.
        split: split of a Hugging Face data set (default "train"), of an .npz or of a folder.
        forward: gives the arguments of the model's forward by name; asked only where several arrays are given, which are
            keyword inputs where they bear those names, and positional ones where it takes as many.

    Raises:
        InputError: the data is not there, cannot be read, is empty, holds one short record, lacks the column, or unpacks to
            more than :func:`winnow.data.files.unpack_limit`.
    """
    if limit is not None and limit < 2:
        raise InputError(f"a limit of {limit} leaves too little data: give 2 or more.")
    if isinstance(spec, (str, Path)):
        records = _open_spec(str(spec), column, label, limit, split, forward)
    else:
        records = object_records(spec, column=column, label=label, limit=limit, forward=forward)
    if len(records) == 0:
        raise InputError(f"{records.name} is empty: give at least two records.")
    if len(records) == 1 and not (records.kind == "text" and len(records.inputs[0]) >= 2 * _SHORT):
        raise InputError(
            f"{records.name} holds a single record: give at least two (one text a line, or more documents)."
        )
    return records.limited(limit)


def _open_spec(
    spec: str, column: str | None, label: str | None, limit: int | None, split: str | None, forward: Arguments | None
) -> Records:
    path = Path(spec).expanduser()
    if path.is_dir():
        return read_folder(path, split)
    suffix = suffix_of(path)
    if path.exists():
        if suffix == ".npz":
            records = _read_npz(path, split, column, label, forward)
        elif suffix in TABLES:
            records = read_table(path, column, label)
        elif suffix in _TEXT:
            records = read_plain(path)
        else:
            raise InputError(f"{path}: the form {suffix or 'without a suffix'} is not known: give {_FORMS}.")
        return replace(records, name=spec)
    if importing.is_named(spec) and importing.exists(spec.rpartition(":")[0]):
        data = importing.call(spec, "the data")
        records = object_records(data, column=column, label=label, limit=limit, name=spec, forward=forward)
        return replace(records, name=spec)
    is_path = spec.startswith((".", "/", "~")) or "\\" in spec or spec.count("/") > 1 or len(spec.split()) != 1
    if is_path or suffix in (*_TEXT, *TABLES, ".npz", ".json", ".zip", ".pt", ".pkl", ".arrow"):
        raise InputError(f"{spec} does not exist: give {_FORMS}.")
    return _open_hub(spec, column, label, limit, split)


def _read_npz(
    path: Path, split: str | None, column: str | None, label: str | None, forward: Arguments | None
) -> Records:
    require_file(path)
    try:
        with zipfile.ZipFile(path) as members:
            declared = sum(member.file_size for member in members.infolist())
        limit = unpack_limit()
        if declared > limit:
            raise InputError(
                f"{path} unpacks to {size(declared)}, and {size(limit)} can be held here: give fewer examples."
            )
        with np.load(path, allow_pickle=False) as archive:
            keys = list(archive.keys())
            if column is None and split is None and keywords(keys, label, forward) is not None:
                return object_records(
                    dict(archive), column=None, label=label, limit=None, name=str(path), forward=forward
                )
            x, y = npz_keys(keys, split, column, label, str(path))
            data = (archive[x], archive[y]) if y is not None else archive[x]
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header reader have each their own ways to fail
        raise InputError(
            f"{path} is not a readable .npz of plain arrays ({(str(error) or type(error).__name__)[:120]}): save it with numpy.savez."
        ) from None
    return object_records(data, column=None, label=None, limit=None, name=str(path))


def _open_hub(spec: str, column: str | None, label: str | None, limit: int | None, split: str | None) -> Records:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{spec} is not a file, folder or function here, and fetching it as a Hugging Face data set needs: "
            "pip install 'winnow-nn[data]'."
        ) from None
    name, _, config = spec.partition(":")
    try:
        table = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise InputError(
            f"{spec} is neither a file here nor a Hugging Face data set that could be fetched "
            f"({type(error).__name__}: {reason}): check the name, the split and the connection."
        ) from None
    if limit is not None and limit < len(table):
        table = table.select(evenly_spaced(len(table), limit).tolist())
    return object_records(table, column=column, label=label, limit=limit, name=f"{spec} [{split or 'train'}]")
