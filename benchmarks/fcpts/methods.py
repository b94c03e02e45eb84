"""What the study compares, and the settings each method is tried with before it is compared.

Every method that trains gets the same number of trials, four, on labelled training images that no calibration
draw holds, at one seed. Learning rates are multiples of the model's own (``Subject.lr``), the same ones for all
methods that fit the outputs. Masks alone have nothing to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["dense", "masks", "reconstruct", "distil", "fcpts"]
FIXED = ("uniform", "erk", "lamp", "global", "l2")
TUNE_SEED = 1000  # no test seed: its calibration draw is its own


@dataclass(frozen=True)
class Method:
    """One row of the table: arguments of ``winnow.compress``, settings that make the method, settings it is tried with.

    Attributes:
        trials: by the model's own learning rate, the settings of each trial.
    """

    family: Family
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: Callable[[float], list[dict[str, Any]]] = lambda lr: [{}]

    @property
    def trains(self) -> bool:
        return self.family in ("reconstruct", "distil", "fcpts")

    @property
    def whole(self) -> bool:
        """Fits the outputs of the whole net: takes ``steps`` steps of ``batch`` examples, or a time limit."""
        return self.family in ("distil", "fcpts")


def _distil(lr: float) -> list[dict[str, Any]]:
    return [{"lr": lr * times} for times in (1, 2, 4, 8)]


def _fcpts(lr: float) -> list[dict[str, Any]]:
    """Two of the same rates; thresholds slow or fast. One penalty, one ramp: the defaults."""
    return [{"lr": lr * times, "threshold_lr": t} for times in (1, 4) for t in (0.05, 0.1)]


def _reconstruct(lr: float) -> list[dict[str, Any]]:
    """Adam's rates are shares of the weights' size, whatever the model."""
    return [{"lr": rate} for rate in (0.03, 0.1, 0.2, 0.4)]


def _reconstruct_method(by: str, allocation: str) -> Method:
    options = {"method": "reconstruct", "allocation": allocation, "sequential": by}
    return Method("reconstruct", options, {}, _reconstruct)


def _fcpts_method(**settings: Any) -> Method:
    return Method("fcpts", {"method": "fcpts"}, settings, _fcpts)


METHODS: dict[str, Method] = {
    "dense": Method("dense"),
    **{f"masks-{a}": Method("masks", {"method": "magnitude", "allocation": a}) for a in FIXED},
    **{f"{by}-{a}": _reconstruct_method(by, a) for by in ("layer", "block") for a in ("erk", "l2")},
    **{f"distil-{a}": Method("distil", {"method": "distil", "allocation": a}, {}, _distil) for a in FIXED},
    "fcpts-released": _fcpts_method(start="erk", threshold_grad="c_only", ramp=0.0),
    "fcpts-paper": _fcpts_method(start="erk", ramp=0.0),
    "fcpts-blind": _fcpts_method(start="uniform", threshold_grad="c_only"),
    "fcpts-uniform": _fcpts_method(start="uniform"),
    "fcpts-erk": _fcpts_method(start="erk"),
}  # fmt: skip

LABELS = {
    "dense": "dense",
    **{f"masks-{a}": f"masks only, {a}" for a in FIXED},
    **{f"{by}-{a}": f"{by} by {by}, {a}" for by in ("layer", "block") for a in ("erk", "l2")},
    **{f"distil-{a}": f"distilled, {a}" for a in FIXED},
    "fcpts-released": "thresholds see the rate only, no ramp (released code)",
    "fcpts-paper": "FCPTS from ERK, no ramp (paper)",
    "fcpts-blind": "control: thresholds see the rate only, with ramp",
    "fcpts-uniform": "FCPTS from uniform",
    "fcpts-erk": "FCPTS from ERK",
}
