"""How far a student's outputs are from the dense model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from winnow.errors import InputError
from winnow.train.distil.outputs import Outputs

_LEAST = -1e30  # stands for a logit of minus infinity, whose differences would not be numbers


def distance(student: Outputs, target: torch.Tensor, loss: str, temperature: float) -> torch.Tensor:
    """The distance of what a student put out from what the dense model did, a scalar with gradient.

    ==========  ====================================================================================================
    kl          T^2 / rows * sum over rows of KL(softmax(dense / T) || softmax(student / T)), T the temperature
                (Hinton et al. 2015, arXiv 1503.02531; FCPTS's reconstruction loss)
    mse         mean of (student - dense)^2 over the mean of dense^2, so that the scale of the outputs does not matter
    cosine      mean over rows of 1 - cos(student, dense)
    auto        kl for logits of two classes and more, mse for one value and for features
    ==========  ====================================================================================================

    Rows are whole examples, or the positions that count. Of outputs joined from several tensors, mse and cosine are
    the mean over these tensors.

    Args:
        target: the dense model's counted rows [rows, features], or its values in the shape of ``student.values``.

    Raises:
        InputError: shapes that differ from the dense model's; kl of features, kl and cosine of a single value.
    """
    found = student.rows()
    if target.ndim > 2:
        target = Outputs(target, student.counts).rows()
    if found.shape != target.shape:
        raise InputError(
            f"the model put out {list(found.shape)} where the dense model put out {list(target.shape)}: have its forward "
            "return outputs of one shape, before any selection among them."
        )
    loss = resolve_loss(loss, student)
    if not len(found):
        return found.sum()
    if loss == "kl":
        ours, theirs = (F.log_softmax(logits.clamp_min(_LEAST) / temperature, -1) for logits in (found, target))
        return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    if loss == "mse":
        return relative_error(found, target, student.parts)
    apart = [1 - F.cosine_similarity(ours, theirs, -1).mean() for ours, theirs in _parts(found, target, student.parts)]
    return torch.stack(apart).mean()


def resolve_loss(loss: str, read: Outputs) -> str:
    """The loss that ``loss`` means for this kind of output. Raises InputError where it says nothing about it."""
    width = read.values.shape[-1]
    if loss == "auto":
        return "kl" if read.kind == "logits" and width > 1 else "mse"
    if loss == "kl" and read.kind != "logits":
        raise InputError("kl compares logits and this model puts out features: take --set loss=mse (or auto).")
    if loss != "mse" and width == 1:
        raise InputError(f"{loss} says nothing about a single output value: take --set loss=mse (or auto).")
    return loss


def relative_error(student: torch.Tensor, dense: torch.Tensor, parts: Sequence[int] = ()) -> torch.Tensor:
    """Mean squared difference over mean square of ``dense``; the mean of it over ``parts`` (widths of the last axis)."""
    found = []
    for ours, theirs in _parts(student, dense, parts):
        scale = theirs.square().mean()
        found.append((ours - theirs).square().mean() / torch.where(scale > 0, scale, torch.ones_like(scale)))
    return torch.stack(found).mean()


def _parts(student: torch.Tensor, dense: torch.Tensor, parts: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if not parts:
        return [(student, dense)]
    return list(zip(student.split(list(parts), -1), dense.split(list(parts), -1)))
