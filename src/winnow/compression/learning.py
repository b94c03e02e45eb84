"""The training stage of a compression: masks and weights fitted on the data, once for all candidates that store them."""

from __future__ import annotations

from functools import partial

import torch

from winnow.compression.hosts import read_matrix
from winnow.compression.recipe import Recipe
from winnow.compression.solving import solve_unit
from winnow.compression.stages import training
from winnow.compression.workbench import Workbench, coupled_masks
from winnow.formats.packed_file import load_packed, save_packed
from winnow.records.allocation import AllocationRecord
from winnow.run.store import Store, stage_key
from winnow.scores import needs_data
from winnow.train.distil.fit import Fitted

MEASURING = ("evaluation", "selection")  # parts of a run's identity that training does not depend on


def learn(bench: Workbench, recipe: Recipe, store: Store, identity: dict[str, str]) -> Fitted:
    """Trains as the recipe says, or finds it done; leaves the host dense.

    The result is stored under a key without the candidates' value types, so that one training serves them all. A run
    that was killed goes on from the last checkpoint, and ends bit for bit equal (with a time limit: uses what is left).

    Raises:
        InputError: the settings, the data, or a model that cannot be trained so.
    """
    decides = {k: v for k, v in recipe.key().items() if k not in recipe.fitting.after}
    key = stage_key("learn", recipe=decides, **{k: v for k, v in identity.items() if k not in MEASURING})
    folder = store.folder(key)
    file, stored = folder / "learned.safetensors", store.read(key)
    if stored is None:
        host, scope = bench.host, bench.scope
        host.restore(scope)
        try:
            fitted = recipe.fitting.train(
                recipe, host.model, bench.batches, lambda: _fixed(bench, recipe), scope=scope, folder=folder, own=True,
                progress=bench.progress(training(recipe.sparsity)),
            )  # fmt: skip
        finally:
            host.restore(scope)
        extra = {n: t.to(host.stored_dtype.get(n, t.dtype)) for n, t in fitted.extra.items()}
        parts = (("keep", fitted.keeps), ("weight", fitted.weights), ("extra", extra))
        save_packed(file, {}, dense={f"{part}.{n}": t.contiguous() for part, ts in parts for n, t in ts.items()})
        stored = fitted.record.model_dump(mode="json")
        store.write(key, stored, files=[file])
        for checkpoint in folder.rglob("fit.safetensors"):
            checkpoint.unlink()
    found: dict[str, dict[str, torch.Tensor]] = {"keep": {}, "weight": {}, "extra": {}}
    for name, tensor in load_packed(file)[1].items():
        part, _, key = name.partition(".")
        found[part][key] = tensor
    return Fitted(found["keep"], found["weight"], found["extra"], AllocationRecord.model_validate(stored))


def _fixed(bench: Workbench, recipe: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The masks that the recipe's score and allocation come to on the dense model, and biases that change with them."""
    keeps, extra = coupled_masks(bench, recipe)
    if keeps is None:
        plain = recipe.model_copy(update=dict(solver="none", values="keep", settings={}, time=None))
        zeros = bench.counts(plain)
        stats = bench.statistics if needs_data(recipe.score) else {}
        bench.host.restore(bench.scope)
        weight_of = partial(read_matrix, bench.host.model)
        solved = solve_unit(list(bench.scope.prunables.values()), stats, plain, zeros, weight_of)
        keeps = {p.name: solution.keep for p, solution in solved}
    bench.host.restore(bench.scope)
    return keeps, extra
