"""A model larger than memory: parameters stay in their safetensors shards, and only the part in work is alive."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import FormatError, InputError

Fetch = Callable[[str], torch.Tensor]


class Shards:
    """The tensors of a folder of safetensors files by name. Nothing is read until it is asked for.

    Raises:
        FormatError: a file that the index names is missing, or a file is truncated or not safetensors.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self.file_of: dict[str, Path] = {}
        index = folder / "model.safetensors.index.json"
        files = sorted(folder.glob("*.safetensors"))
        if index.exists():
            named = set(json.loads(index.read_text())["weight_map"].values())
            lost = sorted(name for name in named if not (folder / name).exists())
            if lost:
                raise FormatError(f"{folder} lacks {lost[0]}, which its index names: fetch the folder again.")
            files = sorted(folder / name for name in named)
        for path in files:
            try:
                with safe_open(path, "pt") as f:
                    self.file_of.update(dict.fromkeys(f.keys(), path))
            except Exception as error:
                raise FormatError(f"{path} is not a whole safetensors file ({error}): fetch it again.") from None

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def read(self, name: str) -> torch.Tensor:
        """One tensor, copied out of the file so that no mapped page stays behind."""
        from safetensors import safe_open

        with safe_open(self.file_of[name], "pt") as f:
            return f.get_tensor(name).clone()

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """name -> (safetensors dtype, shape), from the headers alone."""
        from safetensors import safe_open

        found = {}
        for path in sorted(set(self.file_of.values())):
            with safe_open(path, "pt") as f:
                for name in f.keys():  # noqa: SIM118 - safe_open is not a mapping
                    part = f.get_slice(name)
                    found[name] = (part.get_dtype(), tuple(part.get_shape()))
        return found


def name_map(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Parameter (and persistent buffer) name in the model -> tensor name in the shards.

    Checkpoints written from the headless base model lack its prefix, and the other way round; parameters that
    are tied to one in the shards are left out.
    """
    prefix = getattr(model, "base_model_prefix", "")
    names: dict[str, str] = {}
    for name in model.state_dict():
        bare = name.removeprefix(prefix + ".")
        for candidate in (name, f"{prefix}.{name}", bare):
            if candidate in shards:
                names[name] = candidate
                break
    return names


class StreamedModel:
    """A meta-device skeleton whose parts are filled from ``fetch`` when needed and emptied afterwards."""

    def __init__(self, skeleton: nn.Module, fetch: Fetch, names: Iterable[str]) -> None:
        self.model = skeleton
        self.fetch = fetch
        self.names = set(names)
        self._tie = dict(getattr(skeleton, "all_tied_weights_keys", None) or {})
        lost = [n for n, p in skeleton.named_parameters() if n not in self.names and n not in self._tie]
        if lost:
            raise InputError(
                f"the checkpoint stores {lost[0]} under another name or layout, so it cannot be streamed: leave out --ram to load it whole."
            )

    def load(self, path: str, fetch: Fetch | None = None) -> None:
        """Fills every meta parameter below the module ``path``."""
        fetch = fetch or self.fetch
        for name, owner, leaf in self._meta(path):
            dtype = getattr(owner, leaf).dtype
            source = name if name in self.names else self._tie[name]
            owner._parameters[leaf] = nn.Parameter(fetch(source).to(dtype), requires_grad=False)

    def free(self, path: str) -> None:
        """Empties every parameter below ``path`` again."""
        for module in self.model.get_submodule(path).modules():
            for leaf, p in module._parameters.items():
                if p is not None and p.device.type != "meta":
                    module._parameters[leaf] = nn.Parameter(p.to("meta"), requires_grad=False)

    def load_rest(self, unit_paths: Iterable[str], *, head: bool) -> None:
        """Fills what lies outside the units: embeddings, norms, and - where asked - the output head."""
        inside = tuple(p + "." for p in unit_paths)
        output = self._output_path() if not head else None
        for path, module in self.model.named_modules():
            if module._parameters and not (path + ".").startswith(inside) and path != output:
                for name, owner, leaf in self._meta(path, recurse=False):
                    source = name if name in self.names else self._tie[name]
                    owner._parameters[leaf] = nn.Parameter(
                        self.fetch(source).to(getattr(owner, leaf).dtype), requires_grad=False
                    )
        if head:
            for name, source in self._tie.items():  # one storage, as in the loaded model
                owner, leaf = self._owner(name)
                other, other_leaf = self._owner(source)
                shared = other._parameters[other_leaf]
                if shared is not None and shared.device.type != "meta":
                    owner._parameters[leaf] = shared

    @contextmanager
    def on_demand(self, unit_paths: list[str], fetch: Fetch) -> Iterator[nn.Module]:
        """An ordinary forward runs inside: each unit's weights come from ``fetch`` before it and go after it."""
        handles = []
        for path in unit_paths:
            unit = self.model.get_submodule(path)
            handles.append(unit.register_forward_pre_hook(lambda m, a, path=path: self.load(path, fetch)))
            handles.append(unit.register_forward_hook(lambda m, a, o, path=path: self.free(path), always_call=True))
        try:
            yield self.model
        finally:
            for handle in handles:
                handle.remove()

    def _output_path(self) -> str | None:
        find: Any = getattr(self.model, "get_output_embeddings", None)
        head = find() if find is not None else None
        return next((p for p, m in self.model.named_modules() if m is head), None) if head is not None else None

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def _meta(self, path: str, recurse: bool = True) -> list[tuple[str, nn.Module, str]]:
        root = self.model.get_submodule(path)
        modules = root.named_modules() if recurse else [("", root)]
        return [
            (".".join(filter(None, (path, sub, leaf))), module, leaf)
            for sub, module in modules
            for leaf, p in module._parameters.items()
            if p is not None and p.device.type == "meta"
        ]
