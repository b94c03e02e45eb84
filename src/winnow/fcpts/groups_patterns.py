"""Whether a whole tensor takes the n:m pattern: one unit a tensor, learned under a global rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from winnow.errors import InputError
from winnow.fcpts.groups import Matrices
from winnow.fcpts.straight_through import root, step, wide
from winnow.masks.prunable import Scope
from winnow.masks.structure import NM
from winnow.masks.structure import select as select_pattern


class Patterns:
    """Tensors that take n:m or stay dense; one threshold and one unit a tensor.

    The magnitude is ``||W - W_nm||_F / ||W||_F``: how far the pattern, chosen by ``|w|`` of the moment, would move the
    tensor relative to its size. It lies between 0 (the tensor shows the pattern already) and 1 and does not change when a
    layer is scaled, so that it compares between layers whatever their norms do. Above its threshold the tensor is
    dense, otherwise it has the pattern.

    ``numels`` and ``sizes`` count what the pattern removes, ``numel * (m - n) / m``: a group's rate is 0 or 1. Tensors whose
    inputs are no multiple of m stay dense (``dense``); they have no group and the target's zeros come from the others.
    Raises InputError when no tensor takes the pattern.
    """

    def __init__(self, scope: Scope, pattern: NM, *, window: float = 1.0) -> None:
        self.scope, self.pattern, self.window = scope, pattern, window
        self.groups = tuple(n for n, p in scope.prunables.items() if p.cols % pattern.m == 0)
        self.dense = tuple(n for n in scope.prunables if n not in set(self.groups))
        if not self.groups:
            raise InputError(
                f"no tensor has a multiple of {pattern.m} inputs, which {pattern} needs: choose another structure"
            )
        self.numels = torch.tensor(
            [scope.prunables[n].numel // pattern.m * (pattern.m - pattern.n) for n in self.groups]
        )

    def _pattern(self, weight: torch.Tensor) -> torch.Tensor:
        """The keep mask of n:m by ``|w|``, zeros first."""
        zeros = weight.numel() // self.pattern.m * (self.pattern.m - self.pattern.n)
        return select_pattern(weight.detach().abs(), zeros, self.pattern)

    def _magnitude(self, weight: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
        square = wide(weight).square()
        whole = square.sum()
        return root(square.masked_fill(pattern, 0).sum() / whole.where(whole > 0, 1.0))

    def magnitudes(self, weights: Matrices) -> list[torch.Tensor]:
        found = [weights[name].detach() for name in self.groups]
        return [self._magnitude(w, self._pattern(w)).reshape(1).float() for w in found]

    def sizes(self) -> list[torch.Tensor | int]:
        return list(self.numels.tolist())

    def mask(self, weights: Matrices, thresholds: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        masked, removed = {name: weights[name] for name in self.dense if name in weights}, []
        for name, t, count in zip(self.groups, thresholds.unbind(), self.numels.tolist()):
            weight = weights[name]
            pattern = self._pattern(weight)
            stays = step(self._magnitude(weight, pattern), t, self.window)
            masked[name] = weight * stays.to(weight.dtype).where(~pattern, 1.0)
            removed.append((stays == 0).to(torch.float32) * count)
        return masked, torch.stack(removed)

    def select(self, weights: Matrices, thresholds: torch.Tensor, zeros: int) -> dict[str, torch.Tensor]:
        """Keep masks of every tensor of the scope: n:m where it was taken, all True elsewhere.

        Tensors take the pattern in ascending order of magnitude / threshold. Then tensors are exchanged (see
        :func:`nearest_subset`) until the zeros are off by at most half of what the smallest tensor gives, or
        no single tensor added, taken back or exchanged for another brings them nearer.
        Raises InputError when ``zeros`` is more than the pattern removes in all tensors, by over half the smallest one.
        """
        most, smallest = int(self.numels.sum()), int(self.numels.min())
        if zeros < 0 or 2 * (zeros - most) > smallest:
            share = most / max(self.scope.numel, 1)
            raise InputError(
                f"{self.pattern} can remove {most} of {self.scope.numel} weights here, not {zeros}: "
                f"ask for a sparsity of at most {int(share * 1000) / 1000:g}, or for another structure"
            )
        relative = torch.cat(self.magnitudes(weights)).double() / thresholds.detach().double().cpu()
        if bool(relative.isnan().any()):
            raise InputError("a layer's weights hold NaN: check the model, or lower the learning rate")
        order = torch.sort(relative, stable=True).indices.tolist()
        sizes = self.numels.tolist()
        taken = {self.groups[order[i]] for i in nearest_subset([sizes[i] for i in order], zeros)}
        return {
            name: self._pattern(weights[name]) if name in taken else torch.ones_like(weights[name], dtype=torch.bool)
            for name in self.scope.prunables
        }


def nearest_subset(sizes: Sequence[int], total: int) -> list[int]:
    """Which of ``sizes`` (above 0, the one that should be taken first at the front) to take, as ascending indices.

    Starts from the first ones, as many as come nearest to ``total`` (a draw takes fewer). While the sum is off by
    more than half the smallest size, one thing more is taken, put back, or exchanged for another: the move of the
    least disorder among those that end within half the smallest size, else among those that at least halve what is
    missing, else the move that comes nearest. Ends when no single move comes nearer. Disorder is the number of pairs
    of which the later is taken and the earlier is not.
    """
    size = np.asarray(sizes, dtype=np.int64)
    if not len(size):
        return []
    nothing = len(size)  # an index that stands for no thing at all
    padded = np.append(size, 0)
    reached = np.append(0, size.cumsum())
    taken = np.arange(len(size)) < int(np.abs(reached - total).argmin())
    while 2 * abs(missing := int(total - size[taken].sum())) > size.min():
        out, into = np.meshgrid(np.append(np.flatnonzero(taken), nothing), np.append(np.flatnonzero(~taken), nothing))
        out, into = out.ravel(), into.ravel()
        left = np.abs(missing + padded[out] - padded[into])
        if left.min() >= abs(missing):
            break
        disorder = _change(taken, out, into)
        for bound in (size.min() / 2, abs(missing) / 2):
            if left.min() <= bound:
                best = int(np.lexsort((left, disorder, left > bound))[0])
                break
        else:
            best = int(np.lexsort((disorder, left))[0])
        for index, value in ((out[best], False), (into[best], True)):
            if index < nothing:
                taken[index] = value
    return np.flatnonzero(taken).tolist()


def _change(taken: np.ndarray, out: np.ndarray, into: np.ndarray) -> np.ndarray:
    """How the disorder changes by each move: ``out`` put back and ``into`` taken (the length: nothing)."""
    ahead = np.append(0, (~taken).cumsum())[:-1]  # left out before each
    behind = taken.sum() - taken.cumsum()  # taken after each
    gain = np.append(ahead - behind, 0)  # by taking it
    both = (out < len(taken)) & (into < len(taken))  # then the two pass each other as well
    return gain[into] - gain[out] + both
