"""The signs of weights in training: how many flip, how many agree with another network's, and how easily they could flip."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.mask import Mask, MaskSet
from winnow.masks.prunable import Prunable
from winnow.masks.unwrap import unwrap
from winnow.train.attached import Attached
from winnow.train.method import SparseMethod, unfinished
from winnow.train.methods.fixed import Fixed

if TYPE_CHECKING:
    from winnow.records.signs import SignCounts, SignReport, SignRun

Weights = nn.Module | Mapping[str, torch.Tensor]
# Columns of what is counted at a record, each over the kept weights of one tensor that are not exactly zero.
COUNTS = ("kept", "compared", "flipped", "since", "changed", "shared", "aligned")


class Bits(NamedTuple):
    """The signs of a matrix [rows, cols], a bit each, packed as in :class:`Mask`."""

    positive: Mask
    nonzero: Mask

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Bits:
        return cls(Mask.pack(matrix > 0), Mask.pack(matrix != 0))

    def against(self, other: Bits) -> tuple[int, int]:
        """Entries that are zero in neither, and those among them whose signs differ."""
        both = self.nonzero.bits & other.nonzero.bits
        differing = (self.positive.bits ^ other.positive.bits) & both
        return tuple(Mask(bits, self.nonzero.shape).nonzeros for bits in (both, differing))  # type: ignore[return-value]


class Signs:
    """Any method, with a record of the weights' signs: ``attach(model, optimizer, Signs(SignIn.of(1000, masks), every=50))``.

    Trains exactly as ``method`` does. Every ``every`` steps, after the masks of that step, it counts for each tensor, over kept
    weights only and never where a weight is exactly zero:

    - flips against initialisation: weights that have another sign than when training began (of those that were not zero then);
    - transitions: weights that have another sign than at the record before, so that one that flips back is seen where
      ``every`` is short enough (an epoch, say);
    - alignment: weights whose sign is that of a reference network, over the weights that both keep;
    - the health of beta where the method tells it (:meth:`SignIn.health`), before a reset of that step.

    A sign takes four bits, six with a reference: a bit for it and a bit for "not zero", at the start, now and in the reference.
    The record is part of the method's state, so that it goes through checkpoints of every loop. (Gadhikar et al. 2025,
    arXiv 2504.12801, measures Sign-In by such flips.)

    Args:
        method: what decides about the masks; masks as :class:`Fixed` takes them, or None for the zeros that the model has.
        every: optimizer steps between two records. Call :meth:`record` for one more, as at the end.
        reference: a model, state dict or other tensors by name of the same shapes, such as the densely trained network or a
            ticket; a weight of zero in it is one that it does not keep. None: no alignment.

    Attributes:
        steps: at which there is a record, 0 among them.

    Raises:
        InputError: ``every`` below 1; when attached, a reference that lacks a prunable tensor or has it in another shape.
    """

    def __init__(
        self,
        method: SparseMethod | MaskSet | Mapping[str, torch.Tensor] | None = None,
        *,
        every: int = 100,
        reference: Weights | None = None,
    ) -> None:
        if not hasattr(every, "__index__") or every < 1:
            raise InputError("every is the number of optimizer steps between two records: give 1 or more.")
        self.inner: SparseMethod = method if hasattr(method, "stepped") else Fixed(method)  # type: ignore[assignment, arg-type]
        self.every = int(every)
        self.steps: list[int] = []
        self._reference = reference
        self._aligned: dict[str, Bits] | None = None
        self._start: dict[str, Bits] = {}
        self._last: dict[str, Bits] = {}
        self._counts: list[torch.Tensor] = []  # int64 [tensors, COUNTS], one a record
        self._health: list[torch.Tensor] = []  # float64 [tensors], NaN where there is none

    def __getattr__(self, name: str) -> Any:
        """Whatever else a method may have (``gradient``, ``split``, ``resets`` ...) is the recorded one's."""
        if name.startswith("__") or "inner" not in vars(self):  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, attached: Attached) -> None:
        self._find_reference(attached)
        self.inner.start(attached)
        self._start = self._last = {n: Bits.of(m) for n, m in attached.matrices().items()}
        self.steps, self._counts, self._health = [], [], []
        self.record(attached)

    def stepped(self, attached: Attached) -> None:
        due = attached.step % self.every == 0
        health = self._healths(attached) if due else None
        self.inner.stepped(attached)
        if due:
            self.record(attached, health)

    @torch.no_grad()
    def record(self, attached: Attached, health: torch.Tensor | None = None) -> None:
        """Counts now; nothing where there is a record of this step already. ``health``: as it was before a reset."""
        if self.steps and self.steps[-1] == attached.step:
            return
        if set(self._start) != set(attached.keeps):
            raise InputError("the signs recorded are of other tensors: attach with the scope they were recorded with.")
        self._find_reference(attached)
        now = {n: Bits.of(m) for n, m in attached.matrices().items()}
        rows = []
        for name, bits in now.items():
            compared, flipped = bits.against(self._start[name])
            since, changed = bits.against(self._last[name])
            shared, differing = bits.against(self._aligned[name]) if self._aligned is not None else (0, 0)
            kept = int(attached.keeps[name].count_nonzero())
            rows.append([kept, compared, flipped, since, changed, shared, shared - differing])
        self.steps.append(attached.step)
        self._counts.append(torch.tensor(rows, dtype=torch.int64))
        self._health.append(self._healths(attached) if health is None else health)
        self._last = now

    def _healths(self, attached: Attached) -> torch.Tensor:
        tell = getattr(self.inner, "health", None)
        found: Mapping[str, float] = {} if tell is None else tell(attached)
        return torch.tensor([found.get(n, math.nan) for n in attached.keeps], dtype=torch.float64)

    def _find_reference(self, attached: Attached) -> None:
        if self._reference is None or self._aligned is not None:
            return
        given = self._reference
        tensors = dict(unwrap(given).state_dict() if isinstance(given, nn.Module) else given)
        self._aligned = {n: _reference_bits(n, p, tensors) for n, p in attached.scope.prunables.items()}
        self._reference = {}  # its bits are all that is needed

    def unfinished(self, attached: Attached, last: int | None = None) -> str | None:
        step = attached.step if last is None else last
        if step < self.every and len(self.steps) < 2:
            return (
                f"training ends at step {step}, before signs are recorded at step {self.every}: "
                "give a smaller every, or call record at the end."
            )
        return unfinished(attached, last, self.inner)

    def report(self, title: str = "Signs in training", command: str | None = None) -> SignReport:
        """The record as a value: ``to_json()``, and what :func:`winnow.report.signs.page.write` makes a page of."""
        from winnow.report.signs.verdict import told

        return told(sign_run([self], "training"), title, command)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes signs.json and signs.html into a folder (made when missing); the page's path.

        Raises:
            InputError: the folder cannot be written to.
            WinnowError: the disk is full.
        """
        from winnow.report.signs.page import write

        return write(self.report(), folder)

    def state(self) -> dict[str, Any]:
        shapes = [
            [n, *b.nonzero.shape] for n, b in self._start.items()
        ]  # a list: files sort what is named, counts have rows
        signs: dict[str, Any] = {"steps": list(self.steps), "shapes": shapes}
        for key, kept in (("start", self._start), ("last", self._last)):
            signs[key] = {n: {of: mask.bits for of, mask in b._asdict().items()} for n, b in kept.items()}
        if self.steps:
            signs |= {"counts": torch.stack(self._counts), "health": torch.stack(self._health)}
        return {"method": self.inner.state(), "signs": signs}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.inner.restore(state["method"])
        signs = state["signs"]
        self._start, self._last = (
            {
                n: Bits(*(Mask(signs[key][n][of].cpu(), (rows, cols)) for of in Bits._fields))
                for n, rows, cols in signs["shapes"]
            }
            for key in ("start", "last")
        )
        self.steps = [int(s) for s in signs["steps"]]
        self._counts = list(signs["counts"].cpu()) if self.steps else []
        self._health = list(signs["health"].cpu()) if self.steps else []


def sign_run(recorded: Sequence[Signs], name: str, sparsity: float | None = None) -> SignRun:
    """The records of one training, or of several that differ in their seeds, added up."""
    from winnow.records.signs import SignLayer, SignPoint, SignRun

    first = recorded[0]
    if not first.steps:
        raise InputError("no sign has been recorded: attach the method before the training, and report after it.")
    if any(s.steps != first.steps or list(s._start) != list(first._start) for s in recorded):
        raise InputError("the records are of other steps or tensors: add up trainings that differ in their seeds only.")
    counts = torch.stack([torch.stack(s._counts) for s in recorded]).sum(0)  # [records, tensors, COUNTS]
    health = torch.stack([torch.stack(s._health) for s in recorded])  # [seeds, records, tensors]
    weight = torch.stack([torch.stack(s._counts) for s in recorded])[..., 0].double()
    reference = bool(counts[..., COUNTS.index("shared")].any())
    points = [
        SignPoint(step=step, **_counted(counts[i].sum(0), health[:, i], weight[:, i], reference).model_dump())
        for i, step in enumerate(first.steps)
    ]
    layers = []
    for j, (layer, bits) in enumerate(first._start.items()):
        over = [_counted(counts[i, j], health[:, i, j], weight[:, i, j], reference) for i in range(len(points))]
        layers.append(
            SignLayer(name=layer, numel=bits.nonzero.numel, last=over[-1], flips=[c.flip_share for c in over])
        )
    return SignRun(name=name, sparsity=sparsity, seeds=len(recorded), points=points, layers=layers)


def _counted(row: torch.Tensor, health: torch.Tensor, weight: torch.Tensor, reference: bool) -> SignCounts:
    """What one row of counts says; health is a mean over weights, since a tensor may keep few."""
    from winnow.records.signs import SignCounts

    found: dict[str, int | None] = dict(zip(COUNTS, row.tolist(), strict=True))
    if not reference:
        found |= {"shared": None, "aligned": None}
    known = ~health.isnan() & (weight > 0)
    mean = float((health[known] * weight[known]).sum() / weight[known].sum()) if bool(known.any()) else None
    return SignCounts(**found, health=mean)  # type: ignore[arg-type]


def _reference_bits(name: str, prunable: Prunable, tensors: Mapping[str, torch.Tensor]) -> Bits:
    tensor = tensors.get(name)
    if tensor is None:
        raise InputError(f"the reference has no {name}: give a network with the tensors of this one.")
    if tuple(tensor.shape) != tuple(prunable.shape):
        raise InputError(
            f"{name} is {list(tensor.shape)} in the reference and {list(prunable.shape)} here: give a network of the same shapes."
        )
    return Bits.of(prunable.matrix(tensor.detach()))
