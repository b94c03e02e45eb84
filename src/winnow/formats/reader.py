"""Opening an artifact: everything it says about itself is checked before a tensor is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from winnow.disk.regular import read_regular
from winnow.errors import FormatError, InputError
from winnow.formats.header import check_version, digest_of, parse_json
from winnow.formats.names import INDEX, PACKED_INDEX, PACKED_WEIGHTS
from winnow.formats.packed import UNPRUNED, PackedTensor
from winnow.formats.packed_file import SUFFIXES, prunable_of, read_packed, split_keys, stored_keys
from winnow.formats.tensorfile import TensorFile, sha256
from winnow.formats.validation import FLOATS
from winnow.masks.prunable import Prunable

OWN_FILES = ("config.json", "manifest.json", "recipe.yaml", INDEX, PACKED_INDEX)
_LARGEST_CONFIG = 1 << 28
_WANTED = "give a folder that winnow compress wrote (a ticket loads with from_pretrained, or its model.safetensors as a state dict)"


class Artifact:
    """A folder of :class:`ArtifactWriter`, opened for reading: headers verified at once, tensors as they are read.

    Raises FormatError for anything truncated, altered, missing or of an unknown version, InputError for a folder that
    winnow did not write. Attributes: ``folder``, ``config`` (the whole config.json), ``manifest``, ``recipe``
    (None where there is none), ``factory`` (the recorded ``package.module:function``, never run by itself).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config = _read_config(self.folder)
        described = description_of(self.config)
        if described is None:
            raise InputError(f"{self.folder} is no winnow artifact: {_WANTED}")
        self.is_transformers = "winnow" not in self.config
        digests = shard_digests(described, self.folder)
        self._files = {name: TensorFile(self.folder / name) for name in digests}
        self._packed: dict[str, tuple[TensorFile, dict[str, Any]]] = {}
        self._dense: dict[str, TensorFile] = {}
        for name, file in self._files.items():
            match_header(file, digests[name])
            packed, dense = split_keys(file)
            self._packed |= {key: (file, about) for key, about in packed.items()}
            self._dense |= dict.fromkeys(dense, file)
        if "tensors" in described and self.descriptions != described["tensors"]:  # version 1 stored it here too
            raise FormatError(
                f"{self.folder}/config.json does not describe the tensors beside it: copy the whole folder"
            )
        self.aliases: dict[str, str] = described.get("aliases", {})
        self.factory: str | None = described.get("factory")
        stored = self._packed.keys() | self._dense.keys()
        sound = isinstance(self.aliases, dict) and all(
            isinstance(target, str) and target in stored and name not in stored for name, target in self.aliases.items()
        )
        if self._packed.keys() & self._dense.keys() or not sound:
            raise FormatError(f"{self.folder} names a tensor twice: copy or write it again")
        self.manifest = read_manifest(self.folder)
        check_listed(self.folder, ["config.json"], self.manifest)

    @property
    def names(self) -> list[str]:
        """Every tensor of the model's state dict that is stored or tied to a stored one."""
        return sorted([*self._packed, *self._dense, *self.aliases])

    @property
    def descriptions(self) -> dict[str, dict[str, Any]]:
        """Packed tensor -> what its file says about it (``units.describe``)."""
        return {name: about for name, (_, about) in self._packed.items()}

    @property
    def packed_names(self) -> list[str]:
        return sorted(self._packed)

    @property
    def pruned_names(self) -> list[str]:
        """The packed tensors that were open to pruning; the others are embeddings and the like, stored in fewer bits."""
        return [name for name in self.packed_names if self._packed[name][1].get("structure") != UNPRUNED]

    @property
    def recipe(self) -> dict[str, Any] | None:
        path = self.folder / "recipe.yaml"
        if not path.exists():
            return None
        from winnow.run.plain_yaml import CHARACTERS, read

        try:
            return read(read_regular(path, 4 * CHARACTERS).decode("utf-8"), str(path))[0]
        except (InputError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} is no recipe that winnow wrote ({error}): copy the folder again") from None

    def prunable(self, name: str) -> Prunable:
        return prunable_of(name, self._packed[self._known(name, self._packed)][1])

    def packed(self, name: str) -> PackedTensor:
        """A packed tensor; its checksums, counts and shapes verified."""
        return read_packed(self._packed[self._known(name, self._packed)][0], name, self._packed[name][1])

    def mapped(self, name: str) -> PackedTensor:
        """The same, its parts pages of the file where the runtime can use them directly: of bitmasks and dense
        tensors everything, of n:m patterns the values. What it will rearrange is read into memory of its own."""
        file, about = self._packed[self._known(name, self._packed)]
        encoding = str(about.get("encoding"))
        in_place = {"bitmask": SUFFIXES, "dense": SUFFIXES, "nm": ("values", "scales")}.get(encoding, ("scales",))
        if encoding == "block" and about.get("values") == "int8" and about.get("pattern") == [1, 4]:
            in_place = SUFFIXES
        keys = stored_keys(file, name).items()
        parts = {suffix: file.map(key) if suffix in in_place else file.read(key) for suffix, key in keys}
        return PackedTensor.from_tensors(about, parts)

    def dense(self, name: str) -> torch.Tensor:
        """A tensor that was stored as it is."""
        return self._dense[self._known(name, self._dense)].read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the model's own layout, known without reading the tensor."""
        name = self.aliases.get(name, name)
        return self.prunable(name).shape if name in self._packed else self._dense[name].shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in the model's own layout and type, whether packed or dense, its zeros counted."""
        name = self.aliases.get(name, name)
        if name in self._dense:
            return self.dense(name)
        return unpacked(self.prunable(name), self.packed(name))

    def state_dict(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) one after the other, in the model's own layout and type; tied names share one tensor."""
        tied: dict[str, list[str]] = {}
        for name, target in self.aliases.items():
            tied.setdefault(target, []).append(name)
        for name in sorted([*self._packed, *self._dense]):
            tensor = self.tensor(name)
            for key in (name, *tied.get(name, ())):
                yield key, tensor

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes on disk: ``values``, ``masks``, ``scales`` of packed tensors, ``dense`` tensors, ``other`` files and
        headers. They add up to all files of the folder."""
        sizes = dict.fromkeys(("values", "masks", "scales", "dense"), 0)
        for name, (file, _) in self._packed.items():
            for suffix, key in stored_keys(file, name).items():
                sizes["masks" if suffix == "mask" else suffix] += file.nbytes(key)
        sizes["dense"] = sum(file.nbytes(name) for name, file in self._dense.items())
        total = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return {**sizes, "other": total - sum(sizes.values())}

    @property
    def other_files(self) -> list[Path]:
        """The files of the folder that are neither shards nor winnow's own (tokenizer, report, licence ...)."""
        own = {*self._files, *OWN_FILES}
        return [path for path in sorted(self.folder.iterdir()) if path.is_file() and path.name not in own]

    def verify(self) -> None:
        """Read every file once and check every checksum: of each tensor, and of each file in the manifest."""
        for file in self._files.values():
            file.verify()
        for name in self.manifest.get("files", {}):
            if not (self.folder / name).is_file():
                raise FormatError(f"{self.folder / name} is missing: copy the folder again")
        check_listed(self.folder, manifest=self.manifest)

    def _known(self, name: str, among: dict[str, Any]) -> str:
        if name not in among:
            raise InputError(f"{self.folder} holds no such tensor as {name}: its names are in Artifact.names")
        return name


