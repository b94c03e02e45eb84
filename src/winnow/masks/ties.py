"""Which names of a model mean the same memory: tied weights, and views of one another's storage.

Names are compared by what they hold, never by what a class or a configuration declares: two names are one *tensor*
where they are the same elements in the same order, and *overlap* where they share elements in another order or share
only some of them (a transposed view, a slice).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and persistent buffer under every name it has, in the order of the state dict."""
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def tied(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """name -> all names of the same tensor, itself included, in the order given."""
    groups: dict[Hashable, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(identity(tensor), []).append(name)
    return {name: group for group in groups.values() for name in group}


def overlapping(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """name -> names of *other* tensors that share some of its elements; names that share none are left out."""
    found: dict[str, list[str]] = {}
    first = {group[0]: group for group in tied(tensors).values()}
    by_storage: dict[int, list[str]] = {}
    for name in first:
        if (where := _storage(tensors[name])) is not None:
            by_storage.setdefault(where, []).append(name)
    for names in by_storage.values():
        names.sort(key=lambda name: tensors[name].data_ptr())
        for i, a in enumerate(names[:-1]):
            end = tensors[a].data_ptr() + _reach(tensors[a]) * tensors[a].element_size()
            for b in names[i + 1 :]:
                if tensors[b].data_ptr() >= end:
                    break
                if _share(tensors[a], tensors[b]):
                    for one, other in ((a, b), (b, a)):
                        for name in first[one]:
                            found.setdefault(name, []).extend(first[other])
    return found


def identity(tensor: torch.Tensor) -> Hashable:
    """Equal for tensors that are the same elements in the same order; tensors without memory are only themselves."""
    if _storage(tensor) is None:
        return id(tensor)
    # A dimension of one element has no stride that matters.
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), strides


@torch.no_grad()
def share_as(like: nn.Module, model: nn.Module) -> nn.Module:
    """Ties in ``model``, a copy of ``like`` (of any type), what shares memory in ``like``: copying and converting give
    every parameter memory of its own. In place; the parameters stay the objects that they are."""
    original, own = tensors_of(like), tensors_of(model)
    same, others = tied(original), overlapping(original)
    wholes: dict[Hashable, torch.Tensor] = {}
    for name, tensor in original.items():
        if name in others:
            key = _storage(tensor), tensor.dtype
            if key not in wholes:
                whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
                wholes[key] = whole.to(own[name].dtype, copy=True)
            own[name].data = wholes[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        elif own[name] is not own[same[name][0]]:
            own[name].data = own[same[name][0]].data
    return model


def _storage(tensor: torch.Tensor) -> int | None:
    """The address of a tensor's storage; None for one that has none (meta, lazy, empty, some subclasses)."""
    if tensor.is_meta or is_lazy(tensor) or tensor.numel() == 0:
        return None
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def _share(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors whose ranges of memory meet share an element: interleaved slices share none."""
    if a.dtype != b.dtype:
        return True
    ends = [t.storage_offset() + _reach(t) for t in (a, b)]
    touched = torch.zeros(max(ends), dtype=torch.bool)
    touched.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(touched.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def _reach(tensor: torch.Tensor) -> int:
    """Elements from a tensor's first to its last, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def stored_names(model: nn.Module, *, transformers: bool) -> dict[str, str]:
    """name -> the name under which its tensor is written, for every name of the state dict.

    A plain torch model's tensor is written under its first name. ``transformers`` ties again, while it loads, what class
    and configuration declare, and nothing else: such a tensor is written under the name that the others are declared to
    follow, and a tie made by hand is written under each of its names, all with the same values.
    """
    tensors = tensors_of(model)
    groups = tied(tensors)
    if not transformers:
        return {name: group[0] for name, group in groups.items()}
    names = {name: name for name in tensors}
    for target, source in declared_ties(model).items():
        if target in groups and source in groups[target]:
            old, new = names[target], names[source]
            names = {name: new if stored == old else stored for name, stored in names.items()}
    return names


def declared_ties(model: nn.Module) -> dict[str, str]:
    """name -> the one it is tied to, as a transformers model with this class and configuration is loaded."""
    expand = getattr(model, "get_expanded_tied_weights_keys", None)
    try:
        return dict(expand(all_submodels=True)) if expand is not None else {}
    except (AttributeError, ValueError):  # a mapping that does not fit this model: what it was built with counts
        return dict(getattr(model, "all_tied_weights_keys", None) or {})
