"""The candidates of one round: computed one after another or elsewhere, kept as they are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from winnow.errors import FormatError
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, write_tensors
from winnow.masks.mask import Mask, MaskSet
from winnow.run.executor import Executor
from winnow.tickets.methods.isp.look_ahead import Candidate, Protocol, look_ahead
from winnow.train.resume import read_under
from winnow.train.task.run import Cost, Position, Run
from winnow.train.task.training import Training


@dataclass
class Pool:
    """What the candidates of a round leave: a packed mask each, and on request a sum of what they came to.

    ``total`` sums their scores, as |theta_j|, one float matrix [rows, cols] a tensor, ``weights`` all that they trained;
    neither grows with their number.
    """

    masks: list[MaskSet] = field(default_factory=list)
    total: dict[str, torch.Tensor] | None = None
    weights: dict[str, torch.Tensor] | None = None

    def add(self, candidate: Candidate) -> None:
        self.masks.append(candidate.masks)
        self.total = _added(self.total, candidate.scores)
        self.weights = _added(self.weights, candidate.weights)

    def mean(self) -> dict[str, torch.Tensor]:
        """The mean of all that the candidates trained, by state-dict name."""
        assert self.weights is not None
        return {n: t / len(self.masks) for n, t in self.weights.items()}


def _added(
    total: dict[str, torch.Tensor] | None, more: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor] | None:
    if total is None or more is None:
        return more
    for name, tensor in more.items():
        total[name] += tensor
    return total


@dataclass(frozen=True)
class Fork:
    """A run's position as a value: what a candidate needs in order to be computed in another process."""

    training: Training
    position: Position
    step: int
    total: int
    stream: Any
    options: dict[str, Any]  # of look_ahead


def candidate_job(shared: Fork, item: Protocol) -> Candidate:
    """One candidate, in a run made anew at the position: bit for bit what :func:`look_ahead` finds in place."""
    run = Run(shared.training, start=shared.position, steps=shared.total, stream=shared.stream, first_step=shared.step)
    return look_ahead(run, item, **shared.options)


def gather(
    run: Run, protocols: Sequence[Protocol], *, folder: Path | None, executor: Executor, label: str = "", **options: Any
) -> Pool:
    """The candidates of a round, in order, charged to the run; its weights stay where they are.

    A local executor computes them in place, one after another. Another executor gets those that are missing all at once;
    what is returned beside masks comes back together. Each is written to ``folder`` when it is finished, so that a
    round that was killed goes on with what is missing.

    Args:
        protocols: numbered 0, 1, ...
        folder: None keeps nothing.
        options: of :func:`look_ahead`; ``sums`` and ``weights`` are what :class:`Pool` sums.
    """
    kept = _Kept(folder, run, options.get("sums", False), options.get("weights", False))
    elsewhere: dict[int, Candidate] = {}

    def show(number: int, text: str) -> None:
        if run.progress:
            run.progress(run.step, run.total, f"{label}candidate {number + 1} of {len(protocols)}{text}")

    if not executor.local:
        missing = [p for p in protocols if kept.read(p.number) is None]
        training = run.training.replaced(evaluate=None)
        fork = Fork(training, run.position(), run.step, run.total, run.stream, options)

        def done(index: int, candidate: Candidate) -> None:
            kept.write(missing[index].number, candidate)
            show(missing[index].number, " is there")

        if missing:
            elsewhere = dict(zip([p.number for p in missing], executor.map(candidate_job, fork, missing, done)))
    pool = Pool()
    for protocol in protocols:
        candidate = elsewhere.pop(protocol.number, None) or kept.read(protocol.number)
        if candidate is not None:
            run.cost.add(candidate.cost)
        else:
            show(protocol.number, "")
            candidate = look_ahead(run, protocol, **options)
            kept.write(protocol.number, candidate)
        pool.add(candidate)
    return pool


class _Kept:
    """Finished candidates on disk, a checked file each."""

    def __init__(self, folder: Path | None, run: Run, sums: bool, weights: bool) -> None:
        self.folder, self.run, self.sums, self.weights = folder, run, sums, weights

    def read(self, number: int) -> Candidate | None:
        """None where it is not there or damaged: then it is computed again."""
        if self.folder is None:
            return None
        keeps = self.run.keeps
        try:
            file = TensorFile(self._path(number))
            masks = {n: Mask(file.read(f"keep.{n}"), (k.shape[0], k.shape[1])) for n, k in keeps.items()}
            device = next(iter(keeps.values())).device
            scores = _of(file, "score.", device) if self.sums else None
            weights = _of(file, "weight.", device) if self.weights else None
            return Candidate(MaskSet(masks), scores, Cost(**file.about["cost"]), weights)
        except (FormatError, KeyError, TypeError):
            return None

    def write(self, number: int, candidate: Candidate) -> None:
        if self.folder is None:
            return
        tensors = {f"keep.{n}": m.bits for n, m in candidate.masks.items()}
        tensors |= {f"score.{n}": m for n, m in (candidate.scores or {}).items()}
        tensors |= {f"weight.{n}": t for n, t in (candidate.weights or {}).items()}
        write_tensors(self._path(number), tensors, {"format_version": FORMAT_VERSION, "cost": vars(candidate.cost)})

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"candidate-{number}.safetensors"


def _of(file: TensorFile, prefix: str, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors under a prefix; KeyError where there is none, as the file was then written for another question."""
    if not (found := read_under(prefix, file)):
        raise KeyError(prefix)
    return {n: t.to(device) for n, t in found.items()}
