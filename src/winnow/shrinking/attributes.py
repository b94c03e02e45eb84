"""Sizes that modules and configs remember in numbers of their own, and what they become when units go."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from winnow.coupled.call import ERRORS
from winnow.coupled.site import site_of
from winnow.masks.blocks import common_path
from winnow.masks.prunable import Prunable
from winnow.shrinking.dead_units import Group
from winnow.shrinking.rebuild import apply

# Attributes that count heads or key/value heads: any multiple of the number of units follows.
HEADS = (
    "num_heads", "n_heads", "n_head", "nhead", "num_attention_heads", "num_key_value_heads", "num_kv_heads", "n_kv_heads",
    "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
HEAD_WIDTHS = ("all_head_size", "inner_dim", "split_size")
NEURONS = (
    "intermediate_size", "intermediate_dim", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner",
    "ffn_hidden_size", "hidden_features", "moe_intermediate_size",
)  # fmt: skip


def carriers(group: Group, prunables: Mapping[str, Prunable], model: nn.Module) -> list[str]:
    """Paths of the modules that hold a group's layers, up to the one that holds them all."""
    modules = dict.fromkeys(prunables[m.name].module for m in group.units[0].members)
    common = common_path(modules)
    found: dict[str, None] = {}
    for path in modules:
        while len(path) > len(common):
            path = path.rpartition(".")[0]
            found[path] = None
        if site_of(model.get_submodule(path)) is None:
            found[path] = None
    return list(found)


def name_of(group: Group, prunables: Mapping[str, Prunable]) -> str:
    """The module a group of units is called after: the one that holds its layers, else its first layer."""
    producer = prunables[next(m.name for m in group.units[0].members if m.axis == "rows")].module
    common = common_path(prunables[m.name].module for m in group.units[0].members)
    return common if common and common != group.units[0].block else producer


def module_edits(module: nn.Module, kind: str, total: int, kept: int) -> dict[str, int]:
    """New values of the attributes of a module that count its units."""
    edits = {}
    for name in (*HEADS, *HEAD_WIDTHS) if kind == "head" else NEURONS if kind == "neuron" else ():
        value = module.__dict__.get(name)
        if type(value) is int and value >= total and (value % total == 0 if kind == "head" else value == total):
            edits[name] = value // total * kept
    return edits


def configs(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Every config object of a model once: (module path, attribute of its config or "", the object)."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        config = module.__dict__.get("config")
        if not hasattr(config, "to_dict"):
            continue
        parts = [("", config), *((k, v) for k, v in vars(config).items() if hasattr(v, "to_dict"))]
        for part, found in parts:
            if id(found) not in seen:
                seen.add(id(found))
                yield path, part, found


def config_edits(model: nn.Module, kind: str, kept: Mapping[int, int], width: int | None) -> list[dict[str, Any]]:
    """Entries of a model's configs for units of one kind, ``kept`` of each total; ``width``: features of a head."""
    edits = []
    for path, part, config in configs(model):
        own: dict[str, int] = {}
        for name in HEADS if kind == "head" else NEURONS:
            value = vars(config).get(name)
            if name == "n_inner" and name in vars(config) and value is None:  # GPT-2: four times the width
                value = next((t for t in kept if t == 4 * getattr(config, "n_embd", 0)), None)
            if type(value) is not int:
                continue
            total = next((t for t in kept if value == t or (kind == "head" and t and value % t == 0)), None)
            if total is not None:
                own[name] = value // total * kept[total]
        if own and kind == "head" and width is not None and "d_kv" not in vars(config):
            own["head_dim"] = width
        edits += [{"module": path, "part": part, "name": n, "value": v} for n, v in own.items()]
    return edits


def rebuilds(model: nn.Module, plan: Mapping[str, Any]) -> bool:
    """Whether the model's class makes exactly the plan's shapes from the config that the plan leaves."""
    try:
        small = apply(model, plan)
        with torch.device("meta"):
            fresh = type(model)(copy.deepcopy(small.config))
    except ERRORS:  # NotImplementedError is a RuntimeError
        return False
    return {n: t.shape for n, t in fresh.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}
