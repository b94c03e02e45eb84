"""Pruning one model by one recipe, block by block: statistics, masks, solved weights, packed results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from winnow.budget import largest_remainder
from winnow.calibrate.statistics import InputStats
from winnow.compression.counts import layer_seed, within_tensor
from winnow.compression.hosts import Host, put_matrix
from winnow.errors import InputError
from winnow.formats.packed import PackedTensor, pack
from winnow.formats.tensorfile import TensorFile
from winnow.formats.units import read_packed, save_packed, split_keys
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.structure import parse_structure
from winnow.quantize import Grid, Quantized
from winnow.run.recipe import Recipe
from winnow.run.store import write_atomic
from winnow.scores import needs_data, score
from winnow.solve import Problem, Solution, needs_gram, needs_scores, solve_group

Progress = Callable[[int, int, str], None]
BITS = {"int8": 8, "int4": 4}


@dataclass
class LayerOutcome:
    """What became of one prunable tensor."""

    name: str
    block: str | None
    kind: str
    rows: int
    cols: int
    zeros: int
    error: float | None  # ||X W^T - X W0^T||^2 / ||X W0^T||^2 on the calibration inputs
    bits_per_weight: float
    seconds: float
    unit: str  # the stored unit it lies in: a block's path, or "" for a model taken whole

    @property
    def numel(self) -> int:
        return self.rows * self.cols

    @property
    def sparsity(self) -> float:
        return self.zeros / self.numel


@dataclass
class Pruned:
    """The result of one recipe: per-layer outcomes, packed weights, and dense tensors that changed beside them."""

    layers: list[LayerOutcome]
    packed: Callable[[str], PackedTensor]  # by tensor name; reads the stored unit
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # batch-norm statistics, compensated biases
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def zeros(self) -> int:
        return sum(layer.zeros for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        return sum(x.bits_per_weight * x.numel for x in self.layers) / max(sum(x.numel for x in self.layers), 1)


def solve_unit(
    prunables: Sequence[Prunable],
    stats: dict[str, list[InputStats]],
    recipe: Recipe,
    zeros: dict[str, int],
    weight_of: Callable[[Prunable], torch.Tensor],
    keeps: dict[str, torch.Tensor] | None = None,
) -> Iterator[tuple[Prunable, Solution]]:
    """Masks and solved weights of the layers of one block, one after another so that few are in memory at once.

    Layers that share an input are solved together where the solver factorizes its Gram matrix.

    Args:
        stats: per tensor name, one InputStats per part; empty without calibration data.
        zeros: how many weights each tensor gives up, exactly.
        weight_of: the dense matrix [rows, cols] in float32.
        keeps: fixed masks (coupled units), by tensor name.
    """
    gram = needs_gram(recipe.solver)
    groups: dict[tuple[int, str], list[tuple[Prunable, int]]] = {}
    for p in prunables:
        for part in range(p.parts):
            s = _known(stats, p, part)
            groups.setdefault((id(s), "") if gram and s is not None else (part, p.name), []).append((p, part))
    shares = {
        p.name: largest_remainder([1.0] * p.parts, zeros[p.name]) if p.parts > 1 else [zeros[p.name]] for p in prunables
    }
    found: dict[str, dict[int, Solution]] = {p.name: {} for p in prunables}
    for members in groups.values():
        shared = _known(stats, *members[0])
        problems = [
            _problem(p, part, shares[p.name][part], _known(stats, p, part), recipe, weight_of, keeps)
            for p, part in members
        ]
        solver = recipe.solver if shared is not None or not gram else "none"
        for (p, part), solution in zip(members, solve_group(problems, solver)):
            found[p.name][part] = solution
        del problems
        if shared is not None and len(groups) > 1:
            shared.cache.clear()  # a layer alone may be followed by one that reads the same input
        for p, _ in members:
            if len(found.get(p.name, ())) == p.parts:
                parts = found.pop(p.name)
                yield p, _join([parts[i] for i in range(p.parts)])


def _known(stats: dict[str, list[InputStats]], p: Prunable, part: int) -> InputStats | None:
    """What is known of a part's inputs; nothing of an expert no token was routed to."""
    s = stats[p.name][part] if p.name in stats else None
    return s if s is not None and s.tokens else None


