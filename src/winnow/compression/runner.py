"""Makes and measures candidates one after another; every finished piece is stored, so a killed run goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from winnow.compression.candidates import Candidate
from winnow.compression.learning import Learned, learn
from winnow.compression.outcome import LayerOutcome, Outcome, Pruned
from winnow.compression.prune import Pruner, read_unit, unit_file
from winnow.compression.recipe import Recipe
from winnow.compression.sizes import dense_layout, stored_bytes
from winnow.compression.units import coupled
from winnow.compression.workbench import Progress, Workbench
from winnow.errors import disk_errors
from winnow.formats.packed import PackedTensor
from winnow.formats.tensorfile import TensorFile
from winnow.formats.units import load_packed, save_packed
from winnow.masks.prunable import Scope
from winnow.masks.structure import NM, Coupled, parse_structure
from winnow.measure.compare import Comparison, compare
from winnow.measure.evaluation import Evaluation, load_stored, store_evaluation
from winnow.run.store import stage_key


class Runner(Workbench):
    """Makes and measures candidates on one workbench."""

    def _measuring(self, name: str) -> Callable[[int, int], None] | None:
        stage = self.progress(f"measuring {name}")
        return (lambda done, total: stage(done, total, "")) if stage else None

    def measure_dense(self) -> Evaluation | None:
        """Measures the model as it was given, whatever was done to it since, and keeps its answers for agreement.

        Raises:
            WinnowError: what would be measured is not that model.
        """
        if self.task is None:
            return None
        started = time.perf_counter()
        with self.host.dense(self.scope) as model:
            self.host.identity.check(model, "the dense model")
            self._reference = self.task.reference(model, progress=self._measuring("dense"))
        self.dense = self._reference.evaluation
        self.timing["measure dense"] = time.perf_counter() - started
        return self.dense

    def run(self, candidate: Candidate) -> Outcome:
        """Makes a candidate (or finds it made) and measures it (or finds it measured)."""
        if candidate.recipe is None:
            raise ValueError("the dense model is measured by measure_dense")
        started = time.perf_counter()
        pruned, key, record = self._pruned(candidate)
        self.timing[f"compress {candidate.name}"] = time.perf_counter() - started
        evaluation = None
        if self.task is not None:
            measuring = time.perf_counter()

            def measure() -> Evaluation:
                assert self.task is not None
                with self.host.with_weights(self.weights(pruned), self.scope, pruned.extra) as model:
                    self.host.identity.check(model, candidate.name, apart=[*self.scope.prunables, *pruned.extra])
                    return self.task.evaluate(model, self._reference, progress=self._measuring(candidate.name))

            evaluation = self._evaluated(key, measure)
            self.timing[f"measure {candidate.name}"] = time.perf_counter() - measuring
        comparison = (
            compare(self.dense, evaluation, higher_is_better=self.task.higher_is_better)
            if self.task is not None and self.dense is not None and evaluation is not None
            else None
        )
        return Outcome(
            candidate, pruned, evaluation, comparison, self.file_bytes(pruned), pruned.seconds, pruned.notes, record
        )

    def made(self, recipe: Recipe) -> Pruned:
        """A recipe's packed weights, measured on nothing."""
        return self._pruned(Candidate("draft", "pruned", recipe))[0]

    def weights(self, pruned: Pruned) -> Callable[[str], torch.Tensor]:
        """The stored-layout weight of a tensor after pruning, in its stored dtype."""

        def weight(name: str) -> torch.Tensor:
            p = self.scope.prunables[name]
            return p.restore(pruned.packed(name).unpack()).to(self.host.stored_dtype[name])

        return weight

    def file_bytes(self, pruned: Pruned) -> int:
        """Bytes of the weights file that would be written of a candidate, headers included."""
        if self._dense_layout is None:
            self._dense_layout = dense_layout(self.host, self.scope)
        return stored_bytes(self.host, self.scope, self._dense_layout, pruned.files())

    def _pruned(self, candidate: Candidate) -> tuple[Pruned, str, dict[str, Any] | None]:
        recipe = candidate.recipe
        assert recipe is not None
        key = stage_key("prune", recipe=recipe.key(), **self.identity)
        folder = self.store.folder(key)
        done = self.store.read(key)
        if done is None:
            learned = learn(self, recipe) if recipe.trains and recipe.zeros else None
            record = learned.record if learned is not None else None
            self.host.restore(self.scope)
            stage = self.progress(f"compressing to {candidate.name}")
            pruned = self._prune(recipe, learned, folder, stage)
            pruned.extra |= self._recalibrated(recipe, pruned.extra)
            self._store_extra(folder, pruned.extra)
            seconds = pruned.seconds + (record["seconds"] if record is not None else 0.0)
            done = dict(
                layers=[asdict(x) for x in pruned.layers], notes=pruned.notes, seconds=seconds, record=record,
                dense=[n for n, k in learned.keeps.items() if bool(k.all())] if learned is not None else [],
            )  # fmt: skip
            self.store.write(key, done, files=folder.rglob("*.safetensors"))
        return (
            Pruned(
                layers := [LayerOutcome(**x) for x in done["layers"]],
                _reader(folder, layers, set(done["dense"]) if _apart(recipe) else set()),
                self._load_extra(folder),
                done["notes"],
                done["seconds"],
                _files(folder, layers, set(done["dense"]) if _apart(recipe) else set()),
            ),
            key,
            done["record"],
        )

    def _prune(self, recipe: Recipe, learned: Learned | None, folder: Path, stage: Progress | None) -> Pruned:
        """Prunes the host's model in place. What was trained is packed as it is, or goes to the solver as an allocation."""
        plain = recipe
        if recipe.trains:
            solver = "none" if recipe.solver == "distil" else recipe.solver
            plain = recipe.model_copy(update=dict(solver=solver, allocation="uniform", settings={}, time=None))
        batches: Sequence[Any] = self.batches
        if learned is None:
            keeps, extra = coupled(self, plain)
        elif recipe.solver == "distil":
            keeps, extra, batches = learned.keeps, dict(learned.extra), []
            plain = plain.model_copy(update=dict(score="magnitude"))  # nothing is chosen any more
            learned.put(self)
        else:
            keeps, extra = self._learned_units(recipe, learned)
        if learned is not None:
            zeros = learned.zeros
        else:
            zeros = {n: int((~k).sum()) for n, k in keeps.items()} if keeps is not None else self.counts(plain)
        parts = [(self.scope, plain, folder)]
        if learned is not None and _apart(recipe):
            pattern, dense = _split(self.scope, zeros)
            unpruned = plain.model_copy(update=dict(structure="unstructured", solver="none", score="magnitude"))
            parts = [(pattern, plain, folder), (dense, unpruned, _dense_folder(folder))]
        found = Pruned([], _reader(folder, [], set()), extra)
        for scope, part, place in parts:
            if not scope.prunables:
                continue
            with disk_errors(place):
                place.mkdir(exist_ok=True)
            pruned = Pruner(
                self.host, scope, part, {n: zeros.get(n, 0) for n in scope.prunables}, batches, folder=place, keeps=keeps,
                spill=self.spill, device=self.device, progress=stage,
            ).run()  # fmt: skip
            found.layers += pruned.layers
            found.extra |= pruned.extra
            found.notes += pruned.notes
            found.seconds += pruned.seconds
        order = {name: i for i, name in enumerate(self.scope.prunables)}
        found.layers.sort(key=lambda x: order[x.name])
        return found

    def _learned_units(
        self, recipe: Recipe, learned: Learned
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, torch.Tensor]]:
        """Coupled units that were learned, for another solver: their masks on the dense weights, their biases zero."""
        if not isinstance(parse_structure(recipe.structure), Coupled):
            return None, {}
        from winnow.fcpts.structures import make_units

        units: Any = make_units(recipe.structure, self.scope, self.host.model, self.batches[0])
        return learned.keeps, units.entries(learned.keeps, self.host.model)

    def _recalibrates(self, recipe: Recipe) -> bool:
        """Whether batch norms are estimated anew: of every candidate, pruned, rounded or both, or of none."""
        from winnow.solve.batchnorm import has_batchnorm

        changed = bool(recipe.zeros) or recipe.values != "keep"
        norms = not self.host.streamed and has_batchnorm(self.host.model)
        return recipe.recalibrate and changed and bool(self.batches) and norms

    def _recalibrated(self, recipe: Recipe, extra: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from winnow.solve.batchnorm import recalibrate

        if not self._recalibrates(recipe):
            return {}
        self.host.put(extra)
        return recalibrate(self.host.model, self.batches)

    def dense_recalibrated(self, recipe: Recipe) -> tuple[Evaluation, Comparison] | None:
        """The dense weights with batch norms estimated anew as those of the candidates are, and what that alone lost.

        None where candidates keep their batch norms, or nothing is measured.
        """
        if self.task is None or self.dense is None or not self._recalibrates(recipe):
            return None
        task, dense = self.task, self.dense

        def measure() -> Evaluation:
            self.host.restore(self.scope)
            norms = self._recalibrated(recipe, {})
            with self.host.with_weights(self.host.original, self.scope, norms) as model:
                self.host.identity.check(model, "the dense model with new batch norms", apart=norms)
                return task.evaluate(model, self._reference, progress=self._measuring("dense, recalibrated"))

        by = dict(samples=recipe.samples, batch=recipe.batch_size, length=recipe.length, seed=recipe.seed)
        evaluation = self._evaluated(stage_key("recalibrated", **by, **self.identity), measure)
        return evaluation, compare(dense, evaluation, higher_is_better=task.higher_is_better)

    def _store_extra(self, folder: Path, extra: dict[str, torch.Tensor]) -> None:
        if extra:
            save_packed(folder / "extra.safetensors", {}, dense=extra)

    def _load_extra(self, folder: Path) -> dict[str, torch.Tensor]:
        file = folder / "extra.safetensors"
        return load_packed(file)[1] if file.exists() else {}

    def _evaluated(self, key: str, measure: Callable[[], Evaluation]) -> Evaluation:
        assert self.task is not None
        name = stage_key("measure", of=key, task=self.task.describe(), **self.identity)
        stored = load_stored(self.store, name)
        if stored is None:
            stored = measure()
            store_evaluation(self.store, name, stored)
        return stored


def _reader(folder: Path, layers: list[LayerOutcome], dense: set[str]) -> Callable[[str], PackedTensor]:
    """Reads one packed tensor at a time from the stored units; nothing is held. ``dense``: stored apart."""
    unit_of = {x.name: x.unit for x in layers}

    def read(name: str) -> PackedTensor:
        return read_unit(_unit(folder, unit_of[name], name in dense), name)

    return read


def _files(folder: Path, layers: list[LayerOutcome], dense: set[str]) -> Callable[[], dict[str, TensorFile]]:
    """The stored unit of each packed tensor, opened."""

    def files() -> dict[str, TensorFile]:
        units = {x.name: _unit(folder, x.unit, x.name in dense) for x in layers}
        opened = {path: TensorFile(path) for path in set(units.values())}
        return {name: opened[path] for name, path in units.items()}

    return files


def _unit(folder: Path, unit: str, dense: bool) -> Path:
    return unit_file(_dense_folder(folder) if dense else folder, unit)


def _apart(recipe: Recipe) -> bool:
    """Whether layers that keep all their weights are packed apart: a learned n:m, which not every layer takes."""
    return recipe.allocation == "learned" and isinstance(parse_structure(recipe.structure), NM)


def _split(scope: Scope, zeros: dict[str, int]) -> tuple[Scope, Scope]:
    """The tensors that give up weights, and those that do not."""
    return tuple(
        Scope({n: p for n, p in scope.prunables.items() if bool(zeros.get(n, 0)) is some}) for some in (True, False)
    )  # type: ignore[return-value]


def _dense_folder(folder: Path) -> Path:
    return folder / "dense"
