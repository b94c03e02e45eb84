"""The ways to find a ticket, by name. A new one is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from winnow.errors import InputError, meant

if TYPE_CHECKING:
    from winnow.tickets.method import Method

DEFAULT = "isp-matched"  # what method="ticket" stands for


class Methods(Mapping[str, "Method"]):
    """Methods by name, imported when they are looked up; built from names -> "module:constant" beside this file."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Method:
        module, _, constant = self._places[name].partition(":")
        return getattr(import_module(f"winnow.tickets.methods.{module}"), constant)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


METHODS = Methods(
    {
        "dense": "dense:DENSE",
        "random": "one_shot:RANDOM",
        "magnitude": "one_shot:MAGNITUDE",
        "snip": "one_shot:SNIP",
        "grasp": "one_shot:GRASP",
        "synflow": "one_shot:SYNFLOW",
        "progressive": "gradual:PROGRESSIVE",
        "gradual": "gradual:GRADUAL",
        "earlybird": "earlybird:EARLYBIRD",
        "imp": "imp:IMP",
        "imp-rewind": "imp:IMP_REWIND",
        "lrr": "imp:LRR",
        "lottery-pool": "lottery_pool:LOTTERY_POOL",
        "sparse-training": "sparse_training:SPARSE_TRAINING",
        "isp": "isp.isp:ISP",
        "isp-plain": "isp.isp:ISP_PLAIN",
        "isp-matched": "isp.isp:ISP_MATCHED",
    }
)


def known(method: str) -> str:
    """The name of a method in :data:`METHODS`; "ticket" is the default one. Raises InputError."""
    name = DEFAULT if method == "ticket" else method
    if name not in METHODS:
        names = ", ".join(m for m in METHODS if m != "dense")
        raise InputError(
            f"the method {method!r} is not known{meant(method, ('ticket', *METHODS))}: "
            f"choose one of ticket, {names} (or dense, training without pruning)."
        )
    return name
