"""Pruning one model by one recipe, block by block: statistics, masks, solved weights, packed results."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from winnow.compression.counts import grid_of
from winnow.compression.hosts import Host, read_matrix, write_matrix, write_tensors
from winnow.compression.otherwise import notes_of, watched_note
from winnow.compression.outcome import LayerOutcome, Pruned
from winnow.compression.recipe import Recipe
from winnow.compression.solving import solve_unit, store_solution, unseen_parts
from winnow.disk.files import write_atomic
from winnow.errors import FormatError, InputError
from winnow.formats.packed import PackedTensor
from winnow.formats.packed_file import read_packed, save_packed, split_keys
from winnow.formats.tensorfile import TensorFile
from winnow.inputs import InputStats
from winnow.masks.prunable import Prunable, Scope
from winnow.run.store import sealed, unsealed
from winnow.solve import Solution

Progress = Callable[[int, int, str], None]
log = logging.getLogger(__name__)


@dataclass
class Pruner:
    """Runs one recipe over a model. With a ``folder``, every finished block is stored and a later run goes on there."""

    host: Host
    scope: Scope
    recipe: Recipe
    zeros: dict[str, int]  # by tensor name
    batches: Sequence[Any]
    _: KW_ONLY
    folder: Path | None = None
    keeps: dict[str, torch.Tensor] | None = None  # masks that are fixed
    spill: Path | None = None
    device: str = "cpu"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.layers: dict[str, LayerOutcome] = {}
        self._packed: dict[str, PackedTensor] = {}
        self._extra: dict[str, torch.Tensor] = {}
        self._whole: set[str] = set()  # stored units whose checksums were verified
        self._reached = (0, 1)  # of the walk's progress
        self.remarks: list[str] = []

    def run(self) -> Pruned:
        """Prunes the host's model in place and returns what was done."""
        from winnow.calibrate.walker import Walker

        started = time.perf_counter()
        watched: set[str] = set()
        gram, recovery = self.recipe.chain.needs_gram, self.recipe.recovery
        if recovery.by_block:
            follow = recovery.follows_dense(self.recipe)
            if not self.batches:
                raise InputError(
                    "--solver reconstruct fits to calibration data: give --data, or choose another solver."
                )
        if self.batches and (gram or self.recipe.needs_data):
            walker = Walker(
                self.host.model,
                self.batches,
                self.scope,
                gram=gram,
                by=self.recipe.sequential,
                device=self.device,
                enter=(lambda unit: self.host.enter(unit.path)) if recovery.by_block else self._enter,
                leave=lambda unit: self.host.leave(unit.path),
                spill=self.spill,
                progress=self._progressed if self.progress else None,
            )
            if recovery.by_block:  # a finished block is written once its dense passes are through
                walker.fit(self._fit, skip=lambda u: self._finished(u.path, u.prunables), follow=follow)
            else:
                walker.walk(lambda u, stats: self._prune(u.path, u.prunables, stats), skip=lambda u: self._done(u.path))
            self.remarks += walker.notes
            watched = walker.watched
        else:
            self._without_data()
        order = {name: i for i, name in enumerate(self.scope.prunables)}
        layers = sorted(self.layers.values(), key=lambda x: order[x.name])
        self.remarks += watched_note(layers, watched)
        notes, seconds = notes_of(self.recipe, layers), time.perf_counter() - started
        return Pruned(layers, self.packed, self._extra, notes, seconds, remarks=self.remarks)

    def packed(self, name: str) -> PackedTensor:
        """The packed weight of a tensor, from memory or from the stored unit."""
        if name in self._packed:
            return self._packed[name]
        assert self.folder is not None
        return read_unit(unit_file(self.folder, self.layers[name].unit), name)

    def _without_data(self) -> None:
        units: dict[str, list[Prunable]] = {}
        for p in self.scope.prunables.values():
            units.setdefault(p.block if p.block is not None else p.module, []).append(p)
        for i, (path, prunables) in enumerate(units.items()):
            if self.progress:
                self.progress(i, len(units), path or "model")
            self.host.enter(path)
            if not self._finished(path, prunables):
                self._prune(path, prunables, {})
            self.host.leave(path)
        if self.progress:
            self.progress(len(units), len(units), "")

    def _enter(self, unit: Any) -> None:
        self.host.enter(unit.path)
        self._finished(unit.path, unit.prunables)

    def _fit(self, unit: Any, stats: dict[str, list[InputStats]], calls: Any) -> None:
        started = time.perf_counter()
        unrounded = self.recipe.model_copy(update=dict(values="keep"))
        solutions = list(solve_unit(unit.prunables, stats, unrounded, self.zeros, self._weight, self.keeps))
        for p, solution in solutions:  # where the fit starts
            write_matrix(self.host.model, p, solution.weight)
        fitted = self.recipe.recovery.fit_block(
            self.recipe, unit, solutions, stats, calls, grid_of(self.recipe.values, self.recipe.group_size),
            statistics=self.recipe.recalibrate and not self.host.streamed,
            progress=self._stepped(unit.path) if self.progress else None,
        )  # fmt: skip
        self._keep(unit.path, unit.prunables, fitted.solutions, started, stats, fitted.extra, fitted.improved)

    def _progressed(self, done: int, total: int, what: str) -> None:
        self._reached = (done, total)
        if self.progress:
            self.progress(done, total, what)

    def _stepped(self, path: str) -> Callable[[int, int], None]:
        def stepped(step: int, steps: int) -> None:
            if self.progress and step % 10 == 0:
                self.progress(*self._reached, f"{path or 'model'}, step {step} of {steps}")

        return stepped

    def _prune(self, path: str, prunables: Sequence[Prunable], stats: dict[str, list[InputStats]]) -> None:
        if not prunables:
            return
        started = time.perf_counter()
        solutions = solve_unit(prunables, stats, self.recipe, self.zeros, self._weight, self.keeps)
        self._keep(path, prunables, solutions, started, stats, {})

    def _keep(
        self,
        path: str,
        prunables: Sequence[Prunable],
        solutions: Iterable[tuple[Prunable, Solution]],
        started: float,
        stats: dict[str, list[InputStats]],
        extra: dict[str, torch.Tensor],
        fitted: bool | None = None,
    ) -> None:
        """Packs the layers of a unit, writes them into the model as packed, and stores them."""
        results = {}
        for p, solution in solutions:
            packed = store_solution(p, solution, self.recipe, self.host.stored_dtype[p.name])
            write_matrix(self.host.model, p, packed.unpack())
            results[p.name] = (p, packed)
            unseen = unseen_parts(p, stats, self.recipe, kept=p.name in (self.keeps or {}))
            self.layers[p.name] = LayerOutcome(
                p.name, p.block, p.kind, p.rows, p.cols, packed.zeros, solution.error, packed.bits_per_weight, 0.0, path,
                p.parts, unseen, packed.values, fitted,
            )  # fmt: skip
        extra = {n: t.to(self.host.stored_dtype.get(n, t.dtype)).cpu() for n, t in extra.items()}
        self._change(extra)
        seconds = (time.perf_counter() - started) / len(prunables)
        for p in prunables:
            self.layers[p.name].seconds = seconds
        file = self._unit_file(path)
        if file is None:
            self._packed.update({name: packed for name, (_, packed) in results.items()})
        else:
            outcomes = [asdict(self.layers[p.name]) for p in prunables]
            write_atomic(file.with_suffix(".json"), sealed({"layers": outcomes}))
            save_packed(file, results, dense=extra)  # last: a unit with this file is finished

    def _change(self, extra: dict[str, torch.Tensor]) -> None:
        write_tensors(self.host.model, extra)
        self._extra.update(extra)

    def _finished(self, path: str, prunables: Sequence[Prunable]) -> bool:
        """Whether a unit is stored; if so, its pruned weights are written into the model."""
        if not self._done(path):
            return False
        file = self._unit_file(path)
        assert file is not None
        for p in prunables:
            write_matrix(self.host.model, p, read_unit(file, p.name).unpack())
        self._change(read_extra(file))
        found = unsealed(file.with_suffix(".json"))
        assert found is not None  # as _done saw
        for layer in found[0]["layers"]:
            self.layers[layer["name"]] = LayerOutcome(**layer)
        return True

    def _weight(self, p: Prunable) -> torch.Tensor:
        weight = read_matrix(self.host.model, p)
        if not torch.isfinite(weight).all():
            raise InputError(
                f"{p.name} holds NaN or infinite weights: repair the checkpoint, or leave the tensor out with --exclude."
            )
        return weight

    def _unit_file(self, path: str) -> Path | None:
        return None if self.folder is None else unit_file(self.folder, path)

    def _done(self, path: str) -> bool:
        """Whether a unit is stored, whole; one that was damaged since is thrown away, to be made again."""
        file = self._unit_file(path)
        if file is None or not file.exists():
            return False
        if path not in self._whole:
            try:
                TensorFile(file).verify()
                sound = unsealed(file.with_suffix(".json")) is not None
            except FormatError:
                sound = False
            if not sound:
                log.warning("%s is damaged and is made again", file)
                file.unlink()
                return False
            self._whole.add(path)
        return True


def unit_file(folder: Path, unit: str) -> Path:
    """Where a finished block is stored. Any name of a module gets a file of its own, on any file system."""
    name = unit or "model"
    if not re.fullmatch(r"[a-z0-9_.-]{1,100}", name):  # slashes, 300 letters, two names that differ in case
        cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:60]
        name = f"{cleaned}-{hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"
    return folder / f"unit-{name}.safetensors"


def read_unit(file: Path, name: str) -> PackedTensor:
    """One packed tensor of a stored block; the others stay on disk."""
    tensors = TensorFile(file)
    return read_packed(tensors, name, split_keys(tensors)[0][name])


def read_extra(file: Path) -> dict[str, torch.Tensor]:
    """The dense tensors that changed beside the packed ones of a stored block."""
    tensors = TensorFile(file)
    return {name: tensors.read(name) for name in split_keys(tensors)[1]}
