"""Two ways to hold a model while it is worked on: loaded whole, or streamed from its shards block by block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from winnow.calibrate.stream import Shards, StreamedModel, name_map
from winnow.masks.prunable import Prunable, Scope
from winnow.measure.identity import Identity, tensors_of
from winnow.measure.memory import give_back
from winnow.models import ModelSource

Weights = Callable[[str], torch.Tensor]
Host = Any  # Loaded | Streamed: same methods, nothing shared
ITEMSIZE = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


class Loaded:
    """The whole model in memory, a copy of the user's where there is one: what was given is never changed."""

    streamed = False

    def __init__(self, source: ModelSource, *, dtype: torch.dtype | None = None) -> None:
        self.source = source
        self.shards = Shards(source.folder) if source.folder is not None and not source.is_artifact else None
        model = source.load()
        self.names = name_map(model, self.shards) if self.shards is not None else {}
        self.stored_dtype = {n: p.dtype for n, p in model.named_parameters(remove_duplicate=False)}
        self.dense_model = None if self.shards is not None else model  # what cannot be read again is kept
        self.model = model if self.dense_model is None else copy.deepcopy(model)
        if dtype is not None and any(p.is_floating_point() and p.dtype != dtype for p in self.model.parameters()):
            self.model = self.model.to(dtype)
        # Biases, norms and all buffers: what recalibration, compensation and the model's own forward change.
        buffers = {n for n, _ in self.model.named_buffers(remove_duplicate=False)}
        self._small = {n: t.detach().clone() for n, t in tensors_of(self.model) if t.ndim <= 1 or n in buffers}
        self.identity = Identity(self.model)

    def begin(self, scope: Scope) -> None:
        """Nothing to do: what is put back between candidates was remembered when the model was loaded."""

    def original(self, name: str) -> torch.Tensor:
        """The dense weight as stored, in its stored layout and dtype."""
        if self.dense_model is not None:
            return self.dense_model.get_parameter(name).detach()
        assert self.shards is not None
        parameter = self.model.get_parameter(name)
        tensor = self.shards.read(self.names[name]) if name in self.names else None
        if tensor is None or tensor.shape != parameter.shape:
            return self._converted(name)
        return tensor.to(self.stored_dtype[name])

    def _converted(self, name: str) -> torch.Tensor:
        """A tensor the checkpoint stores in another layout (experts one by one, say): loaded once, then kept."""
        self.dense_model = self.source.load()
        return self.dense_model.get_parameter(name).detach()

    def enter(self, path: str) -> None:
        """Nothing to do: the weights are there."""

    def leave(self, path: str) -> None:
        """The weights stay; what solving them took goes back to the system."""
        give_back()

    def restore(self, scope: Scope) -> None:
        """Puts the dense weights, biases and buffers back."""
        with torch.no_grad():
            for name in scope.prunables:
                self.model.get_parameter(name).copy_(self.original(name))
        self.put(self._small)

    @contextmanager
    def dense(self, scope: Scope) -> Iterator[nn.Module]:
        """The model as it was given, whatever was done to it since."""
        self.restore(scope)
        yield self.model

    @contextmanager
    def with_weights(self, weights: Weights, scope: Scope, extra: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
        """The model with every prunable weight from ``weights`` and the tensors in ``extra`` replaced."""
        with torch.no_grad():
            for name in scope.prunables:
                self.model.get_parameter(name).copy_(weights(name))
        self.put({**self._small, **extra})
        yield self.model

    def put(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copies values into parameters and buffers by state-dict name."""
        put_tensors(self.model, tensors)


class Streamed:
    """A skeleton whose blocks come from the shards and go again; only a folder can be streamed."""

    streamed = True

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        assert source.folder is not None
        self.shards = Shards(source.folder)
        skeleton = source.skeleton()
        self.names = name_map(skeleton, self.shards)
        self.stream = StreamedModel(skeleton, self._read, self.names)
        self.model = skeleton
        self.stored_dtype = {n: p.dtype for n, p in skeleton.named_parameters(remove_duplicate=False)}
        self.paths: list[str] = []
        self.outside: list[str] = []
        self.identity = Identity(skeleton)

    def _read(self, name: str) -> torch.Tensor:
        return self.shards.read(self.names[name])

    def begin(self, scope: Scope) -> None:
        """Loads what lies outside the blocks; the head stays on disk until something is evaluated."""
        from winnow.masks.blocks import find_blocks

        self.paths = [b.path for b in find_blocks(self.model)]
        inside = tuple(f"{path}." for path in self.paths)
        self.outside = [name for name in scope.prunables if not name.startswith(inside)]
        self.stream.load_rest(self.paths, head=False)

    def original(self, name: str) -> torch.Tensor:
        return self._read(name).to(self.stored_dtype[name])

    def enter(self, path: str) -> None:
        self.stream.load(path)

    def leave(self, path: str) -> None:
        self.stream.free(path)
        give_back()

    def restore(self, scope: Scope) -> None:
        for path in self.paths:
            self.stream.free(path)
        self._fill(self.original)

    def _fill(self, fetch: Callable[[str], torch.Tensor]) -> None:
        """Puts what ``fetch`` gives into the prunable tensors outside the blocks: they stay in memory between candidates."""
        with torch.no_grad():
            for name in self.outside:
                if (parameter := self.model.get_parameter(name)).device.type != "meta":
                    parameter.copy_(fetch(name))

    @contextmanager
    def dense(self, scope: Scope) -> Iterator[nn.Module]:
        """The model as its shards have it."""
        self.restore(scope)
        self.stream.load_rest(self.paths, head=True)
        self._fill(self.original)
        with self.stream.on_demand(self.paths, self._read) as model:
            yield model

    @contextmanager
    def with_weights(self, weights: Weights, scope: Scope, extra: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
        def fetch(name: str) -> torch.Tensor:
            if name in extra:
                return extra[name]
            return weights(name) if name in scope.prunables else self._read(name)

        self.stream.load_rest(self.paths, head=True)
        self._fill(fetch)
        with self.stream.on_demand(self.paths, fetch) as model:
            yield model


def stored_sizes(host: Host) -> dict[str, int]:
    """Bytes of every stored tensor of the dense model, by the name it is stored under; tied tensors count once."""
    if host.shards is not None:
        return {
            n: torch.Size(shape).numel() * ITEMSIZE.get(kind, 1) for n, (kind, shape) in host.shards.layout().items()
        }
    seen: set[int] = set()
    sizes = {}
    for name, tensor in host.dense_model.state_dict().items():
        if tensor.numel() == 0 or tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            sizes[name] = tensor.numel() * tensor.element_size()
    return sizes


def dense_tensors(host: Host, scope: Scope) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that is not packed, as it was stored, one at a time, under its name in the model."""
    state = host.model.state_dict() if host.shards is not None else host.dense_model.state_dict()
    for name, tensor in state.items():
        if name in scope.prunables:
            continue
        if host.shards is None:
            yield name, tensor.detach()
        elif name in host.names:
            yield name, host.shards.read(host.names[name])
        elif tensor.device.type != "meta" and name not in tied_names(host.model):
            yield name, tensor.detach().to(host.stored_dtype.get(name, tensor.dtype))


def tied_names(model: nn.Module) -> set[str]:
    """Parameters that share another's storage by the model's own declaration."""
    return set(getattr(model, "all_tied_weights_keys", None) or {})


def put_matrix(model: nn.Module, prunable: Prunable, matrix: torch.Tensor) -> None:
    """Writes a [rows, cols] matrix into the model's parameter, in place, in the parameter's dtype."""
    parameter = model.get_parameter(prunable.name)
    with torch.no_grad():
        parameter.copy_(prunable.restore(matrix).to(parameter.dtype))


def put_tensors(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copies values into parameters and buffers by name, those too that no state dict holds."""
    state = dict(tensors_of(model))
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)
