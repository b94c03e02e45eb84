"""A model larger than memory: parameters stay in their safetensors shards, and only the part in work is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from winnow.errors import InputError, WinnowError
from winnow.formats.hf_folder import check_whole, model_files
from winnow.formats.state_dict import misfit
from winnow.masks.experts import dotted

Fetch = Callable[[str], torch.Tensor]
_ROWS = 1 << 22  # values compared at a time


class Shards:
    """The tensors of a model's safetensors files (see :func:`winnow.formats.hf_folder.model_files`) by name, or of those of a folder.
    Tensors are read on demand. A name in two files is the later one's, as for transformers.

    Raises:
        FormatError: a file that the index names is missing, or a file is truncated or not safetensors.
        InputError: a folder without such files.
    """

    def __init__(self, files: Path | Sequence[Path]) -> None:
        paths = model_files(files) if isinstance(files, Path) else list(files)
        check_whole(paths)
        self.file_of: dict[str, Path] = {}
        for path in paths:
            with safe_open(path, "pt") as f:
                self.file_of.update(dict.fromkeys(f.keys(), path))
        self._stamps = {path: _stamp(path) for path in paths}

    def check_unchanged(self) -> None:
        """Raises WinnowError where a file was written to or replaced since it was opened."""
        for path, stamp in self._stamps.items():
            if not path.is_file() or _stamp(path) != stamp:
                raise WinnowError(f"{path} changed while it was in use: start again with the files as they are now.")

    def read(self, name: str) -> torch.Tensor:
        """One tensor, copied out of the file so that no mapped page stays behind."""
        with safe_open(self.file_of[name], "pt") as f:
            return f.get_tensor(name).clone()

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors are the same, compared a few rows at a time."""
        with safe_open(self.file_of[one], "pt") as f, safe_open(self.file_of[other], "pt") as g:
            a, b = f.get_slice(one), g.get_slice(other)
            shape = a.get_shape()
            if shape != b.get_shape() or a.get_dtype() != b.get_dtype():
                return False
            step = max(1, _ROWS // max(1, torch.Size(shape[1:]).numel()))
            return all(torch.equal(a[i : i + step], b[i : i + step]) for i in range(0, shape[0], step))

    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """name -> (safetensors dtype, shape), from the headers alone."""
        found = {}
        for path in sorted(set(self.file_of.values())):
            with safe_open(path, "pt") as f:
                for name in f.keys():  # noqa: SIM118 - safe_open is not a mapping
                    part = f.get_slice(name)
                    found[name] = (part.get_dtype(), tuple(part.get_shape()))
        return found


def name_map(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Parameter (and persistent buffer) name in the model -> name in the shards, by the name alone: what lies there may
    be stored otherwise, and has to be compared.

    Checkpoints written from the headless base model lack its prefix, and the other way round; parameters that
    are tied to one in the shards are left out.
    """
    prefix = getattr(model, "base_model_prefix", "")
    names: dict[str, str] = {}
    for name in model.state_dict():
        candidates = (name, f"{prefix}.{name}", name.removeprefix(prefix + "."))
        if (found := next((c for c in candidates if c in shards.file_of), None)) is not None:
            names[name] = found
    return names


def loaded_names(model: nn.Module, shards: Shards) -> dict[str, str]:
    """Name in a transformers model -> name in the shards, of all tensors that its loader takes over as they are.

    The renaming is the loader's own (``convert_and_load_state_dict_in_model``). Tensors that it would make of others
    (experts stored one by one, merged projections), or could take from two places, are left out.

    Raises:
        InputError: nothing fits the model's names, or a tensor has another shape than the model's.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    skeleton: Any = model
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    wanted, prefix = model.state_dict(), skeleton.base_model_prefix
    found: dict[str, list[str]] = {}
    for key in sorted(shards.file_of):
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=wanted)
        if name in wanted:
            found.setdefault(name, []).extend([key] if pattern is None else [key, ""])
    if not found:
        why = misfit({name: () for name in wanted}, dict.fromkeys(shards.file_of, ()))
        raise InputError(f"{next(iter(shards.file_of.values())).parent} does not fit the model: {why}.")
    names = {name: keys[0] for name, keys in found.items() if len(keys) == 1}
    layout = shards.layout()
    for name, key in names.items():
        if layout[key][1] != tuple(wanted[name].shape):
            raise InputError(
                f"{key} is {list(layout[key][1])} in the weights and {list(wanted[name].shape)} in the model: restore the "
                "config.json of these weights."
            )
    return names


def untie(model: nn.Module, names: dict[str, str], shards: Shards) -> None:
    """Parts, in a skeleton, parameters declared to be one whose stored values differ, as transformers does while it loads."""
    declared: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in list(declared.items()):
        if target in names and source in names and not shards.equal(names[target], names[source]):
            path, _, leaf = target.rpartition(".")
            owner = model.get_submodule(path)
            parameter = owner._parameters[leaf]
            assert parameter is not None
            owner._parameters[leaf] = nn.Parameter(torch.empty_like(parameter), requires_grad=False)
            del declared[target]


class StreamedModel:
    """A meta-device skeleton whose parts are filled from ``fetch`` when needed and emptied afterwards."""

    def __init__(self, skeleton: nn.Module, fetch: Fetch, names: Iterable[str]) -> None:
        self.model = skeleton
        self.fetch = fetch
        self.names = set(names)
        self._tie = dict(getattr(skeleton, "all_tied_weights_keys", None) or {})
        lost = [n for n, p in skeleton.named_parameters() if n not in self.names]
        if lost:
            raise InputError(
                f"the checkpoint stores {lost[0]} under another name or layout, so it cannot be streamed: leave out --ram to load it whole."
            )

    def load(self, path: str, fetch: Fetch | None = None) -> None:
        """Fills every meta parameter below the module ``path``."""
        fetch = fetch or self.fetch
        for name, owner, leaf in self._meta(path):
            _fill(owner, leaf, fetch(name))

    def free(self, path: str) -> None:
        """Empties every parameter below ``path`` again."""
        for module in self.model.get_submodule(path).modules():
            for leaf, p in module._parameters.items():
                if p is not None and p.device.type != "meta":
                    module._parameters[leaf] = nn.Parameter(p.to("meta"), requires_grad=False)

    def load_rest(self, unit_paths: Iterable[str], *, head: bool) -> None:
        """Fills what lies outside the units: embeddings, norms, and with ``head`` the output head."""
        inside = tuple(p + "." for p in unit_paths)
        output = self._output_path() if not head else None
        for path, module in self.model.named_modules():
            if module._parameters and not (path + ".").startswith(inside) and path != output:
                for name, owner, leaf in self._meta(path, recurse=False):
                    _fill(owner, leaf, self.fetch(name))
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
        with ExitStack() as stack:
            for path in unit_paths:
                unit = self.model.get_submodule(path)
                before = unit.register_forward_pre_hook(lambda m, a, path=path: self.load(path, fetch))
                after = unit.register_forward_hook(lambda m, a, o, path=path: self.free(path), always_call=True)
                for handle in (before, after):
                    stack.callback(handle.remove)
            yield self.model

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
            (dotted(path, sub, leaf), module, leaf)
            for sub, module in modules
            for leaf, p in module._parameters.items()
            if p is not None and p.device.type == "meta"
        ]


def _fill(owner: nn.Module, leaf: str, tensor: torch.Tensor) -> None:
    owner._parameters[leaf] = nn.Parameter(tensor.to(getattr(owner, leaf).dtype), requires_grad=False)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
