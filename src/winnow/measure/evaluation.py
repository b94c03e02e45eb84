"""What an evaluation found: the figure, its interval, and every example behind it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from winnow.data.records import evenly_spaced
from winnow.disk.files import write_atomic
from winnow.errors import FormatError
from winnow.run.store import Store, drop

log = logging.getLogger(__name__)

CAP = 64 << 20  # bytes: of log-probabilities kept of the dense model, and of logits in one batch


@dataclass(eq=False)
class Evaluation:
    """One model on one task.

    Attributes:
        metric: "perplexity", "accuracy", "spearman", "R2" or "agreement".
        value: the figure: a perplexity, or a fraction (correlation, R2) of at most 1; NaN when the model put out NaN.
        low, high: its 95% interval.
        per_example: [n] float64, what the figure is the mean of: mean negative log-likelihood of each segment (nats),
            1 or 0 for right or wrong, agreement, similarity.
        predictions: [n, ...] the answers: class, next token at each position, or similarity; -1 (NaN) where NaN.
        n: examples (segments of a text).
        truth: [n] labels or scores, None where there are none.
        details: metric-dependent figures; ``nan_examples`` is there when the model put out NaN.
    """

    metric: str
    value: float
    low: float
    high: float
    per_example: np.ndarray
    predictions: np.ndarray
    n: int
    truth: np.ndarray | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Evaluation({self.metric} {self.value:.4g} ({self.low:.4g} to {self.high:.4g}), n={self.n:,})"

    def summary(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        return {key: value for key, value in asdict(self).items() if key not in ("per_example", "predictions", "truth")}

    def save(self, path: str | Path | BinaryIO) -> None:
        """Writes an .npz that :meth:`load` reads back, to a path or an open file; nothing is pickled."""
        arrays: dict[str, Any] = {"per_example": self.per_example, "predictions": self.predictions}
        if self.truth is not None:
            arrays["truth"] = self.truth
        with open(path, "wb") if isinstance(path, (str, Path)) else contextlib.nullcontext(path) as file:
            np.savez(file, summary=np.frombuffer(json.dumps(self.summary()).encode(), dtype=np.uint8), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        try:
            with np.load(path, allow_pickle=False) as archive:
                summary = json.loads(archive["summary"].tobytes())
                truth = archive.get("truth")
                return cls(
                    per_example=archive["per_example"], predictions=archive["predictions"], truth=truth, **summary
                )
        except FileNotFoundError:
            raise
        except Exception as error:
            raise FormatError(f"{path} is not a whole stored evaluation ({error}): delete it and run again.") from None


@dataclass(eq=False)
class Reference:
    """The dense model's answers, to compare others with.

    ``evaluation`` holds its figure and top-1 answers; ``outputs`` float16 log-probabilities [k, classes] (embeddings for
    similarity) of the answers numbered ``chosen`` [k], evenly spaced, at most 64 MB.
    """

    evaluation: Evaluation
    chosen: np.ndarray
    outputs: torch.Tensor


class OutputRecorder:
    """Keeps a model's outputs while it is evaluated, or measures how far they are from a reference's."""

    def __init__(self, total: int, reference: Reference | None, store_evaluation: bool) -> None:
        self.total = total
        self.reference = reference
        self.keep = store_evaluation
        self.chosen = reference.chosen if reference else None
        self._slots: dict[int, torch.Tensor] = {}
        self._distances: list[torch.Tensor] = []

    def log_probs(self, first: int, logits: torch.Tensor) -> None:
        """Answers ``first`` ... of the whole as logits [m, classes] (any float type)."""
        self._add(first, logits, lambda picked: torch.log_softmax(picked.float(), dim=-1), _kl)

    def embeddings(self, first: int, vectors: torch.Tensor) -> None:
        """Answers as vectors of length 1 [m, width]; the distance is 1 - cosine."""
        self._add(first, vectors, torch.Tensor.float, _turned)

    def _add(
        self,
        first: int,
        values: torch.Tensor,
        read: Callable[[torch.Tensor], torch.Tensor],
        distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        if not self.keep and self.reference is None:
            return
        if self.chosen is None:
            count = min(self.total, max(1, CAP // (2 * values.shape[-1])))
            self.chosen = evenly_spaced(self.total, count)
        start, stop = map(int, np.searchsorted(self.chosen, [first, first + values.shape[0]]))
        if start == stop:
            return
        place = slice(start, stop)
        picked = read(values[torch.from_numpy(self.chosen[place] - first).to(values.device)])
        if self.keep:
            self._slots[place.start] = picked.to("cpu", torch.float16)
        if self.reference is not None:
            self._distances.append(distance(self.reference.outputs[place].to(picked.device), picked).cpu())

    @property
    def distance(self) -> float | None:
        """Mean KL(dense || this) in nats, or mean 1 - cosine; None without a reference."""
        return float(torch.cat(self._distances).mean()) if self._distances else None

    @property
    def tail(self) -> float | None:
        """99th percentile of the same distances (linear between neighbours): what the mean of many easy answers hides."""
        return float(np.quantile(torch.cat(self._distances).numpy(), 0.99)) if self._distances else None

    def outputs(self) -> tuple[np.ndarray, torch.Tensor]:
        chosen = self.chosen if self.chosen is not None else np.zeros(0, dtype=np.int64)
        kept = [self._slots[place] for place in sorted(self._slots)]
        return chosen, torch.cat(kept) if kept else torch.zeros(0, 0, dtype=torch.float16)


def _kl(dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(dense || other) per row in nats; the stored float16 is brought back to a distribution first."""
    p = torch.log_softmax(dense.float(), dim=-1)
    return torch.where(p.exp() > 0, p.exp() * (p - other), torch.zeros_like(p)).sum(-1)


def _turned(dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """1 - cosine per row; the stored float16 is brought back to length 1 first."""
    return 1 - (torch.nn.functional.normalize(dense.float(), dim=-1) * other).sum(-1)


def load_stored(store: Store, key: str) -> Evaluation | None:
    """A stored evaluation; None where there is none, or where it was damaged (and is removed)."""
    path = stored_path(store, key)
    try:
        return Evaluation.load(path)
    except FileNotFoundError:
        return None
    except FormatError as error:
        log.warning("a stored evaluation is damaged and is made again: %s", error)
        drop(path)
        return None


def store_evaluation(store: Store, key: str, evaluation: Evaluation) -> None:
    """Stores an evaluation, whole or not at all."""
    data = io.BytesIO()
    evaluation.save(data)
    write_atomic(stored_path(store, key), data.getvalue())


def stored_path(store: Store, key: str) -> Path:
    return store.root / f"{key}.npz"
