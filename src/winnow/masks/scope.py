"""What may be pruned in a model, and why the rest may not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNBase
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from winnow.errors import InputError, meant
from winnow.masks.blocks import Block, find_blocks, is_transposed_linear
from winnow.masks.experts import find_experts
from winnow.masks.prunable import Prunable, Scope, Skipped, nothing_to_prune
from winnow.masks.ties import overlapping, tied
from winnow.masks.unwrap import plain_module, require_dense

MHA_WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def find_scope(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = (), *, outputs: Sequence[str] | None = None
) -> Scope:
    """What may be pruned in ``model``, in its own order, and every other parameter with the reason it stays.

    Prunable are linear layers (also transposed ones and the packed projections of MultiheadAttention),
    convolutions and stacked experts inside the repeated blocks, and in convolutional networks the
    convolutions around them; without repeated blocks every linear layer and convolution but the output layers.
    Norms, biases, embeddings, output layers, routers, transposed convolutions, recurrent and bilinear weights, and shared
    (tied) parameters stay dense. Wrappers are looked through and names are those of the bare model; masks
    of torch.nn.utils.prune count as zeros of the weight; what is recomputed at each call (weight_norm, parametrizations) stays.

    ``include`` and ``exclude`` are glob patterns over parameter and module names (a module stands for all the
    matrices below it); names that hold brackets are taken as they are, and ``layers[0]`` is ``layers.0``. ``include``
    overrides every reason but those without a weight to remove; a tied parameter, a norm or a bias only when it is named
    exactly, by whichever of its names. ``exclude`` wins over ``include``. Works on a meta-device skeleton.

    An output layer is what the model declares (``get_output_embeddings``), or else one of ``outputs``, the parameters that
    a forward on an example shows to make the output (:func:`winnow.masks.outputs.output_weights`; none if it is
    empty). Without both it is guessed to be the last layer defined; ``notes`` of the result says so.

    Raises InputError for a pattern that matches nothing, for a model whose layers are packed or quantized already or
    that cannot be worked on in this form, and for a model with nothing to prune.
    """
    return scope_in_place(plain_module(model), include, exclude, outputs=outputs)


def scope_in_place(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = (), *, outputs: Sequence[str] | None = None
) -> Scope:
    """:func:`find_scope` of a model that is taken as it is, also one that is cut up over processes: values are not read."""
    require_dense(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    aliases, views = tied(parameters), overlapping(parameters)
    everything = list(parameters)
    for pattern in [*include, *exclude]:
        if not any(_matches(pattern, name) for name in everything):
            places = {name.rsplit(".", depth)[0]: None for name in everything for depth in range(name.count(".") + 1)}
            raise InputError(
                f"the pattern {pattern!r} matches no parameter or module of this model{meant(pattern, places)}: "
                f"take a name such as {everything[0]!r} from `winnow inspect`"
                if everything
                else f"the pattern {pattern!r} matches nothing: the model has no parameters"
            )

    rules = _Rules.of(model, outputs)
    scope = Scope()
    for name, p in model.named_parameters():
        names, others = aliases[name], views.get(name, [])
        if name != names[0]:
            continue  # counted under its first name already (two parameters that view one storage)
        shared = f"tied to {names[1]}" if len(names) > 1 else f"tied to {others[0]}, in another view" if others else ""
        reason = _fixed_reason(p) or shared or rules.reason(name, p)
        by_pattern = [] if shared or is_lazy(p) or p.dim() < 2 else include
        exact = [reading for pattern in include for reading in _readings(pattern)]
        named = next((n for n in names if n in exact or any(_matches(pattern, n) for pattern in by_pattern)), None)
        fixed = _fixed_reason(p) or rules.recomputed(names[0])
        if named is not None and fixed:
            scope.notes.append(f"{named} was included by name but stays dense: it is {fixed}.")
        elif named is not None:
            name, reason = next((n for n in (named, *names) if rules.has_inputs(n)), named), ""
        if any(_matches(pattern, n) for pattern in exclude for n in (*names, *others)):
            reason = "excluded by name"
        if reason:
            scope.skipped.append(Skipped(names[0], p.numel() if not is_lazy(p) else 0, reason))
            if not others and (view := rules.matrix_of(names[0], p)) is not None:
                scope.rest[names[0]] = view
        else:
            scope.prunables[name] = rules.prunable(name, p)
    for name, prunable in list(scope.prunables.items()):
        for other in [n for n in views.get(name, ()) if name in scope.prunables and n in scope.prunables]:
            if scope.prunables[other].numel != prunable.numel:
                raise InputError(f"{name} and {other} share some of their memory: name only one of them with include.")
            del scope.prunables[other]  # the same weights in another order: they were named twice
            scope.skipped.append(Skipped(other, prunable.numel, f"tied to {name}, in another view"))
    if not scope.prunables:
        raise InputError(nothing_to_prune(scope.skipped))
    scope.notes += [
        f"{s.name} was taken for the output layer because it is defined last, and stays dense: data shows which layer "
        "it is; include and exclude overrule it."
        for s in scope.skipped
        if s.reason == "output head"
        and (path := s.name.rpartition(".")[0]) in rules.guessed
        and (not rules.blocks or isinstance(rules.modules[path], _ConvNd))  # else it would stay dense in any case
    ]
    return scope


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter or a module above it."""
    parts = name.split(".")
    paths = [".".join(parts[: k + 1]) for k in range(len(parts))]
    return any(pattern == path or fnmatchcase(path, p) for p in _readings(pattern) for path in paths)


