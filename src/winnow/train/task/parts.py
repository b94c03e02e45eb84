"""What values are made of: one rule for each kind, from lists to locks.

A rule gives a tuple of plain values and further objects, in an order that is the same in every process.
"""

from __future__ import annotations

import _thread
import copyreg
import functools
import hashlib
import random
import sys
import types
import weakref
from enum import Enum
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from winnow.seeding import seeded
from winnow.train.task import trainer_parts
from winnow.train.task.code import class_parts, code_parts, function_parts, is_library, stamp

ITEMS = 32  # read of a data set


class Indescribable(Exception):
    """A value that has no description which holds in another process; the text says which."""


@singledispatch
def parts(value: Any) -> tuple[Any, ...]:
    """What an object is made of, as a tuple of plain values and further objects."""
    kind = type(value)
    if trainer_parts.is_trainer(kind):
        return (kind, trainer_parts.of(value))
    if kind.__module__.partition(".")[0] == "datasets" and hasattr(kind, "__getitem__"):
        return _data(value)
    if kind.__qualname__ == "OptimizedModule":
        return ("compiled", value._orig_mod)
    native, stored_by = _native(kind), _pickler(kind)
    if native in (set, frozenset):
        return (kind, _attributes(value), frozenset(native.__iter__(value)))
    if stored_by is not object and is_library(stored_by.__module__):
        return (kind, *_reduced(value))  # a library knows which of its attributes are meant to last
    return (kind, _attributes(value)) if native is object else (kind, _attributes(value), *_reduced(value))


def _attributes(value: Any) -> tuple[Any, ...]:
    """Of the instance, by name; slots included."""
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        found = {}
    for base in type(value).__mro__:
        if "__slots__" in vars(base):  # not the members of classes in C: there are addresses among them
            for name, slot in vars(base).items():
                if isinstance(slot, types.MemberDescriptorType):
                    try:
                        found[name] = slot.__get__(value)
                    except AttributeError:  # empty
                        continue
    return tuple(sorted(((str(n), v) for n, v in found.items()), key=lambda pair: pair[0]))


_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def _native(kind: type) -> type:
    """The most special base that is written in C: object for ordinary classes."""
    for base in kind.__mro__:
        new = base.__new__
        if not base.__flags__ & _HEAP or (isinstance(new, types.BuiltinFunctionType) and new.__self__ is base):
            return base
    return object


def _pickler(kind: type) -> type:
    """The class that says how the object is stored; object where none has rules of its own."""
    names = ("__reduce_ex__", "__reduce__", "__getstate__")
    return next((base for base in kind.__mro__ if any(n in vars(base) for n in names)), object)


def _reduced(value: Any) -> tuple[Any, ...]:
    """The form that pickle and copy use, the only one that objects of C code have."""
    reducer = copyreg.dispatch_table.get(type(value))
    try:
        found = reducer(value) if reducer else value.__reduce_ex__(2)
        if isinstance(found, str):
            return (found,)
        return (*found[:3], *(tuple(part) for part in found[3:5] if part is not None))
    except Exception as error:  # of any kind: it is the code of others
        module, name = str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))
        if getattr(sys.modules.get(module), name, None) is value:
            return (module, name, stamp(module))  # a function of compiled code
        raise Indescribable(_kind(value)) from error


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


parts.register(type, class_parts)
parts.register(types.CodeType, code_parts)


@parts.register(list)
def _list(value: list[Any]) -> tuple[Any, ...]:
    return tuple(value) if type(value) is list else (type(value), _attributes(value), tuple(list.__iter__(value)))


@parts.register(dict)
@parts.register(types.MappingProxyType)
def _dict(value: Any) -> tuple[Any, ...]:
    """In their order, which can matter: transforms, modules in sequence."""
    if type(value) in (dict, types.MappingProxyType):
        return tuple(value.items())
    return (type(value), _attributes(value), getattr(value, "default_factory", None), tuple(dict.items(value)))


@parts.register(Enum)
def _enum(value: Enum) -> tuple[Any, ...]:
    return (type(value), value.name, value.value)


@parts.register(types.FunctionType)
def _function(value: types.FunctionType) -> tuple[Any, ...]:
    compiled = vars(value).get("_torchdynamo_orig_callable")
    return ("compiled", compiled) if compiled is not None else function_parts(value)


