"""``--vocabulary``: tokenizer, embeddings and output layer of a language model cut together to the tokens of a corpus.

What is cut is a model folder, before anything else: the result is an ordinary folder, which is then pruned, measured and
written like any other.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.calibrate.stream import Shards, loaded_names
from winnow.compression.cut_tokenizer import Cut, cut_tokenizer
from winnow.data.open import open_data
from winnow.data.records import EOS
from winnow.disk.files import copy_below, write_text
from winnow.errors import InputError, disk_errors
from winnow.formats.shards import ShardWriter
from winnow.masks.blocks import find_blocks
from winnow.models.source import ModelSource
from winnow.words import size

SHARD = 64 << 20  # bytes that wait in memory
# Written from the whole vocabulary; a tokenizer.json is all that fast tokenizers need.
_STALE = {
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
}
_LISTS = (
    "suppress_tokens",
    "begin_suppress_tokens",
)  # of a generation configuration: tokens that are gone need no mention


@dataclass
class Trimmed:
    """A model folder with a smaller vocabulary; it goes with this object."""

    source: ModelSource
    rows_before: int
    rows_after: int
    note: str

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, str(self.source.folder), ignore_errors=True)


def trim(source: ModelSource, data: Any, *, column: str | None) -> Trimmed:
    """Cuts the vocabulary of a model to what the texts in ``data`` (as ``--data``) use.

    Their tokens and the model's outputs for them stay what they were; any other text still encodes, in more tokens. Special
    and added tokens stay. Rows keep their order.

    Raises:
        InputError: not a folder of a text model with a fast tokenizer, or a layer that cannot be told from the vocabulary.
    """
    if source.folder is None or source.is_artifact or source.quantized is not None:
        raise InputError(
            "--vocabulary needs a model folder with plain weights and its tokenizer: save the dense model first."
        )
    config = source.config.to_dict()
    towers = [
        name for name in ("text_config", "vision_config", "encoder", "decoder") if isinstance(config.get(name), dict)
    ]
    if towers or config.get("vocab_size") is None:
        raise InputError(
            f"--vocabulary cuts models of one text vocabulary, and {source.architecture} has another layout: leave it out."
        )
    tokenizer = source.tokenizer()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{source.spec} has no fast tokenizer (tokenizer.json), and --vocabulary cuts no other: leave it out."
        )
    records = open_data(data, column=column)
    if records.kind not in ("text", "pairs"):
        raise InputError(f"--vocabulary needs texts, and {records.name} holds {records.kind}: give other data.")
    given = [text for pair in records.inputs for text in pair] if records.kind == "pairs" else list(records.inputs)
    texts = list(dict.fromkeys([*given, *(text.strip() for text in given)]))
    if records.joiner != EOS:
        texts.append(records.joiner.join(given))  # as a language model sees them
    skeleton: Any = source.skeleton()
    rows = skeleton.get_input_embeddings().weight.shape[0]
    generation = _read(source.folder / "generation_config.json")
    ids = {i for part in (config, generation) for i in _special_ids(part) if 0 <= i < rows}
    if nameless := sorted(ids - set(tokenizer.get_vocab().values())):
        raise InputError(
            f"the configuration of {source.spec} names token {nameless[0]}, which its tokenizer does not have: correct it first."
        )
    cut = cut_tokenizer(json.loads(backend.to_str()), texts, ids)
    if cut.rows[-1] >= rows:
        raise InputError(
            f"the tokenizer of {source.spec} has more tokens than the model has rows ({rows:,}): fix its folder first."
        )
    place = Path(tempfile.mkdtemp(prefix="winnow-vocabulary-"))
    small = ModelSource(spec=source.spec, folder=place, trust_remote_code=source.trust_remote_code, original=source)
    trimmed = Trimmed(small, rows, len(cut.rows), "")
    with disk_errors(place):
        _write_weights(source, skeleton, rows, cut, place)
        _write_rest(source, config, generation, cut, place)
    _check(small.tokenizer(), texts, cut)
    before, after = (sum(f.stat().st_size for f in s.weight_files()) for s in (source, small))
    trimmed.note = (
        f"the vocabulary was cut to {records.name}: {len(cut.rows):,} of {rows:,} rows ({cut.used:,} tokens occur in its "
        f"{len(given):,} texts), which alone takes the weights file from {size(before)} to {size(after)}; its texts encode as "
        "before, others may take more tokens. The dense model of this report is the one with the cut vocabulary, so that a "
        "perplexity here is not comparable with one over the whole vocabulary."
    )
    return trimmed


def _write_weights(source: ModelSource, skeleton: nn.Module, rows: int, cut: Cut, folder: Path) -> None:
    shards = Shards(source.weight_files())
    names = loaded_names(skeleton, shards)
    axes = _axes(skeleton, rows)
    if lost := sorted(name for name in axes if name not in names and not _tied(skeleton, name, names)):
        raise InputError(f"--vocabulary cannot find {lost[0]} in the weights of {source.spec}: leave it out.")
    of_key = {names[name]: axis for name, axis in axes.items() if name in names}
    known, index = set(names.values()), torch.tensor(cut.rows)
    writer = ShardWriter(folder, SHARD, described=False)
    for key, (_, shape) in sorted(shards.layout().items()):
        if key in of_key:
            writer.add({key: shards.read(key).index_select(of_key[key], index)}, {})
        elif key in known or rows not in shape:  # else of a head that this model does not have
            writer.add({key: shards.read(key)}, {})
    writer.close()


def _axes(model: nn.Module, rows: int) -> dict[str, int]:
    """Name of every tensor that has a place for each token -> along which axis.

    Raises:
        InputError: another tensor is as wide as the vocabulary.
    """
    inside = tuple(f"{block.path}." for block in find_blocks(model))
    found: dict[str, int] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    tables = {id(table) for m in modules.values() for table in _tables(m)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if rows not in tensor.shape or not tensor.is_floating_point():
            continue
        owner = modules[name.rpartition(".")[0]]
        small = (tensor.ndim == 1 and "bias" in name) or tuple(tensor.shape) == (1, rows)
        table = tensor.ndim == 2 and tensor.shape[0] == rows != tensor.shape[1] and id(owner) in tables
        if name.startswith(inside) or not (small or table):
            raise InputError(
                f"{name} is as wide as the vocabulary ({rows}), so that --vocabulary cannot tell them apart: leave it out."
            )
        found[name] = tensor.ndim - 1 if small else 0
    return found


def _tables(module: nn.Module) -> list[nn.Module]:
    """What a transformers model calls its input and output embeddings."""
    found = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(module, name)())
        except (AttributeError, NotImplementedError):  # most modules have none
            continue
    return [table for table in found if isinstance(table, nn.Module)]


def _tied(model: nn.Module, name: str, names: dict[str, str]) -> bool:
    """Whether a tensor is stored under another of its names."""
    state = model.state_dict(keep_vars=True)
    return any(other in names and state[other] is state[name] for other in state) or name in (
        getattr(model, "all_tied_weights_keys", None) or {}
    )


def _write_rest(
    source: ModelSource, config: dict[str, Any], generation: dict[str, Any], cut: Cut, folder: Path
) -> None:
    new = {old: number for number, old in enumerate(cut.rows)}
    _renumber(config, new)
    config["vocab_size"] = len(cut.rows)
    for place, path in source.companions().files.items():
        if path.name not in _STALE:
            copy_below(path, folder, place)
    write_text(folder / "config.json", _as_json(config))
    write_text(folder / "tokenizer.json", json.dumps(cut.tokenizer, ensure_ascii=False))
    settings = _read(folder / "tokenizer_config.json")
    if isinstance(settings.get("added_tokens_decoder"), dict):
        settings["added_tokens_decoder"] = {
            str(new[int(i)]): token for i, token in settings["added_tokens_decoder"].items() if int(i) in new
        }
    if settings:
        write_text(folder / "tokenizer_config.json", _as_json(settings))
    if generation:
        _renumber(generation, new)
        write_text(folder / "generation_config.json", _as_json(generation))


def _check(made: Any, texts: list[str], cut: Cut) -> None:
    """Raises InputError where transformers makes another tokenizer of the smaller folder than the one that was written."""
    for start in range(0, len(texts), 1024):
        part = slice(start, start + 1024)
        found = made(texts[part], padding=False, truncation=False, verbose=False)["input_ids"]
        if [list(ids) for ids in found] != cut.encoded[part]:
            raise InputError(
                f"--vocabulary cannot cut a {type(made).__name__}: transformers does not load it as it was written. Leave it out."
            )


def _special_ids(config: Any) -> list[int]:
    """The token ids that a configuration names: padding, start, end, mask and others."""
    found: list[int] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _special_ids(value)
        elif str(key).endswith(("_token_id", "_token_ids")):
            found += [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
    return found


def _renumber(config: dict[str, Any], new: dict[int, int]) -> None:
    """Gives the token ids of a configuration their new numbers; what is none of the model's stays."""
    for key, value in config.items():
        if isinstance(value, dict):
            _renumber(value, new)
        elif str(key).endswith(("_token_id", "_token_ids")):
            config[key] = [new.get(i, i) for i in value] if isinstance(value, list) else new.get(value, value)
        elif key in _LISTS and isinstance(value, list):
            config[key] = [new[i] for i in value if i in new]
        elif key in ("bad_words_ids", "forced_decoder_ids") and value:
            raise InputError(
                f"--vocabulary cannot renumber {key} of the generation configuration: remove it, or leave the option out."
            )


def _read(path: Path) -> dict[str, Any]:
    from winnow.formats.hf_folder import read_json

    return read_json(path)


def _as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
