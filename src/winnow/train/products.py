"""FLOPs of a training step by tensor, counted while it is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from winnow.measure.flops import Flops

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KNOWN = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED, nn.MultiheadAttention, nn.RNNBase, nn.Embedding, nn.EmbeddingBag)


class Products:
    """Watches the layers of a model from here to :meth:`close`: 2 x weights x positions of every forward.

    :func:`winnow.measure.flops.forward_flops` sees more and needs a forward of its own, which no loop of the user's is to
    notice. What is computed again in the backward (checkpointing) is not counted again, evaluations are not counted, and
    neither are compiled layers, whose hooks torch leaves out.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights, self._names = weights, {id(weight): name for name, weight in weights.items()}
        self._tensors: dict[str, float] = {}
        self._rest = 0.0
        self._handles = [
            module.register_forward_hook(_Hook(self, path), with_kwargs=True)
            for path, module in model.named_modules()
            if isinstance(module, _KNOWN) or _is_conv1d(module)
        ]

    def close(self) -> tuple[Flops, tuple[str, ...]]:
        """Forward FLOPs since the beginning, of all examples, and the weights that got gradients by products unseen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        unseen = tuple(n for n, w in self._weights.items() if w.grad is not None and n not in self._tensors)
        return Flops(self._tensors, self._rest), unseen

    def add(self, module: nn.Module, path: str, inputs: Any, output: Any) -> None:
        for key, positions in _positions(module, inputs, output):
            weight = module.get_parameter(key)
            name = self._names.get(id(weight), f"{path}.{key}")
            flops = 2.0 * weight.numel() * positions
            if name in self._weights:
                self._tensors[name] = self._tensors.get(name, 0.0) + flops
            else:
                self._rest += flops


class _Hook:
    """Of one layer. A copy of the model, which may outlive all this, gets one that does nothing."""

    def __init__(self, products: Products, path: str) -> None:
        self._products, self._path = products, path

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        backward = torch._C._current_graph_task_id() != -1
        if not backward and (module.training or torch.is_grad_enabled()):
            self._products.add(module, self._path, [*args, *kwargs.values()], output)

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")  # takes anything, returns None, and is unpickled without winnow


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's transposed linear layer, without importing transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _positions(module: nn.Module, inputs: Any, output: Any) -> Iterator[tuple[str, float]]:
    """The weights that a layer multiplied with, by their names in it, and at how many places each: tokens, or pixels."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield "weight", 0
    elif isinstance(module, nn.MultiheadAttention):
        yield from _of_attention(module, inputs[:3], output)
    elif isinstance(module, nn.RNNBase):
        values = inputs[0] if torch.is_tensor(inputs[0]) else inputs[0].data  # a PackedSequence
        for key, weight in module.named_parameters(recurse=False):
            if weight.ndim == 2:
                yield key, values.numel() / module.input_size
    elif isinstance(module, _TRANSPOSED):
        yield "weight", inputs[0].numel() / module.in_channels
    elif torch.is_tensor(output):
        features = (
            module.out_channels
            if isinstance(module, _CONVOLUTIONS)
            else getattr(module, "out_features", None) or module.nf
        )
        yield "weight", output.numel() / int(features)  # type: ignore[arg-type]


def _of_attention(module: nn.MultiheadAttention, inputs: Any, output: Any) -> Iterator[tuple[str, float]]:
    widths = (module.embed_dim, module.kdim, module.vdim)
    places = [x.numel() / width for x, width in zip(inputs, widths)]
    if module.in_proj_weight is not None:  # three bands of rows, each with an input of its own
        yield "in_proj_weight", sum(places) / 3
    else:
        yield from zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), places)
    yield "out_proj.weight", output[0].numel() / module.embed_dim