@parts.register(types.MethodType)
def _method(value: types.MethodType) -> tuple[Any, ...]:
    return (value.__func__, value.__self__)


@parts.register(types.BuiltinFunctionType)
@parts.register(types.MethodWrapperType)
def _builtin(value: Any) -> tuple[Any, ...]:
    module = getattr(value, "__module__", None) or ""
    owner = value.__self__
    return (value.__qualname__, module, stamp(module), None if type(owner).__name__ == "PyCapsule" else owner)


@parts.register(types.MethodDescriptorType)
@parts.register(types.WrapperDescriptorType)
@parts.register(types.ClassMethodDescriptorType)
@parts.register(types.GetSetDescriptorType)
@parts.register(types.MemberDescriptorType)
def _descriptor(value: Any) -> tuple[Any, ...]:
    return (value.__objclass__.__qualname__, value.__name__)


@parts.register(types.ModuleType)
def _module(value: types.ModuleType) -> tuple[Any, ...]:
    return (value.__name__, stamp(value.__name__, source=True))


@parts.register(staticmethod)
@parts.register(classmethod)
def _static(value: Any) -> tuple[Any, ...]:
    return (value.__func__,)


@parts.register(property)
def _property(value: property) -> tuple[Any, ...]:
    return (value.fget, value.fset, value.fdel)


@parts.register(functools.partial)
def _partial(value: functools.partial[Any]) -> tuple[Any, ...]:
    return (type(value), value.func, value.args, tuple(sorted(value.keywords.items())), _attributes(value))


@parts.register(functools._lru_cache_wrapper)
def _cached(value: Any) -> tuple[Any, ...]:
    return (value.__wrapped__,)


@parts.register(types.CellType)
def _cell(value: types.CellType) -> tuple[Any, ...]:
    try:
        return (value.cell_contents,)
    except ValueError:
        return ()


@parts.register(weakref.ref)
def _reference(value: weakref.ref[Any]) -> tuple[Any, ...]:
    return (value(),)


@parts.register(_thread.LockType)
@parts.register(_thread.RLock)
def _lock(value: Any) -> tuple[Any, ...]:
    return ()


@parts.register(torch.Tensor)
def _tensor(value: torch.Tensor) -> tuple[Any, ...]:
    try:
        plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    except Exception as error:  # sparse, quantized, on the meta device, of a class with rules of its own
        raise Indescribable(_kind(value)) from error
    return (tuple(value.shape), value.dtype, value.requires_grad, hashlib.sha256(plain.data).digest())


@parts.register(np.ndarray)
@parts.register(np.generic)
def _array(value: Any) -> tuple[Any, ...]:
    if value.dtype.hasobject:
        return (type(value), value.shape, value.tolist())
    plain = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return (type(value), value.shape, value.dtype, hashlib.sha256(plain.data).digest())


@parts.register(torch.Generator)
@parts.register(random.Random)
@parts.register(np.random.RandomState)
def _generator(value: Any) -> tuple[Any, ...]:
    """By their state, but for those of the process: a run sets them anew for every step."""
    if value is torch.default_generator or value is random._inst or value is np.random.mtrand._rand:  # type: ignore[attr-defined]
        return ("of the process",)
    if isinstance(value, torch.Generator):
        return (str(value.device), value.get_state())
    return (type(value), value.getstate() if isinstance(value, random.Random) else value.get_state())


@parts.register(DataLoader)
def _loader(value: DataLoader[Any]) -> tuple[Any, ...]:
    drawn = type(value.batch_sampler), type(value.sampler), value.generator
    return (type(value), value.dataset, value.batch_size, value.drop_last, value.collate_fn, drawn)


@parts.register(Dataset)
def _data(value: Any) -> tuple[Any, ...]:
    kind = type(value)
    try:
        count = len(value)
        chosen = range(0, count, max(1, -(-count // ITEMS)))
        with seeded(0, "description"):
            items = tuple(value[i] for i in chosen)
    except Exception as error:  # a stream, or one that cannot be read now
        raise Indescribable(_kind(value)) from error
    return (kind.__module__, kind.__qualname__, count, items)
