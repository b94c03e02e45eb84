"""What the quick measurement times: inputs as long as the data's own, and of 128 tokens; of images one and eight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from winnow.data.records import map_tensors
from winnow.data.text import Batch
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.compression.setup import Setup
    from winnow.speed.workload import Work

STANDARD, TOKENS = 128, 16  # tokens of a text or prompt; tokens decoded after it
SHORTEST = 8  # tokens of a prompt at least
MANY = 8  # images at once
ALIKE = 1.25  # a text of the data's own length is not timed twice where that is as near to the standard one


def quick_works(setup: Setup) -> list[Work]:
    """The cases, the one that a headline is about first; none where there is nothing to call the model with."""
    kind, batches = setup.prepared.kind, setup.prepared.batches
    from winnow.models.kind import processor_of
    from winnow.speed.workload import context_of, random_batch

    if kind in ("vision", "tensors"):
        given: list[Batch] = list(batches[:1])
        if not given and kind == "vision":
            with suppress(InputError):
                given = [random_batch(setup.source, kind, MANY, 0, 0)]
        return _several(given[0], "image" if kind == "vision" else "input") if given else []
    processor = None
    with suppress(InputError):
        processor = processor_of(setup.source, kind, None)
    most = context_of(setup.source.config, processor)
    length = STANDARD if most is None else max(1, min(STANDARD, most - (TOKENS if kind == "causal-lm" else 0)))
    if not batches:
        with suppress(InputError):
            extra = TOKENS if kind == "causal-lm" else 0
            batches = [random_batch(setup.source, kind, 1, length + extra, 0)]
    texts = [batch for batch in batches if isinstance(batch, dict) and "input_ids" in batch]
    if not texts:
        return _several(batches[0], "input")[:1] if batches else []
    if kind == "causal-lm":
        return _decoding(texts, length)
    own = median_row(texts)
    size = int(own["input_ids"].shape[1])
    known = "the data's median length" if setup.prepared.batches else ""
    if kind != "encoder" or max(size, length) <= ALIKE * min(size, length):
        return [_text(own, known)]
    return [_text(own, known), _text(stretched(own, length), "")]


def lengths_of(batches: Sequence[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """(tokens without padding, number of the batch, row in it) of every text."""
    found = []
    for number, batch in enumerate(batches):
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        counts = [ids.shape[1]] * len(ids) if mask is None or mask.ndim != 2 else mask.sum(1).tolist()
        found += [(max(int(count), 1), number, row) for row, count in enumerate(counts)]
    return found


def median_row(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The text of median length (the longer of two in the middle), alone and without its padding."""
    ordered = sorted(lengths_of(batches))
    _, number, row = ordered[len(ordered) // 2]
    batch = batches[number]
    width, mask = batch["input_ids"].shape[1], batch.get("attention_mask")
    keep = torch.ones(width, dtype=torch.bool)
    if mask is not None and mask.ndim == 2 and bool(mask[row].any()):
        keep = mask[row].bool()  # padding may stand on either side

    def alone(tensor: torch.Tensor) -> torch.Tensor:
        one = tensor[row : row + 1]
        return one[:, keep] if one.ndim >= 2 and one.shape[1] == width else one

    return map_tensors(batch, alone)  # type: ignore[return-value]


def stretched(text: dict[str, Any], length: int) -> dict[str, Any]:
    """One text of another length: its tokens again and again, or the first of them."""
    width = text["input_ids"].shape[1]
    times = math.ceil(length / width)

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim != 2 or tensor.shape[1] != width:
            return tensor
        return tensor.repeat(1, times)[:, :length]

    return map_tensors(text, repeat)  # type: ignore[return-value]


def _text(batch: dict[str, Any], known: str) -> Work:
    from winnow.records.speed import Case
    from winnow.speed.workload import Work

    length = int(batch["input_ids"].shape[1])
    name = f"one text of {length} token{'s' if length != 1 else ''}{f', {known}' if known else ''}"
    return Work(Case(name=name, what="forward", batch=1, length=length, unit="texts"), [batch])


def _decoding(texts: Sequence[dict[str, Any]], length: int) -> list[Work]:
    """A prompt, and the tokens that follow it one by one: what is felt first, first."""
    from winnow.records.speed import Case
    from winnow.speed.workload import Work

    whole = stretched({"input_ids": median_row(texts)["input_ids"]}, length + TOKENS)["input_ids"]
    prompt = whole[:, :length]
    prefill = Case(
        name=f"a prompt of {length} tokens", what="prefill", batch=1, length=length, unit="tokens", per_call=length
    )
    works = [Work(prefill, [{"input_ids": prompt}])]
    if length >= SHORTEST:
        decode = Case(name=f"one token after {length}", what="decode", batch=1, length=length, unit="tokens")
        works.insert(0, Work(decode, [{"input_ids": prompt}], whole[:, length:]))
    return works


def _several(batch: Batch, noun: str) -> list[Work]:
    """One input, and as many as there are at once."""
    from winnow.records.speed import Case
    from winnow.speed.workload import Work, rows_of

    works = []
    for size in dict.fromkeys((1, min(MANY, rows_of(batch)))):
        name = f"one {noun}" if size == 1 else f"{size} {noun}s at once"
        case = Case(name=name, what="forward", batch=size, unit=f"{noun}s", per_call=size)
        works.append(Work(case, [map_tensors(batch, lambda tensor, size=size: tensor[:size])]))  # type: ignore[misc]
    return works
