"""The same training without a single zero: what every ticket is compared with."""

from __future__ import annotations

from collections.abc import Iterator

from winnow.tickets.search import Search, Ticket


def dense(search: Search) -> Iterator[Ticket]:
    """T steps of the ordinary training. One ticket with zero zeros, whatever sparsities were asked for."""
    run = search.run("run-dense", "train dense")
    run.advance_to(run.total)
    yield search.ticket(run, 0)
