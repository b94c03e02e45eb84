"""The same training without pruning: the baseline of every ticket."""

from __future__ import annotations

from collections.abc import Iterator

from winnow.tickets.method import Method, Settings
from winnow.tickets.search import Search, Ticket


def dense(search: Search) -> Iterator[Ticket]:
    """T steps of the ordinary training. One ticket of sparsity 0, whatever sparsities were requested."""
    run = search.run("run-dense", "train dense")
    run.advance_to(run.total)
    yield search.ticket(run, 0, losses=run.losses)


DENSE = Method(dense, "dense", "the same training without pruning", Settings, open_ended=True)
