"""Which training examples masks are scored on: mini-batches of an epoch, or as many examples of every class."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from winnow.seeding import generator
from winnow.train.examples import Examples, Part

PER_CLASS = 10  # examples of every class at least
LARGEST = 512  # examples of a part at most: a second derivative holds all their activations
FEW = 100  # examples in which classes need not come twice
LOOK, LOOK_AT_MOST = 2, 8  # times as many examples as are needed are looked through for their classes


def mini_batches(examples: Examples, seed: int, count: int) -> list[torch.Tensor]:
    """The first so many mini-batches of the scoring's own epochs, each an index for ``examples.take``."""
    found: list[torch.Tensor] = []
    for epoch in range(-(-count // examples.parts)):
        found += examples.order(generator(seed, "scores", epoch))
    return found[:count]


def every_class(examples: Examples, seed: int, batches: int) -> list[torch.Tensor]:
    """Two halves of a set with as many examples of every class, each an index for ``examples.take``.

    There are ``batches`` times the size of a mini-batch in all, and never fewer than ``PER_CLASS`` of a class as far as
    the data has them (rare classes are made up for by others). Classes are looked for in a part of the data, which a
    class of 1/C of it is not missed in. Without class numbers (real-valued targets, running text) they are drawn as
    they come. Both halves hold all classes; halves of more than ``LARGEST`` examples are divided again. Batches that are
    drawn whole stay whole: so many of them, and more until they hold ``PER_CLASS`` of every class seen.
    """
    drawn = torch.cat(examples.order(generator(seed, "scores", 0)))
    if examples.drawn_whole:
        return _whole_batches(examples, drawn, batches)
    count = batches * examples.size
    labels = _labels(examples, drawn, count)
    chosen = drawn[:count] if labels is None else drawn[_balanced(labels, count)]
    parts = 2 * -(-len(chosen) // (2 * LARGEST))
    return list(chosen.tensor_split(min(parts, max(len(chosen) // 2, 1))))  # a batch norm needs two examples


def steps_of(examples: Examples, drawn: list[torch.Tensor]) -> float:
    """How many mini-batches of the training these examples are."""
    return len(drawn) if examples.drawn_whole else sum(map(len, drawn)) / examples.size


def class_numbers(batch: Any, rows: int) -> torch.Tensor | None:
    """The one tensor [rows] of whole numbers in a batch; None where there is none, or more than one."""
    leaves = [t for t in tree_leaves(batch) if torch.is_tensor(t) and t.shape == (rows,)]
    found = [t for t in leaves if not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool]
    return found[0] if len(found) == 1 else None


def _whole_batches(examples: Examples, drawn: torch.Tensor, batches: int) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    counts: Counter[int] = Counter()
    for index in drawn.split(1):
        classes = bool(counts) and 2 * len(counts) <= counts.total()
        few = classes and min(counts.values()) < PER_CLASS and len(found) < LOOK_AT_MOST * batches
        if len(found) >= batches and not few:
            break
        labels = class_numbers(examples.take(index), examples.rows(index))
        counts.update([] if labels is None else labels.tolist())
        found.append(index)
    return found


def _labels(examples: Examples, drawn: torch.Tensor, count: int) -> torch.Tensor | None:
    """Class numbers of the first of ``drawn``, int64, until all classes have been seen often enough; None without."""
    found: list[torch.Tensor] = []
    counts: Counter[int] = Counter()
    seen = 0
    for index in drawn.split(examples.size):
        labels = _labels_of(examples, index)
        if labels is None:
            return None
        found.append(labels.detach().cpu().long())
        counts.update(found[-1].tolist())
        seen += len(index)
        if seen >= max(LOOK * count, FEW) and 2 * len(counts) > seen:
            return None  # numbers that hardly ever come twice are no classes
        total = max(count, PER_CLASS * len(counts))
        if seen >= LOOK * total and (min(counts.values()) >= PER_CLASS or seen >= LOOK_AT_MOST * total):
            break
    return torch.cat(found)


def _labels_of(examples: Examples, index: torch.Tensor) -> torch.Tensor | None:
    whole = examples
    while isinstance(whole, Part):
        whole = whole.whole
    known = getattr(getattr(whole, "fetch", None), "labels", None)  # images need not be decoded for it
    if torch.is_tensor(known):
        return None if known.is_floating_point() or known.ndim != 1 else known[index]
    return class_numbers(examples.take(index), len(index))


def _balanced(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Places in ``labels``, rising: equally many of every class, and the first of the others up to ``count``."""
    classes = labels.unique()
    quota = max(count // len(classes), PER_CLASS)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for number in classes:
        chosen[(labels == number).nonzero().squeeze(1)[:quota]] = True
    missing = count - int(chosen.sum())
    if missing > 0:
        chosen[(~chosen).nonzero().squeeze(1)[:missing]] = True
    return chosen.nonzero().squeeze(1)
