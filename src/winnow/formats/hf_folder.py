"""Which files of a Hugging Face folder are the model: those that transformers' ``from_pretrained(folder)`` reads.

Every verb, the streaming, and the hash that names a model ask here, so that none of them takes a backup, a variant or
an old index for the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from winnow.disk.regular import open_regular, read_regular
from winnow.errors import FormatError, InputError
from winnow.formats.names import INDEX, WEIGHTS
from winnow.formats.reader import description_of, shard_digests

LFS = b"version https://git-lfs"
# Quantizations whose values transformers itself turns back into ordinary weights while it loads, without a GPU.
DEQUANTIZED = ("fp8", "mxfp4")


def model_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights, sorted: those of a folder that winnow wrote, the one that ``config.json`` names
    (``transformers_weights``), else ``model.safetensors``, else what ``model.safetensors.index.json`` lists. Nothing else counts, as for transformers
    (``_get_resolved_checkpoint_files``).

    Raises:
        InputError: there is none; the sentence says what is there instead.
        FormatError: a file that the index lists is missing, or the index is garbled or leaves the folder.
    """
    config = read_json(folder / "config.json")
    if (described := description_of(config)) is not None:
        return _present(folder, shard_digests(described, folder), "config.json")
    named = config.get("transformers_weights")
    if isinstance(named, str):
        path = _inside(folder, named, "config.json")
        if not path.is_file():
            raise FormatError(f"{folder} lacks {named}, which its config.json names: fetch the folder again.")
        return _listed(folder, path) if named.endswith(".index.json") else [path]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _listed(folder, folder / INDEX)
    raise InputError(_what_instead(folder))


def check_folder(folder: Path) -> list[Path]:
    """:func:`model_files`, each a whole safetensors file by its header, of a folder that holds nothing that would make
    it another model in another environment. Reads no weights.

    Raises:
        InputError, FormatError: one sentence with the fix.
    """
    files = model_files(folder)
    check_whole(files)
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter beside the model, which from_pretrained adds only where peft is installed: merge it "
            "(peft's PeftModel.from_pretrained, then winnow.train.merge) and save that, or move adapter_config.json away."
        )
    return files


def check_whole(files: Iterable[Path]) -> None:
    """Raises FormatError for a file that is no whole safetensors file: a git-lfs pointer, a download that stopped."""
    from safetensors import safe_open

    for path in files:
        refuse_pointer(path)
        try:
            with safe_open(path, "pt") as f:
                f.keys()
        except Exception as error:
            raise FormatError(f"{path} is not a whole safetensors file ({error}): fetch it again.") from None


def refuse_pointer(path: Path) -> None:
    """Raises FormatError for the text that git-lfs leaves where a file was not fetched."""
    with open_regular(path) as f:
        if f.read(len(LFS)) == LFS:
            raise FormatError(f"{path} is a git-lfs pointer, not the file itself: run git lfs pull there.")


def refuse_other_kinds(folder: Path) -> None:
    """Raises InputError for a folder without ``config.json``, naming what it holds instead of a transformers model."""
    if not (folder / "config.json").exists():
        raise InputError(_what_instead(folder, config=False))


def quantization(config: dict[str, Any]) -> str | None:
    """The method by which a folder's weights are quantized already, after its ``config.json``; None for plain weights."""
    for part in (config, *(v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict))):
        about = part.get("quantization_config")
        if isinstance(about, dict) and about.get("quant_method") != "winnow":
            bitsandbytes = about.get("load_in_8bit") or about.get("load_in_4bit")
            return str(about.get("quant_method") or ("bitsandbytes" if bitsandbytes else "unknown method"))
    return None


def refuse_quantized(spec: str, method: str) -> None:
    """Raises InputError where the weights behind a quantization cannot be had back as transformers would do it."""
    if method not in DEQUANTIZED:
        raise InputError(f"{spec} is already quantized ({method}): give the original, in 16 or 32 bits.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file. Raises InputError where it is garbled."""
    if not path.exists():
        return {}
    refuse_pointer(path)
    try:
        data = json.loads(read_regular(path, 1 << 28))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): restore the file.") from None
    return data if isinstance(data, dict) else {}


