"""The named recipes: each is a choice of score, group, allocation and solver, and nothing more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from winnow.allocate import NAMES as ALLOCATIONS
from winnow.compression.recovery import LEARNED, RECOVERIES, fitting_of, parse_recovery
from winnow.errors import InputError, meant
from winnow.masks.prunable import CONVOLUTIONS, Scope
from winnow.masks.structure import NM, Coupled, Structure
from winnow.scores import NAMES as SCORES
from winnow.settings import read_settings

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": dict(score="magnitude", group="layer", allocation="uniform", solver="none"),
    "global": dict(score="magnitude", group="layer", allocation="global", solver="none"),
    "lamp": dict(score="magnitude", group="layer", allocation="lamp", solver="none"),
    "random": dict(score="random", group="layer", allocation="uniform", solver="none"),
    "wanda": dict(score="wanda", group="row", allocation="uniform", solver="none"),
    "ria": dict(score="ria", group="layer", allocation="uniform", solver="none"),
    "owl": dict(score="wanda", group="row", allocation="owl", solver="none"),
    "sparsegpt": dict(score="magnitude", group="layer", allocation="uniform", solver="sparsegpt"),
    "sparsegpt+lsq": dict(score="magnitude", group="layer", allocation="uniform", solver="sparsegpt+lsq"),
    "swap+lsq": dict(score="wanda", group="row", allocation="uniform", solver="swap+lsq"),
    "alps": dict(score="magnitude", group="layer", allocation="uniform", solver="alps"),
    "alps-lamp": dict(score="magnitude", group="layer", allocation="lamp", solver="alps"),
    "fcpts": dict(score="magnitude", group="layer", allocation="learned", solver="distil"),
    "distil": dict(score="magnitude", group="layer", allocation="lamp", solver="distil"),
    "reconstruct": dict(score="magnitude", group="layer", allocation="l2", solver="reconstruct"),
    "zeros": dict(score="magnitude", group="layer", allocation="zeros", solver="none"),  # pack what is sparse already
}


ALPS_WIDTH = 2048  # inputs; its eigendecomposition and 300 iterations grow with the cube and the square of the width


def choose(scope: Scope, *, has_data: bool, pattern: Structure, recurrent: int = 0) -> tuple[str, str]:
    """The method for a user who named none, and the reason, in words.

    Taken from a table of methods and allocations on convolutional, recurrent, encoder and decoder models at 50 to 90% zeros
    and 2:4 (docs/benchmarks/compression.md, "Defaults"). ``recurrent``: how many of the prunable weights are of recurrent layers.
    """
    if isinstance(pattern, Coupled):
        return "magnitude", f"whole {pattern}s are chosen by their weights"
    conv = sum(p.numel for p in scope.prunables.values() if p.kind in CONVOLUTIONS)
    uneven = (conv + recurrent) * 2 > scope.numel  # layers of very different sizes: the small ones are spared
    fixed = isinstance(pattern, NM)  # every layer loses the same share
    if not has_data:
        if conv * 2 > scope.numel and not fixed:
            return (
                "lamp",
                "most prunable weights are convolutions, and LAMP spares the small ones; with calibration data (--data) far less is lost",
            )
        return "magnitude", "there is no calibration data to learn from (--data)"
    widest = max(p.cols for p in scope.prunables.values())
    if widest > ALPS_WIDTH:
        return (
            "sparsegpt+lsq",
            f"a layer has {widest:,} inputs, too many for ALPS: SparseGPT chooses the zeros, least squares refits the remaining weights",
        )
    if uneven and not fixed:
        kind = "convolutions" if conv >= recurrent else "of recurrent layers"
        reason = f"most prunable weights are {kind}, where ALPS with LAMP's allocation lost least in benchmarks"
        return "alps-lamp", reason
    return "alps", f"lowest error for layers of up to {ALPS_WIDTH:,} inputs, in minutes of compute"


def recurrent_weights(scope: Scope, model: nn.Module) -> int:
    """How many prunable weights belong to recurrent layers and cells."""
    kinds = (nn.RNNBase, nn.RNNCellBase)
    return sum(p.numel for p in scope.prunables.values() if isinstance(model.get_submodule(p.module), kinds))


def resolve(method: str, **named: str | None) -> dict[str, Any]:
    """The parts (score, group, allocation, solver) of a named method, with those that the user named in their place."""
    _check_known("method", method, METHODS)
    if method == "zeros":
        _check_zeros(**named)
    elif named.get("allocation") == "zeros":
        raise InputError("--allocation zeros belongs to --method zeros: give that instead.", option="allocation")
    parts = METHODS[method] | {key: value for key, value in named.items() if value is not None}
    for kind, known in dict(score=SCORES, allocation=(*ALLOCATIONS, LEARNED), group=("layer", "row")).items():
        _check_known(kind, parts[kind], known)
    _, recovery = parse_recovery(parts["solver"])
    by_magnitude = (parts["score"], parts["group"]) == ("magnitude", "layer")
    if recovery.trains and parts["allocation"] == LEARNED and not by_magnitude:
        raise InputError(
            "learned thresholds compare magnitudes over a whole layer: leave out --score and --group, or choose "
            "another --allocation or --solver.",
            option="allocation",
        )
    return parts


def _check_known(option: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise InputError(
            f"there is no {option} {name!r}{meant(name, known)}: choose one of {', '.join(known)}.", option=option
        )


def _check_zeros(solver: str | None, **named: str | None) -> None:
    """Which weights are pruned is settled; only a solver that leaves the mask alone has something left to do."""
    for option, value in named.items():
        if value not in (None, METHODS["zeros"][option]):
            other = "table" if value == "table" else option
            raise InputError(f"--method zeros keeps the zeros that the model has: leave out --{other}.", option=other)
    if solver not in (None, "none", "sparsegpt", "lsq", *(n for n, r in RECOVERIES.items() if r.by_block)):
        raise InputError(
            f"--solver {solver} chooses zeros of its own: with --method zeros, take none, sparsegpt, lsq or reconstruct.",
            option="solver",
        )


def settle(
    method: str, parts: dict[str, Any], given: dict[str, Any], time: float | None, table: dict[str, float] | None
) -> dict[str, Any]:
    """All settings of a method, the ones the user gave in place of the defaults; empty where it has none.

    With ``time`` there is no number of steps; with ``table`` a learned allocation starts from it.

    Raises:
        InputError: a setting the method does not have, a value out of range, settings that are mutually exclusive.
    """
    fitting = fitting_of(parts["solver"], parts["allocation"])
    if time is not None and not fitting.trains:
        raise InputError(
            f"--time is for methods that train, and {method} does not: choose fcpts or distil.", option="time"
        )
    if fitting.settings is None:
        if given:
            raise InputError(
                f"method {method} has no settings: leave out --set {next(iter(given))}, or choose fcpts, distil or reconstruct.",
                option="settings",
            )
        return {}
    if time is not None and "steps" in given:
        raise InputError("--time and --set steps are mutually exclusive: set one.", option="time")
    if fitting.allocates and table is not None:
        if given.get("start", "table") != "table":
            raise InputError(
                f"--table and --set start={given['start']} are mutually exclusive: set one.", option="table"
            )
        given = {**given, "start": "table"}
    elif fitting.allocates and given.get("start") == "table":
        raise InputError("--set start=table needs the rates: give --table FILE.", option="settings")
    found = read_settings(fitting.settings, given, method).model_dump()
    if time is not None:
        found.pop("steps")
    return found
