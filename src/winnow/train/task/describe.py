"""What a value is, as a short text that is the same in every process: functions, objects, tensors, whatever they hold.

Everything is taken apart into numbers, text and bytes, in an order of its own, and these are hashed:

- functions: bytecode, constants, names, defaults, keyword-only defaults, closure, attributes, and the globals that the code
  loads, followed through all code that is not an installed library's (:mod:`winnow.train.task.code`);
- objects: their class, its code and class attributes, all instance attributes, and what a builtin base holds;
- tensors and arrays: dtype, shape and contents; modules as objects, their weights thus included;
- data sets and loaders: class, length and at most 32 items, as data is named everywhere in a search;
- a transformers Trainer: its code and its own attributes, without the model, the data and the bookkeeping.

An object met again counts as "the third one seen", so that cycles end and addresses never matter. Values that differ
from process to process (a start time, a temporary folder) give another text: a stored part is then not found again,
which costs time, while a wrong one that is found costs a wrong result. The same holds for a list that a loss writes into
and that is not empty when the search is called a second time in one process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from winnow.train.task.parts import Indescribable, parts

LIMIT = 200_000  # values taken apart before giving up, about a second
_PLAIN = (type(None), bool, float, complex, str, type(...), type(NotImplemented))
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)


def describe(value: Any, known: Mapping[int, str] | None = None) -> str:
    """A hash of the value, 32 hexadecimal digits: equal for equal settings in any process, different for different ones.

    Args:
        known: names by ``id``; these objects count by their name and are not looked into.

    Raises:
        Indescribable: it holds something that cannot be compared across processes (an open file, a generator, a stream of
            data, an object of C code without a pickled form) or more than 200,000 values.
    """
    try:
        return _Walk(known or {}, [LIMIT]).of(value)
    except RecursionError:
        raise Indescribable("sets nested in themselves") from None


class _Walk:
    def __init__(self, known: Mapping[int, str], left: list[int]) -> None:
        self.known, self.left = known, left
        self.digest = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []  # an id is one object's only as long as that lives

    def of(self, value: Any) -> str:
        stack = [value]
        while stack:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise Indescribable(f"more than {LIMIT:,} values")
            found = self.one(stack.pop())
            stack.extend(reversed(found))
        return self.digest.hexdigest()[:32]

    def one(self, value: Any) -> tuple[Any, ...]:
        """Feeds the value; its parts, where it has some, come next."""
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind in _PLAIN or isinstance(value, _NAMED):
            self.put(name, repr(value).encode("utf-8", "surrogatepass"))
        elif kind is int:
            self.put(name, f"{value:x}".encode())
        elif kind in (bytes, bytearray):
            self.put(name, value)
        elif id(value) in self.known:
            self.put("known", self.known[id(value)].encode())
        elif kind is tuple:
            self.put(name, str(len(value)).encode())
            return value
        elif kind in (set, frozenset):
            inner = sorted(_Walk(self.known, self.left).of(item) for item in value)
            self.put(name, "".join(inner).encode())
        elif id(value) in self.seen:
            self.put("seen", str(self.seen[id(value)]).encode())
        else:
            self.seen[id(value)] = len(self.seen)
            self.alive.append(value)
            self.put("object", name.encode())
            return (parts(value),)
        return ()

    def put(self, tag: str, data: bytes | bytearray) -> None:
        self.digest.update(f"{tag}:{len(data)}:".encode())
        self.digest.update(data)
