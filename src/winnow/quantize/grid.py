"""The quantization grid: its scales, rounding to it, and the codes that come of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.errors import InputError

# Shrink factors of the largest weight's own scale. At 8 bits clipping never pays, so fewer are tried.
_FACTORS = {
    8: (1.0, 0.97),
    4: (1.15, 1.07, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7),
    3: (1.3, 1.15, 1.0, 0.93, 0.86, 0.79, 0.72, 0.65, 0.58),
    2: (1.4, 1.2, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
}
_CHUNK = 1 << 22  # weights fitted at a time: bounds the memory of the search


@dataclass(frozen=True)
class Grid:
    """A symmetric integer grid around an exact zero: value = code * scale, codes -2^(b-1) .. 2^(b-1) - 1.

    One scale a row, or one for each ``group`` consecutive columns of a row (dense column positions: group g
    covers columns g*group .. (g+1)*group - 1; the last may be shorter). A scale is signed, so the weight of
    largest magnitude can use the code -2^(b-1) whichever sign it has and no level is wasted.
    """

    bits: int  # 8, 4, 3 or 2
    group: int | None = None  # None: one scale a row
    scale_dtype: torch.dtype = torch.float16
    search: bool = True  # look for the scale of least squared error; False: the largest weight sets it

    def __post_init__(self) -> None:
        if self.bits not in _FACTORS:
            raise InputError(f"{self.bits} bits a value are not supported: use 8, 4, 3 or 2")
        if self.group is not None and self.group < 1:
            raise InputError(f"a quantization group of {self.group} columns is empty: use 128, 32, or one scale a row")

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def size(self, cols: int) -> int:
        """Columns that share a scale in a matrix of ``cols`` columns."""
        return cols if self.group is None else min(self.group, cols)

    def groups(self, cols: int) -> int:
        """Scales a row."""
        return -(-cols // self.size(cols))

    def fit(
        self, weight: torch.Tensor, keep: torch.Tensor | None = None, importance: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scales [R, n_groups] (``scale_dtype``) of least squared error over the kept weights of ``weight`` [R, C].

        ``importance`` [C] weighs the columns' errors (the diagonal of the Gram matrix); None weighs them alike.
        A group without a kept weight, or whose scale is below the smallest number of ``scale_dtype``, has scale
        0 and rounds to zeros. A scale above its largest number is clamped to it: weights beyond
        65504 * 2^(b-1) then saturate. :meth:`holds` says whether that happens.
        """
        rows, cols = weight.shape
        size, count = self.size(cols), self.groups(cols)
        scales = weight.new_empty((rows, count), dtype=self.scale_dtype)
        step = max(1, _CHUNK // cols)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            values = weight[start:stop].to(torch.float32)
            if keep is not None:
                values = values * keep[start:stop]
            scales[start:stop] = self._fit(_grouped(values, size, count), _spread(importance, values, size, count))
        return scales

    def _fit(self, values: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """Scales [...] of groups ``values`` [..., g]; removed weights are zeros, which every scale represents."""
        scale = values.gather(-1, values.abs().argmax(-1, keepdim=True)) / self.low
        if self.search:
            # In units of the largest weight's own scale, so that no sum leaves the range of float32.
            values = values / scale.where(scale != 0, 1.0)
            scale = scale * self._factor(values, importance)[..., None]
        limit = torch.finfo(self.scale_dtype)
        return scale.squeeze(-1).clamp(limit.min, limit.max).to(self.scale_dtype)

    def _factor(self, values: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """Best scale [...] of groups ``values`` [..., g] given in units of the largest weight's own scale."""
        weighted = values if importance is None else values * importance
        best = torch.ones_like(values[..., 0])
        gain = torch.full_like(best, -torch.inf)
        for factor in _FACTORS[self.bits]:
            codes = (values * (1 / factor)).round_().clamp_(self.low, self.high)
            cross = (weighted * codes).sum(-1)
            square = (codes.square_() if importance is None else codes.square_().mul_(importance)).sum(-1)
            # For fixed codes the best scale is cross / square, and it lowers the error by cross^2 / square.
            candidate = cross / square.clamp_min(torch.finfo(torch.float32).tiny)
            lowered = cross * candidate
            better = (lowered > gain) & (square > 0)
            best = torch.where(better, candidate, best)
            gain = torch.where(better, lowered, gain)
        return best

    def holds(self, weight: torch.Tensor, keep: torch.Tensor | None = None, tolerance: float = 1e-3) -> bool:
        """Whether scales in ``scale_dtype`` are fine enough, and large enough, for the kept weights of ``weight`` [R, C].

        Measured where a scale may lie outside the normal numbers of the type: there each group is rounded with such
        scales and with float32 ones, and may lose ``tolerance`` of its norm more.
        """
        cols = weight.shape[1]
        size, limit = self.size(cols), torch.finfo(self.scale_dtype)
        values = weight.to(torch.float32) if keep is None else weight.to(torch.float32) * keep
        largest = _grouped(values, size, self.groups(cols)).abs().amax(-1) / -self.low
        # The fitted scale is at most 1.4 times the largest weight's own and no less than 0.4 times, a little to spare.
        doubtful = ((largest > 0) & (largest < 4 * limit.tiny)) | (largest > limit.max / 2)
        rows = doubtful.any(1).nonzero().squeeze(1)
        if not len(rows):
            return True
        values = values[rows]
        values = values / values.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        spread = largest[rows].amax(1, keepdim=True)
        lost = []
        for grid in (self, Grid(self.bits, self.group, torch.float32, self.search)):
            kept = weight[rows] if keep is None else weight[rows] * keep[rows]
            scales = grid.fit(kept)
            # In units of each row's largest weight, so that no square leaves the range of float32.
            rounded = self.round(kept, scales).to(torch.float32) * (
                spread_scales(scales, size, cols) / (spread * -self.low)
            )
            lost.append(_grouped((rounded - values).double(), size, self.groups(cols)).square().sum(-1).sqrt())
        norm = _grouped(values.double(), size, self.groups(cols)).square().sum(-1).sqrt()
        return bool((lost[0] <= lost[1] + tolerance * norm).all())

    def round(self, weight: torch.Tensor, scales: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Nearest codes int8 [R, C] for ``weight`` [R, C] and ``scales`` [R, n_groups]; removed weights get code 0."""
        rows, cols = weight.shape
        codes = torch.empty((rows, cols), dtype=torch.int8, device=weight.device)
        step = max(1, _CHUNK // cols)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            wide = spread_scales(scales[start:stop], self.size(cols), cols)
            values = weight[start:stop].to(torch.float32) / wide.where(wide != 0, torch.inf)
            values = values.round_().clamp_(self.low, self.high)
            codes[start:stop] = values if keep is None else values.mul_(keep[start:stop])
        return codes


def spread_scales(scales: torch.Tensor, size: int, cols: int) -> torch.Tensor:
    """Scales [R, n_groups] as float32 [R, C], each repeated over the columns it covers."""
    return scales.to(torch.float32).repeat_interleave(size, dim=1)[:, :cols]


def _grouped(values: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """[R, C] as [R, n_groups, size]; a shorter last group is filled with zeros, which change no sum."""
    missing = count * size - values.shape[1]
    if missing:
        values = torch.nn.functional.pad(values, (0, missing))
    return values.reshape(values.shape[0], count, size)


def _spread(importance: torch.Tensor | None, values: torch.Tensor, size: int, count: int) -> torch.Tensor | None:
    if importance is None:
        return None
    importance = importance.to(values.device, torch.float64).clamp_min(0)
    top = importance.max()
    # Relative to the largest, so that sums stay in the range of float32; all zeros (dead inputs) weigh alike.
    relative = torch.where(top > 0, importance / top.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
    return _grouped(relative.to(torch.float32)[None], size, count)


@dataclass
class Quantized:
    """value[i, j] = codes[i, j] * scales[i, j // group]; code 0 is exactly zero."""

    codes: torch.Tensor  # [R, C] int8, in -2^(bits-1) .. 2^(bits-1) - 1
    scales: torch.Tensor  # [R, n_groups] float16, may be negative
    bits: int
    group: int | None = None  # columns a scale covers, over dense positions; None: the whole row

    def dequantize(self) -> torch.Tensor:
        """Exactly ``codes * scales.float()``, float32 [R, C]."""
        cols = self.codes.shape[1]
        size = cols if self.group is None else min(self.group, cols)
        return self.codes.to(torch.float32) * spread_scales(self.scales, size, cols)


def round_to_nearest(
    weight: torch.Tensor, grid: Grid, keep: torch.Tensor | None = None, importance: torch.Tensor | None = None
) -> Quantized:
    """Each weight of ``weight`` [R, C] at its closest grid point; those that ``keep`` (bool [R, C]) removes get code 0 and
    shape no scale.

    ``importance`` [C] weighs the columns in the choice of the scales (see :meth:`Grid.fit`).
    """
    scales = grid.fit(weight, keep, importance)
    return Quantized(grid.round(weight, scales, keep), scales, grid.bits, grid.group)
