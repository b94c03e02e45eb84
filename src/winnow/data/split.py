"""Splits that share no content, and the check that two data sets share none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from winnow.data.records import Records
from winnow.errors import InputError

PASSAGE = 2_000  # characters of running text that stay together
SHARED = 0.5  # of either set: with more of it in the other, one was given for the other
_SHINGLE = 100  # characters of consecutive lines: shorter ones ("CHAPTER I.", a verse) repeat by nature


def split_disjoint(
    records: Records, seed: int = 0, fractions: Sequence[float] | None = None, *, sizes: Sequence[int] | None = None
) -> tuple[Records, ...]:
    """Parts that share no content: equal inputs land in the same part, whatever their labels.

    Records are dealt out in the order of a hash of seed and content, so that the split does not depend on how they were
    sorted; within a part they keep their order. A running text is first cut into passages of about 2,000 characters, and
    so are documents when there are too few of them.

    Args:
        fractions: shares of the records (of the characters, for texts without labels); they may sum to less than 1.
        sizes: numbers of records instead; a part may exceed its size by the duplicates of one record.

    Raises:
        InputError: shares or sizes that cannot be had from so many distinct records.
    """
    requested = list(fractions if fractions is not None else sizes or ())
    if (fractions is None) == (sizes is None) or not requested:
        raise InputError("a split takes either fractions or sizes: give one of them.")
    if min(requested) <= 0 or (fractions is not None and sum(requested) > 1 + 1e-9):
        raise InputError(
            f"the parts {requested} of a split must be positive" + (" and sum to at most 1." if fractions else ".")
        )
    by_length = records.kind == "text" and records.labels is None
    if by_length and (records.running or len(records) < 8 * len(requested)):
        records = passages(records)
    groups: dict[bytes, list[int]] = {}
    for index, digest in enumerate(records.digests):
        groups.setdefault(digest, []).append(index)
    if len(groups) < len(requested):
        raise InputError(
            f"{records.name} has {len(groups)} distinct records, too few for {len(requested)} disjoint parts: give more data."
        )
    if sizes is not None and sum(sizes) > len(records):
        raise InputError(f"{records.name} has {len(records)} records, {sum(sizes)} were requested: give smaller parts.")
    order = sorted(groups, key=lambda digest: hashlib.sha256(b"%d:" % seed + digest).digest())
    weights = [len(text) for text in records.inputs] if by_length and fractions is not None else [1] * len(records)
    bounds = [part * sum(weights) for part in requested] if fractions is not None else requested
    parts: list[list[int]] = [[] for _ in requested]
    held = [0] * len(requested)
    for digest in order:
        # To the part that lacks the largest share of what it was promised: long documents are spread evenly.
        lacking = [(bound - has) / bound for bound, has in zip(bounds, held)]
        number = lacking.index(max(lacking))
        if lacking[number] <= 1e-9:
            break
        parts[number] += groups[digest]
        held[number] += sum(weights[i] for i in groups[digest])
    if sizes is not None and any(len(part) < size for part, size in zip(parts, sizes)):
        raise InputError(
            f"{records.name} repeats records too often for disjoint parts of {list(sizes)}: give smaller parts."
        )
    name = f"{records.sha256}:{seed}:{requested}"
    return tuple(replace(records.subset(sorted(part)), part_of=name) for part in parts)


def passages(records: Records, characters: int = PASSAGE) -> Records:
    """Texts as passages of at least ``characters`` (the last of a text may be shorter).

    Cuts fall between lines, or between words where a line is longer than that.
    """
    joined = [records.joiner.join(records.inputs)] if records.running else records.inputs
    cut: list[str] = []
    for text in joined:
        start = 0
        while start < len(text):
            end = start + characters
            stop = text.find("\n", end)
            if stop < 0 or stop > end + characters:
                stop = text.find(" ", end)
            stop = stop if stop >= 0 else len(text)
            cut.append(text[start:stop])
            start = stop + 1
    cut = [passage for passage in cut if passage.strip()]
    return replace(records, inputs=cut, labels=None)


def overlap(a: Records, b: Records) -> int:
    """How many records of ``b`` are in ``a`` too, by content.

    Where either is a running text, stretches of whole lines of 100 characters and more are compared instead of records,
    so that the same text cut in another way is found; a single line that both hold is not counted. Of parts of one split,
    whole records are compared: a text may well repeat itself.
    """
    if a.kind != b.kind:
        return 0
    if not (a.running or b.running) or (a.part_of is not None and a.part_of == b.part_of):
        seen = set(a.digests)
        return sum(digest in seen for digest in b.digests)
    stretches = _spans(a)
    return len({min(numbers) for stretch, numbers in _spans(b).items() if stretch in stretches})


def disjoint(records: Records, held_out: Records, use: str = "calibration") -> tuple[Records, str | None]:
    """``records`` without those that ``held_out`` has too, and a sentence that says how many were left out, if any.

    Official splits of many data sets share some records: they are left out of ``records``, so that every example that is
    measured on is one that nothing was fitted to, however many of the two they are. More than :data:`SHARED` of either
    means that one was given for the other.

    Args:
        use: what ``records`` are for, in the sentences.

    Raises:
        InputError: too much is shared.
    """
    shared = overlap(records, held_out)
    if not shared:
        return records, None
    kept = _unshared(records, held_out)
    lost = len(records) - len(kept)
    if shared > SHARED * len(held_out) or lost > SHARED * len(records) or len(kept) < 2:
        raise InputError(
            f"{records.name} and {held_out.name} share {shared:,} records, which is most of one of them: {use} and evaluation data must not: give --eval data "
            "that is not in --data, or leave --eval out to have a part held out."
        )
    return (
        records.subset(kept),
        f"{lost:,} of the {len(records):,} records of {records.name} are evaluation data too ({held_out.name}) and were left out of the {use} data.",
    )


def _unshared(records: Records, held_out: Records) -> list[int]:
    """Numbers of the records of which nothing is in ``held_out``."""
    if not (records.running or held_out.running):
        seen = set(held_out.digests)
        return [i for i, digest in enumerate(records.digests) if digest not in seen]
    stretches = _spans(held_out)
    taken = {number for stretch, numbers in _spans(records).items() if stretch in stretches for number in numbers}
    return [i for i in range(len(records)) if i not in taken]


def _spans(records: Records) -> dict[bytes, set[int]]:
    """Stretches of consecutive lines, one from each line on, and the records that each lies in."""
    texts = list(enumerate(records.inputs))
    found: dict[bytes, set[int]] = {}
    for part in [texts] if records.running else [[text] for text in texts]:
        lines = [(line.strip(), number) for number, text in part for line in text.split("\n") if line.strip()]
        for start, (line, _) in enumerate(lines):
            stretch, end = line, start + 1
            while len(stretch) < _SHINGLE and end < len(lines):
                stretch, end = stretch + "\n" + lines[end][0], end + 1
            if len(stretch) >= _SHINGLE:
                name = hashlib.sha256(stretch.encode("utf-8", "surrogatepass")).digest()[:16]
                found.setdefault(name, set()).update(number for _, number in lines[start:end])
    return found
