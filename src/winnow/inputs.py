"""Statistics of a layer's inputs over the calibration data: what scores and solvers read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

# Rows summed at once in float32: small enough to stay in cache and to keep rounding near 1e-7.
CHUNK = 256


@dataclass
class InputStats:
    """Running sums over the calibration tokens that reach one input (padding left out).

    Layers that read the same input (q, k, v; gate, up) share one object, so its Gram matrix is
    accumulated once and factorized once: solvers keep factorizations in ``cache``.
    """

    cols: int
    tokens: int = 0
    sum: torch.Tensor = field(default=None)  # type: ignore[assignment]  # [cols] float64
    sum_sq: torch.Tensor = field(default=None)  # type: ignore[assignment]  # [cols] float64
    gram: torch.Tensor | None = None  # [cols, cols] float32, X^T X; None when only norms were asked for
    cache: dict[object, object] = field(default_factory=dict, repr=False)

    @classmethod
    def zeros(cls, cols: int, *, gram: bool, device: torch.device | str = "cpu") -> InputStats:
        """Statistics of no token yet."""
        return cls.stacked(1, cols, gram=gram, device=device)[0]

    @classmethod
    def stacked(cls, parts: int, cols: int, *, gram: bool, device: torch.device | str = "cpu") -> list[InputStats]:
        """``parts`` empty statistics whose tensors are rows of one, so that :func:`update_stacked` fills all at once."""
        sums = torch.zeros(2, parts, cols, dtype=torch.float64, device=device)
        grams = torch.zeros(parts, cols, cols, device=device) if gram else None
        return [cls(cols, 0, sums[0, i], sums[1, i], None if grams is None else grams[i]) for i in range(parts)]

    def update(self, x: torch.Tensor) -> None:
        """Add the tokens ``x`` [n, cols] of any floating dtype.

        Sums are kept in float64 (each chunk of 256 rows summed in float32, which costs a few per cent of the
        layer's own multiplication); the Gram matrix is accumulated in float32.
        """
        update_stacked([self], x.unsqueeze(0))

    @property
    def finite(self) -> bool:
        """False once a NaN or an infinite input has been added."""
        return bool(torch.isfinite(self.sum_sq).all())

    @property
    def norm(self) -> torch.Tensor:
        """d_j = ||X_j||_2, [cols] float64."""
        return self.sum_sq.clamp_min(0).sqrt()

    @property
    def mean(self) -> torch.Tensor:
        return self.sum / max(self.tokens, 1)

    @property
    def variance(self) -> torch.Tensor:
        """Population variance of each input, [cols] float64."""
        return (self.sum_sq / max(self.tokens, 1) - self.mean**2).clamp_min(0)


def update_stacked(stats: list[InputStats], x: torch.Tensor) -> None:
    """Add the tokens ``x`` [parts, n, cols] to ``parts`` statistics that come from one :meth:`InputStats.stacked`."""
    parts, n, cols = x.shape
    first = stats[0]
    if x.dtype != torch.float64:
        x = x.float()
    sums = _band(first.sum, parts, cols)
    squares = _band(first.sum_sq, parts, cols)
    for chunk in x.split(CHUNK, dim=1):
        sums += chunk.sum(1)
        squares += chunk.square().sum(1)
    if first.gram is not None:
        x = x.float()
        grams = first.gram.as_strided((parts, cols, cols), (cols * cols, cols, 1))
        if parts == 1:
            grams[0].addmm_(x[0].t(), x[0])
        else:
            grams.baddbmm_(x.transpose(1, 2), x)
    for s in stats:
        s.tokens += n


def _band(first: torch.Tensor, parts: int, cols: int) -> torch.Tensor:
    return first.as_strided((parts, cols), (cols, 1))
