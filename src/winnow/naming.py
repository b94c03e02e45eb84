"""What a file that is given away calls a model, a data set or a folder: by name, never by the path on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CACHED = re.compile(r"(?:^|[/\\])(?:models|datasets)--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")


def name_of(spec: str | Path) -> str:
    """The name of what ``spec`` says: the last part of a path, the hub's name of a folder in its cache, else the text."""
    text = str(spec)
    if cached := _CACHED.search(text):
        return cached[1].replace("--", "/")
    path = Path(text)
    if _far(text) or text.startswith(".") or path.exists():
        return Path(os.path.abspath(path.expanduser())).name or text
    return text


def title_of(spec: str | Path) -> str:
    """What a heading calls a model: the function's own name of ``package.module:function``, else :func:`name_of`."""
    name = name_of(spec)
    place, colon, function = name.rpartition(":")
    return function if colon and function.isidentifier() and place.replace(".", "").isidentifier() else name


def without_paths(value: Any, given: Iterable[Any] = ()) -> Any:
    """``value`` (texts, lists, dicts) with every path in ``given`` that says where it lies by its name in every text.

    Paths typed as relative stay as typed; of any others below the current folder the way from here is left, of those below
    the person's own folder the way from ``~``.
    """
    short: dict[str, str] = {}
    for spec in given:
        if not isinstance(spec, (str, Path)) or not str(spec).strip():
            continue
        text, whole = str(spec), os.path.abspath(os.path.expanduser(str(spec)))
        shown = name_of(text) if _far(text) else text
        for form in (os.path.realpath(whole), whole, *([text] if _far(text) else [])):
            if len(Path(form).parts) > 1:
                short[form.rstrip("/") or form] = shown
    for base, shown in ((os.path.expanduser("~"), "~/"), (os.getcwd(), "")):
        if len(Path(base).parts) > 1:
            short.setdefault(base.rstrip("/") + "/", shown)
    order = sorted(short, key=len, reverse=True)
    return _replaced(value, [(form, short[form]) for form in order])


def nameless(config: Any) -> Any:
    """A transformers configuration as a dict whose ``_name_or_path``, also of the configurations in it, are names."""
    if not isinstance(config, dict):
        return config
    return {k: name_of(v) if k == "_name_or_path" and isinstance(v, str) else nameless(v) for k, v in config.items()}


def _far(text: str) -> bool:
    return os.path.isabs(text) or text.startswith("~")


def _replaced(value: Any, pairs: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for form, shown in pairs:
            if form in value:
                value = value.replace(form, shown)
        return value
    if isinstance(value, dict):
        return {_replaced(k, pairs): _replaced(v, pairs) for k, v in value.items()}
    return [_replaced(v, pairs) for v in value] if isinstance(value, (list, tuple)) else value
