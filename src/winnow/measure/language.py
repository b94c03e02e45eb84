"""Perplexity of a language model on concatenated text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data.records import Records, evenly_spaced
from winnow.data.text import Batch, lm_segments
from winnow.data.tokens import context_length
from winnow.errors import InputError
from winnow.forward.model import call, forward_parameters, logits_of
from winnow.measure.evaluation import CAP, Evaluation, OutputRecorder
from winnow.measure.intervals import mean_interval
from winnow.measure.task import Progress, Task

_CHUNK = 8 << 20  # bytes of float32 logits worked on at once


class LanguageModelTask(Task):
    """Perplexity per token on concatenated, non-overlapping segments of ``length`` tokens.

    In each segment every token but the first is predicted from those before it; perplexity is
    exp(mean negative log-likelihood). ``length`` changes the figure: compare only equal ones.
    """

    name = "perplexity"
    metric = "perplexity"
    higher_is_better = False
    unit = "%"
    scale = 1.0

    def __init__(
        self,
        data: Records | Sequence[str] | torch.Tensor,
        tokenizer: Any = None,
        *,
        length: int | None = None,
        limit: int | None = None,
        config: Any = None,
        data_name: str | None = None,
    ) -> None:
        """
        Args:
            data: texts, or token ids [n, length] that are segments already (also as records of one tensor).
            length: tokens per segment; by default the model's context, at most 2048.
            limit: at most so many segments, evenly spaced over the text.
            config: the model's configuration, for its context length.

        Raises:
            InputError: fewer than two segments, or token ids that are not whole numbers.
        """
        segments = _given_segments(data)
        if segments is None:
            length = length or context_length(tokenizer, config)
            segments = lm_segments(data, tokenizer, length)  # type: ignore[arg-type]
        if limit is not None and limit < len(segments):
            segments = segments[torch.from_numpy(evenly_spaced(len(segments), limit))]
        self.segments = segments  # int64 [n, length]
        self.length = int(segments.shape[1])
        self.vocabulary = 0  # tokens that the model measured last knows
        self._tokenizer = tokenizer
        name = data_name or (data.name if isinstance(data, Records) else "text")
        super().__init__(name, hashlib.sha256(segments.numpy().tobytes()).hexdigest(), len(segments))

    def describe(self) -> str:
        return f"perplexity on {self.data_name}, {self.n:,} segments of {self.length} tokens"

    def text(self, segment: int, start: int, stop: int) -> str:
        """Tokens ``start`` to ``stop`` of a segment as text (ids where there is no tokenizer)."""
        return self.words(self.segments[segment, max(0, start) : stop])

    def words(self, ids: torch.Tensor | Sequence[int]) -> str:
        ids = [int(i) for i in ids]
        return self._tokenizer.decode(ids) if self._tokenizer is not None else " ".join(map(str, ids))

    def _answers(self) -> int:
        return self.n * (self.length - 1)

    def _measure(self, model: nn.Module, watch: OutputRecorder, progress: Progress) -> Evaluation:
        nll = np.zeros(self.n)
        predictions = np.full((self.n, self.length - 1), -1, dtype=np.int32)
        rows = 1  # until the vocabulary is known
        first = 0
        while first < self.n:
            segments = self.segments[first : first + rows]
            logits = self._logits(model, segments)
            self.vocabulary = int(logits.shape[-1])
            for offset in range(len(segments)):
                row = first + offset
                nll[row], predictions[row] = self._score(logits[offset], segments[offset], row, watch)
            first += len(segments)
            rows = max(1, CAP // (self.length * logits.shape[-1] * logits.element_size()))
            progress(first, self.n)
        return self._evaluation(nll, predictions)

    def _logits(self, model: nn.Module, segments: torch.Tensor) -> torch.Tensor:
        batch: Batch = {"input_ids": segments} if "input_ids" in forward_parameters(model) else (segments,)
        try:
            logits = logits_of(call(model, batch, use_cache=False))
        except IndexError:
            raise InputError(
                f"the text has token {int(segments.max())}, which the model does not know: use the model's own tokenizer."
            ) from None
        if logits.ndim != 3 or logits.shape[:2] != segments.shape:
            raise InputError(
                f"the model returned {list(logits.shape)} for tokens {list(segments.shape)}: perplexity needs a causal language model."
            )
        return logits

    def _score(
        self, logits: torch.Tensor, segment: torch.Tensor, row: int, watch: OutputRecorder
    ) -> tuple[float, np.ndarray]:
        """Mean nll and top-1 answers of one segment, in chunks of positions so that few are float32 at a time."""
        targets = segment[1:].to(logits.device)
        if int(segment.max()) >= logits.shape[-1] or int(segment.min()) < 0:
            raise InputError(
                f"the text has token {int(segment.max())}, the model knows {logits.shape[-1]}: use the model's own tokenizer."
            )
        positions = self.length - 1
        step = max(1, _CHUNK // (4 * logits.shape[-1]))
        total = torch.zeros((), dtype=torch.float64)
        answers = torch.empty(positions, dtype=torch.int32)
        for start in range(0, positions, step):
            stop = min(start + step, positions)
            part = logits[start:stop].float()
            picked = part.gather(1, targets[start:stop, None])[:, 0]
            losses = torch.logsumexp(part, dim=-1) - picked
            total += losses.double().sum().cpu()
            top = part.argmax(-1).to(torch.int32)
            answers[start:stop] = torch.where(losses.isnan(), torch.full_like(top, -1), top).cpu()
            watch.log_probs(row * positions + start, part)
        return float(total) / positions, answers.numpy()

    def _evaluation(self, nll: np.ndarray, predictions: np.ndarray) -> Evaluation:
        mean = float(nll.mean())
        low, high = mean_interval(nll)
        details: dict[str, Any] = {"nll": mean, "length": self.length, "tokens": self._answers()}
        if np.isnan(nll).any():
            details["nan_examples"] = int(np.isnan(nll).sum())
        value, low, high = (_exp(bound) for bound in (mean, low, high))
        return Evaluation(self.metric, value, low, high, nll, predictions, self.n, details=details)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _given_segments(data: Any) -> torch.Tensor | None:
    if isinstance(data, Records) and data.kind == "tensors":
        data = data.inputs.get("input_ids") if isinstance(data.inputs, dict) else data.inputs[0]
    if not isinstance(data, torch.Tensor):
        return None
    if data.ndim != 2 or data.is_floating_point() or data.shape[1] < 2:
        raise InputError(f"token segments must be whole numbers [n, length], not {data.dtype} {list(data.shape)}.")
    return data.to(torch.int64)
