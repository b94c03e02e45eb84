"""Random masks, drawn before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from winnow.allocate import LayerInfo, allocate
from winnow.budget import parse_sparsity
from winnow.errors import InputError
from winnow.masks.global_ranking import MAX_RATE
from winnow.masks.prunable import Scope
from winnow.train.attached import Attached
from winnow.train.beginning import mask_initial

Distribution = Literal["erk", "uniform", "balanced"]


def distributed(
    scope: Scope, zeros: int, distribution: Distribution = "erk", max_rate: float = MAX_RATE
) -> dict[str, int]:
    """Zeros per tensor, ``zeros`` in all; see :func:`random_masks` for the distributions.

    Raises:
        InputError: an unknown distribution.
    """
    if distribution not in get_args(Distribution):
        raise InputError(f"distribution is {distribution!r}: choose from {', '.join(get_args(Distribution))}.")
    layers = [LayerInfo(n, p.rows, p.cols, p.block, p.shape) for n, p in scope.prunables.items()]
    return allocate(distribution, layers, zeros, max_rate=max_rate)


def random_masks(
    scope: Scope, sparsity: float | str, distribution: Distribution = "erk", seed: int = 0
) -> dict[str, torch.Tensor]:
    """Bool matrices [rows, cols] by name with exactly round(sparsity * numel) zeros in all, at random places.

    Args:
        distribution: zeros per tensor: "erk", density by the sum of a tensor's sides over their product (Evci et al. 2020,
            arXiv 1911.11134, section 3; solved again where a tensor would be denser than dense, so that the count is exact),
            "uniform", the same sparsity everywhere, or "balanced", the same number of kept weights everywhere, smaller tensors
            dense (Gadhikar et al. 2022, arXiv 2210.02412). A tensor keeps at least 1% of its weights.

    Raises:
        InputError: an unknown distribution or a sparsity outside [0, 1).
    """
    counts = distributed(scope, round(parse_sparsity(sparsity) * scope.numel), distribution)
    generator = torch.Generator().manual_seed(seed)
    keeps = {}
    for name, prunable in scope.prunables.items():
        keep = torch.ones(prunable.numel, dtype=torch.bool)
        keep[torch.randperm(prunable.numel, generator=generator)[: counts[name]]] = False
        keeps[name] = keep.view(prunable.rows, prunable.cols)
    return keeps


class RandomMasks:
    """A random mask that never changes: the plainest sparse training from scratch, and the control of all others.

    (Liu et al. 2022, "The unreasonable effectiveness of random pruning", arXiv 2202.02643.)

    Args:
        sparsity: share of the prunable weights, or text such as "90%"; the count is exact.
        distribution, seed: as for :func:`random_masks`.
        rescale: whether what is left of the initialisation is scaled to the norm that each output unit had
            (:func:`winnow.train.beginning.mask_initial`). None: unless the model has batch, group or instance norms, as measured
            there. Give False for weights that have been trained already.
    """

    def __init__(
        self,
        sparsity: float | str,
        *,
        distribution: Distribution = "erk",
        seed: int = 0,
        rescale: bool | None = None,
    ) -> None:
        self.sparsity, self.distribution, self.seed = parse_sparsity(sparsity), distribution, seed
        self.rescale = rescale

    def start(self, attached: Attached) -> None:
        keeps = random_masks(attached.scope, self.sparsity, self.distribution, self.seed)
        mask_initial(attached, keeps, self.rescale)

    def stepped(self, attached: Attached) -> None:
        """Nothing moves."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Masks are of the hook's own state."""
