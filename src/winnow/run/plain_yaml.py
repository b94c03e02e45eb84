"""YAML as recipes use it: mappings, lists and scalars of YAML 1.2. What it comes to is bounded before it is built.

A few hundred bytes of aliases can stand for more values than fit into memory, and tags and odd scalars make the libraries'
own constructors fail in many ways: all that is found on the parsed nodes, each looked at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from winnow.errors import InputError
from winnow.terminal.legible import visible

CHARACTERS = 128_000  # of a recipe: the largest in use have a few thousand, tables of rates ten times as many
VALUES = 20_000  # that a recipe comes to, aliases written out
DEPTH = 64
DIGITS = 18  # of a whole number: more is beyond 64 bits

Where = tuple[Any, ...]  # keys and places on the way to a value

_SCALARS = {
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"),
    "float": re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
    "merge": re.compile(r"<<\Z"),
}
_TAG = "tag:yaml.org,2002:"
_KINDS = {yaml.ScalarNode: (*_SCALARS, "str"), yaml.SequenceNode: ("seq",), yaml.MappingNode: ("map",)}


class _Loader(yaml.SafeLoader):
    """The scalars of YAML 1.2: ``2:4`` is a text, ``2e-5`` a number."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the parent's own form)


for _name in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, _SCALARS[_name], None)


def read(text: str, name: str) -> tuple[Any, dict[Where, str]]:
    """The value of a YAML document, and the line of each value in it. ``name`` begins every error.

    Raises:
        InputError: this is no YAML, it holds what recipes do not (tags, keys that are lists, control characters, a key twice,
            numbers beyond 64 bits, cycles), or it comes to more than :data:`VALUES` values.
    """
    if len(text) > CHARACTERS:
        raise InputError(f"{name}: {len(text):,} characters are no recipe: give one of at most {CHARACTERS:,}.")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _bounded(node, name)
        lines: dict[Where, str] = {}
        for where, line in _walk(node, ()):
            if line is None:
                raise InputError(f"{name}, {lines[where]}: {dotted(where)}: is given a second time further down.")
            lines[where] = f"line {line}"
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{name}{at}: this is no YAML ({error.problem or error.context}).") from None
    except yaml.reader.ReaderError as error:
        line = 1 + text.count("\n", 0, error.position)
        raise InputError(
            f"{name}, line {line}: the character {visible(chr(error.character)) if isinstance(error.character, int) else '?'} "
            "does not belong into YAML: remove it."
        ) from None
    except RecursionError:
        raise InputError(f"{name}: this is no recipe (nested too deeply).") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: this is no YAML ({str(error).splitlines()[0]}).") from None
    finally:
        if loader is not None:
            loader.dispose()


def _bounded(root: yaml.Node, name: str) -> None:
    """Checks every node once, and how many values the document comes to. Depth first, children before parents."""
    comes_to: dict[int, int] = {}
    open_: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, left = stack.pop()
        children = _children(node)
        if left:
            open_.discard(id(node))
            comes_to[id(node)] = 1 + sum(comes_to[id(child)] for child in children)
            if comes_to[id(node)] > VALUES:
                many = f"this comes to more than {VALUES:,} values, aliases written out: write a smaller recipe"
                raise _error(node, name, many)
            continue
        if id(node) in comes_to:
            continue
        if id(node) in open_:
            raise _error(node, name, "this is no YAML of a recipe (it holds itself): leave the alias out")
        if len(open_) > DEPTH:
            raise _error(node, name, "this is no YAML of a recipe (nested too deeply)")
        _check(node, name)
        open_.add(id(node))
        stack.append((node, True))
        stack.extend((child, False) for child in children if id(child) not in comes_to)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check(node: yaml.Node, name: str) -> None:
    """Raises InputError for a node that recipes have no use for."""
    kind = node.tag.removeprefix(_TAG)
    if not node.tag.startswith(_TAG) or kind not in _KINDS[type(node)]:
        tag = visible(node.tag.replace(_TAG, "!!"))
        raise _error(node, name, f"this is no YAML of a recipe (the tag {tag}): leave the tag out")
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error(key, name, "a key is a word, no list or mapping: mend it")
    if not isinstance(node, yaml.ScalarNode) or kind == "str":
        return
    shown = visible(node.value if len(node.value) <= 40 else node.value[:37] + "...")
    if not _SCALARS[kind].match(node.value):
        raise _error(node, name, f"{shown!r} is no {kind}: leave the tag out")
    long = kind == "int" and len(node.value.lstrip("+-")) > DIGITS
    if long or (kind == "float" and not math.isfinite(float(node.value))):
        raise _error(node, name, f"{shown} is too large a number")


def _error(node: yaml.Node, name: str, message: str) -> InputError:
    return InputError(f"{name}, line {node.start_mark.line + 1}: {message}.")


def _walk(node: yaml.Node, where: Where) -> Iterator[tuple[Where, int | None]]:
    """Every value with its line; None for a key that comes twice."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            at = (*where, str(key.value))
            yield at, None if key.value in seen and key.value != "<<" else key.start_mark.line + 1
            seen.add(key.value)
            yield from _walk(value, at)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*where, i), value.start_mark.line + 1
            yield from _walk(value, (*where, i))


def dotted(where: Where) -> str:
    """A path for a person: stages 2 ticket.sparsity becomes stages[2].ticket.sparsity, counted from 1."""
    parts = (f"[{part + 1}]" if isinstance(part, int) and i else f".{part}" for i, part in enumerate(where))
    return "".join(parts).removeprefix(".")
