"""What all candidates of a compression share, and what is reckoned on it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from winnow.compression.counts import allocation_needs_data, dense_statistics, per_tensor
from winnow.compression.hosts import Host
from winnow.compression.recipe import Recipe
from winnow.formats.shards import Layout
from winnow.masks.prunable import Scope
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task
from winnow.run.store import Store

Progress = Callable[[int, int, str], None]


class Workbench:
    """The host, the scope, the batches, the task, the store."""

    def __init__(
        self,
        host: Host,
        scope: Scope,
        batches: Sequence[Any],
        task: Task | None,
        store: Store,
        *,
        identity: dict[str, str],
        spill: bool = False,
        device: str = "cpu",
        progress: Callable[[str], Progress] | None = None,
    ) -> None:
        self.host, self.scope, self.batches, self.task, self.store = host, scope, batches, task, store
        self.identity, self.device = identity, device
        self._dense_layout: Layout | None = None
        self.spill = store.folder("activations") if spill else None
        self._progress = progress
        self._statistics: dict[str, Any] | None = None
        self._reference: Any = None
        self.dense: Evaluation | None = None
        self.timing: dict[str, float] = {}
        self.notes: list[str] = []  # on all candidates, for the report

    def progress(self, stage: str) -> Progress | None:
        return self._progress(stage) if self._progress else None

    def counts(self, recipe: Recipe) -> dict[str, int]:
        """How many weights each tensor gives up; walks the dense model first where the split reads activations."""
        if recipe.zeros == 0:
            return dict.fromkeys(self.scope.prunables, 0)
        stats = None
        if allocation_needs_data(recipe) and self.batches:
            stats = self.statistics()
        return per_tensor(recipe, self.host, self.scope, stats)

    def statistics(self) -> dict[str, Any]:
        """Input norms of the dense model, computed once."""
        if self._statistics is None:
            self.host.restore(self.scope)
            self._statistics = dense_statistics(
                self.host, self.scope, self.batches, self.progress("statistics of the dense model")
            )
        return self._statistics
