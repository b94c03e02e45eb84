"""1-swap refinement: exchange a kept weight for a pruned one while that lowers the output error."""

from __future__ import annotations

import torch

from winnow.errors import InputError
from winnow.masks.structure import NM, Structure, Unstructured

STEPS = 100
_SHORTLIST = 32  # candidates on either side whose pairs are all weighed
_BYTES = 1 << 26  # memory for the pairs of the rows refined together


def swap(
    weight: torch.Tensor, keep: torch.Tensor, gram: torch.Tensor, structure: Structure, steps: int = STEPS
) -> torch.Tensor:
    """A mask [R, C] of the same counts a row whose error, without changing values, is no larger than that of ``keep``.

    SparseSwaps (arXiv 2512.10922). With r = w * (1 - mask) and c = G r, dropping the kept u and restoring the
    pruned p changes the row's error by

        w_u^2 G_uu + 2 w_u c_u + w_p^2 G_pp - 2 w_p c_p - 2 w_u w_p G_up.

    Each row takes its most negative pair and repeats, at most ``steps`` times. For n:m the pair lies in one group
    and every pair is weighed. Unstructured: all pairs of the 32 kept and the 32 pruned weights whose own terms are
    lowest (all pairs where a row has no more), so a step is exact and lowers the error, though a rarer pair can lower
    it more.

    Raises:
        InputError: the structure is neither unstructured nor n:m.
    """
    if not isinstance(structure, Unstructured | NM):
        raise InputError(f"the solver 'swap' exchanges single weights and cannot keep {structure}: use 'sparsegpt+lsq'")
    keep = keep.clone()
    cols = weight.shape[1]
    width = structure.m**2 * (cols // structure.m) if isinstance(structure, NM) else _SHORTLIST**2
    step = max(1, _BYTES // (4 * (width + 4 * cols)))
    for start in range(0, weight.shape[0], step):
        stop = start + step
        keep[start:stop] = _refine(weight[start:stop], keep[start:stop], gram, structure, steps)
    return keep


def _refine(
    weight: torch.Tensor, keep: torch.Tensor, gram: torch.Tensor, structure: Structure, steps: int
) -> torch.Tensor:
    """The refined masks of a few rows; rows without an improving pair leave the batch."""
    result = keep.clone()
    rows = torch.arange(weight.shape[0], device=weight.device)
    own = weight.square() * gram.diagonal()
    pull = (weight * ~keep) @ gram  # c
    find = _in_groups if isinstance(structure, NM) else _in_rows
    arguments = (gram, structure.m) if isinstance(structure, NM) else (gram,)
    for _ in range(steps):
        cross = 2 * weight * pull
        drop, restore = own + cross, own - cross
        change, out, back = find(weight, keep, drop, restore, *arguments)
        # Differences of rounding alone would let a row swap to and fro.
        improving = change < -1e-6 * (own.gather(1, out[:, None]) + own.gather(1, back[:, None])).squeeze(1)
        if not improving.any():
            break
        if not improving.all():
            result[rows] = keep
            rows, weight, own, pull, keep, out, back = (
                t[improving] for t in (rows, weight, own, pull, keep, out, back)
            )
        here = torch.arange(len(rows), device=weight.device)
        keep[here, out], keep[here, back] = False, True
        pull += weight[here, out][:, None] * gram[out] - weight[here, back][:, None] * gram[back]
    result[rows] = keep
    return result


def _in_rows(
    weight: torch.Tensor, keep: torch.Tensor, drop: torch.Tensor, restore: torch.Tensor, gram: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Most negative change of each row among its shortlisted pairs, and the two columns."""
    length = min(_SHORTLIST, weight.shape[1])
    drop, out = drop.masked_fill(~keep, torch.inf).topk(length, dim=1, largest=False)
    restore, back = restore.masked_fill(keep, torch.inf).topk(length, dim=1, largest=False)
    pairs = gram[out[:, :, None], back[:, None, :]]
    pairs *= -2 * weight.gather(1, out)[:, :, None]
    pairs *= weight.gather(1, back)[:, None, :]
    pairs += drop[:, :, None]
    pairs += restore[:, None, :]
    change, best = pairs.flatten(1).min(1)
    first, second = best // length, best % length
    return change, out.gather(1, first[:, None]).squeeze(1), back.gather(1, second[:, None]).squeeze(1)


def _in_groups(
    weight: torch.Tensor, keep: torch.Tensor, drop: torch.Tensor, restore: torch.Tensor, gram: torch.Tensor, m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Most negative change of each row over all pairs within groups of m columns, and the two columns."""
    rows, cols = weight.shape
    grouped = (rows, cols // m, m)
    group = torch.arange(cols, device=weight.device).reshape(-1, m)
    within = gram[group[:, :, None], group[:, None, :]]  # [groups, m, m]
    values = weight.reshape(grouped)
    pairs = -2 * values[:, :, :, None] * values[:, :, None, :] * within
    pairs += drop.masked_fill(~keep, torch.inf).reshape(grouped)[:, :, :, None]
    pairs += restore.masked_fill(keep, torch.inf).reshape(grouped)[:, :, None, :]
    change, best = pairs.flatten(1).min(1)
    base = best // m**2 * m
    return change, base + best % m**2 // m, base + best % m
