"""Initial weights in the place of trained ones: a model as it was before anybody trained it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.masks.unwrap import working_copy
from winnow.models.modules import build
from winnow.models.pretrained import quiet_transformers
from winnow.seeding import torch_seed
from winnow.train.task.training import Training


@torch.no_grad()
def from_scratch(training: Training, factory: str | None, *, keep_zeros: bool = False) -> Training:
    """The same training from weights that are drawn anew under its seed; batch norms begin anew too.

    A transformers model is built from its configuration. A plain torch model is built by its function, ``factory``; where that
    gives the same weights under another seed (it loads a file, or seeds itself), the layers concerned are drawn by their
    ``reset_parameters``.

    Args:
        keep_zeros: prunable weights that are zero now stay zero: the mask of the model, under new weights.

    Raises:
        InputError: weights that cannot be drawn anew.
    """
    model, notes = working_copy(training.model), list(training.notes)
    if factory is not None:
        fresh = _built(factory, training.seed, notes)
    elif hasattr(type(model), "base_model_prefix") and hasattr(model, "config"):
        kind: Any = type(model)
        with torch_seed(training.seed), quiet_transformers():
            fresh = kind(copy.deepcopy(model.config))
    else:
        raise InputError(
            f"{type(model).__name__} cannot be drawn anew: give a model of transformers, or one built by package.module:function.",
            option="from_scratch",
        )
    before = {n: model.get_parameter(n).detach() == 0 for n in training.scope().prunables} if keep_zeros else {}
    try:
        model.load_state_dict(fresh.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"{type(model).__name__} built anew has other tensors than the model given: leave out from_scratch ({str(error).splitlines()[-1].strip()}).",
            option="from_scratch",
        ) from None
    for name, zeros in before.items():
        model.get_parameter(name).masked_fill_(zeros, 0.0)
    notes.append(f"the training starts from weights that were drawn anew (seed {training.seed}).")
    return training.replaced(model=model, notes=notes)


def _built(factory: str, seed: int, notes: list[str]) -> nn.Module:
    fresh, other = build(factory, seed=seed), build(factory, seed=seed + 1)
    fixed = [n for n, p in fresh.named_parameters() if p.requires_grad and _given(p, other.get_parameter(n))]
    if not fixed:
        return fresh
    with torch_seed(seed):
        for path in dict.fromkeys(name.rpartition(".")[0] for name in fixed):
            module: Any = fresh.get_submodule(path)
            draw = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if draw is None:
                name = next(n for n in fixed if n.rpartition(".")[0] == path)
                raise InputError(
                    f"{factory} builds {name} with the same values under every seed, and its {type(module).__name__} has no "
                    "reset_parameters: give a function that draws it and loads nothing.",
                    option="from_scratch",
                )
            draw()
    notes.append(
        f"{factory} builds the same weights under every seed, as if it loaded them: its layers were drawn anew by their reset_parameters."
    )
    return fresh


def _given(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether values are not drawn: the same under two seeds, and not all one number, as norms and biases begin."""
    return torch.equal(one, other) and one.numel() > 1 and bool((one != one.flatten()[0]).any())
