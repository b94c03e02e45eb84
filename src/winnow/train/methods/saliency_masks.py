"""Masks found on a new network by the gradients of a few batches, or by the flow along its paths, before it is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from winnow.budget import parse_sparsity
from winnow.errors import InputError
from winnow.forward.modes import eval_mode
from winnow.masks.global_ranking import MAX_RATE, prune_globally
from winnow.train.attached import Attached
from winnow.train.beginning import mask_initial
from winnow.train.methods.fixed import Fixed
from winnow.train.norms import batch_statistics
from winnow.train.saliency import saliency
from winnow.train.saliency.subject import Beginning, Subject
from winnow.train.saliency.synflow import synflow_masks
from winnow.train.task_loss import Loss, TaskLoss


class SNIP(Fixed):
    """The weights on which the loss depends most (Lee et al. 2019, arXiv 1810.02340): those of the largest |w dL/dw| stay, in
    one ranking over all tensors, and the mask never changes.

    L is the mean over the examples of ``batches``, without dropout; batch norms normalize by the batch, as they are going to in training,
    and their running statistics stay. Scores: :func:`winnow.train.saliency.saliency.snip`. In several processes
    (DistributedDataParallel) the masks are those that the first one finds on its batches.

    Args:
        sparsity: share of the prunable weights, or text such as "90%"; the count is exact.
        batches: one or more labelled mini-batches in a list, as ``loss`` takes them: ``[next(iter(loader))]``.
        loss: (model, batch) -> scalar with gradient. By default the cross entropy of the model's logits on batches of
            (inputs, labels) or dicts with "labels".
        max_rate: share of its weights that a tensor may lose at most; 1 is the papers' ranking, which may empty a tensor.
        rescale: as for :class:`winnow.train.RandomMasks`.

    Raises:
        InputError: a ``max_rate`` outside 0 to 1; when attached, no batches, or a single one that is not in a list.
    """

    def __init__(
        self,
        sparsity: float | str,
        batches: Iterable[Any],
        *,
        loss: Loss | None = None,
        max_rate: float = MAX_RATE,
        rescale: bool | None = None,
    ) -> None:
        self.sparsity, self.max_rate, self.rescale = parse_sparsity(sparsity), max_rate, rescale
        if not 0 < max_rate <= 1:
            raise InputError(f"max_rate is {max_rate}: give the share that a tensor may lose, such as 0.99.")
        self.batches, self.loss = batches, TaskLoss("classes") if loss is None else loss

    def pruned(self, model: nn.Module) -> Collection[str]:
        """None: the masks of a new network are not known by name."""
        return ()

    def start(self, attached: Attached) -> None:
        subject = Beginning(attached, self.batches, self.loss)
        with eval_mode(attached.model):
            keeps = self.keeps(subject, round(self.sparsity * attached.numel))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for keep in keeps.values():
                torch.distributed.broadcast(keep, 0)
        mask_initial(attached, keeps, self.rescale)

    def keeps(self, subject: Subject, zeros: int) -> dict[str, torch.Tensor]:
        """Bool matrices [rows, cols] by name with so many zeros in all."""
        with batch_statistics(subject.model):
            scores = saliency.snip(subject, subject.training.examples.parts)
        return prune_globally(scores, subject.keeps, zeros, self.max_rate)


class GraSP(SNIP):
    """The weights that keep the gradient's flow (Wang et al. 2020, arXiv 2002.07376): those of the largest w (H g) go last, in one
    ranking over all tensors. Scores: :func:`winnow.train.saliency.saliency.grasp`.

    Args:
        sparsity, batches, loss, max_rate, rescale: as for :class:`SNIP`; 10 examples or more of every class are what the paper takes.
        temperature: the logits are divided by it; 1 for a regression.
    """

    def __init__(
        self,
        sparsity: float | str,
        batches: Iterable[Any],
        *,
        loss: Loss | None = None,
        temperature: float = 200.0,
        max_rate: float = MAX_RATE,
        rescale: bool | None = None,
    ) -> None:
        super().__init__(sparsity, batches, loss=loss, max_rate=max_rate, rescale=rescale)
        if not temperature > 0:
            raise InputError(
                f"temperature is {temperature}: give a positive number, 200 as in the paper or 1 for none."
            )
        self.temperature = temperature

    def keeps(self, subject: Subject, zeros: int) -> dict[str, torch.Tensor]:
        scores = saliency.grasp(subject, subject.training.examples.parts, self.temperature)
        return prune_globally(scores, subject.keeps, zeros, self.max_rate)


class SynFlow(SNIP):
    """The weights on the paths that carry most flow (Tanaka et al. 2020, arXiv 2006.05467), found without looking at data: in
    ``iterations`` rounds of exponentially rising sparsity, each scored anew. See
    :func:`winnow.train.saliency.synflow.synflow_masks`.

    Args:
        sparsity, batches, loss, max_rate, rescale: as for :class:`SNIP`; of the batches one example is used, with ones in
            the place of its numbers, and of the loss how it calls the model.
        iterations: rounds of scoring and pruning.
    """

    def __init__(
        self,
        sparsity: float | str,
        batches: Iterable[Any],
        *,
        loss: Loss | None = None,
        iterations: int = 100,
        max_rate: float = MAX_RATE,
        rescale: bool | None = None,
    ) -> None:
        super().__init__(sparsity, batches, loss=loss, max_rate=max_rate, rescale=rescale)
        if iterations < 1:
            raise InputError(f"{iterations} rounds find no mask: give iterations of 1 or more, 100 as in the paper.")
        self.iterations = iterations

    def keeps(self, subject: Subject, zeros: int) -> dict[str, torch.Tensor]:
        return synflow_masks(subject, zeros, self.iterations, self.max_rate)
