"""From probes to components: sets of output features and input features that only make sense together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from winnow.coupled.cut import Cols, Rows, Seen


class Probe(Protocol):
    """What the search asks of a module; see :class:`winnow.coupled.cut.CutProbe`."""

    producers: dict[str, int]
    consumers: dict[str, int]

    def escaping(self) -> Rows: ...
    def sources(self, consumer: str, mask: torch.Tensor) -> Rows: ...
    def reach(self, rows: Rows) -> Seen: ...


@dataclass(frozen=True)
class Component:
    """Output features (rows) and the input features (cols) they reach, closed under both."""

    rows: dict[str, tuple[int, ...]]
    cols: dict[str, tuple[int, ...]]
    escapes: bool  # some row also reaches the module's output

    @cached_property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(sorted(self.rows)), tuple(sorted(self.cols))


def code_bits(n: int) -> int:
    return max(1, (n - 1).bit_length())


class _Links:
    """Edges between rows and columns, and the connected components they make."""

    def __init__(self, producers: Mapping[str, int], consumers: Mapping[str, int]) -> None:
        self.offsets: dict[tuple[str, str], int] = {}
        self.total = 0
        for side, sizes in (("row", producers), ("col", consumers)):
            for name, n in sizes.items():
                self.offsets[side, name] = self.total
                self.total += n
        self.edges: list[tuple[torch.Tensor, torch.Tensor]] = []

    def join(self, producer: str, rows: torch.Tensor, consumer: str, cols: torch.Tensor) -> None:
        self.edges.append((rows + self.offsets["row", producer], cols + self.offsets["col", consumer]))

    def star(self, rows: Rows, cols: Cols) -> None:
        """Everything given belongs to one component."""
        nodes = [self.offsets["row", n] + m.nonzero().flatten() for n, m in rows.items()]
        nodes += [self.offsets["col", n] + m.nonzero().flatten() for n, m in cols.items() if ("col", n) in self.offsets]
        every = torch.cat(nodes)
        self.edges.append((every[:1].expand(len(every)), every))

    def components(self, escapes: Rows) -> list[Component]:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not self.edges:
            return []
        a, b = (torch.cat([e[i] for e in self.edges]).numpy() for i in (0, 1))
        _, labels = connected_components(coo_array(([True] * len(a), (a, b)), shape=(self.total, self.total)), False)
        rows: dict[int, dict[str, list[int]]] = {}
        cols: dict[int, dict[str, list[int]]] = {}
        linked = {int(label) for label in labels[a]}
        bounds = [*self.offsets.values(), self.total]
        escaped: set[int] = set()
        for n, (side, name) in enumerate(self.offsets):
            for i, label in enumerate(labels[bounds[n] : bounds[n + 1]].tolist()):
                if label in linked:
                    (rows if side == "row" else cols).setdefault(label, {}).setdefault(name, []).append(i)
                    if side == "row" and bool(escapes[name][i]):
                        escaped.add(label)
        keys = sorted(linked, key=lambda k: sorted((n, i[0]) for n, i in cols.get(k, {}).items()))
        return [
            Component(
                {n: tuple(i) for n, i in rows.get(k, {}).items()},
                {n: tuple(i) for n, i in cols.get(k, {}).items()},
                k in escaped,
            )
            for k in keys
        ]


def find_components(probe: Probe) -> list[Component]:
    """Every component with at least one row and one column, ordered by column.

    A row that reaches one column of a consumer (a neuron, a value row, a channel) is read off binary codes
    of the columns: 2 log2(cols) backward probes for all rows at once. The others (query and key rows, and
    rows whose gradient vanished) are followed row -> columns -> rows until nothing new turns up, which
    takes a few probes for each head.
    """
    escapes = probe.escaping()
    links = _Links(probe.producers, probe.consumers)
    answered = {name: torch.zeros(n, dtype=torch.bool) for name, n in probe.producers.items()}
    tangled = {name: torch.zeros(n, dtype=torch.bool) for name, n in probe.producers.items()}
    for consumer, features in probe.consumers.items():
        heard = probe.sources(consumer, torch.ones(features, dtype=torch.bool))
        for name, mask in heard.items():
            answered[name] |= mask
        if any(bool((mask & ~escapes[name]).any()) for name, mask in heard.items()):
            _decode(probe, consumer, features, heard, links, tangled)
    done = {name: torch.zeros(n, dtype=torch.bool) for name, n in probe.producers.items()}
    silent = {name: ~answered[name] & ~escapes[name] for name in probe.producers}
    for name, mask in silent.items():
        if bool(mask.any()) and any(bool(c.any()) for c in probe.reach({name: mask}).cols.values()):
            tangled[name] |= mask
    for name, mask in tangled.items():
        for row in (mask & ~escapes[name]).nonzero().flatten().tolist():
            if not done[name][row]:
                _follow(probe, name, row, links, escapes, done)
    return [c for c in links.components(escapes) if c.rows and c.cols]


def _decode(probe: Probe, consumer: str, features: int, heard: Rows, links: _Links, tangled: Rows) -> None:
    index = torch.arange(features)
    column = {name: torch.zeros(n, dtype=torch.long) for name, n in probe.producers.items()}
    single = {name: mask.clone() for name, mask in heard.items()}
    for bit in range(code_bits(features)):
        one = (index >> bit & 1).bool()
        ones, zeros = probe.sources(consumer, one), probe.sources(consumer, ~one)
        for name in single:
            single[name] &= ones[name] ^ zeros[name]
            column[name] += ones[name].long() << bit
    for name, mask in single.items():
        rows = mask.nonzero().flatten()
        if len(rows):
            links.join(name, rows, consumer, column[name][rows])
        tangled[name] |= heard[name] & ~mask


def _follow(probe: Probe, name: str, row: int, links: _Links, escapes: Rows, done: Rows) -> None:
    rows = {p: torch.zeros(n, dtype=torch.bool) for p, n in probe.producers.items()}
    rows[name][row] = True
    while True:
        before = sum(int(m.sum()) for m in rows.values())
        # Rows that escape feed the whole module through its residual stream: they end the search.
        cols = probe.reach({p: m & ~escapes[p] for p, m in rows.items() if bool((m & ~escapes[p]).any())}).cols
        for consumer, mask in cols.items():
            if consumer in probe.consumers and bool(mask.any()):
                for p, m in probe.sources(consumer, mask).items():
                    rows[p] |= m
        if sum(int(m.sum()) for m in rows.values()) == before:
            break
    for p, m in rows.items():
        done[p] |= m
    links.star(rows, cols)


@dataclass(frozen=True)
class Separation:
    """Which components failed to be separate, and whose each feature on the way is (-1 none, -2 several)."""

    failed: set[int]
    norms: dict[str, torch.Tensor]  # output features of normalizations
    between: dict[str, torch.Tensor]  # input features of grouped convolutions


def separate(probe: Probe, components: Sequence[Component]) -> Separation:
    """Proves that components are independent of each other, and names those that are not.

    NaN is put into the rows of half of the components at a time, along the bits of their numbers, and once
    into all rows that are in no component. A component is separate when each of its columns lights up
    with its own number and never otherwise, no other column does, and the module's output never does. This
    holds for every input, as NaN passes through any arithmetic whatever the values are.
    """
    bits = code_bits(len(components))
    numbers = owners_of(components, "rows", probe.producers)
    hits: dict[tuple[str, str], list[torch.Tensor]] = {}  # feature -> per probe: reached?
    outs: list[bool] = []
    for bit in range(bits):
        for side in (1, 0):
            seen = probe.reach({n: (number >= 0) & ((number >> bit & 1) == side) for n, number in numbers.items()})
            outs.append(seen.out)
            for kind, found in (("col", seen.cols), ("norm", seen.norms)):
                for name, flag in found.items():
                    hits.setdefault((kind, name), []).append(flag)
    owners = {key: _owner(flags) for key, flags in hits.items() if len(flags) == 2 * bits}
    foreign = probe.reach({n: number < 0 for n, number in numbers.items()}).cols
    failed = {
        n for n in range(len(components)) if all(outs[2 * bit + (0 if n >> bit & 1 else 1)] for bit in range(bits))
    }
    unclear: list[tuple[str, int]] = []
    for name, expected in owners_of(components, "cols", probe.consumers).items():
        actual = owners.get(("col", name), torch.full_like(expected, -2))
        failed |= set(expected[foreign[name]].tolist())
        for i in (expected != actual).nonzero().flatten().tolist():
            failed |= {int(expected[i]), int(actual[i])}
            if int(actual[i]) == -2:
                unclear.append((name, i))
    if unclear:
        for names in dict.fromkeys(c.names for c in components):
            group = {n for n, c in enumerate(components) if c.names == names}
            rows = owners_of([components[n] for n in group], "rows", probe.producers)
            seen = probe.reach({n: number >= 0 for n, number in rows.items()})
            if any(bool(seen.cols[name][i]) for name, i in unclear):
                failed |= group
    norms = {name: owner for (kind, name), owner in owners.items() if kind == "norm"}
    between = {n: owner for (kind, n), owner in owners.items() if kind == "col" and n not in probe.consumers}
    return Separation(failed - {-1, -2}, norms, between)


def mask_of(index: Sequence[int], length: int) -> torch.Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.tensor(index, dtype=torch.long)] = True
    return mask


def owners_of(
    components: Sequence[Component], side: Literal["rows", "cols"], sizes: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """The number of the component that each feature belongs to, -1 where it is in none."""
    flat: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in sizes}
    for number, component in enumerate(components):
        for name, index in (component.rows if side == "rows" else component.cols).items():
            flat[name][0].extend(index)
            flat[name][1].extend([number] * len(index))
    owners = {}
    for name, (features, numbers) in flat.items():
        owners[name] = torch.full((sizes[name],), -1)
        owners[name][torch.tensor(features, dtype=torch.long)] = torch.tensor(numbers, dtype=torch.long)
    return owners


def _owner(flags: list[torch.Tensor]) -> torch.Tensor:
    owner, clear, dark = flags[0].long() * 0, torch.ones_like(flags[0]), torch.ones_like(flags[0])
    for bit in range(len(flags) // 2):
        one, zero = flags[2 * bit], flags[2 * bit + 1]
        owner += one.long() << bit
        clear &= one ^ zero
        dark &= ~one & ~zero
    return torch.where(clear, owner, torch.where(dark, -1, -2))
