"""What is compared: each arm's method for a training of so many steps at a sparsity. The first masks of a seed are the same in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arm:
    """``method``: (steps, sparsity, seed, options of the cell) -> a method of winnow.train; None trains dense."""

    label: str
    method: Callable[[int, float, int, Mapping[str, Any]], Any] | None


def _masks(name: str) -> Callable[..., Any]:
    """A class of winnow.train that finds its masks itself; what it is not told follows from the length of the training."""

    def method(steps: int, sparsity: float, seed: int, options: Mapping[str, Any]) -> Any:
        import winnow.train

        seeded = {"seed": seed} if name in ("RandomMasks", "RigL", "SET") else {}
        return getattr(winnow.train, name)(sparsity, **seeded)

    return method


def _around(name: str, masks: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """A class of winnow.train that trains weights in its own way, around masks."""

    def method(steps: int, sparsity: float, seed: int, options: Mapping[str, Any]) -> Any:
        import winnow.train

        return getattr(winnow.train, name)(masks(steps, sparsity, seed, options), **fixed)

    return method


def _sign_in(masks: Callable[..., Any]) -> Callable[..., Any]:
    """Sign-In over these masks, with its defaults unless the cell has a ``beta`` or a number of ``periods`` (0: no reset)."""

    def method(steps: int, sparsity: float, seed: int, options: Mapping[str, Any]) -> Any:
        from winnow.train import SignIn

        every = {}
        if (periods := options.get("periods")) is not None:
            every = (
                {"every": max(1, steps // periods), "end": steps * 9 // 10} if periods else {"every": steps}
            )  # the last step: none
        return SignIn(masks(steps, sparsity, seed, options), beta=options.get("beta", 1.0), **every)

    return method


def _no_reset(steps: int, sparsity: float, seed: int, options: Mapping[str, Any]) -> Any:
    return _sign_in(_masks("RandomMasks"))(steps, sparsity, seed, {**options, "periods": 0})


RANDOM, RIGL, GRADUAL, PHASES = (_masks(n) for n in ("RandomMasks", "RigL", "Gradual", "ACDC"))
ARMS = {
    "dense": Arm("dense", None),
    "static": Arm("random ERK mask", RANDOM),
    "no-reset": Arm("random ERK mask, m w without resets", _no_reset),
    "sign-in": Arm("random ERK mask, Sign-In", _sign_in(RANDOM)),
    "hyperbolic": Arm("random ERK mask, reset at every step", _around("Hyperbolic", RANDOM)),
    "ham": Arm("random ERK mask, HAM (alpha 20)", _around("HAM", RANDOM, alpha=20.0)),
    "rigl": Arm("RigL", RIGL),
    "rigl-sign-in": Arm("RigL, Sign-In", _sign_in(RIGL)),
    "gradual": Arm("gradual magnitude", GRADUAL),
    "gradual-sign-in": Arm("gradual magnitude, Sign-In", _sign_in(GRADUAL)),
    "acdc": Arm("AC/DC", PHASES),
    "acdc-sign-in": Arm("AC/DC, Sign-In", _sign_in(PHASES)),
    "str": Arm("STR", _masks("STR")),
}
