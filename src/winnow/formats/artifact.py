"""The folder winnow leaves behind: a Hugging Face folder with packed tensors, or the same for a plain torch model.

``config.json`` names the format version, the weights file (of several, their index) and its checksum; the header of a file describes
its packed tensors and holds the checksums of all; ``manifest.json`` holds the SHA-256 of every file. Nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from winnow.disk.files import copy_below, write_text
from winnow.errors import InputError
from winnow.formats.names import NEEDS_WINNOW
from winnow.formats.output import OutputFolder
from winnow.formats.packed import PackedTensor
from winnow.formats.packed_file import flatten, load_packed, split_keys
from winnow.formats.reader import OWN_FILES, Artifact, is_artifact, read_artifact
from winnow.formats.shards import SHARD_BYTES, ShardWriter
from winnow.formats.tensorfile import FORMAT_VERSION, TensorFile, sha256
from winnow.masks.prunable import Prunable
from winnow.masks.ties import stored_names

__all__ = ["Artifact", "ArtifactWriter", "is_artifact", "read_artifact"]


class ArtifactWriter:
    """Writes an artifact, tensor by tensor, holding at most one shard in memory.

    Everything goes to a folder beside it, which gets its name at :meth:`finish`: nothing half-written is ever seen.
    Use it as a context manager; leaving without :meth:`finish` (an error, Ctrl-C) removes the partial folder.

    Args:
        folder: where the artifact will be. An earlier output of winnow there is replaced at :meth:`finish`; a folder that
            holds anything else is refused with InputError.
        shard_bytes: size of one ``model.winnow-*.safetensors`` file, and so of what waits in memory.
        publish: False fills ``folder`` itself, which is there and is its owner's to publish or to remove.
    """

    def __init__(self, folder: Path | str, shard_bytes: int = SHARD_BYTES, publish: bool = True) -> None:
        self._output = OutputFolder(folder) if publish else None
        self._folder = self._output.path if self._output is not None else Path(folder)
        self._shards = ShardWriter(self._folder, shard_bytes)
        self._small = shard_bytes // 4
        self._packed: dict[str, Any] = {}
        self._aliases: dict[str, str] = {}
        self._names: set[str] = set()
        self._dtypes: Counter[str] = Counter()

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Remove what was written so far; after :meth:`finish` there is nothing to remove."""
        if self._output is not None:
            self._output.discard()

    def add_packed(self, prunable: Prunable, packed: PackedTensor) -> None:
        """Append a packed tensor. Raises InputError where it is not the prunable's shape."""
        self._add({prunable.name: (prunable, packed)}, {})

    def add_dense(self, name: str, tensor: torch.Tensor) -> None:
        """Append a tensor as it is, under its key in the model's state dict."""
        self._add({}, {name: tensor})

    def add_alias(self, name: str, target: str) -> None:
        """Say that ``name`` in a plain torch model is the same tensor as ``target`` (tied weights)."""
        self._aliases[name] = target

    def adopt(self, path: Path | str) -> None:
        """Append a file of :func:`save_packed`. A large one becomes a shard as it is, a small one joins the next
        shard; either way its checksums are verified and at most a shard is in memory. The file itself stays."""
        file = TensorFile(Path(path))
        if sum(file.nbytes(key) for key in file.keys) < self._small:
            self._add(*load_packed(file.path))
            return
        described, dense = split_keys(file)
        self._shards.adopt(file)
        self._note(described, {name: file.dtype(name) for name in dense})

    def add_model(self, model: torch.nn.Module, packed: dict[str, tuple[Prunable, PackedTensor]]) -> None:
        """Append a whole model that is in memory: ``packed`` in place of those tensors, all others as they are.

        Tied weights are stored once: transformers ties them again itself, for a plain model they become aliases.
        Raises InputError for a packed tensor that would be lost because its name is the tied one.
        """
        transformers = hasattr(model, "all_tied_weights_keys")
        stored = stored_names(model, transformers=transformers)
        for name, tensor in model.state_dict().items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{name} is extra state, not a tensor, and cannot be stored: remove get_extra_state()")
            if stored[name] != name:
                if not transformers:
                    self.add_alias(name, stored[name])
            elif name in packed:
                self.add_packed(*packed[name])
            else:
                self.add_dense(name, tensor)
        lost = sorted(packed.keys() - self._packed.keys())
        if lost:
            raise InputError(f"{lost[0]} is not in the model, or tied to another name: pack it under that name")

    def finish(
        self,
        config: dict[str, Any] | None,
        files: Mapping[str, Path] | None = None,
        recipe: dict[str, Any] | None = None,
        manifest: dict[str, Any] | None = None,
        factory: str | None = None,
    ) -> Path:
        """Write the last shard, the configuration and the manifest, and give the folder its name.

        Args:
            config: the model's ``config.json`` (transformers), or None for a plain torch model.
            files: to be copied beside it (tokenizer, generation configuration, licence ...), by their place in the folder.
            recipe, manifest: written to ``recipe.yaml`` and ``manifest.json``; the manifest gains the format version and
                the SHA-256 of every file.
            factory: ``package.module:function`` that builds a plain torch model, or None.
        """
        unknown = {*self._aliases.values()} - self._names
        if unknown or (self._aliases and config is not None):
            raise InputError(f"aliases {sorted(self._aliases)} need a plain torch model that holds {sorted(unknown)}")
        folder = self._folder
        described: dict[str, Any] = {"format_version": FORMAT_VERSION, **self._shards.close()}
        if config is None:
            whole: dict[str, Any] = {"winnow": {**described, "aliases": self._aliases, "factory": factory}}
        else:
            whole = {**config, "quantization_config": {"quant_method": "winnow", **described}}
            whole["transformers_weights"] = NEEDS_WINNOW
            if not (config.get("dtype") or config.get("torch_dtype")) and self._dtypes:
                whole["dtype"] = self._dtypes.most_common(1)[0][0]
        write_text(folder / "config.json", as_json(whole))
        for place, source in (files or {}).items():
            if (folder / place).exists() or place in OWN_FILES:
                raise InputError(f"{source} would overwrite the artifact's own {place}: leave it out")
            copy_below(source, folder, place)
        if recipe is not None:
            import yaml

            write_text(folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        written = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".winnow"))
        digests = {path.relative_to(folder).as_posix(): sha256(path) for path in written}
        write_text(
            folder / "manifest.json", as_json({**(manifest or {}), "format_version": FORMAT_VERSION, "files": digests})
        )
        return folder if self._output is None else self._output.publish()

    def _add(self, packed: dict[str, tuple[Prunable, PackedTensor]], dense: dict[str, torch.Tensor]) -> None:
        tensors, described = flatten(packed, dense)
        self._shards.add(tensors, described)
        self._note(described, {name: tensor.dtype for name, tensor in dense.items()})

    def _note(self, described: dict[str, Any], dense: dict[str, torch.dtype]) -> None:
        clash = self._names & (described.keys() | dense.keys())
        if clash:
            raise InputError(f"{min(clash)} is written twice: give every tensor a name of its own")
        self._names |= described.keys() | dense.keys()
        self._packed |= described
        self._dtypes.update(about["dtype"] for about in described.values())
        self._dtypes.update(str(d).removeprefix("torch.") for d in dense.values() if d.is_floating_point)


def as_json(value: Any) -> str:
    """JSON as every file of the folder holds it: sorted, indented, one way only."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
