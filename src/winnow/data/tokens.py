"""Texts as token ids: one long row, or padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from winnow.data.records import EOS
from winnow.errors import InputError

_LENGTHS = {"causal-lm": 2048, "encoder": 256, "seq2seq": 512, "clip": 77}


def token_stream(texts: Sequence[str], tokenizer: Any, joiner: str = EOS, enough: int | None = None) -> torch.Tensor:
    """All texts as one row of token ids, int64 [tokens].

    With ``joiner="eos"`` each text is a document: delimited by the start token if the tokenizer adds one itself,
    otherwise followed by the end token. With any other joiner the texts are one text. Stops after ``enough`` tokens.
    """
    if joiner != EOS:
        return torch.tensor(_ids(tokenizer, [joiner.join(texts)])[0], dtype=torch.int64)[:enough]
    stream: list[int] = []
    start = getattr(tokenizer, "bos_token_id", None)
    delimiters = [getattr(tokenizer, name, None) for name in ("eos_token_id", "bos_token_id", "sep_token_id")]
    end = next((token for token in delimiters if token is not None), None)
    for first in range(0, len(texts), 64):
        for ids in _ids(tokenizer, list(texts[first : first + 64])):
            stream += ids
            delimited = bool(ids) and (ids[0] == start or ids[-1] == end)
            if not delimited and end is not None:
                stream.append(end)
        if enough is not None and len(stream) >= enough:
            break
    return torch.tensor(stream[:enough], dtype=torch.int64)


def encode(texts: Sequence[str] | Sequence[tuple[str, str]], tokenizer: Any, length: int) -> list[dict[str, list[int]]]:
    """Each text (or pair of texts) on its own as the tokenizer's fields, cut to ``length`` tokens."""
    require_tokenizer(tokenizer)
    encoded: list[dict[str, list[int]]] = []
    for first in range(0, len(texts), 256):
        part = texts[first : first + 256]
        columns: Any = zip(*part) if isinstance(part[0], (tuple, list)) else [part]
        columns = [[text.strip() for text in column] for column in columns]
        fields = tokenizer(*columns, truncation=True, max_length=length)
        keys = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in fields]
        encoded += [{key: list(fields[key][i]) for key in keys} for i in range(len(part))]
    return encoded


def pad(rows: Sequence[dict[str, list[int]]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Encoded texts as int64 tensors [n, longest], padded on the right; the attention mask is 0 there."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = getattr(tokenizer, "pad_token_id", None)
    if fill is None:
        fill = getattr(tokenizer, "eos_token_id", None) or 0
    batch = {}
    for key in rows[0]:
        empty = fill if key == "input_ids" else 0
        batch[key] = torch.tensor([row[key] + [empty] * (width - len(row[key])) for row in rows], dtype=torch.int64)
    batch.setdefault(
        "attention_mask", torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows])
    )
    return batch


def set_pad_token_id(config: Any, tokenizer: Any) -> None:
    """Tells a configuration without ``pad_token_id`` what the batches here are padded with (see :func:`pad`).

    Classifiers on decoders read their answer at the last token that is not padding, and refuse batches without knowing it.
    """
    if getattr(config, "pad_token_id", 0) is None and tokenizer is not None:
        given = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        config.pad_token_id = next((token for token in given if token is not None), None)


def context_length(tokenizer: Any, config: Any, kind: str = "causal-lm") -> int:
    """Tokens the model takes at once, but no more than calibration and evaluation gain from."""
    config = getattr(config, "text_config", None) or config
    known = [getattr(tokenizer, "model_max_length", None)]
    known += [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_sequence_length")]
    return min([int(n) for n in known if n is not None and n > 1] + [_LENGTHS.get(kind, 512)])


def require_tokenizer(tokenizer: Any) -> None:
    """Raises InputError where there is none."""
    if tokenizer is None or not callable(tokenizer):
        raise InputError(
            "the model brings no tokenizer: add its tokenizer files to the folder, or give data as token tensors."
        )


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    require_tokenizer(tokenizer)
    # A text longer than the context is cut into segments afterwards: no reason to warn.
    return [list(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
