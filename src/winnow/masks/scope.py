"""What may be pruned in a model, and why the rest may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNBase
from torch.nn.parameter import is_lazy

from winnow.errors import InputError
from winnow.masks.blocks import Block, find_blocks, is_transposed_linear
from winnow.masks.experts import find_experts
from winnow.masks.prunable import Prunable, Scope, Skipped, nothing_to_prune
from winnow.masks.ties import overlapping, tied

MHA_WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def find_scope(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Scope:
    """What may be pruned in ``model``, in its own order, and every other parameter with the reason it stays.

    Prunable are linear layers (also transposed ones and the packed projections of MultiheadAttention),
    convolutions and stacked experts inside the repeated blocks, and in convolutional networks the
    convolutions around them; without repeated blocks every linear layer and convolution but the last linear
    one, the output head. Norms, biases, embeddings, heads, routers and shared (tied) parameters stay dense.

    ``include`` and ``exclude`` are glob patterns over parameter and module names (a module stands for all the
    matrices below it). ``include`` overrides every reason, but a tied parameter, a norm or a bias only when
    it is named exactly, by whichever of its names. ``exclude`` wins over ``include``. Works on a meta-device skeleton.

    Raises InputError for a pattern that matches nothing and for a model with nothing to prune.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    aliases, views = tied(parameters), overlapping(parameters)
    everything = list(parameters)
    for pattern in [*include, *exclude]:
        if not any(_matches(pattern, name) for name in everything):
            raise InputError(
                f"the pattern {pattern!r} matches no parameter or module of this model: "
                f"take a name such as {everything[0]!r} from `winnow inspect`"
                if everything
                else f"the pattern {pattern!r} matches nothing: the model has no parameters"
            )

    rules = _Rules.of(model)
    scope = Scope()
    for name, p in model.named_parameters():
        names, others = aliases[name], views.get(name, [])
        if name != names[0]:
            continue  # counted under its first name already (two parameters that view one storage)
        shared = f"tied to {names[1]}" if len(names) > 1 else f"tied to {others[0]}, in another view" if others else ""
        reason = _fixed_reason(p) or shared or rules.reason(name, p)
        asked = next((n for n in names if _asked(include, n, p, tied=bool(shared))), None)
        if asked is not None and not _fixed_reason(p):
            name, reason = next((n for n in names if rules.has_inputs(n)), asked), ""
        if any(_matches(pattern, n) for pattern in exclude for n in (*names, *others)):
            reason = "excluded by name"
        if reason:
            scope.skipped.append(Skipped(names[0], p.numel() if not is_lazy(p) else 0, reason))
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
    return scope


def _matches(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: k + 1]), pattern) for k in range(len(parts)))


def _asked(include: Sequence[str], name: str, p: torch.Tensor, *, tied: bool) -> bool:
    if name in include:
        return True
    return not tied and not is_lazy(p) and p.dim() > 1 and any(_matches(pattern, name) for pattern in include)


def _fixed_reason(p: torch.Tensor) -> str:
    """Reasons that not even ``include`` overrides: there are no weights to remove."""
    if is_lazy(p):
        return "not initialised"
    if not p.is_floating_point():
        return "not floating point"
    return "empty" if p.numel() == 0 else ""


@dataclass
class _Rules:
    modules: dict[str, nn.Module]
    blocks: list[Block]
    heads: set[str]
    routers: set[str]
    stacked: dict[str, bool]
    conv_blocks: bool  # convolutions in the repeated blocks: a convolutional network

    @classmethod
    def of(cls, model: nn.Module) -> _Rules:
        modules = dict(model.named_modules(remove_duplicate=False))
        blocks = find_blocks(model)
        inside = tuple(f"{b.path}." for b in blocks)
        groups = find_experts(model)
        return cls(
            modules=modules,
            blocks=blocks,
            heads=_heads(model, modules, inside),
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
        if "bias" in key:
            return "bias"
        if p.dim() < 2:
            return "norm" if "norm" in type(owner).__name__.lower() else "vector"
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
            return "embedding"
        if path in self.heads:
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
        if key != "weight" or not (isinstance(owner, (nn.Linear, _ConvNd)) or is_transposed_linear(owner)):
            table = any(word in name.lower() for word in ("embed", "token", "position"))
            return "embedding" if table else "not the weight of a linear layer or convolution"
        if isinstance(owner, _ConvTransposeNd):
            return "transposed convolution"
        if block:
            return ""
        if "embed" in path.lower():
            return "embedding"
        if isinstance(owner, _ConvNd):
            # In a transformer the convolutions before the blocks only cut the input into tokens.
            return "" if self.conv_blocks or not self.blocks else "embedding"
        return "outside the repeated blocks" if self.blocks else ""

    def has_inputs(self, name: str) -> bool:
        """Whether the parameter multiplies inputs that calibration sees: of a tied tensor's names, the one to go by."""
        path, _, key = name.rpartition(".")
        owner = self.modules[path]
        return key == "weight" and (isinstance(owner, (nn.Linear, _ConvNd)) or is_transposed_linear(owner))

    def prunable(self, name: str, p: torch.Tensor) -> Prunable:
        path, _, key = name.rpartition(".")
        owner, block, shape = self.modules[path], self.block(name), tuple(p.shape)
        if name in self.stacked:
            return Prunable(name, path, "experts", shape, self.stacked[name], shape[0], block)
        if isinstance(owner, _ConvNd) and not isinstance(owner, _ConvTransposeNd) and key == "weight":
            return Prunable(name, path, "conv", shape, parts=owner.groups, block=block)
        if isinstance(owner, nn.MultiheadAttention) and key == "in_proj_weight":
            return Prunable(name, path, "attention_in", shape, parts=3, block=block)
        if is_transposed_linear(owner) and key == "weight":
            return Prunable(name, path, "conv1d", shape, transposed=True, block=block)
        return Prunable(name, path, "linear", shape, block=block)


def _heads(model: nn.Module, modules: dict[str, nn.Module], inside: tuple[str, ...]) -> set[str]:
    """Paths of the output heads: what the model declares, and the last linear layer outside the blocks."""
    declared = None
    if callable(getattr(model, "get_output_embeddings", None)):
        try:
            declared = model.get_output_embeddings()  # type: ignore[operator]
        except (AttributeError, NotImplementedError):  # some wrappers declare the method and have no head
            declared = None
    heads = {path for path, module in modules.items() if declared is not None and module is declared}
    linears = [p for p, m in modules.items() if isinstance(m, nn.Linear) or is_transposed_linear(m)]
    outside = [p for p in linears if not p.startswith(inside)] if inside else linears
    return heads or set(outside[-1:])
