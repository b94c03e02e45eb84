"""What the study compares: the rows of its table, and the settings tried beside them.

Training is the same for all: T steps, batch, learning rate and decay of the subject. The rate was chosen for no method's
sake (``--phase tune``: dense and one-shot magnitude). ISP's own settings are those of its protocol for small models, scaled
with T: 30% of the rest a round, 4 candidates of T / 60 steps. The iterative rivals within ISP's steps prune at the best of
``RATES`` (``--phase rates``): with so few steps the rate decides how many trainings share them. Nothing else is tuned for
any method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
HARD = (0.8, 0.9)
TUNE = {"dense": (0.0,), "magnitude": (0.7, 0.9)}  # what a learning rate is judged by: the mean of these three
TUNE_RATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the subject's own
TUNE_SEED = 1000
FIVE, THREE = (0, 1, 2, 3, 4), (0, 1, 2)
SELECT_SEEDS = (100, 101, 102, 103, 104)  # of sensitivity (the first three) and variants
CONFIRM_SEEDS = (200, 201, 202, 203, 204)  # met by no other phase
RATE, CANDIDATES = 0.3, 4
RATES = (0.2, 0.5, 0.7, 0.9)  # of the rest a round, of iterative pruning within ISP's steps

Options = Mapping[str, Any]


def look_ahead(steps: int) -> int:
    """C: 10 steps of a candidate at T = 600; with RATE and CANDIDATES that is 1.47 T in all at 90%."""
    return max(1, steps // 60)


def isp_options(steps: int, sparsities: tuple[float, ...] = ()) -> dict[str, Any]:
    return {"rate": RATE, "candidates": CANDIDATES, "look_ahead": look_ahead(steps)}


def passes(steps: int, sparsity: float) -> float:
    """The steps that ISP takes to a sparsity, look-ahead included, as a multiple of T."""
    from winnow.tickets.method import levels

    return 1 + len(levels([sparsity], RATE)) * CANDIDATES * look_ahead(steps) / steps


def equal_options(steps: int, sparsities: tuple[float, ...]) -> dict[str, Any]:
    """Iterative pruning with the steps that ISP takes to the same sparsity; its rate comes from the trials."""
    (sparsity,) = sparsities
    return {"budget": passes(steps, sparsity)}


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        finder: its name in winnow.tickets.methods.registry.METHODS.
        options: (T, sparsities of the cell) -> settings that differ from winnow's.
        whole: one trajectory serves all sparsities, so they are one cell.
        rated: pruned at the rate that ``--phase rates`` chose for it.
        longer: trained for :func:`passes` times T, where the method has no setting for that.
        sparsities: those it is run at unless the command line says otherwise.
    """

    finder: str
    label: str
    options: Callable[[int, tuple[float, ...]], Options] = lambda steps, sparsities: {}
    seeds: tuple[int, ...] = FIVE
    whole: bool = False
    rated: bool = False
    longer: bool = False
    sparsities: tuple[float, ...] = SPARSITIES


def _imp(finder: str, label: str, options: Callable[[int, tuple[float, ...]], Options] = lambda s, r: {}) -> Method:
    return Method(finder, label, options, seeds=THREE, whole=True)


def _pool_options(steps: int, sparsities: tuple[float, ...]) -> Options:
    """Some 200 mixtures are weighed on this share of the training data (400 to 900 examples), in float32: a few T."""
    return {"holdout": 0.02}


def _aggregated(how: str) -> Method:
    def options(steps: int, sparsities: tuple[float, ...]) -> Options:
        return {**isp_options(steps), "aggregate": how}

    return Method("isp", f"ISP, {how}", options, THREE, sparsities=HARD)


