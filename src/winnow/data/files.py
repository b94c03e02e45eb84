"""Reading text and table files, each also gzipped, with errors that name the fix."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from winnow.data.records import EOS, Records
from winnow.data.tables import table_records
from winnow.errors import InputError, out_of_memory
from winnow.machine.memory import available_memory
from winnow.words import size

END_OF_TEXT = "<|endoftext|>"
TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
CHUNK = 1 << 20  # bytes unpacked at a time
MIN_BYTES = 64 << 20  # bytes that any file may unpack to
MAX_RATIO = 200  # times its own size, beyond that: text and images reach 20, DEFLATE's limit is 1,032
CELL_BYTES = 64  # bytes of a value in memory besides its text


def unpack_limit(packed: int | None = None) -> int:
    """Bytes that a file may unpack to: half of the memory that is free now (at least :data:`MIN_BYTES`), and of one whose size is
    only known when it is unpacked, of ``packed`` bytes, no more than :data:`MAX_RATIO` times as many."""
    held = available_memory() // 2
    return max(MIN_BYTES, held if packed is None else min(MAX_RATIO * packed, held))


def require_file(path: Path) -> None:
    """Raises InputError for what is there and no file: a folder, a pipe (which would be waited for), a device."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: give a file, or a folder of images.")


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds: ".csv" for both a.csv and a.csv.gz."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_bytes(path: Path) -> bytes:
    """The contents of a file, decompressed when its name ends in .gz: piece by piece, and no further than :func:`unpack_limit`.

    Raises InputError for what is no file, cannot be read, or unpacks to more than that.
    """
    require_file(path)
    try:
        if path.suffix.lower() != ".gz":
            return path.read_bytes()
        return _decompressed(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}): fetch it again.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check its permissions.") from None


def _decompressed(path: Path) -> bytes:
    packed, found, held = path.stat().st_size, io.BytesIO(), 0
    limit = unpack_limit(packed)
    with gzip.open(path) as file:
        while piece := file.read(CHUNK):
            held += len(piece)
            if held > limit:
                raise InputError(
                    f"{path} has {size(packed)} and unpacks to more than {size(limit)}: unpack it yourself if it is what you mean."
                )
            found.write(piece)
    return found.getvalue()


def read_text(path: Path) -> str:
    """The contents of a UTF-8 text file, newlines as ``\\n``."""
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}): convert it, "
            "for example with iconv -f latin1 -t utf-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_plain(path: Path) -> Records:
    """A text file: documents where lines ``<|endoftext|>`` end them, otherwise the lines of one running text.

    Blank lines stay glued to the line before them, so that the lines joined give the text back.
    """
    text = read_text(path)
    lines = text.split("\n")
    if any(line.strip() == END_OF_TEXT for line in lines):
        documents: list[str] = []
        current: list[str] = []
        for line in [*lines, END_OF_TEXT]:
            if line.strip() == END_OF_TEXT:
                documents.append("\n".join(current).strip("\n"))
                current = []
            else:
                current.append(line)
        return Records("text", [d for d in documents if d.strip()], name=str(path), joiner=EOS)
    glued: list[str] = []
    for line in lines:
        if glued and (not line.strip() or not glued[-1].strip()):
            glued[-1] += "\n" + line
        else:
            glued.append(line)
    return Records("text", [g for g in glued if g.strip()], name=str(path), joiner="\n")


def read_table(path: Path, column: str | None, label: str | None) -> Records:
    """A jsonl, csv, tsv or parquet file as records; see :func:`winnow.data.tables.table_records`."""
    readers: dict[str, Callable[[Path], tuple[list[str] | None, list[Any]]]] = {
        ".jsonl": _read_jsonl,
        ".csv": partial(_read_csv, strict=True),
        # Quotes in tab-separated files (GLUE's, for one) are plain characters.
        ".tsv": partial(_read_csv, delimiter="\t", quoting=csv.QUOTE_NONE),
        ".parquet": _read_parquet,
    }
    header, rows = readers[suffix_of(path)](path)
    return table_records(header, rows, column=column, label=label, name=str(path))


def _read_jsonl(path: Path) -> tuple[list[str] | None, list[Any]]:
    rows: list[Any] = []
    keys: dict[str, None] = {}
    # str.splitlines would also cut at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError:
            raise InputError(f"{path} line {number} is nested too deeply: write one flat object a line.") from None
        except ValueError as error:
            raise InputError(f"{path} line {number} is not JSON ({error}): write one object a line.") from None
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is a {type(row).__name__}, not an object: write one object a line.")
        keys.update(dict.fromkeys(row))
        rows.append(row)
    return list(keys), rows


def _read_csv(path: Path, **dialect: Any) -> tuple[list[str] | None, list[Any]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), **dialect)
    try:
        rows = [row for row in reader if row and any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not a table row ({error}): fix its quoting.") from None
    width = len(rows[0]) if rows else 0
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise InputError(f"{path}: row {number} has {len(row)} columns, the first has {width}: fix or quote it.")
    return None, rows


def _read_parquet(path: Path) -> tuple[list[str] | None, list[Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"{path}: parquet files need pyarrow: pip install 'winnow-nn[data]'.") from None
    data = read_bytes(path)
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        names = list(file.schema_arrow.names)
        limit, held, rows = unpack_limit(), 0, []
        for batch in file.iter_batches(batch_size=1024):
            held += batch.nbytes + CELL_BYTES * batch.num_rows * batch.num_columns
            if held > limit:
                raise InputError(
                    f"{path} has {size(len(data))} and unpacks to more than {size(limit)}: write the records that are needed to a file of their own."
                )
            rows += batch.to_pylist()
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path} holds text that is not UTF-8 ({error.reason}): write the file again.") from None
    except Exception as error:
        if out_of_memory(error):
            raise
        raise InputError(
            f"{path} is not a whole parquet file ({(str(error).splitlines() or [type(error).__name__])[0][:120]}): fetch it again."
        ) from None
    return names, rows
