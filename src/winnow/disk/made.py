"""What made an output, as its mark says: the finished result of another job is not replaced unless that is asked for.

A job says of itself ``{"by": verb, "options": {name: value}, "inputs": {what: hash}}``, options without those that have
their default. The mark of what it wrote holds that, so that the same job may write there again and no other one may.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.disk.ownership import holds_nothing, made_by
from winnow.errors import InputError

_SHOWN = 40  # characters of a value in a sentence


def describe(by: str, options: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a job says of itself, as JSON; what is None is left out. ``inputs`` None: they are not known yet."""
    said = {"by": by, "options": _given(options)}
    if inputs is not None:
        said["inputs"] = _given(inputs)
    return json.loads(json.dumps(said, default=str, sort_keys=True))


def difference(was: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """In what the job that made an output differs from another one, in a few words; None where they are one.

    What ``now`` lacks, "options" or "inputs", is not compared.
    """
    if was is None:
        return "which one is not recorded"
    if was.get("by") != now["by"]:
        return f"by {was.get('by')}"
    for part, said in (("options", _values), ("inputs", lambda name, *_: f"other {name}")):
        if part not in now:
            continue
        before, here = was.get(part), now[part]
        before = before if isinstance(before, dict) else {}
        for name in sorted({*before, *here}):
            if before.get(name) != here.get(name):
                return said(name, before.get(name), here.get(name))
    return None


def refuse_other(folders: tuple[Path, ...], out: Path | str, made: Mapping[str, Any]) -> None:
    """Raises InputError where the first of ``folders`` that is there holds the finished result of another job."""
    for folder in folders:
        if holds_nothing(folder):
            continue
        if found := difference(made_by(folder), made):
            raise InputError(
                f"{out} holds the finished result of another command ({found}): choose another --out, or add --overwrite to replace it.",
                option="out",
            )
        return


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _values(name: str, was: Any, here: Any) -> str:
    texts = ["the default" if v is None else _text(v) for v in (was, here)]
    if max(map(len, texts)) > _SHOWN:
        return f"with another {name}"
    return f"its {name}: {texts[0]}, here: {texts[1]}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)