METHODS: dict[str, Method] = {
    "dense": Method("dense", "dense", sparsities=(0.0,)),
    "isp": Method("isp", "ISP (vote)", isp_options),
    "isp-plain": Method("isp-plain", "ISP without candidates", isp_options),
    "isp-matched": Method("isp-matched", "ISP without candidates, same steps", isp_options),
    "imp-equal": Method("imp", "IMP in ISP's steps", equal_options, rated=True, sparsities=HARD),
    "lrr-equal": Method("lrr", "learning-rate rewinding in ISP's steps", equal_options, rated=True, sparsities=HARD),
    "magnitude": Method("magnitude", "one-shot magnitude"),
    "magnitude-equal": Method("magnitude", "one-shot magnitude, ISP's steps", longer=True, sparsities=HARD),
    "snip": Method("snip", "SNIP"),
    "snip-equal": Method("snip", "SNIP, ISP's steps", longer=True, sparsities=HARD),
    "grasp": Method("grasp", "GraSP"),
    "earlybird": Method("earlybird", "EarlyBird"),
    "earlybird-equal": Method("earlybird", "EarlyBird, ISP's steps", longer=True, sparsities=HARD),
    "imp": _imp("imp", "IMP"),
    "imp-rewind": _imp("imp-rewind", "IMP, rewinding"),
    "lrr": _imp("lrr", "learning-rate rewinding"),
    "lottery-pool": _imp("lottery-pool", "Lottery Pool", _pool_options),
    "random": Method("random", "random", seeds=THREE),
    "synflow": Method("synflow", "SynFlow", seeds=THREE),
    "progressive": Method("progressive", "progressive", seeds=THREE),
    "gradual": Method("gradual", "gradual (cubic)", seeds=THREE),
    **{f"isp-{how.replace('_', '-')}": _aggregated(how) for how in ("mean_abs", "union", "intersect", "literal")},
}
CONTROLS = ("isp", "isp-plain", "isp-matched")


@dataclass(frozen=True)
class Setting:
    """A row of the sensitivity or variants table: a finder of winnow, and what differs from :func:`isp_options`.

    ``options`` may hold functions of T.
    """

    options: Mapping[str, Any]
    finder: str = "isp"

    def at(self, steps: int) -> dict[str, Any]:
        return {**isp_options(steps), **{k: v(steps) if callable(v) else v for k, v in self.options.items()}}


def _times(factor: float) -> Callable[[int], int]:
    return lambda steps: max(1, round(factor * steps / 60))


# One thing at a time; the default itself and its two controls are run beside them.
SENSITIVITY: dict[str, Setting] = {
    "candidates 2": Setting({"candidates": 2}),
    "candidates 8": Setting({"candidates": 8}),
    "look-ahead T/120": Setting({"look_ahead": _times(0.5)}),
    "look-ahead T/30": Setting({"look_ahead": _times(2)}),
    "look-ahead T/15": Setting({"look_ahead": _times(4)}),
    "lr x 1": Setting({"multipliers": [1.0]}),
    "lr x 0.1 to 0.8": Setting({"multipliers": [0.1, 0.2, 0.4, 0.8]}),
    "lr x 2 to 16": Setting({"multipliers": [2.0, 4.0, 8.0, 16.0]}),
    "mean_abs": Setting({"aggregate": "mean_abs"}),
    "union": Setting({"aggregate": "union"}),
    "intersect": Setting({"aggregate": "intersect"}),
    "literal": Setting({"aggregate": "literal"}),
    "control with budget 0.5": Setting({"budget": 0.5}, "isp-matched"),  # masks until half of the training
    # The control's masks come a little later than ISP's, as its budget is larger: here they come at the same steps.
    "control with ISP's mask steps": Setting({"seed_steps": lambda steps: max(1, steps // 120)}, "isp-matched"),
}

# At most six soups: chosen on one subject's selection data, confirmed once on two others. The name goes into the cells.
# Those that rank by gradients too have two controls that do so without candidates.
VARIANTS: dict[str, Setting] = {
    "score soup": Setting({"aggregate": "mean_abs"}),
    "mean goes on": Setting({"average": True}),
    "forecast": Setting({"aggregate": "forecast", "reach": 4.0}),
    "Fisher": Setting({"aggregate": "mean_abs", "curvature": 1.0}),
    "Adam's curvature": Setting({"aggregate": "mean_abs", "curvature": 0.5}),
    "Adam's curvature (mean goes on)": Setting({"aggregate": "mean_abs", "curvature": 0.5, "average": True}),
    "Fisher (no candidates)": Setting({"curvature": 1.0}, "isp-matched"),
    "Adam's curvature (no candidates)": Setting({"curvature": 0.5}, "isp-matched"),
}
