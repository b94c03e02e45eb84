"""Whether a model that is built by a function has weights that anything was learned with."""

from __future__ import annotations

import torch

from winnow.models import ModelSource, build


def untrained(source: ModelSource) -> str | None:
    """A sentence where ``package.module:function`` was given without weights and builds other ones from another seed.

    A function that loads weights, or sets a seed of its own, builds the same twice and is taken at its word.
    """
    if source.factory is None or source.weights is not None or source.folder is not None:
        return None
    built = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built.append(build(source.factory).state_dict())
    first, second = built
    same = first.keys() == second.keys() and all(
        torch.equal(first[k], second[k]) for k in first if torch.is_tensor(first[k]) and torch.is_tensor(second[k])
    )
    if same:
        return None
    return (
        f"{source.factory} was given without --weights and builds random ones: these are figures of a model that was never "
        "trained; name its state dict with --weights FILE."
    )
