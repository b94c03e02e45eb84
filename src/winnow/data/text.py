"""Records as model input: language-model segments and calibration batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from winnow.data.images import image_transform
from winnow.data.records import EOS, Records, map_tensors
from winnow.data.split import passages
from winnow.data.tokens import context_length, encode, pad, require_tokenizer, token_stream
from winnow.errors import InputError

ModelKind = Literal["causal-lm", "encoder", "seq2seq", "vision", "clip", "tensors"]
Batch = dict[str, torch.Tensor] | tuple[torch.Tensor, ...]


def lm_segments(
    texts: Records | Sequence[str], tokenizer: Any, length: int, limit: int | None = None, joiner: str | None = None
) -> torch.Tensor:
    """Concatenated text cut into segments without overlap, int64 [n, length]; the incomplete last one is left out.

    Args:
        limit: the first ``limit`` segments only.
        joiner: see :func:`winnow.data.tokens.token_stream`; by default what the records say, ``"eos"`` for a list.

    Raises:
        InputError: the text gives not even one segment.
    """
    texts, joiner = _texts_of(texts, joiner)
    if length < 2:
        raise InputError(f"segments of {length} tokens predict nothing: give a length of 2 or more.")
    stream = token_stream(texts, tokenizer, joiner, None if limit is None else limit * length)
    n = len(stream) // length
    if n == 0:
        raise InputError(
            f"the text has {len(stream)} tokens, too few for a segment of {length}: give more text or a smaller length."
        )
    return stream[: n * length].view(n, length)


def calibration_batches(
    records: Records,
    processor: Any = None,
    *,
    model_kind: ModelKind,
    samples: int = 128,
    length: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    transform: Any = None,
    config: Any = None,
) -> list[Batch]:
    """Calibration data as the batches a model's forward takes; the same seed gives the same batches.

    ===========  ====================================================================================================
    model_kind   a batch
    ===========  ====================================================================================================
    causal-lm    random crops of ``length`` tokens of the concatenated documents: input_ids, attention_mask
    encoder      whole texts sorted by length, padded: input_ids, attention_mask (and token_type_ids)
    seq2seq      as encoder, and decoder_input_ids: a text's second half follows its first, a pair's second its first
    vision       pixel_values
    clip         pixel_values of images, and the tokens of "a photo of a <class>"
    tensors      the rows as they are, a dict or a tuple; images as one float tensor
    ===========  ====================================================================================================

    Args:
        processor: the tokenizer; for images the image processor, its settings or a function (see
            :func:`winnow.data.images.image_transform`); for clip a processor that holds both, or (tokenizer, images').
        samples: rows over all batches (fewer when the data has fewer).
        length: tokens per row; by default the model's context, at most 2048 (causal-lm), 512 (seq2seq) or 256.
        transform: for images, instead of ``processor``.
        config: the model's configuration, for its context length and decoder start.

    Raises:
        InputError: the data does not fit the kind of model, or is too short.
    """
    if samples < 1 or batch_size < 1:
        raise InputError(
            f"{samples} samples in batches of {batch_size} are no calibration data: give 1 or more of both."
        )
    rng = np.random.default_rng(seed)
    if model_kind == "clip":
        return _clip(records, processor, transform, _choice(rng, len(records), samples), batch_size)
    if model_kind == "tensors" or records.kind == "tensors":
        return _rows(records, transform or processor, _choice(rng, len(records), samples), batch_size)
    if model_kind == "vision":
        _require_kind(records, ("images",), "a vision model")
        chosen = records.subset(_choice(rng, len(records), samples))
        convert = image_transform(transform if transform is not None else processor)
        return [{"pixel_values": convert(chosen.inputs[i : i + batch_size])} for i in range(0, len(chosen), batch_size)]
    _require_kind(records, ("text", "pairs"), "a language model")
    require_tokenizer(processor)
    length = length or context_length(processor, config, model_kind)
    if model_kind == "causal-lm":
        crops = _crops(records, processor, length, samples, rng)
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in crops.split(batch_size)]
    rows = _encoder_rows(records, processor, length, samples, rng, model_kind)
    rows.sort(key=lambda row: len(row["input_ids"]))
    if getattr(processor, "pad_token_id", None) is None:
        batch_size = 1  # nothing says where a text ends: classifiers on decoders refuse padded batches
    groups = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    if model_kind == "encoder":
        return [pad(group, processor) for group in groups]
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(processor, "pad_token_id", None) or 0
    return [_with_decoder(group, processor, start) for group in groups]


def _choice(rng: np.random.Generator, n: int, samples: int) -> np.ndarray:
    return np.sort(rng.permutation(n)[:samples])


def _crops(records: Records, tokenizer: Any, length: int, samples: int, rng: np.random.Generator) -> torch.Tensor:
    """Segments at random places of a random part of the documents, int64 [samples, length]."""
    texts = [text for pair in records.inputs for text in pair] if records.kind == "pairs" else records.inputs
    joiner = records.joiner
    if records.running:
        texts, joiner = passages(records).inputs, "\n"
    # Four times the tokens that are needed are enough to draw from; long corpora are not tokenized whole.
    order = rng.permutation(len(texts))
    pool = 4 * samples * length
    held = np.cumsum([len(texts[i]) for i in order])  # characters
    part = order[: int(np.searchsorted(held, 12 * pool)) + 1]
    stream = token_stream([texts[i] for i in part], tokenizer, joiner, pool)
    if len(stream) < length:
        raise InputError(
            f"{records.name} has {len(stream)} tokens, too few for one calibration row of {length}: give more text or a smaller length."
        )
    whole = len(stream) // length
    phase = int(rng.integers(len(stream) - whole * length + 1))
    if whole >= samples:
        starts = phase + length * np.sort(rng.permutation(whole)[:samples])
    else:
        starts = rng.integers(len(stream) - length + 1, size=samples)
    return torch.stack([stream[int(s) : int(s) + length] for s in starts])


def _encoder_rows(
    records: Records, tokenizer: Any, length: int, samples: int, rng: np.random.Generator, kind: str
) -> list[dict[str, list[int]]]:
    inputs: Sequence[Any] = records.inputs
    if records.kind == "pairs" and kind == "encoder" and (records.labels is None or records.labels.dtype.kind == "f"):
        inputs = [text for pair in inputs for text in pair]  # similarity models see one text at a time
    chosen = [inputs[i] for i in _choice(rng, len(inputs), samples)]
    if kind == "encoder":
        return encode(chosen, tokenizer, length)
    halves = [item if records.kind == "pairs" else _halves(item) for item in chosen]
    sources = encode([first for first, _ in halves], tokenizer, length)
    targets = encode([second for _, second in halves], tokenizer, length)
    return [{**source, "decoder": target["input_ids"]} for source, target in zip(sources, targets)]


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    middle = max(1, len(words) // 2)
    return " ".join(words[:middle]), " ".join(words[middle:]) or words[0]


def _with_decoder(rows: list[dict[str, list[int]]], tokenizer: Any, start: int) -> dict[str, torch.Tensor]:
    batch = pad([{k: v for k, v in row.items() if k != "decoder"} for row in rows], tokenizer)
    target = pad([{"input_ids": [start, *row["decoder"][:-1]]} for row in rows], tokenizer)
    batch.pop("token_type_ids", None)
    return {**batch, "decoder_input_ids": target["input_ids"], "decoder_attention_mask": target["attention_mask"]}


def _clip(records: Records, processor: Any, transform: Any, chosen: np.ndarray, batch_size: int) -> list[Batch]:
    if records.kind == "tensors":
        return _rows(records, None, chosen, batch_size)
    _require_kind(records, ("images",), "a model of images and texts")
    if records.labels is None or records.label_names is None:
        raise InputError(
            f"{records.name} has images but no texts: give a folder with one subfolder per class, or package.module:function "
            "that returns input_ids, attention_mask and pixel_values."
        )
    tokenizer, images = (
        processor if isinstance(processor, tuple) else (getattr(processor, "tokenizer", processor), processor)
    )
    convert = image_transform(transform if transform is not None else images)
    part = records.subset(chosen)
    captions = [f"a photo of a {records.label_names[label]}" for label in part.class_labels()]
    rows = encode(captions, tokenizer, min(77, context_length(tokenizer, None, "clip")))
    batches: list[Batch] = []
    for i in range(0, len(part), batch_size):
        text = pad(rows[i : i + batch_size], tokenizer)
        text.pop("token_type_ids", None)
        batches.append({**text, "pixel_values": convert(part.inputs[i : i + batch_size])})
    return batches


def _rows(records: Records, transform: Any, chosen: np.ndarray, batch_size: int) -> list[Batch]:
    _require_kind(records, ("tensors", "images"), "a plain torch model")
    part = records.subset(chosen)
    if records.kind == "images":
        convert = image_transform(transform)
        return [(convert(part.inputs[i : i + batch_size]),) for i in range(0, len(part), batch_size)]
    return [map_tensors(part.inputs, lambda t, i=i: t[i : i + batch_size]) for i in range(0, len(part), batch_size)]


def _require_kind(records: Records, kinds: tuple[str, ...], model: str) -> None:
    if records.kind not in kinds:
        raise InputError(
            f"{records.name} holds {records.kind}, but {model} takes {' or '.join(kinds)}: give other data."
        )


def _texts_of(texts: Records | Sequence[str], joiner: str | None) -> tuple[Sequence[str], str]:
    if not isinstance(texts, Records):
        return list(texts), joiner or EOS
    _require_kind(texts, ("text", "pairs"), "a language model")
    if texts.kind == "pairs":
        return [text for pair in texts.inputs for text in pair], joiner or EOS
    return texts.inputs, joiner or texts.joiner