def _readings(pattern: str) -> list[str]:
    """A pattern, and what else its brackets may mean: a part of a name, or a number as in ``layers[0]``."""
    if "[" not in pattern:
        return [pattern]
    return [pattern, pattern.replace("[", "[[]"), re.sub(r"(?<=[^\W\d])\[(\d+)\]|(?<=\])\[(\d+)\]", r".\1\2", pattern)]


def _fixed_reason(p: torch.Tensor) -> str:
    """Reasons that not even ``include`` overrides: there are no weights to remove."""
    if is_lazy(p):
        return "not initialised"
    if not p.is_floating_point():
        return "not floating point"
    return "empty" if p.numel() == 0 else "a single number" if p.dim() == 0 else ""


@dataclass
class _Rules:
    modules: dict[str, nn.Module]
    blocks: list[Block]
    heads: set[str]  # parameters of the output layers
    guessed: set[str]  # modules taken for output layers by their place
    routers: set[str]
    stacked: dict[str, bool]
    conv_blocks: bool  # convolutions in the repeated blocks: a convolutional network

    @classmethod
    def of(cls, model: nn.Module, outputs: Sequence[str] | None) -> _Rules:
        modules = dict(model.named_modules(remove_duplicate=False))
        blocks = find_blocks(model)
        groups = find_experts(model)
        declared = _declared(model, modules)
        guessed = set() if declared or outputs is not None else _last(modules, blocks)
        heads = {
            n for n, _ in model.named_parameters(remove_duplicate=False) if n.rpartition(".")[0] in declared | guessed
        }
        return cls(
            modules=modules,
            blocks=blocks,
            heads=heads if declared else heads | set(outputs or ()),
            guessed=guessed,
            routers={name for group in groups for name in group.routers},
            stacked={name: flag for group in groups for name, flag in group.stacked.items()},
            conv_blocks=any(isinstance(m, _ConvNd) for b in blocks for m in b.module.modules()),
        )

    def block(self, name: str) -> str | None:
        return next((b.path for b in self.blocks if name.startswith(f"{b.path}.")), None)

    def reason(self, name: str, p: torch.Tensor) -> str:
        """Why a floating-point parameter of its own stays dense; empty where it is prunable."""
        path, _, key = name.rpartition(".")
        owner, block = self.modules[path], self.block(name)
        if made := self.recomputed(name):
            return made
        if "bias" in key:
            return "bias"
        if p.dim() < 2:
            return "norm" if "norm" in type(owner).__name__.lower() else "vector"
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
            return "embedding"
        if isinstance(owner, _ConvTransposeNd):
            return "transposed convolution"
        if name in self.heads:
            return "output head"
        if name in self.routers:
            return "router"
        if name in self.stacked:
            return ""
        if isinstance(owner, nn.MultiheadAttention):
            if key not in ("in_proj_weight", *MHA_WEIGHTS):
                return "bias"
            return "" if block or not self.blocks else "outside the repeated blocks"
        if isinstance(owner, RNNBase):
            return "recurrent weight"
        if not self.has_inputs(name):
            table = any(word in name.lower() for word in ("embed", "token", "position"))
            return "embedding" if table else "not the weight of a linear layer or convolution"
        if block:
            return ""
        if isinstance(owner, _ConvNd):
            # In a transformer the convolutions before the blocks only cut the input into tokens.
            return "" if self.conv_blocks or not self.blocks else "embedding"
        return "outside the repeated blocks" if self.blocks else ""

    def matrix_of(self, name: str, p: torch.Tensor) -> Prunable | None:
        """How a parameter that stays unpruned is seen as a matrix; None for norms, biases, vectors and single rows, and for
        what is recomputed at each call.

        A table of positions stored as ``[1, n, d]`` has n rows: it is seen as a stack of one matrix.
        """
        path, _, key = name.rpartition(".")
        owner = self.modules[path]
        small = _fixed_reason(p) or p.dim() < 2 or "bias" in key or "norm" in type(owner).__name__.lower()
        if small or self.reason(name, p) == "bias" or self.recomputed(name):
            return None
        view = self.prunable(name, p)
        if view.kind == "linear" and p.dim() == 3 and p.shape[0] == 1:
            view = replace(view, kind="experts")
        return view if view.rows > 1 else None

    def has_inputs(self, name: str) -> bool:
        """Whether the parameter multiplies inputs that calibration sees: of a tied tensor's names, the one to go by."""
        path, _, key = name.rpartition(".")
        owner = self.modules[path]
        return key == "weight" and (isinstance(owner, (nn.Linear, _ConvNd)) or is_transposed_linear(owner))

    def recomputed(self, name: str) -> str:
        """What makes the weight that a parameter is only a part of, at each call; empty for a weight as it is."""
        path, _, key = name.rpartition(".")
        owner = self.modules[path]
        if isinstance(owner, ParametrizationList):
            kinds = " and ".join(dict.fromkeys(type(m).__name__.lstrip("_") for m in owner))
            return f"recomputed at each call by a parametrization ({kinds})"
        for hook in owner._forward_pre_hooks.values():  # the older weight_norm and spectral_norm
            made = getattr(hook, "name", None)
            if isinstance(made, str) and made not in owner._parameters and key.startswith(f"{made}_"):
                return f"recomputed at each call by {type(hook).__name__}"
        return ""

    def prunable(self, name: str, p: torch.Tensor) -> Prunable:
        path, _, key = name.rpartition(".")
        owner, block, shape = self.modules[path], self.block(name), tuple(p.shape)
        if name in self.stacked:
            return Prunable(name, path, "experts", shape, self.stacked[name], shape[0], block)
        if isinstance(owner, _ConvNd) and key == "weight":
            if isinstance(owner, _ConvTransposeNd):
                return Prunable(name, path, "conv_transposed", shape, True, owner.groups, block)
            return Prunable(name, path, "conv", shape, parts=owner.groups, block=block)
        if isinstance(owner, nn.MultiheadAttention) and key == "in_proj_weight":
            return Prunable(name, path, "attention_in", shape, parts=3, block=block)
        if is_transposed_linear(owner) and key == "weight":
            return Prunable(name, path, "conv1d", shape, transposed=True, block=block)
        return Prunable(name, path, "linear", shape, block=block)


