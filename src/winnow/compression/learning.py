"""The training stage of a compression: masks and weights fitted on the data, once for all candidates that store them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from winnow.compression.hosts import put_matrix
from winnow.compression.prune import solve_unit
from winnow.compression.recipe import Recipe
from winnow.compression.units import coupled
from winnow.compression.workbench import Workbench
from winnow.fcpts.settings import FcptsSettings
from winnow.formats.packed_file import load_packed, save_packed
from winnow.run.store import stage_key
from winnow.settings import read_settings
from winnow.train.distil.fit import Distil, Fitted
from winnow.train.distil.settings import DistilSettings

# What of a recipe speaks of storing or repairing the result, and of a run what speaks of measuring it.
AFTER = ("values", "group_size", "recalibrate", "damp", "sequential")
CHOOSING = ("method", "score", "group", "solver")  # a learned allocation is the same whatever solver it is for
MEASURING = ("evaluation", "selection")


@dataclass
class Learned:
    """What training came to; tensors as in :class:`winnow.train.distil.fit.Fitted`."""

    keeps: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    extra: dict[str, torch.Tensor]
    record: dict[str, Any]  # an AllocationRecord as JSON

    @property
    def zeros(self) -> dict[str, int]:
        return {n: int((~k).sum()) for n, k in self.keeps.items()}

    def put(self, bench: Workbench) -> None:
        """The trained weights, biases, norms and buffers into the host's model."""
        for name, p in bench.scope.prunables.items():
            put_matrix(bench.host.model, p, self.weights[name])
        bench.host.put(self.extra)


def learn(bench: Workbench, recipe: Recipe) -> Learned:
    """Trains as the recipe says, or finds it done; leaves the host dense.

    The result is stored under a key without the candidates' value types, so that one training serves them all. A run
    that was killed goes on from the last checkpoint, and ends bit for bit equal (with a time limit: uses what is left).

    Raises:
        InputError: the settings, the data, or a model that cannot be trained so.
    """
    key = stage_key("learn", recipe=_decides(recipe), **{k: v for k, v in bench.identity.items() if k not in MEASURING})
    folder = bench.store.folder(key)
    file, record = folder / "learned.safetensors", bench.store.read(key)
    if record is None:
        bench.host.restore(bench.scope)
        try:
            fitted = _fit(bench, recipe, folder)
        finally:
            bench.host.restore(bench.scope)
        stored = {n: t.to(bench.host.stored_dtype.get(n, t.dtype)) for n, t in fitted.extra.items()}
        parts = (("keep", fitted.keeps), ("weight", fitted.weights), ("extra", stored))
        save_packed(file, {}, dense={f"{part}.{n}": t.contiguous() for part, ts in parts for n, t in ts.items()})
        record = fitted.record.model_dump(mode="json")
        bench.store.write(key, record, files=[file])
        for checkpoint in folder.rglob("fit.safetensors"):
            checkpoint.unlink()
    return _load(file, record)


def _decides(recipe: Recipe) -> dict[str, Any]:
    left = (*AFTER, *CHOOSING) if recipe.allocation == "learned" else AFTER
    return {k: v for k, v in recipe.key().items() if k not in left}


def _load(file: Path, record: dict[str, Any]) -> Learned:
    found: dict[str, dict[str, torch.Tensor]] = {"keep": {}, "weight": {}, "extra": {}}
    for name, tensor in load_packed(file)[1].items():
        part, _, key = name.partition(".")
        found[part][key] = tensor
    return Learned(found["keep"], found["weight"], found["extra"], record)


def _fit(bench: Workbench, recipe: Recipe, folder: Path) -> Fitted:
    host, scope = bench.host, bench.scope
    common: Any = dict(
        scope=scope,
        folder=folder,
        own=True,
        progress=bench.progress(f"training at {100 * recipe.sparsity:.4g} % zeros"),
    )
    if recipe.allocation == "learned":
        from winnow.fcpts.method import FCPTS

        learned = read_settings(FcptsSettings, recipe.settings, recipe.method)
        method = FCPTS(learned, structure=recipe.structure, time=recipe.time, table=recipe.table, seed=recipe.seed)
        return method.fit(host.model, bench.batches, recipe.zeros, **common)
    keeps, extra = _fixed(bench, recipe)
    host.restore(scope)
    settings = read_settings(DistilSettings, recipe.settings, recipe.method)
    fitted = Distil(settings, time=recipe.time, seed=recipe.seed).fit(
        host.model, bench.batches, keeps, method=recipe.method, allocation=recipe.allocation, structure=recipe.structure, before=extra, **common
    )  # fmt: skip
    return fitted


def _fixed(bench: Workbench, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The masks that the recipe's score and allocation come to on the dense model, and biases that change with them."""
    from winnow.scores import needs_data

    keeps, extra = coupled(bench, recipe)
    if keeps is not None:
        return keeps, extra
    plain = recipe.model_copy(update=dict(solver="none", values="keep", settings={}, time=None))
    zeros = bench.counts(plain)
    stats = bench.statistics() if needs_data(recipe.score) else {}
    bench.host.restore(bench.scope)

    def weight(p: Any) -> torch.Tensor:
        return p.matrix(bench.host.model.get_parameter(p.name).detach()).float()

    solved = solve_unit(list(bench.scope.prunables.values()), stats, plain, zeros, weight)
    return {p.name: solution.keep for p, solution in solved}, {}
