"""A shrunk model as JSON - which indices of which tensor stay - and the model rebuilt from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.formats.resaved import before_saving, refuse_other_shapes
from winnow.masks.prunable import Prunable
from winnow.shrinking.attention import NarrowAttention
from winnow.shrinking.tree import find_tensor, refit, replace_tensor, shared_copy

VERSION = 1
PARTS = ("cuts", "folds", "attributes", "narrow", "config")


def apply(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """The smaller model that a plan describes, from the full-size model; that one stays as it was.

    A plan is plain JSON: ``{"version": 1, "cuts": [...], "folds": [...], "attributes": [...], "narrow": [...],
    "config": [...]}``.

    - cuts: ``{"name", "axis", "of", "keep"}``: the indices that stay along one axis of a parameter or buffer;
      ``keep`` is a list for each expert where experts are stacked along axis 0.
    - folds: ``{"weight", "bias", "axis", "inputs", "values"}``: constants that removed units gave to the inputs of
      a layer, moved into its bias (before anything is cut).
    - attributes: ``{"module", "name", "value"}``, such as a number of heads.
    - narrow: ``{"module", "of", "keep"}``: MultiheadAttention modules that lost heads.
    - config: ``{"module", "part", "name", "value"}``: entries of a transformers config.

    On the model the plan was made for the result computes what it computes; on one with other values (a factory's
    fresh model, also on the meta device) it has the right shapes for the shrunk state dict.
    Parameters that are not cut are shared with ``model``. Raises InputError where plan and model do not fit. Where layers keep unlike
    numbers of units no transformers configuration can say so, and ``save_pretrained`` of the result raises InputError.
    """
    if plan.get("version") != VERSION or any(not isinstance(plan.get(part), list) for part in PARTS):
        raise InputError(f"this is no shrink plan of version {VERSION}: make it with winnow.shrinking.plan")
    small = shared_copy(model)
    try:
        for fold in plan["folds"]:
            _fold(small, fold)
        changed: dict[str, None] = {}
        for cut in plan["cuts"]:
            owner, key, tensor = find_tensor(small, cut["name"])
            replace_tensor(owner, key, _cut(tensor.detach(), cut))
            changed[cut["name"].rpartition(".")[0]] = None
        for path in changed:
            refit(small.get_submodule(path))
        for entry in plan["narrow"]:
            attention = small.get_submodule(entry["module"])
            if not isinstance(attention, nn.MultiheadAttention):
                raise InputError(
                    f"{entry['module']} is no MultiheadAttention: give the model that the plan was made for"
                )
            NarrowAttention.narrow(attention, entry["of"], tuple(entry["keep"]))
            for path, encoder in small.named_modules():
                if isinstance(encoder, nn.TransformerEncoder) and entry["module"].startswith(
                    f"{path}." if path else ""
                ):
                    encoder.use_nested_tensor = False  # only the fused kernel reads nested tensors
        for entry in plan["attributes"]:
            setattr(small.get_submodule(entry["module"]), entry["name"], entry["value"])
        for entry in plan["config"]:
            config: Any = small.get_submodule(entry["module"]).config
            setattr(getattr(config, entry["part"]) if entry["part"] else config, entry["name"], entry["value"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"the shrink plan does not fit this model: make it again with winnow.shrinking.plan ({error})"
        ) from error
    if hasattr(small, "save_pretrained") and hasattr(small, "config"):
        before_saving(small, refuse_other_shapes)
    return small


def kept_rows_cols(plan: Mapping[str, Any], prunable: Prunable) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) of a prunable's matrix [R, C] that a plan keeps, int64: the same cut for packed matrices.

    With :func:`winnow.shrinking.shrink_matrix` these give the matrix of the shrunk tensor. Raises InputError for
    stacked experts, whose columns differ from expert to expert.
    """
    if prunable.kind == "experts":
        raise InputError(f"{prunable.name} stacks experts, each with columns of its own: cut the stored tensor")
    keep = {c["axis"]: torch.tensor(c["keep"]) for c in plan["cuts"] if c["name"] == prunable.name}
    rows_axis = 1 if prunable.transposed else 0
    rows = keep.get(rows_axis, torch.arange(prunable.rows))
    cols = keep.get(1 - rows_axis)
    if cols is None:
        return rows, torch.arange(prunable.cols)
    width = prunable.kernel
    return rows, (cols[:, None] * width + torch.arange(width)).flatten()


def _cut(tensor: torch.Tensor, cut: Mapping[str, Any]) -> torch.Tensor:
    name, axis, of, keep = (cut[k] for k in ("name", "axis", "of", "keep"))
    if not 0 <= axis < tensor.dim() or tensor.shape[axis] != of:
        raise InputError(f"{name} is {list(tensor.shape)}, the shrink plan expects {of} along axis {axis}")
    if keep and isinstance(keep[0], Sequence):
        if axis == 0 or len(keep) != tensor.shape[0] or len({len(k) for k in keep}) != 1:
            raise InputError(f"the shrink plan's indices for the experts of {name} do not fit its shape")
        return torch.stack([_take(t, axis - 1, k, of, name) for t, k in zip(tensor, keep)])
    return _take(tensor, axis, keep, of, name)


def _take(tensor: torch.Tensor, axis: int, keep: Sequence[int], of: int, name: str) -> torch.Tensor:
    ascending = list(keep) == sorted(set(keep))
    if not keep or not ascending or not 0 <= keep[0] <= keep[-1] < of:
        raise InputError(f"the shrink plan's indices for {name} are not ascending numbers below {of}")
    return tensor.index_select(axis, torch.tensor(keep, device=tensor.device))


def _fold(model: nn.Module, fold: Mapping[str, Any]) -> None:
    """bias += W[:, inputs] @ values, a convolution's kernel summed: its input is the same everywhere."""
    owner, key, bias = find_tensor(model, fold["bias"])
    weight = find_tensor(model, fold["weight"])[2].detach()
    if not weight.is_meta:
        inputs = torch.tensor(fold["inputs"], device=weight.device)
        part = weight.index_select(fold["axis"], inputs).double()
        part = part.flatten(2).sum(2) if weight.dim() > 2 else part
        part = part.t() if fold["axis"] == 0 else part
        delta = part @ torch.tensor(fold["values"], dtype=torch.float64, device=weight.device)
        replace_tensor(owner, key, (bias.detach().double() + delta).to(bias.dtype))


def nonzero_rows_cols(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of a matrix [R, C] that hold any non-zero: (rows kept, columns kept), int64, ascending.

    ``y = x Wᵀ`` needs no other: with ``small = shrink_matrix(weight, rows, cols)``,
    ``y[..., rows] = x[..., cols] @ small.T`` and every other entry of ``y`` is zero.
    """
    used = weight != 0  # NaN counts as used
    return used.any(1).nonzero().flatten(), used.any(0).nonzero().flatten()


def shrink_matrix(
    weight: torch.Tensor, rows: torch.Tensor | None = None, cols: torch.Tensor | None = None
) -> torch.Tensor:
    """The submatrix [len(rows), len(cols)] of the given rows and columns (None: all), contiguous, in new memory."""
    if rows is not None:
        weight = weight.index_select(0, rows.to(weight.device))
    if cols is not None:
        weight = weight.index_select(1, cols.to(weight.device))
    return weight.contiguous() if rows is not None or cols is not None else weight.clone().contiguous()
