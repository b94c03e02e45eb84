"""A fast tokenizer cut to the tokens that some texts use, so that those texts encode as before and any other still encodes.

Works on the JSON of ``tokenizers`` (``tokenizer.json``). Which tokens a text is made of depends on tokens that it is not made
of, which is why each kind of model keeps more than the used ones:

=========  ===========================================================================================================
WordPiece  all single characters. The longest match is always a used token; where a word failed (``[UNK]``) see below.
BPE        all single characters or bytes, and what the merges that lead to a used token make on the way: the merges of a
           text are then the same, in the same order.
Unigram    all single characters or bytes, and the piece of the lowest score, from which that of unknown ones follows.
WordLevel  nothing: words that are not used become the unknown token.
=========  ===========================================================================================================

Texts that encode otherwise all the same get every token that is a part of one of their words, which leaves nothing to differ.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.errors import InputError

KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LONGEST = 100  # characters of a part of a word
_BATCH = 1024


@dataclass(frozen=True)
class Cut:
    """``tokenizer``: the JSON of the smaller one; ``rows``: the old id of each new one, ascending; ``used``: tokens in the texts;
    ``encoded``: the texts in new ids."""

    tokenizer: dict[str, Any]
    rows: list[int]
    used: int
    encoded: list[list[int]]


def cut_tokenizer(whole: dict[str, Any], texts: Sequence[str], also: Iterable[int]) -> Cut:
    """Cuts ``whole``, the JSON of a tokenizer, to what ``texts`` need; ids in ``also`` stay too, and all added tokens.

    Every text is encoded by both, and has the same tokens in both.

    Raises:
        InputError: a kind of tokenizer that cannot be cut; the sentence names it.
    """
    model = whole["model"]
    if model.get("type") not in KINDS:
        raise InputError(f"--vocabulary cannot cut a tokenizer of kind {model.get('type')}: leave it out.")
    if model.get("type") == "BPE" and model.get("continuing_subword_prefix"):
        raise InputError("--vocabulary cannot cut a BPE tokenizer with a continuing_subword_prefix: leave it out.")
    ids = {**vocabulary(model), **{token["content"]: token["id"] for token in whole.get("added_tokens", [])}}
    tokens = {number: token for token, number in ids.items()}
    before = _encoded(whole, texts)
    used = {number for numbers in before for number in numbers}
    fixed = (
        {token["id"] for token in whole.get("added_tokens", [])} | _referred(whole) | {i for i in also if i in tokens}
    )
    keep = {tokens[number] for number in used | fixed} | _essential(model)
    for _ in range(2):
        closed = keep | _on_the_way(model, keep)
        smaller, rows = _smaller(whole, ids, closed)
        new = {old: number for number, old in enumerate(rows)}
        after = _encoded(smaller, texts)
        strange = [
            text for text, was, now in zip(texts, before, after, strict=True) if [new[number] for number in was] != now
        ]
        if not strange:
            return Cut(smaller, rows, len(used), after)
        keep |= _parts(whole, strange, ids)
    raise InputError(
        f"--vocabulary cannot cut this tokenizer: the text {strange[0][:60]!r} would no longer encode as before. Leave it out."
    )


def vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Token -> id of the model in a tokenizer's JSON."""
    if model["type"] == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _encoded(tokenizer: dict[str, Any], texts: Sequence[str]) -> list[list[int]]:
    import json

    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(tokenizer))
    made.no_padding()
    made.no_truncation()
    found: list[list[int]] = []
    for start in range(0, len(texts), _BATCH):
        found += [encoding.ids for encoding in made.encode_batch(list(texts[start : start + _BATCH]))]
    return found


