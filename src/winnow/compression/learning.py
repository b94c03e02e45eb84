"""The training stage of a compression: masks and weights fitted on the data, once for all candidates that store them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from winnow.compression.hosts import put_matrix
from winnow.compression.prune import solve_unit
from winnow.compression.recipe import Recipe
from winnow.fcpts.settings import FcptsSettings
from winnow.formats.units import load_packed, save_packed
from winnow.run.store import stage_key
from winnow.settings import read_settings
from winnow.train.distil.fit import Distil, Fitted
from winnow.train.distil.settings import DistilSettings

if TYPE_CHECKING:
    from winnow.compression.runner import Runner

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

    def put(self, runner: Runner) -> None:
        """The trained weights, biases, norms and buffers into the host's model."""
        for name, p in runner.scope.prunables.items():
            put_matrix(runner.host.model, p, self.weights[name])
        runner.host.put(self.extra)


def learn(runner: Runner, recipe: Recipe) -> Learned:
    """Trains as the recipe says, or finds it done; leaves the host dense.

    The result is stored under a key without the candidates' value types, so that one training serves them all. A run
    that was killed goes on from the last checkpoint, and ends bit for bit equal (with a time limit: uses what is left).

    Raises:
        InputError: the settings, the data, or a model that cannot be trained so.
    """
    key = stage_key(
        "learn", recipe=_decides(recipe), **{k: v for k, v in runner.identity.items() if k not in MEASURING}
    )
    folder = runner.store.folder(key)
    file, record = folder / "learned.safetensors", runner.store.read(key)
    if record is None:
        runner.host.restore(runner.scope)
        try:
            fitted = _fit(runner, recipe, folder)
        finally:
            runner.host.restore(runner.scope)
        stored = {n: t.to(runner.host.stored_dtype.get(n, t.dtype)) for n, t in fitted.extra.items()}
        parts = (("keep", fitted.keeps), ("weight", fitted.weights), ("extra", stored))
        save_packed(file, {}, dense={f"{part}.{n}": t.contiguous() for part, ts in parts for n, t in ts.items()})
        record = fitted.record.model_dump(mode="json")
        runner.store.write(key, record, files=[file])
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


def _fit(runner: Runner, recipe: Recipe, folder: Path) -> Fitted:
    host, scope = runner.host, runner.scope
    common: Any = dict(
        scope=scope,
        folder=folder,
        own=True,
        progress=runner.progress(f"training at {100 * recipe.sparsity:.4g} % zeros"),
    )
    if recipe.allocation == "learned":
        from winnow.fcpts.method import FCPTS

        learned = read_settings(FcptsSettings, recipe.settings, recipe.method)
        method = FCPTS(learned, structure=recipe.structure, time=recipe.time, table=recipe.table, seed=recipe.seed)
        return method.fit(host.model, runner.batches, recipe.zeros, **common)
    keeps, extra = _fixed(runner, recipe)
    host.restore(scope)
    settings = read_settings(DistilSettings, recipe.settings, recipe.method)
    fitted = Distil(settings, time=recipe.time, seed=recipe.seed).fit(
        host.model, runner.batches, keeps, method=recipe.method, allocation=recipe.allocation, structure=recipe.structure, before=extra, **common
    )  # fmt: skip
    return fitted


def _fixed(runner: Runner, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The masks that the recipe's score and allocation come to on the dense model, and biases that change with them."""
    from winnow.scores import needs_data

    keeps, extra = runner.coupled(recipe)
    if keeps is not None:
        return keeps, extra
    plain = recipe.model_copy(update=dict(solver="none", values="keep", settings={}, time=None))
    zeros = runner.counts(plain)
    stats = runner.statistics() if needs_data(recipe.score) else {}
    runner.host.restore(runner.scope)

    def weight(p: Any) -> torch.Tensor:
        return p.matrix(runner.host.model.get_parameter(p.name).detach()).float()

    solved = solve_unit(list(runner.scope.prunables.values()), stats, plain, zeros, weight)
    return {p.name: solution.keep for p, solution in solved}, {}
