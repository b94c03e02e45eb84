"""Names and texts of other people's making, as a terminal may show them: what would steer it is spelled out."""

from __future__ import annotations

import logging
import re
import warnings

# Control characters (C0, DEL, C1), those that reorder or hide text (bidirectional marks, zero-width space, byte order
# mark), separators of lines and paragraphs, and halves of surrogate pairs, which no output can encode.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    r"""``text`` with control characters as the escapes of a Python string: ESC becomes ``\x1b``, a line feed ``\n``.

    A byte of a file name that is not UTF-8 (Python's surrogateescape) becomes ``\xNN``. Characters of ``keep`` stay.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )


def json_for_terminal(text: str) -> str:
    """JSON whose texts hold no such character as it is: those that JSON lets stand become ``\\uNNNN``, the same value."""
    return _HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage(), keep="\n\t")


def legible_logs() -> None:
    """Log records and warnings of this process - of libraries, too - in the same form. Calling it again changes nothing."""
    logging.setLogRecordFactory(_Record)
    if warnings.formatwarning is not _warned:
        _plain.append(warnings.formatwarning)
        warnings.formatwarning = _warned


_plain = [warnings.formatwarning]


def _warned(*args: object, **more: object) -> str:
    return visible(_plain[-1](*args, **more), keep="\n\t")  # type: ignore[arg-type]