def _essential(model: dict[str, Any]) -> set[str]:
    """Tokens that no text may need and every tokenizer has to have."""
    tokens = vocabulary(model)
    if model["type"] == "WordLevel":
        found = set()
    else:
        prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
        found = {
            t
            for t in tokens
            if len(t.removeprefix(prefix).removesuffix(suffix)) == 1 or len(t) == 1 or _BYTE.fullmatch(t)
        }
    if model["type"] == "Unigram":
        found.add(min(model["vocab"], key=lambda entry: entry[1])[0])
        if model.get("unk_id") is not None:
            found.add(model["vocab"][model["unk_id"]][0])
    unknown = model.get("unk_token")
    return found | ({unknown} if unknown in tokens else set())


def _on_the_way(model: dict[str, Any], tokens: set[str]) -> set[str]:
    """What BPE's merges make before they make each of ``tokens``."""
    if model["type"] != "BPE":
        return set()
    ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
    suffix, found = model.get("end_of_word_suffix") or "", set()
    for token in tokens:
        bare = token.removesuffix(suffix) if suffix else token
        symbols = list(bare)
        if symbols and bare != token:
            symbols[-1] += suffix
        while len(symbols) > 1:
            best = min(range(len(symbols) - 1), key=lambda i: ranks.get((symbols[i], symbols[i + 1]), len(ranks)))
            if (symbols[best], symbols[best + 1]) not in ranks:
                break
            symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
            found.add(symbols[best])
    return found


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of BPE in their order: pairs, or in older files texts."""
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]  # type: ignore[misc]


def _parts(whole: dict[str, Any], texts: Sequence[str], ids: dict[str, int]) -> set[str]:
    """All tokens that are a part of a word of ``texts``."""
    import json

    from tokenizers import Tokenizer

    made, found = Tokenizer.from_str(json.dumps(whole)), set()
    prefix, suffix = (
        whole["model"].get("continuing_subword_prefix") or "",
        whole["model"].get("end_of_word_suffix") or "",
    )
    for text in texts:
        text = made.normalizer.normalize_str(text) if made.normalizer is not None else text
        words = made.pre_tokenizer.pre_tokenize_str(text) if made.pre_tokenizer is not None else [(text, None)]
        for word in {word for word, _ in words}:
            for start in range(len(word)):
                for stop in range(start + 1, min(len(word), start + _LONGEST) + 1):
                    part = word[start:stop]
                    found |= {t for t in (part, prefix + part, part + suffix) if t in ids}
    return found


def _smaller(whole: dict[str, Any], ids: dict[str, int], keep: set[str]) -> tuple[dict[str, Any], list[int]]:
    """The JSON with the tokens of ``keep`` only, in their order; and the old id of each."""
    rows = sorted(ids[token] for token in keep)
    new = {old: number for number, old in enumerate(rows)}
    made = copy.deepcopy(whole)
    model = made["model"]
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in keep]
        model["unk_id"] = None if unknown is None else new[unknown]
    else:
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if token in keep}
    if model["type"] == "BPE":
        pairs = [(a, b) for a, b in _merges(model) if a in keep and b in keep and a + b in model["vocab"]]
        model["merges"] = [list(pair) for pair in pairs]
    for token in made.get("added_tokens", []):
        token["id"] = new[token["id"]]
    if made.get("padding"):
        made["padding"]["pad_id"] = new[made["padding"]["pad_id"]]
    for part in _processors(made.get("post_processor")):
        for special in part.get("special_tokens", {}).values() if part["type"] == "TemplateProcessing" else ():
            special["ids"] = [new[number] for number in special["ids"]]
        for name in ("sep", "cls"):
            if isinstance(part.get(name), list):
                part[name][1] = new[part[name][1]]
    return made, rows


def _referred(whole: dict[str, Any]) -> set[int]:
    """Ids that padding and post-processing name."""
    found = {whole["padding"]["pad_id"]} if whole.get("padding") else set()
    for part in _processors(whole.get("post_processor")):
        if part["type"] == "TemplateProcessing":
            found |= {number for special in part.get("special_tokens", {}).values() for number in special["ids"]}
        found |= {part[name][1] for name in ("sep", "cls") if isinstance(part.get(name), list)}
    return found


def _processors(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [found for one in part["processors"] for found in _processors(one)] if part["type"] == "Sequence" else [part]
