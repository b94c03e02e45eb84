"""Makes and measures candidates one after another; every finished piece is stored, so a killed run goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from winnow.compression.candidates import Candidate
from winnow.compression.hosts import Rest, write_matrix, write_tensors
from winnow.compression.learning import learn
from winnow.compression.outcome import LayerOutcome, Outcome, Pruned
from winnow.compression.prune import Pruner, read_unit, unit_file
from winnow.compression.recipe import Recipe
from winnow.compression.rest import contents, store_rest
from winnow.compression.sizes import stored_bytes
from winnow.compression.workbench import Progress, Workbench, coupled_masks
from winnow.errors import disk_errors
from winnow.fcpts.structures import make_units
from winnow.formats.packed_file import load_packed, save_packed
from winnow.formats.tensorfile import TensorFile
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.structure import NM, Coupled
from winnow.measure.compare import Comparison, compare
from winnow.measure.evaluation import Evaluation, load_stored, store_evaluation
from winnow.measure.task import Task
from winnow.run.store import Store, stage_key
from winnow.solve.batchnorm import has_batchnorm, recalibrate
from winnow.train.distil.fit import Fitted


class Runner:
    """Makes candidates on a workbench, measures them on a task (if there is one), and stores both.

    Args:
        identity: of the model, the data and the machine's choices: a part of the key of every stored result.
        spill: hidden states that wait for their block are kept on disk.
        device: where blocks are computed.
    """

    def __init__(
        self, bench: Workbench, task: Task | None, store: Store, *, identity: dict[str, str], spill: bool, device: str
    ) -> None:
        self.bench, self.task, self.store, self.identity, self.device = bench, task, store, identity, device
        self.host, self.scope = bench.host, bench.scope
        self.spill = store.folder("activations") if spill else None
        self.dense: Evaluation | None = None
        self.timing: dict[str, float] = {}  # seconds by stage
        self._reference: Any = None

    def _measuring(self, name: str) -> Callable[[int, int], None] | None:
        stage = self.bench.progress(f"measuring {name}")
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
        started = time.perf_counter()
        pruned, key, record = self._pruned(candidate)
        self.timing[f"compress {candidate.name}"] = time.perf_counter() - started
        evaluation = comparison = None
        if (task := self.task) is not None:
            measuring = time.perf_counter()

            def measure() -> Evaluation:
                with pruned.in_place(self.host, self.scope) as model:
                    apart = [*self.scope.prunables, *pruned.extra, *pruned.rest]
                    self.host.identity.check(model, candidate.name, apart=apart)
                    return task.evaluate(model, self._reference, progress=self._measuring(candidate.name))

            evaluation = self._evaluated(key, measure)
            self.timing[f"measure {candidate.name}"] = time.perf_counter() - measuring
            if self.dense is not None:
                comparison = compare(self.dense, evaluation, higher_is_better=task.higher_is_better)
        files = pruned.files()
        size = stored_bytes(self.host, self.scope, self.bench.layout, files, pruned.rest)
        parts = contents(self.host, self.scope, pruned, files, size)
        return Outcome(candidate, pruned, evaluation, comparison, size, pruned.seconds, pruned.notes, record, parts)

    def weigh(self, recipe: Recipe) -> int:
        """Bytes of the weights file that a recipe comes to, headers included; measures nothing."""
        draft = self._pruned(Candidate("draft", "pruned", recipe))[0]
        return stored_bytes(self.host, self.scope, self.bench.layout, draft.files(), draft.rest)

    def _pruned(self, candidate: Candidate) -> tuple[Pruned, str, dict[str, Any] | None]:
        recipe = candidate.recipe
        assert recipe is not None
        key = stage_key("prune", recipe=recipe.key(), **self.identity)
        folder = self.store.folder(key)
        done = self.store.read(key)
        rest, rest_file, said = store_rest(self.host, self.scope, recipe, self.store, self.identity)
        if done is None:
            learned = None
            if recipe.fitting.trains and recipe.zeros:
                learned = learn(self.bench, recipe, self.store, self.identity)
            record = learned.record.model_dump(mode="json") if learned is not None else None
            self.host.restore(self.scope)
            stage = self.bench.progress(f"compressing to {candidate.name}")
            narrow = {name: partial(_unpacked, self.host, view, rest_file(name)) for name, view in rest.items()}
            runs, extra = self._prune(recipe, learned, folder, stage, narrow)
            for run in runs:
                extra |= run.extra
            extra |= self._recalibrated(recipe, extra)
            if extra:
                save_packed(folder / "extra.safetensors", {}, dense=extra)
            order = {name: i for i, name in enumerate(self.scope.prunables)}
            done = dict(
                layers=[asdict(x) for x in sorted((x for r in runs for x in r.layers), key=lambda x: order[x.name])],
                notes=[note for r in runs for note in r.notes], remarks=[said for r in runs for said in r.remarks],
                seconds=sum(r.seconds for r in runs) + (record["seconds"] if record is not None else 0.0), record=record,
                dense=[n for n, k in learned.keeps.items() if bool(k.all())] if learned is not None else [],
            )  # fmt: skip
            self.store.write(key, done, files=folder.rglob("*.safetensors"))
        layers = [LayerOutcome(**x) for x in done["layers"]]
        apart = set(done["dense"]) if _apart(recipe) else set()
        where = {x.name: unit_file(folder / "dense" if x.name in apart else folder, x.unit) for x in layers}
        where |= {name: rest_file(name) for name in rest}

        def files() -> dict[str, TensorFile]:
            opened = {path: TensorFile(path) for path in set(where.values())}
            return {name: opened[path] for name, path in where.items()}

        file = folder / "extra.safetensors"
        extra = load_packed(file)[1] if file.exists() else {}
        notes = [*done["notes"], *said]
        pruned = Pruned(
            layers,
            lambda name: read_unit(where[name], name),
            extra,
            notes,
            done["seconds"],
            files,
            remarks=done["remarks"],
            rest=rest,
            folder=folder,
        )
        return pruned, key, done["record"]

    def _prune(
        self, recipe: Recipe, learned: Fitted | None, folder: Path, stage: Progress | None, rest: Rest
    ) -> tuple[list[Pruned], dict[str, torch.Tensor]]:
        """Prunes the host's model in place, ``rest`` in the place of what is not pruned, so that calibration and batch norms
        follow it. Counts and masks that compare layers, and training, go by the dense model. What was trained is packed as it is, or goes to the solver as an allocation."""
        plain = recipe
        if recipe.fitting.trains:
            solver = "none" if recipe.recovery.trains else recipe.solver
            plain = recipe.model_copy(update=dict(solver=solver, allocation="uniform", settings={}, time=None))
        batches: Sequence[Any] = self.bench.batches
        keeps: dict[str, torch.Tensor] | None = None
        extra: dict[str, torch.Tensor] = {}
        if learned is None:
            keeps, extra = coupled_masks(self.bench, plain)
            zeros = self.bench.counts(plain) if keeps is None else _removed(keeps)
        else:
            zeros = _removed(learned.keeps)
            if recipe.recovery.trains:
                keeps, extra, batches = learned.keeps, dict(learned.extra), []
                plain = plain.model_copy(update=dict(score="magnitude"))  # nothing is chosen any more
                for name, p in self.scope.prunables.items():
                    write_matrix(self.host.model, p, learned.weights[name])
                write_tensors(self.host.model, extra)
            elif isinstance(recipe.pattern, Coupled):  # learned masks on the dense weights, their units' biases zero
                units: Any = make_units(recipe.pattern, self.scope, self.host.model, batches[0])
                keeps, extra = learned.keeps, units.entries(learned.keeps, self.host.model)
        parts = [(self.scope, plain, folder)]
        if learned is not None and _apart(recipe):
            pruned = {n: p for n, p in self.scope.prunables.items() if zeros.get(n, 0)}
            dense = {n: p for n, p in self.scope.prunables.items() if n not in pruned}
            unpruned = plain.model_copy(update=dict(structure="unstructured", solver="none", score="magnitude"))
            parts = [(Scope(pruned), plain, folder), (Scope(dense), unpruned, folder / "dense")]
        runs = []
        self.host.set_rest(rest)
        for scope, part, place in parts:
            if not scope.prunables:
                continue
            with disk_errors(place):
                place.mkdir(exist_ok=True)
            pruner = Pruner(
                self.host, scope, part, {n: zeros.get(n, 0) for n in scope.prunables}, batches, folder=place, keeps=keeps,
                spill=self.spill, device=self.device, progress=stage,
            )  # fmt: skip
            runs.append(pruner.run())
        return runs, extra

    def _recalibrates(self, recipe: Recipe) -> bool:
        """Whether batch norms are estimated anew: of every candidate, pruned, rounded or both, or of none."""
        changed = bool(recipe.zeros) or recipe.values != "keep"
        norms = not self.host.streamed and has_batchnorm(self.host.model)
        return recipe.recalibrate and changed and bool(self.bench.batches) and norms

    def _recalibrated(self, recipe: Recipe, extra: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self._recalibrates(recipe):
            return {}
        write_tensors(self.host.model, extra)
        return recalibrate(self.host.model, self.bench.batches)

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

    def _evaluated(self, key: str, measure: Callable[[], Evaluation]) -> Evaluation:
        assert self.task is not None
        name = stage_key("measure", of=key, task=self.task.describe(), **self.identity)
        stored = load_stored(self.store, name)
        if stored is None:
            stored = measure()
            store_evaluation(self.store, name, stored)
        return stored


def _removed(keeps: dict[str, torch.Tensor]) -> dict[str, int]:
    return {n: int((~k).sum()) for n, k in keeps.items()}


def _unpacked(host: Any, view: Prunable, file: Path) -> torch.Tensor:
    return view.restore(read_unit(file, view.name).unpack(host.stored_dtype[view.name]))


def _apart(recipe: Recipe) -> bool:
    """Whether layers that keep all their weights are packed apart: a learned n:m, which not every layer takes."""
    return recipe.fitting.allocates and isinstance(recipe.pattern, NM)
