"""LoRA on a sparse model: the adapters go into the weights, and what was pruned stays zero."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.kernels.modules import PackedLayer
from winnow.masks.mask import MaskSet
from winnow.masks.prunable import Scope
from winnow.masks.scope import find_scope
from winnow.masks.unwrap import on_meta, unwrap
from winnow.train.masking import zero

_AROUND = (".base_layer", ".original_module")  # below these peft keeps what it stands around

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """What :func:`merge` did, as ``model.winnow_merged``.

    Attributes:
        zeros: number of weights that the masks hold at zero, in the tensors that they are of.
        lost: share of the adapters' update that fell on pruned weights and is not in the model, of its squared Frobenius norm
            over all prunable tensors: near the sparsity where the update pays no heed to the masks.
        tensors: the same share of each tensor that was updated.
    """

    zeros: int
    lost: float
    tensors: dict[str, float] = field(repr=False)


def merge(peft_model: nn.Module, masks: MaskSet | Mapping[str, torch.Tensor] | None = None) -> nn.Module:
    """Merges the active adapters of a peft model into its weights; pruned weights stay exactly zero.

    peft's own ``merge_and_unload`` adds B A to every weight and leaves none of the zeros. Here peft merges as well - LoRA, DoRA
    and whatever else it can merge - and then the masks are applied. The merged model is therefore not quite the one that was
    trained: the part of the update that fell on pruned weights is lost. How much that is stands in ``model.winnow_merged``
    (:class:`Merged`) and in the log (INFO). Evaluate the merged model; where too much was lost, train it on with
    :class:`WinnowCallback`, under which the zeros are part of the training.

    Args:
        peft_model: what ``peft.get_peft_model`` or ``PeftModel.from_pretrained`` made around a sparse model whose weights are
            dense in memory, as ``winnow.load(DIR)`` gives it. The base model is changed in place, as by peft.
        masks: a :class:`MaskSet` or bool matrices [rows, cols] by name of the base model's tensors, True where the weight
            stays; None: the zeros that the adapted prunable weights have before the merge.

    Returns:
        The plain model, without peft. While it is made, a copy of the adapted weights lies in CPU memory.

    Raises:
        InputError: no peft model or one whose adapters peft cannot merge, adapters that are merged already or not finite, a
            base model that is packed or has lost its zeros, masks of another model. Nothing has changed then.
    """
    tuner = _tuner(peft_model)
    base: nn.Module = tuner.model
    _require_mergeable(base)
    loaded: dict[str, int] = getattr(base, "winnow_zeros", {})
    skeleton: Any = on_meta(tuner)
    scope = find_scope(skeleton.unload(), include=[*loaded, *(masks or ())])
    weights = {_plain(name): p for name, p in base.named_parameters() if "modules_to_save." not in name}
    if masks is None:
        _require_zeros(weights, loaded)
    keeps = _keeps(scope, masks)
    adapted = {_plain(name) for name, _ in base.named_parameters() if _plain(name) != name}
    before = {n: weights[n].detach().to("cpu", copy=True) for n in scope.prunables if n in adapted}
    try:
        model: nn.Module = tuner.merge_and_unload()
    except (ValueError, NotImplementedError) as error:  # peft asks first whether its kind of adapter can
        raise InputError(f"peft cannot merge these adapters: {(str(error).splitlines() or [''])[0]}") from error
    model.winnow_merged = _apply(model, scope, before, keeps)  # type: ignore[assignment]
    return model


@torch.no_grad()
def _apply(
    model: nn.Module, scope: Scope, before: dict[str, torch.Tensor], keeps: dict[str, torch.Tensor] | None
) -> Merged:
    """Puts the zeros back, and measures what goes with them."""
    zeros, update, lost = 0, {}, {}
    for name in scope.prunables if keeps is None else dict.fromkeys([*before, *keeps]):
        prunable, weight, old = scope.prunables[name], model.get_parameter(name), before.pop(name, None)
        if keeps is not None:
            keep = keeps.get(name)
        else:
            keep = None if old is None else prunable.matrix(old != 0)
        mask = None if keep is None else prunable.restore(keep).to(weight.device)
        if old is not None:
            change = (weight.float() - old.to(weight.device).float()).square_()
            update[name] = float(change.sum(dtype=torch.float64))
            lost[name] = 0.0 if mask is None else float(change[~mask].sum(dtype=torch.float64))
        if mask is not None:
            zeros += mask.numel() - int(mask.count_nonzero())
            zero(weight.data, mask, name)
    whole = math.fsum(update.values())
    share = {name: lost[name] / update[name] for name in lost if update[name]}
    found = Merged(zeros, math.fsum(lost.values()) / whole if whole else 0.0, share)
    _log.info(
        "%d pruned weights stay zero: %.1f%% of the squared norm of the adapters' update fell on them and is lost",
        found.zeros, 100 * found.lost,
    )  # fmt: skip
    return found


def _plain(name: str) -> str:
    """The name that a parameter of a wrapped model has in the plain one."""
    for part in _AROUND:
        name = name.replace(part, "")
    return name


def _tuner(peft_model: nn.Module) -> Any:
    """peft's wrapper that can merge."""
    try:
        from peft.tuners.tuners_utils import BaseTuner
    except ImportError:
        raise InputError("merging adapters needs peft: pip install 'winnow-nn[lora]'.") from None
    peft_model = unwrap(peft_model)
    tuner = getattr(peft_model, "base_model", None)
    if isinstance(tuner, BaseTuner):
        return tuner
    if hasattr(peft_model, "peft_config"):  # prompts and prefixes, and adapters that transformers itself has injected
        raise InputError(
            f"{type(peft_model).__name__} holds no adapters that merge into weights: give what peft.get_peft_model or "
            "PeftModel.from_pretrained makes of a LoRA configuration."
        )
    raise InputError(
        f"{type(peft_model).__name__} is no peft model: give what peft.get_peft_model or PeftModel.from_pretrained returned."
    )


def _require_mergeable(base: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in base.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise InputError(
                f"the adapter of {path} is merged already: load base model and adapter again, and give them as they are."
            )
        if isinstance(module, PackedLayer):
            raise InputError(
                f"{_plain(path)} is packed, and a packed weight cannot take up an adapter: save the adapter with save_pretrained, "
                "load the model with winnow.load(DIR) and the adapter onto it with PeftModel.from_pretrained, and merge that."
            )
    for name, parameter in base.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach()).all()):
            raise InputError(f"{name} holds NaN or infinity: merge an adapter from an earlier checkpoint.")


def _require_zeros(weights: Mapping[str, torch.Tensor], loaded: Mapping[str, int]) -> None:
    """The zeros are the masks: those that the model was loaded with must still be there."""
    for name, zeros in loaded.items():
        found = int((weights[name] == 0).sum()) if name in weights else zeros
        if found < zeros:
            raise InputError(
                f"{name} has {found} zeros of the {zeros} that it was loaded with: load the base model again, or give masks."
            )


def _keeps(scope: Scope, masks: MaskSet | Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
    """The masks that were given as bool matrices, checked."""
    if masks is None:
        return None
    keeps = {name: mask.unpack() for name, mask in MaskSet(masks).items()}
    for name, keep in keeps.items():
        prunable = scope.prunables.get(name)
        if prunable is None or tuple(keep.shape) != (prunable.rows, prunable.cols):
            shape = "x".join(map(str, keep.shape))
            raise InputError(f"the model has no prunable {name} of {shape}: give masks of the base model.")
    return keeps
