"""What is timed: cases of batch and length, and the inputs every contender gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from winnow.data import calibration_batches, open_data
from winnow.data.text import Batch, ModelKind
from winnow.errors import InputError
from winnow.models.kind import model_kind, processor_of
from winnow.models.source import ModelSource
from winnow.records.speed import Case

LENGTHS: dict[str, tuple[int, ...]] = {"causal-lm": (128,), "encoder": (32, 128), "seq2seq": (32, 128), "clip": (77,)}
BATCHES: dict[str, tuple[int, ...]] = {"causal-lm": (1,)}
TOKENS = 32
DIFFERENT = 4  # batches of one case that are cycled through, with real data
PIXELS = 224  # where a configuration names no size of its images


@dataclass(frozen=True)
class Work:
    """A case and its inputs: the same for every contender.

    For decoding, ``inputs`` holds the prompt and ``tokens`` [batch, steps] what follows it: given, not sampled, so that
    every contender does the same work.
    """

    case: Case
    inputs: list[Batch]
    tokens: torch.Tensor | None = None


def make_work(
    source: ModelSource,
    *,
    batches: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    tokens: int = TOKENS,
    data: Any = None,
    column: str | None = None,
    tokenizer: Any = None,
    seed: int = 0,
) -> tuple[list[Work], str]:
    """Every case with its inputs, and what the inputs are: the data's name, or how they were drawn.

    Raises:
        InputError: a length beyond the model's context, data that does not fit or is too little, a plain torch model
            without data.
    """
    kind = model_kind(source)
    records = None
    if data is not None:
        records = open_data(data, column=column, forward=source.arguments)
        kind = "tensors" if records.kind == "tensors" else kind
    if kind == "tensors" and records is None:
        raise InputError(
            f"nothing says what inputs {source.spec} takes: give some of its inputs with --data (an .npz will do)."
        )
    if kind in ("vision", "tensors") and lengths:
        raise InputError(f"--length counts tokens, and {source.spec} reads none: leave it out.")
    processor = processor_of(source, kind, records) if tokenizer is None else tokenizer
    extra = tokens if kind == "causal-lm" else 0
    work: list[Work] = []
    for batch in batches or BATCHES.get(kind, (1, 8)):
        if records is not None and batch > len(records):
            raise InputError(f"{records.name} holds {len(records)} records, too few for a batch of {batch}.")
        for length in _lengths(source, kind, lengths, extra, processor):
            if records is not None:
                found = calibration_batches(
                    records, processor, model_kind=kind, samples=DIFFERENT * batch, batch_size=batch, seed=seed,
                    length=None if length is None else length + extra, config=source.config,
                )  # fmt: skip
                inputs = [b for b in found if rows_of(b) == batch]
            else:
                inputs = [random_batch(source, kind, batch, (length or 0) + extra, seed)]
            work += _cases(kind, batch, length, tokens, inputs, records is not None)
    return work, records.name if records is not None else f"random inputs, seed {seed}"


def _lengths(
    source: ModelSource, kind: ModelKind, requested: Sequence[int] | None, extra: int, processor: Any
) -> Sequence[int | None]:
    if kind in ("vision", "tensors"):
        return (None,)
    most = context_of(source.config, processor)
    if requested:
        if most is not None and max(requested) + extra > most:
            more = f" and {extra} tokens" if extra else ""
            raise InputError(
                f"a length of {max(requested)}{more} is beyond the model's context of {most}: ask for less."
            )
        return requested
    return sorted({max(1, min(n, (most or n + extra) - extra)) for n in LENGTHS[kind]})


def context_of(config: Any, processor: Any) -> int | None:
    """The most tokens the model can take at once; None where nothing says so."""
    config = getattr(config, "text_config", None) or config
    names = ("max_position_embeddings", "n_positions", "max_sequence_length")
    known = [getattr(config, name, None) for name in names] + [getattr(processor, "model_max_length", None)]
    return min((n for n in known if isinstance(n, int) and n > 1), default=None)


def _cases(kind: ModelKind, batch: int, length: int | None, tokens: int, inputs: list[Batch], real: bool) -> list[Work]:
    if kind == "causal-lm":
        assert length is not None
        whole: Any = inputs[0]["input_ids"]  # type: ignore[call-overload]
        prompts: list[Batch] = [{"input_ids": b["input_ids"][:, :length]} for b in inputs]  # type: ignore[call-overload]
        size = f"batch {batch}, " if batch > 1 else ""
        prefill = Case(
            name=f"{size}prompt of {length}", what="prefill", batch=batch, length=length, unit="tokens", per_call=batch * length
        )  # fmt: skip
        decode = Case(
            name=f"{size}decoding after {length}", what="decode", batch=batch, length=length, unit="tokens", per_call=batch
        )  # fmt: skip
        return [Work(prefill, prompts), Work(decode, prompts[:1], whole[:, length : length + tokens])]
    unit = "requests" if length is not None else "samples"
    name = f"batch {batch}" if length is None else f"batch {batch} × {'up to ' if real else ''}{length} tokens"
    case = Case(name=name, what="forward", batch=batch, length=length, unit=unit, per_call=batch)
    return [Work(case, inputs)]


def random_batch(source: ModelSource, kind: ModelKind, batch: int, length: int, seed: int) -> Batch:
    """One batch of random inputs of the kind that the model's configuration asks for: token ids, pixels, or both.

    Raises:
        InputError: the configuration does not say what the model reads.
    """
    config = source.config
    draw = torch.Generator().manual_seed(seed)
    text = getattr(config, "text_config", config)
    vocabulary = getattr(text, "vocab_size", None)

    def ids() -> torch.Tensor:
        assert isinstance(vocabulary, int)
        return torch.randint(0, vocabulary, (batch, length), generator=draw)

    def pixels() -> torch.Tensor:
        part = getattr(config, "vision_config", config)
        size = getattr(part, "image_size", None) or PIXELS
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        channels = getattr(part, "num_channels", None) or 3
        return torch.randn(batch, channels, height, width, generator=draw)

    if kind == "vision":
        return {"pixel_values": pixels()}
    if not isinstance(vocabulary, int):
        raise InputError(
            f"the configuration of {source.spec} does not say what it reads: give some of its inputs with --data."
        )
    if kind == "causal-lm":
        return {"input_ids": ids()}
    made = {"input_ids": ids(), "attention_mask": torch.ones(batch, length, dtype=torch.int64)}
    if kind == "seq2seq":
        return {**made, "decoder_input_ids": ids()}
    return {**made, "pixel_values": pixels()} if kind == "clip" else made


def rows_of(batch: Batch) -> int:
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return int(first.shape[0])
