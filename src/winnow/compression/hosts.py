"""Two ways to hold a model while it is worked on: loaded whole, or streamed from its shards block by block.

Both hold the model that ``from_pretrained`` (or the factory, or the module given) is, in names, values and types. Its
files serve only to read a dense tensor again without holding it twice, where they hold it as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from winnow.calibrate.stream import Shards, StreamedModel, loaded_names, name_map, untie
from winnow.errors import InputError
from winnow.forward.dtypes import has_half_weights, to_float32
from winnow.machine.memory import trim_heap
from winnow.masks.prunable import Prunable, Scope
from winnow.masks.ties import overlapping, share_as, stored_names, tensors_of, tied
from winnow.masks.unwrap import working_copy
from winnow.measure.identity import Identity
from winnow.measure.identity import tensors_of as all_tensors
from winnow.models.source import ModelSource

Weights = Callable[[str], torch.Tensor]
Rest = Mapping[str, Callable[[], torch.Tensor]]  # first name of an unpruned tensor -> what stands in its place
Host = Any  # Loaded | Streamed: same methods, nothing shared


class Loaded:
    """The whole model in memory, a copy of the user's where there is one: that one is never modified.

    ``stored_dtype`` has the original type of every tensor, which is the one it is written in; ``stored`` the name under
    which it is written (tied names have one); ``model`` computes in ``dtype``.
    """

    streamed = False

    def __init__(self, source: ModelSource, *, dtype: torch.dtype | None = None, wide: bool = False) -> None:
        """``dtype``: of all arithmetic; None leaves the stored types, but with ``wide`` 16-bit tensors become float32."""
        self.source = source
        model = source.load()
        tensors = tensors_of(model)
        if strange := sorted(model.state_dict().keys() - tensors.keys()):
            raise InputError(
                f"{strange[0]} is extra state, not a tensor, and cannot be stored: remove get_extra_state()."
            )
        self.stored = stored_names(model, transformers=source.config is not None)
        self.first = {name: names[0] for name, names in tied(tensors).items()}
        self.stored_dtype = {n: t.dtype for n, t in tensors.items()}
        self.shards: Shards | None = None
        self.names: dict[str, str] = {}  # first name -> where its file holds exactly these values
        self.kept: dict[str, torch.Tensor] = {}  # first name -> the tensor, where no file holds it
        self.dense_model: nn.Module | None = None  # kept whole where there are no files to read from again
        self.model = model
        if source.folder is not None and not source.is_artifact:
            self.shards = Shards(source.weight_files())
            self._find(tensors)
        else:
            self.dense_model, self.model = model, working_copy(model)
            self.kept = {first: tensors[first].detach() for first in self.first.values()}
        self.widened = dtype is None and wide and has_half_weights(self.model)
        if self.widened:
            to_float32(self.model)
        elif dtype is not None and any(p.is_floating_point() and p.dtype != dtype for p in self.model.parameters()):
            self.model = self.model.to(dtype)
        if self.dense_model is not None:
            share_as(model, self.model)
        self._views = overlapping(tensors)
        self._pruned: set[str] = set()  # first names
        self._rest: set[str] = set()  # names of unpruned tensors that are not the dense ones now
        self._small: dict[str, torch.Tensor] = {}
        self._remember()
        self.identity = Identity(self.model)

    def _find(self, tensors: dict[str, torch.Tensor]) -> None:
        """Looks up which of the model's tensors its files hold to the bit; of all others a copy is kept."""
        assert self.shards is not None
        found = name_map(self.model, self.shards)
        for first, names in tied(tensors).items():
            if first != names[0]:
                continue
            tensor, key = tensors[first].detach(), next((found[n] for n in names if n in found), None)
            if key is not None and torch.equal(self.shards.read(key).to(tensor.dtype), tensor):
                self.names[first] = key
            else:
                self.kept[first] = tensor.clone()

    def begin(self, scope: Scope) -> None:
        """From now on the caller writes the tensors of ``scope``; all other small ones are restored between candidates."""
        self._pruned = {self.first[n] for n in scope.prunables}
        self._small = {n: t for n, t in self._small.items() if n not in self._pruned}

    def _remember(self) -> None:
        """Biases, norms and all buffers: what recalibration, compensation and the model's own forward change."""
        buffers = {n for n, _ in self.model.named_buffers(remove_duplicate=False)}
        self._small = {
            n: t.detach().clone()
            for n, t in all_tensors(self.model)
            if self.first.get(n, n) == n and n not in self._pruned and (t.ndim <= 1 or n in buffers)
        }

    def original(self, name: str) -> torch.Tensor:
        """The dense tensor in its original layout and type."""
        first = self.first[name]
        if first in self.kept:
            return self.kept[first]
        assert self.shards is not None
        return self.shards.read(self.names[first]).to(self.stored_dtype[first])

    def views_of(self, scope: Scope) -> set[str]:
        """Names of tensors that share memory with a prunable one in another view, and so change with it."""
        return {name for name, others in self._views.items() if any(n in scope.prunables for n in others)}

    def enter(self, path: str) -> None:
        """Nothing to do: the weights are there."""

    def leave(self, path: str) -> None:
        """The weights stay; what solving them took goes back to the system."""
        trim_heap()

    def set_rest(self, rest: Rest) -> None:
        """Puts ``rest`` in the place of tensors outside the scope, and the dense ones back where it names none."""
        with torch.no_grad():
            for name in self._rest | rest.keys():
                self.model.get_parameter(name).copy_(rest[name]() if name in rest else self.original(name))
        self._rest = set(rest)

    def restore(self, scope: Scope) -> None:
        """Writes the dense weights, biases and buffers back."""
        self.set_rest({})
        self.with_weights(self.original, scope, {})

    def dense(self, scope: Scope) -> nullcontext[nn.Module]:
        """The original model, whatever was done to it since."""
        self.restore(scope)
        return nullcontext(self.model)

    def with_weights(self, weights: Weights, scope: Scope, extra: dict[str, torch.Tensor]) -> nullcontext[nn.Module]:
        """The model with every prunable weight from ``weights`` and the tensors in ``extra`` replaced."""
        with torch.no_grad():
            for name in scope.prunables:
                self.model.get_parameter(name).copy_(weights(name))
        write_tensors(self.model, {**self._small, **{self.first.get(n, n): t for n, t in extra.items()}})
        return nullcontext(self.model)

    def as_stored(self) -> None:
        """From now on ``model`` has the original types in place of those of the arithmetic."""
        self.set_rest({})
        changed = False
        for name, tensor in tensors_of(self.model).items():
            if tensor.dtype != self.stored_dtype[name]:
                tensor.data, changed = self.original(name).to(tensor.device, copy=True), True
        for name, buffer in self.model.named_buffers(remove_duplicate=False):
            buffer.data = buffer.data.to(self.stored_dtype.get(name, buffer.dtype))
        if changed and self.dense_model is not None:
            share_as(self.dense_model, self.model)
        self._remember()


