"""The density of magnitudes from a histogram of all groups at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from winnow.errors import InputError

_PASS = 1 << 20  # units sorted into bins at a time
_DEPTH = 2.0**-10  # of the mean magnitude: what is smaller shares one bin
_WIDTHS = 24  # window widths tried, each sqrt(2) times the one before
_FLOOR = 0.01  # units that leave at least where the threshold grows e-fold

# What these come to where signed weights are normal with deviation 1; see Histogram.spread.
_STD, _MEDIAN, _RANGE = 0.602810, 0.674490, 0.831711


class Histogram:
    """Density of the units' magnitudes per group, from ``bins`` bins each (Gong et al., AAAI 2024, released code; there
    over signed weights, evenly from the least to the greatest).

    The bins run from a thousandth of the mean (or the smallest magnitude, if that is larger) to the largest, evenly in
    the bit pattern of the float32 magnitude, a piecewise linear logarithm: a bin is wide in proportion to where it lies, so
    that an outlier costs no resolution at the threshold. All groups are counted together, a million units at a time.

    The density at t is the share of weights in [t - d, t + d] over its width, the window cut at 0, where magnitudes are
    folded. d is sqrt(3) bandwidths, which gives the window the variance of the Gaussian kernel, and widens until 16 units
    (in small groups a 32nd of them) lie in it.
    """

    def __init__(self, bins: int = 1000) -> None:
        if bins < 1:
            raise InputError(f"a histogram of {bins} bins shows nothing: set bins to 100 or more.")
        self.bins = bins

    def refresh(self, magnitudes: Sequence[torch.Tensor], sizes: Sequence[torch.Tensor | int]) -> None:
        """Counts the magnitudes (per group [units], at least 0) again; ``sizes`` as :meth:`UnitGroups.sizes`."""
        flat = [m.detach().reshape(-1).float() for m in magnitudes]
        self.units = torch.tensor([m.numel() for m in flat], dtype=torch.float64, device=flat[0].device)
        low, high = (torch.stack(ends) for ends in zip(*(torch.aminmax(m) for m in flat)))
        mean = torch.stack([m.mean() for m in flat])
        low = low.maximum(mean * _DEPTH).minimum(high)
        self.first = _bits(low)
        self.step = ((_bits(high) - self.first) / self.bins).clamp_min(1.0)  # bit patterns a bin
        held = self._count(flat, sizes)
        held /= held.sum(1, keepdim=True)
        self.below = torch.cat([held.new_zeros(len(flat), 1), held.cumsum(1)], 1)  # at the edges, [G, bins + 2]
        edges = torch.arange(-1, self.bins + 1, dtype=torch.float64, device=low.device)
        self.edges = _value(self.first[:, None] + edges * self.step[:, None]).double()
        self.edges[:, 0] = 0.0
        self.spread = self._spread(held)
        self.bandwidth = silverman(self.spread, self.units)

    def density(self, thresholds: torch.Tensor) -> torch.Tensor:
        """d rate / d t at each group's threshold, [G] -> float32 [G], above 0 everywhere."""
        t = thresholds.detach().double().clamp_min(1e-30)
        bin_width = t * self.step / 2**23  # at most: a bit pattern is 2^-23 to 2^-24 of its value
        d = torch.maximum(3**0.5 * self.bandwidth, bin_width).maximum(t * 1e-6)
        d = d[:, None] * 2 ** (torch.arange(_WIDTHS, device=d.device) / 2)
        low, high = (t[:, None] - d).clamp_min(0), t[:, None] + d
        share = self.share(high) - self.share(low)
        enough = share * self.units[:, None] >= needed(self.units)[:, None]
        enough[:, -1] = True
        chosen = enough.int().argmax(1, keepdim=True)
        found = (share / (high - low)).gather(1, chosen)[:, 0]
        return floored(found, t, self.units).to(thresholds.device)

    def share(self, x: torch.Tensor) -> torch.Tensor:
        """Share of the group's weights with magnitudes up to ``x`` ([G, K], at least 0), float64 [G, K]."""
        low = self.edges[:, 1:2]
        place = torch.where(x < low, x / low, 1 + (_bits(x.float()) - self.first[:, None]) / self.step[:, None])
        place = place.clamp(0, self.bins + 1)
        left = place.long().clamp_max(self.bins)
        return torch.lerp(self.below.gather(1, left), self.below.gather(1, left + 1), place - left)

    def _count(self, flat: list[torch.Tensor], sizes: Sequence[torch.Tensor | int]) -> torch.Tensor:
        """Weights a bin, float64 [G, bins + 1]: the first bin lies below ``first``."""
        row, device = self.bins + 1, flat[0].device
        held = torch.zeros(len(flat) * row, dtype=torch.float64, device=device)
        room = min(_PASS, sum(m.numel() for m in flat))
        keys = torch.empty(room, dtype=torch.int32, device=device)
        weighted = any(isinstance(size, torch.Tensor) for size in sizes)
        loads = torch.ones(room, dtype=torch.float64, device=device) if weighted else None
        filled = 0
        first, scale = self.first.tolist(), (1 / self.step).tolist()
        for group, (m, size) in enumerate(zip(flat, sizes)):
            done = 0
            while done < m.numel():
                n = min(m.numel() - done, room - filled)
                part = m[done : done + n].view(torch.int32) - int(first[group])
                key = part.float().mul_(scale[group]).floor_().clamp_(-1, self.bins - 1)
                keys[filled : filled + n] = key.to(torch.int32).add_(group * row + 1)
                if loads is not None:
                    loads[filled : filled + n] = size[done : done + n] if isinstance(size, torch.Tensor) else size
                done, filled = done + n, filled + n
                if filled == room:
                    held += torch.bincount(keys, loads, minlength=held.numel())
                    filled = 0
        if filled:
            held += torch.bincount(keys[:filled], None if loads is None else loads[:filled], minlength=held.numel())
        return held.view(len(flat), row)

    def _spread(self, held: torch.Tensor) -> torch.Tensor:
        """The deviation of signed weights with these magnitudes, [G]: the least of what root mean square, deviation,
        median and quartiles say, each of which is right for a normal distribution and 0 for some others. The least is
        near the middle of heavy tails, and near the deviation of norms that crowd around their mean."""
        middle = (self.edges[:, 1:] + self.edges[:, :-1]) / 2
        mean = (held * middle).sum(1, keepdim=True)
        std = (held * (middle - mean) ** 2).sum(1).sqrt()
        rms = (std**2 + mean[:, 0] ** 2).sqrt()
        at = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=held.device).expand(len(held), 3)
        place = torch.searchsorted(self.below.contiguous(), at.contiguous()).clamp(1, self.bins + 1)
        quarter, median, rest = self.edges.gather(1, place).unbind(1)
        guesses = torch.stack([rms, std / _STD, median / _MEDIAN, (rest - quarter) / _RANGE])
        least = torch.where(guesses > 1e-6 * rms, guesses, torch.inf).amin(0)
        return least.minimum(rms).maximum(rms * (0.25 / self.units).clamp_min(1e-3))


def silverman(spread: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Bandwidth of a Gaussian kernel by Silverman's rule, 1.06 s n^(-1/5), [G] (Silverman 1986, equation 3.28)."""
    return 1.06 * spread * units**-0.2


def needed(units: torch.Tensor) -> torch.Tensor:
    """How many units must have a say in a density, [G]."""
    return (units / 32).clamp(0.5, 16)


def floored(density: torch.Tensor, thresholds: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """No less than a hundredth of a unit for an e-fold change of the threshold, so that none is ever stuck."""
    least = _FLOOR / (units * thresholds)
    return density.maximum(least).clamp_max(torch.finfo(torch.float32).max).float()


def _bits(x: torch.Tensor) -> torch.Tensor:
    """The bit pattern of float32 values of at least 0 as a number that grows with them, float64."""
    return x.contiguous().view(torch.int32).double()


def _value(bits: torch.Tensor) -> torch.Tensor:
    return bits.round().clamp_min(0).to(torch.int32).view(torch.float32)
