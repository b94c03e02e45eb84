"""What travels with a model: every file of its folder but weights, what winnow writes anew, and what hides.

Tokenizer, licence, chat template, generation settings, the modules of sentence-transformers (``modules.json``, ``1_Pooling/``),
code and whatever else somebody put there: nobody can list what other libraries read beside a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from winnow.disk.links import leaves_folder
from winnow.disk.ownership import PAGES, PARENT_CARD, is_own_card
from winnow.disk.regular import read_regular
from winnow.errors import FormatError
from winnow.formats.reader import OWN_FILES
from winnow.words import size

LARGEST, MOST = (
    100_000_000,
    1_000,
)  # bytes of a file or a subfolder, files of a subfolder: beyond that it is no part of a model
WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".onnx.data", ".gguf", ".ggml", ".tflite",
    ".pb", ".ot", ".mlmodel", ".engine", ".npz",
)  # fmt: skip
DATA = (".jsonl", ".parquet", ".arrow")
_OF_WEIGHTS = ("openvino_", "model.ckpt", "tf_model.")  # what other formats put beside the weights, by beginning
_INDEX = tuple(f"{end}.index.json" for end in WEIGHTS)
# Written anew by winnow where they belong, or the state of a training that is over.
_ANEW = {*OWN_FILES, *PAGES, "run.yaml", "trainer_state.json"}
_OF_RUNS = {"__pycache__", "runs", "wandb", "mlruns"}


@dataclass(frozen=True)
class Companions:
    """``files``: place in the new folder (with ``/``) -> file; ``left_out``: a sentence for what a person may miss there."""

    files: dict[str, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def companions(folder: Path, but: Iterable[Any] = ()) -> Companions:
    """The files of a model's folder that are to be copied into the folder made from it. Reads names and sizes only.

    Links are taken where they stay in the folder (:func:`leaves_folder`); linked folders are not. A subfolder with weights of its
    own (a checkpoint, an ONNX export) is another model and stays, but for modules of sentence-transformers, whose own small
    weights are not those that were compressed.

    Args:
        but: what else a job was given; files among it (its data) are not copied.
    """
    found, data = Companions(), {os.path.realpath(path) for path in but if isinstance(path, (str, Path))}
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith("."))
    own_parent_card = PARENT_CARD in names
    for name in names:
        path = folder / name
        if path.is_dir():
            _subfolder(found, folder, name, data)
        elif name.lower() == "readme.md":
            if not own_parent_card and path.is_file() and not is_own_card(path):
                _take(found, folder, name, PARENT_CARD, data)
        elif name not in _ANEW and not is_weights(name):
            _take(found, folder, name, name, data)
    return found


def is_weights(name: str) -> bool:
    """Whether a file's name says that it holds a model's weights, or an index of them, in any format."""
    lower = name.lower()
    return lower.endswith((*WEIGHTS, *_INDEX)) or lower.startswith(_OF_WEIGHTS)


def _take(found: Companions, folder: Path, name: str, place: str, data: set[str]) -> None:
    path = folder / name
    if not path.is_file() or os.path.realpath(path) in data:
        return
    if leaves_folder(path, folder):
        found.left_out.append(f"{name} is not copied: it is a link to something outside of the model's folder.")
    elif name.lower().endswith(DATA) or name.lower().endswith(DATA):
        found.left_out.append(f"{name} is not copied: it is data; copy it yourself if the model needs it.")
    elif (bytes_ := path.stat().st_size) > LARGEST:
        found.left_out.append(
            f"{name} ({size(bytes_)}) is not copied: only files up to {size(LARGEST)} travel with a model; copy it yourself if it needs it."
        )
    else:
        found.files[place] = path


def _subfolder(found: Companions, folder: Path, name: str, data: set[str]) -> None:
    if name in _OF_RUNS:
        return
    if (folder / name).is_symlink():
        found.left_out.append(f"{name} is not copied: it is a link to a folder.")
        return
    files = list(_below(folder / name, f"{name}/"))
    weights = [file for file in files if is_weights(file)]
    module = name in _modules(folder)
    if weights and not module:
        found.left_out.append(f"{name}/ is not copied: it holds weights of its own ({weights[0]}).")
        return
    total = sum((folder / file).stat().st_size for file in files if (folder / file).is_file())
    if total > LARGEST or len(files) > MOST:
        found.left_out.append(
            f"{name}/ ({len(files):,} files, {size(total)}) is not copied: only subfolders up to {size(LARGEST)} and {MOST:,} files "
            "travel with a model; copy it yourself if it needs it."
        )
        return
    for file in files:
        if file.endswith(".safetensors") or file not in weights:
            _take(found, folder, file, file, data)
    if weights and not any(file.endswith(".safetensors") for file in weights):
        found.left_out.append(
            f"{weights[0]} is not copied: winnow's folders hold no pickled weights; save the model again with sentence-transformers, "
            "which writes safetensors."
        )


def _below(folder: Path, prefix: str) -> Iterator[str]:
    """Names of all files in a folder and the folders in it, without what hides and what is linked as a folder."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith(".") or entry.name in _OF_RUNS:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), f"{prefix}{entry.name}/")
            elif not entry.is_dir():
                yield prefix + entry.name


def _modules(folder: Path) -> set[str]:
    """Subfolders that a ``modules.json`` (sentence-transformers) names; empty where there is none, or no sound one."""
    try:
        listed = json.loads(read_regular(folder / "modules.json", 1 << 20))
        return {str(module["path"]).split("/")[0] for module in listed} - {""}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, FormatError):
        return set()
