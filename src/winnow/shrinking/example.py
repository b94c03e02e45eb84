"""An input made from what a model says about itself, for when the user gives none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase

from winnow.coupled.call import ERRORS, forward, probing_mode
from winnow.errors import InputError
from winnow.masks.blocks import is_transposed_linear

LENGTH = 12  # tokens
SIZES = (64, 32, 28, 224, 16, 8, 128)  # pixels on a side: large enough for a border, then the commonest
LEAVES = 4  # layers that are taken for the first one


def make_example(model: nn.Module) -> Any:
    """Random input that the model's forward accepts: two rows of tokens, pixels or features.

    A transformers model says in its config and its signature what it takes; of another model the first layers
    are asked for their input size. Raises InputError when nothing made this way runs.
    """
    for example in _candidates(model):
        with suppress(*ERRORS), probing_mode(model), torch.no_grad():
            forward(model, example)
            return example
    raise InputError(f"no input for {type(model).__name__} could be made: give example=, what its forward takes")


def _candidates(model: nn.Module) -> Iterator[Any]:
    if hasattr(model, "config"):
        yield from _from_config(model)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)

    def features(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)

    attends = any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    leaves = [m for m in model.modules() if m._parameters and next(m.parameters(recurse=False), None) is not None]
    for leaf in leaves[:LEAVES]:
        if isinstance(leaf, _ConvNd):
            for size in SIZES:
                yield features(2, leaf.in_channels, *[size] * len(leaf.kernel_size))
        elif isinstance(leaf, (nn.Embedding, nn.EmbeddingBag)):
            ids = torch.randint(0, leaf.num_embeddings, (2, LENGTH), generator=generator)
            yield ids.to(weight.device)
        elif (width := _width(leaf)) is not None:
            flat, sequence = features(2, width), features(2, LENGTH, width)
            yield from (sequence, flat) if attends or isinstance(leaf, RNNBase) else (flat, sequence)


def _width(leaf: nn.Module) -> int | None:
    if is_transposed_linear(leaf):
        return leaf.get_parameter("weight").shape[0]
    for name in ("in_features", "embed_dim", "input_size", "num_features"):
        if isinstance(value := getattr(leaf, name, None), int):
            return value
    shape = getattr(leaf, "normalized_shape", None)
    return int(shape[-1]) if isinstance(shape, tuple) else None


def _from_config(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    config: Any = model.config
    takes = inspect.signature(model.forward).parameters
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    vocabulary = next((v for c in (config, getattr(config, "text_config", None)) if (v := _size(c, "vocab_size"))), 0)
    if vocabulary:
        names = ["input_ids"] + ["decoder_input_ids"] * bool(getattr(config, "is_encoder_decoder", False))
        for name in names:
            if name in takes:
                found[name] = torch.randint(0, vocabulary, (2, LENGTH), generator=generator).to(weight.device)
    for part in (config, getattr(config, "vision_config", None)):
        size, channels = getattr(part, "image_size", None), _size(part, "num_channels") or 3
        if size is not None and "pixel_values" in takes and "pixel_values" not in found:
            sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
            pixels = torch.randn((2, channels, *sides), generator=generator)
            found["pixel_values"] = pixels.to(weight.device, weight.dtype)
    bands, frames = _size(config, "num_mel_bins"), _size(config, "max_source_positions")
    if bands and frames and "input_features" in takes:
        sound = torch.randn((2, bands, 2 * frames), generator=generator).to(weight.device, weight.dtype)
        found = {"input_features": sound, **{k: v for k, v in found.items() if k != "input_ids"}}
    if found:
        yield found
    main = getattr(model, "main_input_name", None)
    if main in found and len(found) > 1:
        yield {main: found[main]}
    with suppress(*ERRORS):
        yield dict(model.dummy_inputs)  # type: ignore[arg-type, operator]


def _size(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