def read_artifact(folder: Path | str) -> Artifact:
    """Open an artifact. Raises InputError for any other folder, FormatError for a damaged one."""
    return Artifact(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder that winnow wrote; {} where it was not copied along. Raises FormatError."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    manifest = parse_json(read_regular(path, _LARGEST_CONFIG), str(path))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise FormatError(f"{path} is garbled: copy the folder again")
    return manifest


def check_listed(folder: Path, names: Iterable[str] | None = None, manifest: dict[str, Any] | None = None) -> None:
    """Whether files of a folder that winnow wrote are those of its manifest, by their SHA-256.

    ``names``: the files about to be read (default: all that are listed); what is not there, or was added later, is not
    looked at, and without a manifest nothing is. Raises FormatError naming the file, and how an intended change is accepted.
    """
    digests = (read_manifest(folder) if manifest is None else manifest).get("files", {})
    for name in digests if names is None else names:
        path = folder / name
        if name in digests and path.is_file() and sha256(path) != digests[name]:
            raise FormatError(
                f"{path} was changed after it was written: restore it, or, if the change is yours, delete manifest.json "
                "(the weights keep their own checksums)"
            )


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds a winnow artifact, sound or damaged."""
    try:
        return description_of(_read_config(Path(folder))) is not None
    except (InputError, FormatError):
        return False


def description_of(config: Any) -> dict[str, Any] | None:
    """winnow's part of a ``config.json``, None where it has none."""
    if not isinstance(config, dict):
        return None
    plain, packed = config.get("winnow"), config.get("quantization_config")
    if "winnow" in config:
        if not isinstance(plain, dict):
            raise FormatError(f"what config.json says about winnow is no object but {plain!r}: copy the folder again")
        return plain
    return packed if isinstance(packed, dict) and packed.get("quant_method") == "winnow" else None


def weights_name(described: dict[str, Any], where: str) -> str | None:
    """The weights file that a description names, of several their index; None for versions 1 and 2, which used the names that
    transformers knows. Raises FormatError for an unknown version or another name."""
    check_version(described.get("format_version"), where)
    if described["format_version"] < 3:
        return None
    name = described.get("weights")
    if name not in (PACKED_WEIGHTS, PACKED_INDEX):
        raise FormatError(f"{where} names {name!r} as its weights: copy or write the folder again")
    return str(name)


def shard_digests(described: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Shard -> checksum of its header, of the folder whose ``config.json`` holds a description. Raises FormatError for an unknown
    version, a garbled description, or an index that is not the one that was written."""
    name = weights_name(described, f"{folder}/config.json")
    where, tensors = f"{folder}/{name or 'config.json'}", described.get("tensors")
    if name == PACKED_WEIGHTS:
        return {name: described.get("checksum")}
    if name == PACKED_INDEX:
        files = _files_of_index(folder / PACKED_INDEX, described.get("checksum"))
    else:
        named = isinstance(tensors, dict) or (tensors is None and described["format_version"] == 2)
        files = described.get("files") if named else None
    if not isinstance(files, dict) or not files:
        raise FormatError(f"{where} does not name the shards: copy or write the folder again")
    for shard in files:
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not shard.isprintable():
            raise FormatError(f"{where} names {shard!r} as a shard: copy or write the folder again")
    return files


def _files_of_index(path: Path, checksum: Any) -> Any:
    if not path.is_file():
        raise FormatError(f"{path} is missing: copy the whole folder again")
    text = read_regular(path, _LARGEST_CONFIG)
    if digest_of([text]) != checksum:
        raise FormatError(f"{path} is not the index that config.json speaks of: copy the whole folder again")
    found = parse_json(text, str(path))
    for key in ("metadata", "winnow", "files"):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def match_header(file: TensorFile, digest: Any) -> None:
    """Raises FormatError where a shard is not the one its folder speaks of."""
    if file.header_digest != digest:
        raise FormatError(f"{file.path} is not the shard that config.json speaks of: copy the whole folder again")


def unpacked(prunable: Prunable, packed: PackedTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A packed tensor in the model's own layout, of ``dtype`` (default: its own), its zeros counted."""
    matrix = packed.unpack(dtype or FLOATS[packed.dtype])
    zeros = int(np.count_nonzero((matrix == 0).numpy()))  # ten times faster than torch.count_nonzero
    if zeros < packed.zeros:
        raise FormatError(f"{prunable.name} has {zeros} zeros, not the {packed.zeros} it was written with")
    return prunable.restore(matrix)


def _read_config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder} has no config.json: {_WANTED}")
    return parse_json(read_regular(path, _LARGEST_CONFIG), str(path))