def declares_outputs(model: nn.Module) -> bool:
    """Whether a model names its output layer itself."""
    return bool(_declared(model, dict(model.named_modules(remove_duplicate=False))))


def _declared(model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    """Paths of the output layer that a transformers model names itself."""
    declared = None
    if callable(getattr(model, "get_output_embeddings", None)):
        with suppress(AttributeError, NotImplementedError):  # some wrappers declare the method and have no head
            declared = model.get_output_embeddings()  # type: ignore[operator]
    return {path for path, module in modules.items() if declared is not None and module is declared}


def _last(modules: dict[str, nn.Module], blocks: list[Block]) -> set[str]:
    """The guess: the last linear layer outside the blocks, or the last convolution where one follows them all.

    The projections of MultiheadAttention are not layers of their own.
    """
    order = {path: i for i, path in enumerate(modules)}
    behind = max((order[b.path] for b in blocks), default=-1)
    inside = tuple(f"{b.path}." for b in blocks)
    found = [
        path
        for path, m in modules.items()
        if not (inside and path.startswith(inside))
        and not isinstance(modules[path.rpartition(".")[0]] if path else None, nn.MultiheadAttention)
        and (isinstance(m, nn.Linear) or is_transposed_linear(m) or (isinstance(m, _ConvNd) and order[path] > behind))
    ]
    return set(found[-1:])
