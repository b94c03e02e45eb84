"""winnow as a contender: one loaded model, pruned in place again and again. Imports torch only when used."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common


class Winnow:
    """One loaded model, pruned again and again by any method."""

    def __init__(self, model: Any, dtype: str) -> None:
        import torch

        from winnow.compression.hosts import Loaded
        from winnow.masks.scope import find_scope
        from winnow.models.source import open_model

        self.host = Loaded(open_model(model), dtype=getattr(torch, dtype))
        self.scope = find_scope(self.host.model)
        self.host.begin(self.scope)
        self.pruned = False

    @property
    def model(self) -> Any:
        return self.host.model

    def prepare(
        self, method: str, sparsity: float, batches: list[Any], folder: Path | None = None
    ) -> Callable[[], Any]:
        """What prunes the model; its dense weights are put back here, off the clock, where it was pruned before."""
        from winnow.compression.counts import per_tensor
        from winnow.compression.methods import resolve
        from winnow.compression.prune import Pruner
        from winnow.compression.recipe import Recipe

        recipe = Recipe(
            method=method,
            **resolve(method),
            sparsity=sparsity,
            zeros=round(sparsity * self.scope.numel),
            damp=0.01,
            sequential="layer",
        )
        if self.pruned:
            self.host.restore(self.scope)
        self.pruned = True

        def work() -> Any:
            zeros = per_tensor(recipe, self.host, self.scope)
            return Pruner(self.host, self.scope, recipe, zeros, batches, folder=folder).run()

        return work

    def seconds(self, method: str, sparsity: float, batches: list[Any]) -> float:
        work = self.prepare(method, sparsity, batches)
        started = time.perf_counter()
        pruned = work()
        took = time.perf_counter() - started
        if pruned.zeros != round(sparsity * self.scope.numel):
            raise RuntimeError(f"{method} left {pruned.zeros} zeros, not {sparsity} of {self.scope.numel}")
        return took


def calibration(source: Any, samples: int, length: int, batch_size: int, seed: int) -> list[dict[str, Any]]:
    """Batches of the corpus' validation text in the tokens of the model folder: the same for every contender."""
    from winnow.data import calibration_batches, open_data
    from winnow.models.source import open_model

    opened = open_model(source)
    return calibration_batches(
        open_data(common.data("corpus", "valid.txt.gz")), opened.tokenizer(), model_kind="causal-lm", samples=samples,
        length=length, batch_size=batch_size, seed=seed, config=opened.config,
    )  # fmt: skip
