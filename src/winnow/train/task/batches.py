"""Labelled data as the examples of a training: joined and drawn anew, made when they are drawn, or batches as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from winnow.data.images import image_transform
from winnow.data.records import Records, map_tensors
from winnow.data.text import lm_segments
from winnow.data.tokens import context_length, encode, pad
from winnow.errors import InputError
from winnow.seeding import seeded
from winnow.train.examples import Examples, Part, batch_rows


class Fetched(Examples):
    """Examples made when they are drawn: images decoded, data sets indexed and collated.

    ``fetch(indices)`` gives the batch. Its random numbers (augmentation, random masking) depend on the indices and
    the seed alone, so that a resumed run sees what an uninterrupted one saw.
    """

    def __init__(self, count: int, size: int, fetch: Callable[[list[int]], Any], seed: int = 0) -> None:
        if not count:
            raise InputError("the training data is empty: give at least two records.")
        self.count, self.size, self.fetch, self.seed = count, size, fetch, seed

    @property
    def drawn_whole(self) -> bool:
        return False

    def take(self, index: torch.Tensor) -> Any:
        numbers = index.tolist()
        with seeded(self.seed, "fetch", numbers):
            return self.fetch(numbers)

    def subset(self, numbers: torch.Tensor) -> Examples:
        return Part(self, numbers)  # nothing is at hand that could be copied


class Whole(Examples):
    """Batches as they came, drawn whole, in a new order every epoch."""

    def __init__(self, batches: Sequence[Any]) -> None:
        if not len(batches):
            raise InputError("the training data gives no batch: give at least one.")
        self.batches = list(batches)
        sizes = [self._rows(i) for i in range(len(self.batches))]
        self.size, self.count = max(sizes), sum(sizes)

    def _rows(self, batch: int) -> int:
        rows = batch_rows(self.batches[batch])
        return 1 if rows is None else rows


class _Images:
    """Decodes and prepares images by number."""

    def __init__(self, records: Records, labels: torch.Tensor | None, processor: Any, key: str | None) -> None:
        self.records, self.labels, self.key = records, labels, key
        self.convert = image_transform(processor)

    def __call__(self, numbers: list[int]) -> Any:
        pixels = self.convert(self.records.subset(numbers).inputs)
        if self.labels is None:
            return (pixels,) if self.key is None else {self.key: pixels}
        labels = self.labels[torch.tensor(numbers)]
        return (pixels, labels) if self.key is None else {self.key: pixels, "labels": labels}


class _Collated:
    """Items of a data set by number, put together by the loader's own function."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __call__(self, numbers: list[int]) -> Any:
        return self.collate([self.dataset[i] for i in numbers])


def labelled(
    records: Records, labels: torch.Tensor | None, processor: Any, *, batch: int, length: int | None, pixels: str | None
) -> Examples:
    """Records and their labels as examples.

    Args:
        labels: int64 classes or float32 scores, [n]; None leaves them out of the batches.
        processor: tokenizer, or what prepares images.
        length: tokens a text is cut to.
        pixels: name of the images among the model's inputs; None where they are its first argument.
    """
    if records.kind in ("text", "pairs"):
        rows = encode(records.inputs, processor, length or 256)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        batches = [pad([rows[i] for i in group], processor) for group in groups]
        if labels is not None:
            batches = [{**b, "labels": labels[torch.tensor(group)]} for b, group in zip(batches, groups)]
        return Examples(batches, batch)
    if records.kind == "images":
        return Fetched(len(records), batch, _Images(records, labels, processor, pixels))
    inputs = map_tensors(records.inputs, lambda t: t.detach())
    if labels is not None:
        inputs = {**inputs, "labels": labels} if isinstance(inputs, dict) else (*inputs, labels)
    return Examples([inputs], batch)


def running_text(records: Records, tokenizer: Any, *, batch: int, length: int | None, config: Any) -> Examples:
    """Text in segments of ``length`` tokens, each its own label (the model shifts them)."""
    segments = lm_segments(records, tokenizer, length or context_length(tokenizer, config, "causal-lm"))
    return Examples(
        [{"input_ids": segments, "attention_mask": torch.ones_like(segments), "labels": segments.clone()}], batch
    )


def own_tokens(records: Records, batch: int) -> Examples:
    """Rows of token ids that are their own labels, but for padding."""
    inputs = dict(records.inputs) if isinstance(records.inputs, dict) else {"input_ids": records.inputs[0]}
    if "input_ids" not in inputs:
        raise InputError(f"{records.name} holds no input_ids: give token ids [n, length] under that name.")
    labels = inputs["input_ids"].long()
    if "attention_mask" in inputs:
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    return Examples([{**inputs, "labels": labels}], batch)


def from_loader(loader: Any, steps: int | None, seed: int) -> tuple[Examples, str]:
    """A DataLoader or any iterable of batches as examples, and a sentence about how its batches are drawn.

    A loader that goes over an indexable data set in order or shuffled is drawn anew every epoch through its own
    ``collate_fn``, augmentation included. Others are read once: their batches stay together.

    Raises:
        InputError: no batch, or an endless iterable without a number of steps.
    """
    from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        # Of a loader that accelerate has wrapped, only the batch sampler still knows order and size.
        batches_of = loader.batch_sampler
        sampler, size = getattr(batches_of, "sampler", None), getattr(batches_of, "batch_size", None)
        plain = isinstance(sampler, SequentialSampler) or (
            isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
        )
        if plain and type(batches_of) is BatchSampler and size:
            fetch = _Collated(loader.dataset, loader.collate_fn)
            drawn = Fetched(len(loader.dataset), size, fetch, seed)  # type: ignore[arg-type]
            return drawn, f"batches of {size} are drawn anew every epoch from the loader's data set."
    limit = None
    try:
        len(loader)
    except TypeError:  # endless, perhaps
        if steps is None:
            raise InputError("the data does not say how long it is: give steps.") from None
        limit = steps
    with seeded(seed, "loader"):
        read = Whole(list(islice(iter(loader), limit)))
    return read, f"the {read.parts} batches of the data were read once and are drawn whole, in a new order every epoch."


def is_batches(data: Any) -> bool:
    """Whether this is a DataLoader or another iterable of batches, not a collection of records."""
    if isinstance(data, torch.utils.data.DataLoader):
        return True
    known = (str, bytes, dict, list, tuple, torch.Tensor, np.ndarray, Records)
    return isinstance(data, Iterable) and not isinstance(data, known) and not hasattr(data, "__getitem__")
