"""The code of functions and classes, and of what they refer to, as values that are the same in every process."""

from __future__ import annotations

import builtins
import dis
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

# Installed code counts by its version and file and is not followed into: it would never end. These wherever they lie.
_LIBRARIES = frozenset({"winnow", "torch", "torchvision", "numpy", "transformers", "accelerate", "peft", "builtins"})
_METHODS = (types.FunctionType, staticmethod, classmethod, property)
_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)


@cache
def is_library(module: str) -> bool:
    """Whether code of this module is installed, not the user's own: Python's, site-packages', winnow's."""
    top = module.partition(".")[0]
    if top in _LIBRARIES or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return _installed(file)


def _installed(file: str | None) -> bool:
    return file is not None and bool({"site-packages", "dist-packages"} & set(Path(file).parts))


@cache
def stamp(module: str, source: bool = False) -> str:
    """Version of an installed module and a hash of its file; "" of the user's own, unless the ``source`` is asked for."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return sys.version
    if top == "winnow" or not (source or is_library(module)):  # every key holds a hash of winnow's source
        return ""
    file = getattr(sys.modules.get(module), "__file__", None)
    version = str(getattr(sys.modules.get(top), "__version__", ""))
    if file is None or not file.endswith(".py") or not Path(file).exists():
        return version
    return f"{version} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def code_parts(code: types.CodeType) -> tuple[Any, ...]:
    """All but names of files and numbers of lines."""
    return (
        code.co_code, code.co_consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags,
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, getattr(code, "co_exceptiontable", b""),
    )  # fmt: skip


def function_parts(function: types.FunctionType) -> tuple[Any, ...]:
    """Code, defaults, closure and attributes; of the user's own functions also the globals and modules that they load."""
    code, module = function.__code__, function.__module__ or ""
    names = frozenset(n for c in _nested(code) for n in c.co_names)
    held = tuple((n, _closed(cell, names)) for n, cell in zip(code.co_freevars, function.__closure__ or ()))
    loaded = () if is_library(module) else tuple(_loaded(function, names))
    return (
        module, function.__qualname__, stamp(module), code, function.__defaults__,
        tuple(sorted((function.__kwdefaults__ or {}).items())), held, tuple(sorted(vars(function).items())), loaded,
    )  # fmt: skip


def class_parts(kind: type) -> tuple[Any, ...]:
    """Name and version of a library's class; of the user's own the methods, class attributes and bases."""
    if is_library(kind.__module__):
        return (kind.__module__, kind.__qualname__, stamp(kind.__module__))
    members = tuple((m.name, m.value) for m in kind) if issubclass(kind, Enum) else ()
    found = [(n, v) for n, v in vars(kind).items() if _counts(n, v, bool(members))]
    return (kind.__module__, kind.__qualname__, kind.__bases__, members, tuple(sorted(found, key=lambda pair: pair[0])))


def _counts(name: str, value: Any, enum: bool) -> bool:
    """Methods, and attributes that the user wrote: Python and metaclasses put others beside them."""
    if isinstance(value, _METHODS):
        return True
    return not (enum or isinstance(value, _SLOTS) or name == "_abc_impl" or (name[:2] == name[-2:] == "__"))


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code and that of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _closed(cell: types.CellType, names: frozenset[str]) -> Any:
    try:
        return _with_names(cell.cell_contents, names, set())
    except ValueError:
        return cell  # still empty


def _loaded(function: types.FunctionType, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """(name, value) of the globals and imports in the code, by name."""
    space, wanted, imported = function.__globals__, set(), set()
    for code in _nested(function.__code__):
        before: list[Any] = [0, 0]  # IMPORT_NAME comes after its level and the list of names
        for step in dis.get_instructions(code):
            if step.opname.startswith("LOAD_") and ("GLOBAL" in step.opname or step.opname == "LOAD_NAME"):
                wanted.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                imported.add((before[0] if isinstance(before[0], int) else 0, step.argval))
            if step.opname != "EXTENDED_ARG":
                before = [before[1], step.argval]
    for name in sorted(wanted):
        if name in space:
            yield name, _with_names(space[name], names, set())
        else:
            yield name, "builtin" if hasattr(builtins, name) else "undefined"
    for level, name in sorted(imported):
        yield name, _with_names(_imported("." * level + name, space.get("__package__") or ""), names, set())


def _imported(name: str, package: str) -> Any:
    """The module that the function would import; the user's own is imported now, as the function is about to."""
    try:
        whole = importlib.util.resolve_name(name, package)
        if whole not in sys.modules:
            spec = importlib.util.find_spec(whole.partition(".")[0])
            if spec is None or spec.origin in ("built-in", "frozen") or _installed(spec.origin):
                return whole
        elif is_library(whole):
            return whole
        return importlib.import_module(whole)
    except Exception:  # an import that fails, inside of try or in code that is never reached
        return f"no {name}"


def _with_names(value: Any, names: frozenset[str], seen: set[str]) -> Any:
    """A module of the user's as those of its attributes that the code names; anything else as it is."""
    if not isinstance(value, types.ModuleType) or is_library(value.__name__) or value.__name__ in seen:
        return value
    seen.add(value.__name__)
    return (
        value.__name__,
        tuple((n, _with_names(v, names, seen)) for n, v in sorted(vars(value).items()) if n in names),
    )
