"""The dense model with its data, and what is computed from them once for all candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from winnow.compression.counts import allocation_needs_data, dense_statistics, per_tensor
from winnow.compression.hosts import Host
from winnow.compression.recipe import Recipe
from winnow.compression.sizes import dense_layout
from winnow.formats.shards import Layout
from winnow.masks.prunable import Scope

Progress = Callable[[int, int, str], None]


class Workbench:
    """A model to prune again and again, what is prunable in it, and calibration batches."""

    def __init__(
        self, host: Host, scope: Scope, batches: Sequence[Any], progress: Callable[[str], Progress] | None = None
    ) -> None:
        self.host, self.scope, self.batches, self._progress = host, scope, batches, progress

    def progress(self, stage: str) -> Progress | None:
        return self._progress(stage) if self._progress else None

    def counts(self, recipe: Recipe) -> dict[str, int]:
        """How many weights each tensor loses; walks the dense model first where the allocation reads activations."""
        if recipe.zeros == 0:
            return dict.fromkeys(self.scope.prunables, 0)
        stats = self.statistics if allocation_needs_data(recipe) and self.batches else None
        return per_tensor(recipe, self.host, self.scope, stats)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Input norms of the dense model, which is put back first."""
        self.host.restore(self.scope)
        progress = self.progress("statistics of the dense model")
        return dense_statistics(self.host, self.scope, self.batches, progress)

    @cached_property
    def layout(self) -> Layout:
        """The tensors that stay dense, without their values."""
        return dense_layout(self.host, self.scope)
