"""ALPS: choose mask and values together by ADMM with an exact projection, then refine the values."""

from __future__ import annotations

import torch

from winnow.masks.structure import Group, Structure, select
from winnow.solve.factor import Spectrum
from winnow.solve.least_squares import masked_cg
from winnow.solve.sparsegpt import Band

_STEPS = 300
_EVERY = 3  # steps between changes of the penalty
_FIRST, _LEAST, _MOST = 0.1, 1e-4, 1e6  # penalty at the start, and its bounds
_REFINE_STEPS, _REFINE_TOLERANCE = 10, 1e-4


def alps(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    spectrum: Spectrum,
    bands: list[Band],
    structure: Structure,
    group: Group = "layer",
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune the stacked rows ``weight`` [R, C]; returns (weight [R, C], keep [R, C]), exact counts in every band.

    Meng et al., ALPS (NeurIPS 2024). Inputs scaled to norm one, B minimises the output error plus a penalty on the
    distance to D, the projection of B + V / rho on masks of the target count and structure; the penalty rho grows
    while the mask changes little, until it no longer changes. At most 10 conjugate gradient steps then refine the
    values on the mask, from those that B has arrived at (the paper's section 3.3). ``hessian`` [C, C] is the damped
    Gram matrix, ``spectrum`` its scaled eigendecomposition. With ``keep`` the mask is held and only the refinement
    runs, from the weights themselves. Any structure that ``select`` knows.
    """
    start = weight
    if keep is None:
        found = [_Admm(weight[b.rows], b.zeros, spectrum, structure, group).run() for b in bands]
        start, keep = torch.cat([values for values, _ in found]), torch.cat([mask for _, mask in found])
    return masked_cg(weight, start * keep, keep, hessian, _REFINE_STEPS, _REFINE_TOLERANCE), keep


class _Admm:
    """The iteration of one layer; rows are outputs, so B, D, V are [R, C] in scaled units."""

    def __init__(
        self, weight: torch.Tensor, zeros: int, spectrum: Spectrum, structure: Structure, group: Group
    ) -> None:
        self.weight, self.zeros, self.structure, self.group = weight, zeros, structure, group
        self.spectrum = spectrum
        self.dense = weight * spectrum.norm
        # Everything B depends on linearly is kept in the eigenbasis.
        self.target = (self.dense @ spectrum.vectors) * spectrum.values
        self.kept = weight.numel() - zeros

    def project(self, values: torch.Tensor) -> torch.Tensor:
        return select(values.square(), self.zeros, self.structure, self.group, self.weight)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What B has arrived at, in units of the weights, and the mask it is projected on, both [R, C]."""
        if not 0 < self.zeros < self.weight.numel():
            return self.weight, self.project(self.dense)
        rho, raised = _FIRST, False
        keep = first = self.project(self.dense)
        values, dual = self.dense * keep, torch.zeros_like(self.dense)
        seen = keep
        for step in range(1, _STEPS + 1):
            push = (rho * values - dual) @ self.spectrum.vectors
            solved = ((self.target + push) / (self.spectrum.values + rho)) @ self.spectrum.vectors.t()
            shifted = solved + dual / rho
            keep = self.project(shifted)
            values = shifted * keep
            dual = rho * (shifted - values)  # = dual + rho * (solved - values)
            if step % _EVERY:
                continue
            changed = int((keep != seen).sum()) / self.kept
            seen = keep
            if changed > 0.1:
                rho, raised = rho * 1.3, True
            elif changed > 0.005:
                rho, raised = rho * 1.2, True
            elif not raised:
                # So stiff a penalty that the first mask never had a chance to change: begin again with less.
                if rho <= _LEAST:
                    break
                rho /= 5
                keep = seen = first
                values, dual = self.dense * keep, torch.zeros_like(self.dense)
                continue
            elif changed == 0 or (step >= 30 and changed < 0.0003):
                break
            else:
                rho *= 1.1
            rho = min(rho, _MOST)
        return solved / self.spectrum.norm, self.project(solved)
