"""The model that a training starts from: as it is, with a fresh head, or CLIP's image tower."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data import Records
from winnow.errors import InputError
from winnow.forward.dtypes import HALF_DTYPES, has_half_weights, to_float32
from winnow.masks.unwrap import working_copy
from winnow.models.kind import model_kind
from winnow.models.pretrained import quiet_transformers
from winnow.models.source import ModelSource, open_model
from winnow.seeding import torch_seed
from winnow.train.task.clip import clip_image_classifier

TASKS = {"text": "AutoModelForSequenceClassification", "images": "AutoModelForImageClassification"}


def kind_of(source: ModelSource) -> str:
    """What decides the learning rate: "encoder", "causal-lm", "seq2seq", "clip", "transformer" (of images) or "other"."""
    kind = model_kind(source)
    if kind in ("causal-lm", "encoder", "seq2seq", "clip"):
        return kind
    return "transformer" if hasattr(source.config, "num_attention_heads") else "other"


def in_float(model: nn.Module, notes: list[str], types: dict[str, torch.dtype]) -> nn.Module:
    """16-bit weights in float32 (in a copy): a fine-tuning's steps are lost in half precision. float64 stays.

    ``types`` gets the types of the tensors that were widened, by name.
    """
    if not has_half_weights(model):
        return model
    notes.append("the weights are stored in another precision and were converted to float32 for the training.")
    types |= {n: t.dtype for n, t in model.state_dict().items() if torch.is_tensor(t) and t.dtype in HALF_DTYPES}
    return to_float32(working_copy(model))


def starting_model(
    source: ModelSource,
    records: Records,
    held_out: Records | None,
    *,
    scores: bool,
    processor: Any,
    seed: int,
    notes: list[str],
    types: dict[str, torch.dtype],
) -> nn.Module:
    """The source's model for these labels; what was added is noted in ``notes``, what was widened in ``types``.

    Raises:
        InputError: CLIP and images whose classes have no names.
    """
    kind, labels = model_kind(source), records.labels
    if kind == "clip" and records.kind == "images" and labels is not None:
        if records.label_names is None:
            raise InputError(
                f"{records.name} names no classes to make prompts of: give a folder with one subfolder per class, or use clip_image_classifier."
            )
        tokenizer = processor[0] if isinstance(processor, tuple) else getattr(processor, "tokenizer", processor)
        notes.append(f"CLIP's image tower under a frozen head made of the names of {len(records.label_names)} classes.")
        return in_float(clip_image_classifier(source.load(), tokenizer, records.label_names), notes, types)
    if source.config is not None and kind in ("encoder", "vision", "causal-lm") and labels is not None:
        classes = 1 if scores else _classes(records, held_out)
        if (why := _headless(source, classes, records)) is not None:
            notes.append(f"{why}: a fresh head was added, trained with everything else and not pruned.")
            model: Any = with_head(source, classes, seed, names=None if scores else records.label_names, scores=scores)
            if getattr(model.config, "pad_token_id", None) is None:
                # What batches are padded with; decoders find the end of a text by it.
                fill = getattr(processor, "pad_token_id", None)
                model.config.pad_token_id = fill if fill is not None else getattr(processor, "eos_token_id", None)
            return model
        if not scores and records.label_names is not None:
            return _named(source, records.label_names, notes, types)
    return in_float(source.load(), notes, types)


def _named(source: ModelSource, names: Sequence[str], notes: list[str], types: dict[str, torch.dtype]) -> nn.Module:
    """The model with its own head; outputs without names of their own get those of the data's classes.

    A model in memory keeps its configuration: it is its owner's.
    """
    model: Any = in_float(source.load(), notes, types)
    outputs, known = int(getattr(model.config, "num_labels", len(names))), getattr(model.config, "label2id", None) or {}
    if {n.lower() for n in names} <= {str(n).lower() for n in known}:
        return model
    note = f"the model's outputs 0 to {len(names) - 1} stand for {', '.join(names)}"
    if outputs > len(names):
        note += f"; its other outputs, up to {outputs - 1}, match no class of the data and stay"
    if source.module is None:
        own = dict(model.config.id2label or {}) | dict(enumerate(names))
        model.config.id2label, model.config.label2id = own, {name: i for i, name in own.items()}
        notes.append(f"{note}.")
    else:
        notes.append(f"{note}: name them in config.id2label before saving, or give a model folder, where it is done.")
    return model


def _classes(records: Records, held_out: Records | None) -> int:
    if records.label_names is not None:
        return max(2, len(records.label_names))
    parts = [r.class_labels() for r in (records, held_out) if r is not None and r.labels is not None]
    return max(2, int(np.concatenate(parts).max()) + 1)


def _headless(source: ModelSource, outputs: int, records: Records) -> str | None:
    """Why this model needs another head; None where its own serves."""
    name, config = source.architecture, source.config
    if not any(word in name for word in ("SequenceClassification", "ImageClassification")):
        return f"{name} has no head for this task" if name.endswith("Model") or "For" in name else None
    own = int(getattr(config, "num_labels", outputs))
    if own < outputs or (outputs == 1 and own != 1):
        return f"the model has {own} outputs and the data takes {outputs}"
    names = {str(n).lower() for n in (getattr(config, "label2id", None) or {})}
    theirs = {n.lower() for n in records.label_names or ()}
    named = bool(names) and not all(n.startswith("label_") for n in names)
    return "the model's classes are other ones than the data's" if named and theirs and not theirs <= names else None


def with_head(
    source: str | Path | nn.Module | ModelSource,
    classes: int,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    scores: bool = False,
) -> nn.Module:
    """The encoder of ``source`` under a new classification head: the weights of the encoder, a seeded head.

    A head that is there already is replaced. The head is not prunable and is trained with everything else.

    Args:
        source: a Hugging Face folder or name, or a transformers model in memory (which is not changed).
        classes: outputs of the head.
        seed: of the head's weights.
        names: of the classes, in the order of the labels; written into the configuration.
        scores: the head gives one real number (``classes`` must be 1).

    Raises:
        InputError: no transformers model, a family without such a head, or a checkpoint that lacks encoder weights.
    """
    found = source if isinstance(source, ModelSource) else open_model(source)
    if scores != (classes == 1):
        raise InputError(
            "a head for scores has one output, one for classes at least two: give classes=1 with scores, or 2 and more."
        )
    if names is not None and len(names) != classes:
        raise InputError(f"{len(names)} names for {classes} classes: give one each.")
    if found.config is None:
        raise InputError(f"{found.spec} is no transformers model: add the head yourself and give the module.")
    import transformers

    images = hasattr(found.config, "image_size") or hasattr(found.config, "num_channels")
    auto = getattr(transformers, TASKS["images" if images else "text"])
    settings: dict[str, Any] = {"num_labels": classes}
    if names is not None:
        settings |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    if type(found.config) not in auto._model_mapping:
        raise InputError(
            f"transformers has no classification head for {found.config.model_type}: add one yourself and give the module."
        )
    with torch_seed(seed), quiet_transformers():
        model = _opened(auto, found, settings) if found.folder is not None else _rebuilt(auto, found, settings)
    model.config.problem_type = "regression" if scores else "single_label_classification"
    return model.float().eval()


def _opened(auto: Any, source: ModelSource, settings: dict[str, Any]) -> Any:
    from transformers.utils import logging

    shown = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is what was asked for; what else is missing is checked here
    try:
        model, info = auto.from_pretrained(
            source.folder, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **settings
        )
    except Exception as error:
        raise InputError(f"{source.folder} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    finally:
        logging.set_verbosity(shown)
    _check_missing(model, info.get("missing_keys", ()), source.spec)
    return model


def _rebuilt(auto: Any, source: ModelSource, settings: dict[str, Any]) -> Any:
    assert source.module is not None
    config = copy.deepcopy(source.config)
    for name, value in settings.items():
        setattr(config, name, value)
    model = auto.from_config(config)
    prefix = model.base_model_prefix
    given = getattr(source.module, prefix, source.module)
    target = getattr(model, prefix)
    missing, _ = target.load_state_dict({n: t.detach().cpu() for n, t in given.state_dict().items()}, strict=False)
    _check_missing(model, [f"{prefix}.{n}" for n in missing], source.spec)
    return model


def _check_missing(model: Any, missing: Any, spec: str) -> None:
    """Only the head (and the pooler that feeds it) may be new."""
    lacking = sorted(n for n in missing if n.startswith(f"{model.base_model_prefix}.") and "pooler" not in n)
    if lacking:
        raise InputError(
            f"{spec} lacks {len(lacking)} tensors of the encoder (first: {lacking[0]}): use a complete checkpoint."
        )
