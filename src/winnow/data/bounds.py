"""How much a file may unpack to: a small file can stand for more than any memory holds."""

from __future__ import annotations

from pathlib import Path

from winnow.errors import InputError

CHUNK = 1 << 20  # bytes unpacked at a time
MIN_BYTES = 64 << 20  # bytes that any file may unpack to
MAX_RATIO = 200  # times its own size, beyond that: text and images reach 20, DEFLATE's limit is 1,032
CELL_BYTES = 64  # bytes of a value in memory besides its text


def unpack_limit(packed: int | None = None) -> int:
    """Bytes that a file may unpack to: half of the memory that is free now (at least :data:`MIN_BYTES`), and of one whose size is
    only known when it is unpacked, of ``packed`` bytes, no more than :data:`MAX_RATIO` times as many."""
    from winnow.machine.memory import available_memory

    held = available_memory() // 2
    return max(MIN_BYTES, held if packed is None else min(MAX_RATIO * packed, held))


def require_file(path: Path) -> None:
    """Raises InputError for what is there and no file: a folder, a pipe (which would be waited for), a device."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: give a file, or a folder of images.")