class Streamed:
    """A skeleton whose blocks come from the shards and go again; only a folder can be streamed.

    Raises:
        InputError: the weights are quantized, or transformers would make some of them of others while it loads.
    """

    streamed = True

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        if source.quantized is not None:
            raise InputError(
                f"{source.spec} is already quantized ({source.quantized}) and cannot be streamed: leave out --ram to load it "
                "dequantized, or give the original."
            )
        self.shards = Shards(source.weight_files())
        skeleton = source.skeleton()
        self.names = loaded_names(skeleton, self.shards)
        untie(skeleton, self.names, self.shards)
        tensors = tensors_of(skeleton)
        self.stored = stored_names(skeleton, transformers=True)
        self.first = {name: names[0] for name, names in tied(tensors).items()}
        for names in tied(tensors).values():  # whichever of its names a tied tensor is stored under
            if key := next((self.names[n] for n in names if n in self.names), None):
                self.names |= dict.fromkeys(names, key)
        self.stream = StreamedModel(skeleton, self._now, self.names)
        self.model = skeleton
        for name, buffer in skeleton.named_buffers(remove_duplicate=False):
            if name in self.names:
                buffer.data = self._read(name).to(buffer.dtype)
        self.stored_dtype = {n: t.dtype for n, t in tensors.items()}
        self.paths: list[str] = []
        self.outside: list[str] = []
        self._pruned: dict[str, str] = {}  # first name -> the one it is pruned under
        self._rest: Rest = {}
        self.identity = Identity(skeleton)

    def _read(self, name: str) -> torch.Tensor:
        return self.shards.read(self.names[name])

    def _now(self, name: str) -> torch.Tensor:
        """A tensor outside the scope as it is at present, a pruned one as it was."""
        first = self.first.get(name, name)
        return self._rest[first]() if first in self._rest else self._read(name)

    def begin(self, scope: Scope) -> None:
        """Loads what lies outside the blocks; the head stays on disk until something is evaluated."""
        from winnow.masks.blocks import find_blocks

        self._pruned = {self.first[name]: name for name in scope.prunables}
        self.paths = [b.path for b in find_blocks(self.model)]
        inside = tuple(f"{path}." for path in self.paths)
        self.outside = [name for name in scope.prunables if not name.startswith(inside)]
        self.stream.load_rest(self.paths, head=False)

    def views_of(self, scope: Scope) -> set[str]:
        """None: a tensor that is read from a file shares memory with no other."""
        return set()

    def original(self, name: str) -> torch.Tensor:
        """The dense tensor in its original layout and type."""
        if name not in self.names:  # a buffer that the class fills itself
            return tensors_of(self.model)[name].detach()
        return self._read(name).to(self.stored_dtype[name])

    def enter(self, path: str) -> None:
        self.stream.load(path)

    def leave(self, path: str) -> None:
        self.stream.free(path)
        trim_heap()

    def set_rest(self, rest: Rest) -> None:
        """From now on ``rest`` is in the place of tensors outside the scope, and the dense ones where it names none."""
        changed, self._rest = self._rest.keys() | rest.keys(), rest
        with torch.no_grad():
            for name in changed:
                if (parameter := self.model.get_parameter(name)).device.type != "meta":
                    parameter.copy_(self._now(name))

    def restore(self, scope: Scope) -> None:
        self.set_rest({})
        for path in self.paths:
            self.stream.free(path)
        self._fill(self.original)

    def _fill(self, fetch: Callable[[str], torch.Tensor]) -> None:
        """Copies from ``fetch`` into the prunable tensors outside the blocks, which stay in memory between candidates."""
        with torch.no_grad():
            for name in self.outside:
                for alias in (n for n, first in self.first.items() if first == self.first[name]):
                    if (parameter := self.model.get_parameter(alias)).device.type != "meta":
                        parameter.copy_(fetch(name))

    @contextmanager
    def dense(self, scope: Scope) -> Iterator[nn.Module]:
        """The model as its shards have it. Raises WinnowError where its files are not those that were opened."""
        self.shards.check_unchanged()
        self.restore(scope)
        self.stream.load_rest(self.paths, head=True)
        self._fill(self.original)
        with self.stream.on_demand(self.paths, self._read) as model:
            yield model

    @contextmanager
    def with_weights(self, weights: Weights, scope: Scope, extra: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
        def fetch(name: str) -> torch.Tensor:
            first = self.first.get(name, name)
            if first in changed:
                return changed[first]
            return weights(self._pruned[first]) if first in self._pruned else self._now(name)

        changed = {self.first.get(n, n): t for n, t in extra.items()}

        self.stream.load_rest(self.paths, head=True)
        self._fill(fetch)
        with self.stream.on_demand(self.paths, fetch) as model:
            yield model


def dense_tensors(host: Host, scope: Scope) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that is not packed, unchanged, one at a time, under the name it is stored under."""
    pruned = {host.first[name] for name in scope.prunables}
    for name in dict.fromkeys(host.stored.values()):
        if host.first[name] not in pruned:
            yield name, host.original(name)


def main_dtype(host: Host) -> torch.dtype | None:
    """The floating-point type of most of the dense model's weights."""
    counts: Counter[torch.dtype] = Counter()
    for name, tensor in tensors_of(host.model).items():
        if host.stored_dtype[name].is_floating_point:
            counts[host.stored_dtype[name]] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else None


def written_names(host: Host, name: str) -> list[str]:
    """The names under which a tensor is stored: one, and more where a tie would not come back by itself."""
    return list(dict.fromkeys(host.stored[n] for n, first in host.first.items() if first == host.first[name]))


def read_matrix(model: nn.Module, prunable: Prunable) -> torch.Tensor:
    """The weight as it is in the model, [rows, cols], float32."""
    return prunable.matrix(model.get_parameter(prunable.name).detach()).float()


def write_matrix(model: nn.Module, prunable: Prunable, matrix: torch.Tensor) -> None:
    """Writes a [rows, cols] matrix into the model's parameter, in place, in the parameter's dtype."""
    parameter = model.get_parameter(prunable.name)
    with torch.no_grad():
        parameter.copy_(prunable.restore(matrix).to(parameter.dtype))


def write_tensors(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copies values into parameters and buffers by name, those too that no state dict holds."""
    state = dict(all_tensors(model)) if tensors else {}
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)
