"""FCPTS as a whole: thresholds learned under one global rate, the exact selection at the end, and the record of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.errors import InputError
from winnow.fcpts.bridge import make_bridge
from winnow.fcpts.groups import UnitGroups
from winnow.fcpts.groups_channels import Channels
from winnow.fcpts.groups_patterns import Patterns
from winnow.fcpts.settings import FcptsSettings
from winnow.fcpts.start import start_thresholds
from winnow.fcpts.structures import make_units
from winnow.fcpts.thresholds import Thresholds
from winnow.masks.prunable import Scope
from winnow.masks.structure import parse_structure
from winnow.train.distil.fit import Fitted, Trainer
from winnow.train.distil.loop import Progress, Trace

__all__ = ["FCPTS", "Fitted"]


SHOWN = 128  # examples that sensitivity is measured on
PATIENCE = 10.0  # seconds it may take, or a fifth of the training; beyond that it is left out


@dataclass
class _Learned:
    """One seed's thresholds, and the masks they come to."""

    thresholds: torch.Tensor  # [G]
    keeps: dict[str, torch.Tensor]
    removed: torch.Tensor  # [G], weights that the thresholds alone remove
    trace: Trace


class FCPTS:
    """Learns the sparsity of each layer, at an exactly met global rate (Gong et al., AAAI 2024, arXiv 2405.05808).

    One threshold a group of weights is trained, together with the weights, to keep the dense model's outputs; at the
    end the units lowest in magnitude / threshold are pruned, over all layers, until the requested count is reached.

    Args:
        settings: see :class:`winnow.fcpts.settings.FcptsSettings`.
        structure: what goes: single weights, blocks, channels, or n:m patterns of whole layers.
        time: seconds that training takes, in place of ``settings.steps``; with several seeds, of all together.
        table: rates by tensor name or pattern, where ``settings.start`` is "table".
        seed: of the order of the examples.
    """

    def __init__(
        self,
        settings: FcptsSettings | None = None,
        *,
        structure: str = "unstructured",
        time: float | None = None,
        table: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings if settings is not None else FcptsSettings.model_validate({})
        self.structure, self.time, self.seed = parse_structure(structure), time, seed
        self.table = dict(table) if table is not None else None

    def fit(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        zeros: int | None = None,
        *,
        sparsity: float | None = None,
        scope: Scope | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
        own: bool = False,
    ) -> Fitted:
        """Trains a copy of ``model``; with ``own`` the model itself, which is left in a state of no use.

        Args:
            batches: what the model's forward takes: tensors, tuples or mappings; labels are not needed.
            zeros: weights that go, over all prunable ones; or ``sparsity``, their share.
            scope: what is prunable; by default :func:`winnow.find_scope`.
            folder: checkpoints, so that a run that was killed goes on.
            progress: called with (step, steps, text).

        Raises:
            InputError: no or two budgets, no data, a structure that does not fit, outputs that cannot be compared or
                do not depend on the weights, a loss that is not finite.
        """
        if (zeros is None) == (sparsity is None):
            raise InputError("say one budget: zeros=20000 or sparsity=0.8.")
        s = self.settings
        trainer = Trainer(model, batches, scope, s, own=own)
        if zeros is None:
            assert sparsity is not None
            if not 0 < sparsity < 1:
                raise InputError(f"a sparsity of {sparsity} is not a share: give one above 0 and below 1.")
            zeros = min(round(sparsity * trainer.scope.numel), trainer.scope.numel - 1)
        example = trainer.examples.take(
            torch.arange(min(4, trainer.examples.count)) if trainer.examples.joined is not None else torch.arange(1)
        )
        units = make_units(self.structure, trainer.scope, trainer.model, example)
        start = start_thresholds(units, trainer.start, trainer.scope, zeros, s.start, self.table, self.seed)
        units.select(trainer.start, start, zeros)  # a count that the structure cannot reach is found before the work
        with torch.no_grad():
            _, began = units.mask(trainer.start, start)
        rates: list[list[float]] = []
        for i in range(s.seeds):
            place = folder if folder is None or i == 0 else folder / f"seed-{self.seed + i}"
            learned = self._learn(trainer, units, start, zeros, i, place, progress)
            rates.append(rates_of(units, learned.keeps))
            if i == 0:
                first = learned
                weights, extra = trainer.outcome(learned.keeps)
                if isinstance(units, Channels):  # biases and norms of removed units, which are zero from now on
                    extra |= units.entries(learned.keeps, trainer.model)
                rise = self._sensitivity(trainer, units, learned, zeros)
            trainer.reset()
        drift = trainer.drift(weights, first.keeps)
        decided = units.numels.tolist()
        if isinstance(units, Patterns):  # a rate is a share of the whole tensor, whatever its pattern can take
            decided = [trainer.scope.prunables[name].numel for name in units.groups]
        layers = [
            dict(
                name=name, numel=decided[g], rate=rates[0][g], raw_rate=float(first.removed[g]) / decided[g],
                start_rate=float(began[g]) / decided[g], threshold=float(first.thresholds[g]), sensitivity=rise.get(name),
                drift=drift.get(name), rates=[r[g] for r in rates] if len(rates) > 1 else [],
            )
            for g, name in enumerate(units.groups)
        ]  # fmt: skip
        record = trainer.record(
            first.keeps, first.trace, layers, method="fcpts", start=s.start, structure=str(self.structure),
            target=zeros / trainer.scope.numel, raw_rate=float(first.removed.sum()) / trainer.scope.numel,
        )  # fmt: skip
        if len(rates) > 1:
            from winnow.records.allocation import Stability

            spread, correlation = stability([dict(zip(units.groups, r)) for r in rates])
            record.stability = Stability(seeds=len(rates), spread=spread, correlation=correlation)
        return Fitted(first.keeps, weights, extra, record)

    def _learn(
        self,
        trainer: Trainer,
        units: UnitGroups,
        start: torch.Tensor,
        zeros: int,
        number: int,
        folder: Path | None,
        progress: Progress | None,
    ) -> _Learned:
        """Learns thresholds (and weights, in ``trainer.model``) with one seed."""
        s = self.settings
        target = zeros / float(units.numels.sum())
        thresholds = Thresholds(units, make_bridge(s), s, start, target)
        thresholds.prepare(trainer.matrices())

        def shown(done: int, total: int, what: str) -> None:
            assert progress is not None
            progress(number * total + done, s.seeds * total, what)

        trace = trainer.run(
            thresholds, seed=self.seed + number, seconds=None if self.time is None else self.time / s.seeds,
            folder=folder, progress=shown if progress else None,
        )  # fmt: skip
        weights = trainer.matrices()
        with torch.no_grad():
            _, removed = units.mask(weights, thresholds.values)
        return _Learned(thresholds.values, units.select(weights, thresholds.values, zeros), removed, trace)

    def _sensitivity(self, trainer: Trainer, units: UnitGroups, learned: _Learned, zeros: int) -> dict[str, float]:
        """What it would cost to take more from each group alone; nothing where finding out would take long.

        Runs the trained model with its batch norms on the batch's statistics, which changes their running averages.
        """
        from winnow.fcpts.sensitivity import sensitivity

        order = trainer.examples.order(torch.Generator().manual_seed(self.seed))
        index = order[: max(1, SHOWN // self.settings.batch)]
        forward = learned.trace.parts["forward"] / max(learned.trace.steps, 1)
        if forward * len(index) * (len(units.groups) + 1) > max(PATIENCE, learned.trace.seconds / 5):
            return {}
        batches = [(trainer.examples.take(i), i) for i in index]
        targets = [trainer.teacher.target(i, batch) for batch, i in batches]

        def loss_of(masked: dict[str, torch.Tensor]) -> float:
            losses = [
                trainer.teacher.loss(trainer.student, masked, t, batch) for (batch, _), t in zip(batches, targets)
            ]
            return float(torch.stack(losses).mean())

        with trainer.student.training(weights=False, small=False):
            share = zeros / float(units.numels.sum())
            return sensitivity(units, learned.thresholds, trainer.matrices(), loss_of, share)


def rates_of(units: UnitGroups, keeps: Mapping[str, torch.Tensor]) -> list[float]:
    """The exact rate of every group, from the masks."""
    if not isinstance(units, Channels):
        return [int((~keeps[name]).sum()) / keeps[name].numel() for name in units.groups]
    stays = torch.ones(len(units.units) + 1)
    stays[units.chosen(keeps)] = 0
    removed = sum(lines.removed(stays, len(units.groups)) for lines in units.lines.values())
    return (removed / units.numels).tolist()  # type: ignore[union-attr]


def stability(rates: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """(spread, correlation) of two or more allocations, each the rate of every group by name.

    spread: the largest standard deviation of one group's rate over the allocations (n - 1 in the denominator).
    correlation: Spearman's rank correlation of the rates, the mean over all pairs of allocations. Between two
    allocations that are each the same everywhere it is 1, between one such and another 0.

    Raises InputError for fewer than two allocations, none of any group, or of different groups.
    """
    if len(rates) < 2:
        raise InputError("stability compares allocations: learn two or more (--set seeds=3).")
    groups = list(rates[0])
    if not groups or any(set(r) != set(groups) for r in rates):
        raise InputError("these allocations are of different groups: compare runs of one model and one structure.")
    table = np.array([[r[g] for g in groups] for r in rates], dtype=np.float64)  # [allocations, groups]
    spread = float(table.std(axis=0, ddof=1).max())
    ranks = [_ranks(row) for row in table]
    return spread, float(np.mean([_pearson(a, b) for a, b in combinations(ranks, 2)]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else float(not a.any() and not b.any())
