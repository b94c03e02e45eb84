"""What makes two computations the same: a fingerprint of a value that is equal in every process.

Plain values, containers and tensors count by their contents; objects by their class and what pickle would store of them;
what an installed package defines by its name, version and file. The user's own functions count by source text, defaults,
closure, attributes and the globals that they read, their classes by methods and attributes, both with all of the user's
that these call; or, where they have a text ``winnow_name`` of their own, by that alone. What is left has no fingerprint.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib.util
import inspect
import random
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIMIT = 200_000  # values looked at before giving up, about a second
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_WRAPPERS = (staticmethod, classmethod, property, functools.cached_property, functools._lru_cache_wrapper)
_PASSING = "_original_object_hash"  # that transformers puts into generation settings, another one in every process
# Runs set the generators of the process anew for every step.
_PROCESS = {id(g): "generator" for g in (torch.default_generator, random._inst, np.random.mtrand._rand)}  # type: ignore[attr-defined]


class Unnameable(Exception):
    """A value has no fingerprint that would hold in another process; the text says which."""


def fingerprint(value: Any, known: Mapping[int, str] | None = None) -> str:
    """32 hexadecimal digits: equal for equal values in any process, different for different ones.

    ``known``: names by ``id``; these objects count by their name and are not looked into.

    Raises Unnameable: it holds a function without source, what cannot be pickled (an open file, a generator, a lock), or
    more than 200,000 values.
    """
    walk = _Walk({**_PROCESS, **(known or {})})
    try:
        walk.add(value)
    except RecursionError:
        raise Unnameable("values nested too deep") from None
    return walk.digest.hexdigest()[:32]


class _Walk:
    def __init__(self, known: Mapping[int, str]) -> None:
        self.known, self.left = known, LIMIT
        self.digest = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # number and object, whose id is its own as long as it lives

    def put(self, tag: str, content: str | bytes) -> None:
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        self.digest.update(f"{tag}:{len(data)}:".encode() + data)

    def add(self, value: Any) -> None:
        kind, self.left = type(value), self.left - 1
        if self.left < 0:
            raise Unnameable(f"more than {LIMIT:,} values")
        if kind in _PLAIN:
            self.put(kind.__qualname__, value if kind is bytes else hex(value) if kind is int else repr(value))
        elif kind is tuple:
            self.put("tuple", str(len(value)))
            for item in value:
                self.add(item)
        elif id(value) in self.known:
            self.put("known", self.known[id(value)])
        elif id(value) in self.seen:
            self.put("seen", str(self.seen[id(value)][0]))
        else:
            self.seen[id(value)] = len(self.seen), value
            self.put("object", kind.__qualname__)
            self.add(self.parts(value, kind))

    def parts(self, value: Any, kind: type) -> Any:
        """What an object is made of, as plain values and further objects."""
        own = {} if kind is types.MethodType else getattr(value, "__dict__", {})
        name = own.get("winnow_name")
        if isinstance(name, str) and name != getattr(own.get("__wrapped__"), "winnow_name", None):
            return ("named", name)
        if found := _defined(value):
            return found
        if kind in (set, frozenset):
            return tuple(sorted(fingerprint(item, self.known) for item in value))
        if kind in (list, dict):  # in their order, which can matter: transforms, modules in sequence
            return tuple(value if kind is list else (pair for pair in value.items() if pair[0] != _PASSING))
        if isinstance(value, type):
            return _class(value)
        if isinstance(value, types.FunctionType):
            return _function(own.get("_torchdynamo_orig_callable", value))  # what torch.compile was given
        if kind is types.MethodType:
            return (value.__func__, value.__self__)
        if isinstance(value, _WRAPPERS):
            return tuple(getattr(value, part, None) for part in ("__wrapped__", "fget", "fset", "func"))
        return _stored(value)


def _defined(value: Any) -> str:
    """Name and version of a module, class or function that an installed package defines; "" of everything else."""
    if isinstance(value, types.ModuleType):
        return (version := installed(value.__name__)) and f"{value.__name__} {version}"
    if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return ""
    name, module = value.__qualname__, getattr(value, "__globals__", {}).get("__name__", value.__module__)
    if not (module and (version := installed(module))):
        return ""
    found = functools.reduce(lambda at, part: getattr(at, part, None), name.split("."), sys.modules.get(module))
    return f"{module}.{name} {version}" if found is value or isinstance(value, type) else ""


@functools.cache
def installed(module: str) -> str:
    """Version of an installed module and a hash of its file; "" of the user's own."""
    top = module.partition(".")[0]
    if top in ("", "winnow"):
        return top  # every key holds a hash of winnow's source
    file = getattr(sys.modules.get(module), "__file__", None) or getattr(sys.modules.get(top), "__file__", None)
    if top not in sys.modules:  # imported inside of a function, later
        file = getattr(importlib.util.find_spec(top), "origin", None)
    path = Path(file or "")
    if {"site-packages", "dist-packages"} & set(path.parts) and path.is_file():
        return f"{getattr(sys.modules.get(top), '__version__', '')} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    python = path.is_relative_to(sysconfig.get_path("stdlib")) or file in (None, "built-in", "frozen")
    return sys.version if python and top in sys.stdlib_module_names else ""


