"""Training methods by name and plain values: all that a recipe, or a search for tickets, can set about one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, create_model

from winnow.budget import parse_sparsity
from winnow.errors import InputError, meant
from winnow.train.method import Planned, SparseMethod
from winnow.train.methods import METHODS

Fields = dict[str, Any]  # type and default of each, as pydantic.create_model takes them
GIVEN = ("seed", "batches", "loss")  # parameters that the training gives, where a method has them
INNER = "random"  # masks of a method that combines with others, where none are named
_PLAIN = (int, float, str, bool, NoneType)


def known(name: str) -> str:
    """A name in :data:`METHODS`. Raises InputError."""
    if name not in METHODS:
        raise InputError(
            f"there is no training method {name!r}{meant(name, METHODS)}: choose one of {', '.join(METHODS)}"
        )
    return name


def combines(name: str) -> bool:
    """Whether ``masks`` of this method may be another one."""
    return SparseMethod in get_args(_parameters(name).get("masks", (None, None))[0])


def fields_of(name: str, masks: Any = INNER) -> Fields:
    """What can be set about a method.

    These are the parameters of its class that are numbers and words, without those that the training gives (``GIVEN``). A method that combines with others has ``masks``: the name
    of one, or ``{name: {its own options}}``, and all that this one can be set to beside its own.

    Args:
        masks: what was given as such. One that is not known is left to the field to refuse.
    """
    found: Fields = {}
    for parameter, (hint, required) in _parameters(name).items():
        if parameter == "sparsity":
            found[parameter] = Annotated[float, BeforeValidator(_share)], ... if required else None
        elif _is_plain(hint):
            found[parameter] = hint, ... if required else None
    if not combines(name):
        return found
    inner, own = masks_of(masks)
    if inner not in METHODS or combines(inner):  # the field's own validator says so
        masks, inner = None, INNER
    theirs = fields_of(inner)
    typed: Any = Annotated[str, BeforeValidator(_mask_method)]
    if isinstance(masks, Mapping):
        optional: Any = {n: (kind, None) for n, (kind, _) in theirs.items()}
        inside: Any = create_model(f"Options of {inner}", __config__=ConfigDict(extra="forbid"), **optional)
        around: Any = {inner: (inside, ...)}
        typed = create_model(f"Masks by {inner}", __config__=ConfigDict(extra="forbid"), **around)
    left = {n: (kind, None if n in own else default) for n, (kind, default) in theirs.items() if n not in found}
    return left | found | {"masks": (typed, INNER)}


def masks_of(given: Any) -> tuple[Any, dict[str, Any]]:
    """The method that ``masks`` names, and what is set about it there."""
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_unset=True)
    if isinstance(given, Mapping) and len(given) == 1:
        (name, options), *_ = given.items()
        return name, dict(options or {}) if isinstance(options, (Mapping, NoneType)) else {}
    return given, {}


def asks(name: str, options: Mapping[str, Any]) -> set[str]:
    """What a method, and the one of its masks, is given by the training: of ``GIVEN``."""
    names = [name, masks_of(options.get("masks", INNER))[0]] if combines(name) else [name]
    return {n for one in names for n in inspect.signature(METHODS[one]).parameters if n in GIVEN}


def make(name: str, options: Mapping[str, Any], *, steps: int, **training: Any) -> SparseMethod:
    """The method for a training of so many steps.

    Args:
        options: those that :func:`fields_of` allows.
        training: what the training gives: its ``seed``, and where a method :func:`asks` for them labelled mini-batches, ``batches``,
            and ``loss``, a function of (model, batch).

    Raises:
        InputError: values that the method cannot use.
    """
    given, parameters = dict(options), _parameters(name)
    if combines(name):
        inner, own = masks_of(given.pop("masks", INNER))
        theirs = [n for n in given if n not in parameters]
        own = {n: given.pop(n) for n in theirs} | own
        given["masks"] = make(inner, own, steps=steps, **training)
    given |= {n: training[n] for n in inspect.signature(METHODS[name]).parameters if n in GIVEN}
    if missing := [n for n, (_, required) in parameters.items() if required and n not in given]:
        raise InputError(f"{missing[0]} is missing: {name} needs it.", option=missing[0])
    cls: Any = METHODS[name]
    return cls.of(steps, **given) if issubclass(cls, Planned) else cls(**given)


def title(name: str, options: Mapping[str, Any]) -> str:
    """What a method is called where it is described: "sign-in on random masks"."""
    if not combines(name):
        return name
    inner, _ = masks_of(options.get("masks", INNER))
    return f"{name} on {'the model’s own' if inner == 'fixed' else inner} masks"


@cache
def _parameters(name: str) -> dict[str, tuple[Any, bool]]:
    """Type of every parameter of a method's class but what the training gives, and whether it must be set."""
    cls: Any = METHODS[name]
    own, hints = inspect.signature(cls).parameters, get_type_hints(cls.__init__)
    return {n: (hints.get(n, Any), p.default is p.empty) for n, p in own.items() if n not in GIVEN}


def _is_plain(hint: Any) -> bool:
    """Numbers, words, and mappings from names to them."""
    if hint in _PLAIN or get_origin(hint) is Literal:
        return True
    parts = [p for p in get_args(hint) if p is not Ellipsis]
    return bool(parts) and hint is not Any and all(_is_plain(p) for p in parts)


def _share(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    found = parse_sparsity(value)
    if not found:
        raise ValueError("a sparsity of 0 removes nothing: give more, or train dense, without a method")
    return found


def _mask_method(value: Any) -> str:
    name, _ = masks_of(value)
    alone = [n for n in METHODS if not combines(n)]
    if name not in alone:
        raise ValueError(f"there are no masks {name!r}{meant(name, alone)}: choose one of {', '.join(alone)}")
    return str(name)
