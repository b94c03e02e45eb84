"""What it would cost to take more from one group alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from winnow.fcpts.groups import UnitGroups
from winnow.fcpts.start import TINY, threshold_removing

SHARE = 0.1  # of what a group has left


@torch.no_grad()
def sensitivity(
    units: UnitGroups,
    thresholds: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    loss_of: Callable[[dict[str, torch.Tensor]], float],
    target: float,
) -> dict[str, float]:
    """By group: the rise of the loss when this group alone gives up a tenth more of what it has left.

    The model is the exact one, ``round(target * numel)`` weights removed; then the group's threshold goes up to where a
    tenth of its remaining weights lie below (to the nearest unit, one at least), all others staying as they are. A group
    with nothing left has 0. Costs one loss for every group and one more.

    Args:
        thresholds: [G], of the exact selection.
        weights: matrices [rows, cols] by tensor name.
        loss_of: the loss of the model with these matrices.
        target: share of the units' weights that goes, 0 to 1.
    """
    keeps = units.select(weights, thresholds, round(target * int(units.numels.sum())))
    folded = {name: w * keeps[name] if name in keeps else w for name, w in weights.items()}
    base = loss_of(dict(folded))
    found: dict[str, float] = {}
    off = torch.full_like(thresholds.detach(), TINY)
    for g, (name, m, size) in enumerate(zip(units.groups, units.magnitudes(folded), units.sizes())):
        left = m > 0
        if not bool(left.any()):
            found[name] = 0.0
            continue
        load = size.to(m.device)[left] if isinstance(size, torch.Tensor) else size
        weight_left = float(load.sum()) if isinstance(load, torch.Tensor) else float(load * int(left.sum()))
        raised = off.clone()
        raised[g] = threshold_removing(m[left], load, SHARE * weight_left, least=1)
        masked, _ = units.mask(folded, raised)
        found[name] = loss_of({**folded, **masked}) - base
    return found