def _function(function: types.FunctionType) -> tuple[Any, ...]:
    """Source, defaults, closure and attributes; of the user's own functions also the globals that the code reads.

    The compiled code counts beside the source: lambdas can share a line, a file can have been edited since its import.
    """
    name, space, codes = function.__qualname__, function.__globals__, _codes(function.__code__)
    compiled = tuple(
        (c.co_code, c.co_names, *(k for k in c.co_consts if not isinstance(k, types.CodeType))) for c in codes
    )
    closure = tuple(c.cell_contents for c in function.__closure__ or () if c != types.CellType())  # but for empty ones
    held = (name, compiled, function.__defaults__, function.__kwdefaults__, closure, dict(vars(function)))
    if version := installed(space.get("__name__", "")):
        return (version, *held)
    try:
        if function.__code__.co_filename == "<string>":  # since Python 3.13 the text of `python -c` goes by that name
            raise OSError
        source = inspect.getsource(function.__code__)  # of the function it would be that of what it is wrapped around
    except (OSError, TypeError):
        raise Unnameable(f"the function {name}, which has no source") from None
    steps = [step for code in codes for step in dis.get_instructions(code)]
    if own := [s.argval or "." for s in steps if s.opname == "IMPORT_NAME" and not installed(s.argval)]:
        raise Unnameable(f"the function {name}, which imports {own[0]} inside of its body")
    names = {n for code in codes for n in code.co_names}
    loaded = {s.argval for s in steps if s.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")}
    return (source, *held, tuple((n, _named_of(space[n], names, ())) for n in sorted(loaded & space.keys())))


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """The code and that of the functions defined in it."""
    return [code, *(inner for c in code.co_consts if isinstance(c, types.CodeType) for inner in _codes(c))]


def _named_of(value: Any, names: set[str], above: tuple[Any, ...]) -> Any:
    """A module of the user's as those of its attributes that the code names; anything else as it is."""
    if not isinstance(value, types.ModuleType) or installed(value.__name__) or value in above:
        return value
    return tuple((n, _named_of(v, names, (*above, value))) for n, v in sorted(vars(value).items()) if n in names)


def _class(kind: type) -> tuple[Any, ...]:
    """Bases, methods and attributes; without what Python, dataclasses and metaclasses put beside those."""
    own = sorted((name, value) for name, value in vars(kind).items() if _written(name, value))  # names differ
    return (kind.__module__, kind.__qualname__, kind.__bases__, tuple(own))


def _written(name: str, value: Any) -> bool:
    if not (name.startswith("__") and name.endswith("__")):
        return name != "_abc_impl" and not isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType)
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    return name == "__call__" or (code is not None and code.co_filename != "<string>" and name != "__repr__")


def _stored(value: Any) -> tuple[Any, ...]:
    """Contents of a tensor; class, arguments, attributes and items of other objects, as pickle and copy take them."""
    kind, reducer = type(value), copyreg.dispatch_table.get(type(value))
    try:
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return (tuple(value.shape), value.dtype, value.requires_grad, hashlib.sha256(data.data).digest())
        found = reducer(value) if reducer else value.__reduce_ex__(2)
        if isinstance(found, str):  # a name in a module
            return (kind, getattr(value, "__module__", None), found)
        return (*found[:3], *(tuple(items) for items in found[3:5] if items is not None))
    except Exception as error:  # of any kind: code of others, and tensors that are sparse, quantized or on no device
        raise Unnameable(f"a {kind.__qualname__}") from error
