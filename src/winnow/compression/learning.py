"""The training stage of a compression: masks and weights fitted on the data, once for all candidates that store them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from winnow.compression.hosts import write_matrix, write_tensors
from winnow.compression.recipe import Recipe
from winnow.compression.solving import solve_unit
from winnow.compression.units import coupled_masks
from winnow.compression.workbench import Workbench
from winnow.formats.units import load_packed, save_packed
from winnow.masks.prunable import Prunable
from winnow.run.store import Store, stage_key
from winnow.scores import needs_data

MEASURING = ("evaluation", "selection")  # parts of a run's identity that training does not depend on


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

    def write(self, bench: Workbench) -> None:
        """The trained weights, biases, norms and buffers into the host's model."""
        for name, p in bench.scope.prunables.items():
            write_matrix(bench.host.model, p, self.weights[name])
        write_tensors(bench.host.model, self.extra)


def learn(bench: Workbench, recipe: Recipe, store: Store, identity: dict[str, str]) -> Learned:
    """Trains as the recipe says, or finds it done; leaves the host dense.

    The result is stored under a key without the candidates' value types, so that one training serves them all. A run
    that was killed goes on from the last checkpoint, and ends bit for bit equal (with a time limit: uses what is left).

    Raises:
        InputError: the settings, the data, or a model that cannot be trained so.
    """
    decides = {k: v for k, v in recipe.key().items() if k not in recipe.fitting.after}
    key = stage_key("learn", recipe=decides, **{k: v for k, v in identity.items() if k not in MEASURING})
    folder = store.folder(key)
    file, record = folder / "learned.safetensors", store.read(key)
    if record is None:
        host, scope = bench.host, bench.scope
        host.restore(scope)
        try:
            fitted = recipe.fitting.train(
                recipe, host.model, bench.batches, lambda: _fixed(bench, recipe), scope=scope, folder=folder, own=True,
                progress=bench.progress(f"training at {100 * recipe.sparsity:.4g} % zeros"),
            )  # fmt: skip
        finally:
            host.restore(scope)
        stored = {n: t.to(host.stored_dtype.get(n, t.dtype)) for n, t in fitted.extra.items()}
        parts = (("keep", fitted.keeps), ("weight", fitted.weights), ("extra", stored))
        save_packed(file, {}, dense={f"{part}.{n}": t.contiguous() for part, ts in parts for n, t in ts.items()})
        record = fitted.record.model_dump(mode="json")
        store.write(key, record, files=[file])
        for checkpoint in folder.rglob("fit.safetensors"):
            checkpoint.unlink()
    return _load(file, record)


def _load(file: Path, record: dict[str, Any]) -> Learned:
    found: dict[str, dict[str, torch.Tensor]] = {"keep": {}, "weight": {}, "extra": {}}
    for name, tensor in load_packed(file)[1].items():
        part, _, key = name.partition(".")
        found[part][key] = tensor
    return Learned(found["keep"], found["weight"], found["extra"], record)


def _fixed(bench: Workbench, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The masks that the recipe's score and allocation come to on the dense model, and biases that change with them."""
    keeps, extra = coupled_masks(bench, recipe)
    if keeps is None:
        plain = recipe.model_copy(update=dict(solver="none", values="keep", settings={}, time=None))
        zeros = bench.counts(plain)
        stats = bench.statistics if needs_data(recipe.score) else {}
        bench.host.restore(bench.scope)

        def weight(p: Prunable) -> torch.Tensor:
            return p.matrix(bench.host.model.get_parameter(p.name).detach()).float()

        solved = solve_unit(list(bench.scope.prunables.values()), stats, plain, zeros, weight)
        keeps = {p.name: solution.keep for p, solution in solved}
    bench.host.restore(bench.scope)
    return keeps, extra