def _listed(folder: Path, index: Path) -> list[Path]:
    """The files of an index, in the order in which transformers reads them."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise FormatError(f"{index} lists no files: fetch the folder again.")
    return _present(folder, set(listed.values()), index.name)


def _present(folder: Path, names: Iterable[str], where: str) -> list[Path]:
    """The files of these names, sorted. Raises FormatError for one that is missing or leaves the folder."""
    paths = [_inside(folder, name, where) for name in sorted(names)]
    for path in paths:
        if not path.is_file():
            raise FormatError(
                f"{folder} lacks {path.relative_to(folder)}, which its {'index' if where.endswith('.index.json') else where} names: fetch the folder again."
            )
    return paths


def _inside(folder: Path, name: str, where: str) -> Path:
    """A file that the folder names must be one of its own."""
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.endswith((".safetensors", ".index.json")):
        raise FormatError(
            f"{folder}/{where} names {name!r}, which is no safetensors file of the folder: fetch it again."
        )
    return folder / name


def _what_instead(folder: Path, config: bool = True) -> str:
    """One sentence for a folder without the files of a transformers model (``config``: it has a config.json)."""
    names = sorted(p.name for p in folder.iterdir())
    if not names:
        return f"{folder} is empty: give a folder written by save_pretrained, with config.json and weights."

    def having(*ends: str) -> str | None:
        return next((n for n in names if n.lower().endswith(ends)), None)

    if "adapter_config.json" in names:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        return (
            f"{folder} holds an adapter, not a model: load {base} with it, merge them (winnow.train.merge(model)), "
            "and give the folder that save_pretrained writes of that."
        )
    if gguf := having(".gguf"):
        return f"{folder} holds GGUF files ({gguf}), already quantized for llama.cpp: give the original Hugging Face folder."
    if not config and WEIGHTS in names:
        return f"{folder} has no config.json: give a folder written by save_pretrained, or package.module:function with --weights {folder / WEIGHTS}."
    weights = having(".safetensors")
    if weights is None and (onnx := having(".onnx") or ("onnx" if (folder / "onnx").is_dir() else None)):
        return f"{folder} holds an ONNX export ({onnx}), which cannot be pruned: give the PyTorch model that it was made of."
    if weights is None and (other := having(".h5", ".msgpack", "saved_model.pb", ".ckpt.index")):
        return (
            f"{folder} holds TensorFlow or Flax weights ({other}): convert them to PyTorch first (transformers 4: "
            "from_pretrained(folder, from_tf=True or from_flax=True), then save_pretrained)."
        )
    if weights is None and (pickled := having(".bin", ".pt", ".pth", ".ckpt")):
        missing = "" if config else "has no config.json and "
        return (
            f"{folder} {missing}holds no .safetensors file but {pickled}: save the model again with "
            "save_pretrained(..., safe_serialization=True)."
        )
    if not config:
        below = _below(folder, "config.json")
        return f"{folder} has no config.json: give {below or 'a folder written by save_pretrained'}."
    if weights is None:
        below = _below(folder, WEIGHTS) or _below(folder, INDEX)
        return (
            f"{folder} holds no .safetensors file: "
            f"{f'give {below}' if below else 'save the model again with save_pretrained(..., safe_serialization=True)'}."
        )
    if ".winnow" in weights:
        return f"{folder} holds {weights}, packed by winnow, but not the config.json that belongs to it: copy the whole folder again."
    if weights.startswith("consolidated"):
        return f"{folder} holds {weights}, the layout of Mistral's and Meta's own code: give the transformers version of the model."
    if weights.startswith("model.") and weights.count(".") == 2:
        return f"{folder} holds only {weights}, a variant that from_pretrained(folder) does not read: rename it to {WEIGHTS}."
    return (
        f"{folder} holds {weights} but no {WEIGHTS}, which is what from_pretrained(folder) reads: fetch the whole folder, or "
        f"rename the file to {WEIGHTS} if it is the model."
    )


def _below(folder: Path, name: str) -> Path | None:
    """The one subfolder that holds a file of this name."""
    found = sorted(p.parent for p in folder.glob(f"*/{name}"))
    return found[0] if len(found) == 1 else None