def _problem(
    p: Prunable,
    part: int,
    zeros: int,
    stats: InputStats | None,
    recipe: Recipe,
    weight_of: Callable[[Prunable], torch.Tensor],
    keeps: dict[str, torch.Tensor] | None,
) -> Problem:
    band = slice(part * p.rows // p.parts, (part + 1) * p.rows // p.parts)
    weight = weight_of(p)[band]
    structure = within_tensor(parse_structure(recipe.structure))
    problem = Problem(weight, stats, zeros, structure, recipe.group, grid=_grid(recipe), damp=recipe.damp, where=p.name)
    if keeps and p.name in keeps:
        problem.keep = keeps[p.name][band]
    elif needs_scores(recipe.solver) or stats is None:
        name = "magnitude" if stats is None and needs_data(recipe.score) else recipe.score
        problem.scores = score(name, weight, stats, seed=layer_seed(recipe, p) + part)
    return problem


def store_solution(p: Prunable, solution: Solution, recipe: Recipe, dtype: torch.dtype) -> PackedTensor:
    """Packs a solution in the value type of the recipe; kept weights never become zeros by rounding to a float."""
    structure = within_tensor(parse_structure(recipe.structure))
    keep = None if bool(solution.keep.all()) else solution.keep
    if solution.quantized is not None:
        return pack(solution.weight.to(dtype), keep, structure, quantized=solution.quantized)
    narrow = torch.bfloat16 if recipe.values == "bf16" else dtype
    return pack(_cast(solution.weight, narrow), keep, structure, dtype=dtype)


class Pruner:
    """Runs one recipe over a model. With a ``folder``, every finished block is stored and a later run goes on there."""

    def __init__(
        self,
        host: Host,
        scope: Scope,
        recipe: Recipe,
        zeros: dict[str, int],
        batches: Sequence[Any],
        *,
        folder: Path | None = None,
        keeps: dict[str, torch.Tensor] | None = None,
        spill: Path | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self.host, self.scope, self.recipe, self.zeros = host, scope, recipe, zeros
        self.batches, self.folder, self.keeps = batches, folder, keeps
        self.spill, self.device, self.progress = spill, device, progress
        self.layers: dict[str, LayerOutcome] = {}
        self._packed: dict[str, PackedTensor] = {}
        self.notes: list[str] = []

    def run(self) -> Pruned:
        """Prunes the host's model in place and returns what was done."""
        from winnow.calibrate.walker import Walker

        started = time.perf_counter()
        gram = self.recipe.needs_gram
        if self.batches and (gram or self.recipe.needs_data):
            walker = Walker(
                self.host.model,
                self.batches,
                self.scope,
                gram=gram,
                by=self.recipe.sequential,
                device=self.device,
                enter=self._enter,
                leave=lambda unit: self.host.leave(unit.path),
                spill=self.spill,
                progress=self.progress,
            )
            walker.walk(self._visit, skip=lambda unit: self._done(unit.path))
            self.notes += walker.notes
            if walker.unreached:
                self.notes.append(
                    f"{len(walker.unreached)} tensors were never reached by the calibration data and were pruned by magnitude (first: {walker.unreached[0].name})."
                )
        else:
            self._without_data()
        order = {name: i for i, name in enumerate(self.scope.prunables)}
        layers = sorted(self.layers.values(), key=lambda x: order[x.name])
        return Pruned(layers, self.packed, notes=self.notes, seconds=time.perf_counter() - started)

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
            if self._done(path):
                self._overlay(path, prunables)
            else:
                self._prune(path, prunables, {})
            self.host.leave(path)
        if self.progress:
            self.progress(len(units), len(units), "")

    def _enter(self, unit: Any) -> None:
        self.host.enter(unit.path)
        if self._done(unit.path):
            self._overlay(unit.path, unit.prunables)

    def _visit(self, unit: Any, stats: dict[str, list[InputStats]]) -> None:
        self._prune(unit.path, unit.prunables, stats)

    def _prune(self, path: str, prunables: Sequence[Prunable], stats: dict[str, list[InputStats]]) -> None:
        if not prunables:
            return
        started = time.perf_counter()
        results = {}
        for p, solution in solve_unit(prunables, stats, self.recipe, self.zeros, self._weight, self.keeps):
            packed = store_solution(p, solution, self.recipe, self.host.stored_dtype[p.name])
            put_matrix(self.host.model, p, packed.unpack())
            results[p.name] = (p, packed)
            self.layers[p.name] = LayerOutcome(
                p.name, p.block, p.kind, p.rows, p.cols, packed.zeros, solution.error, packed.bits_per_weight, 0.0, path
            )
        seconds = (time.perf_counter() - started) / len(prunables)
        for p in prunables:
            self.layers[p.name].seconds = seconds
        file = self._unit_file(path)
        if file is None:
            self._packed.update({name: packed for name, (_, packed) in results.items()})
        else:
            outcomes = [asdict(self.layers[p.name]) for p in prunables]
            write_atomic(file.with_suffix(".json"), json.dumps(outcomes).encode())
            save_packed(file, results)  # last: a unit with this file is finished

    def _overlay(self, path: str, prunables: Sequence[Prunable]) -> None:
        """Puts a stored unit's pruned weights into the model."""
        file = self._unit_file(path)
        assert file is not None
        for p in prunables:
            put_matrix(self.host.model, p, read_unit(file, p.name).unpack())
        for layer in json.loads(file.with_suffix(".json").read_text()):
            self.layers[layer["name"]] = LayerOutcome(**layer)

    def _weight(self, p: Prunable) -> torch.Tensor:
        weight = p.matrix(self.host.model.get_parameter(p.name).detach()).float()
        if not torch.isfinite(weight).all():
            raise InputError(
                f"{p.name} holds NaN or infinite weights: repair the checkpoint, or leave the tensor out with --exclude."
            )
        return weight

    def _unit_file(self, path: str) -> Path | None:
        return None if self.folder is None else unit_file(self.folder, path)

    def _done(self, path: str) -> bool:
        file = self._unit_file(path)
        return file is not None and file.exists()


def unit_file(folder: Path, unit: str) -> Path:
    """Where a finished block is stored."""
    return folder / f"unit-{unit or 'model'}.safetensors"


def read_unit(file: Path, name: str) -> PackedTensor:
    """One packed tensor of a stored block; the others stay on disk."""
    tensors = TensorFile(file)
    return read_packed(tensors, name, split_keys(tensors)[0][name])


def _grid(recipe: Recipe) -> Grid | None:
    if recipe.values not in BITS:
        return None
    return Grid(BITS[recipe.values], recipe.group_size if recipe.values == "int4" else None)


def _join(parts: list[Solution]) -> Solution:
    if len(parts) == 1:
        return parts[0]
    errors = [s.error for s in parts if s.error is not None]
    quantized = None
    if parts[0].quantized is not None:
        first = parts[0].quantized
        quantized = Quantized(
            torch.cat([s.quantized.codes for s in parts]),  # type: ignore[union-attr]
            torch.cat([s.quantized.scales for s in parts]),  # type: ignore[union-attr]
            first.bits,
            first.group,
        )
    return Solution(
        torch.cat([s.weight for s in parts]),
        torch.cat([s.keep for s in parts]),
        quantized,
        sum(errors) / len(errors) if errors else None,
    )


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """To a narrower float without turning a kept weight into a zero: what would underflow becomes the smallest value."""
    cast = weight.to(dtype)
    if dtype != weight.dtype:
        lost = (cast == 0) & (weight != 0)
        if lost.any():
            cast[lost] = torch.copysign(torch.tensor(torch.finfo(dtype).tiny), weight[lost]).to(dtype)
    return cast
