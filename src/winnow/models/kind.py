"""What kind of model it is, and the processor that feeds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from winnow.data import Records
from winnow.data.text import ModelKind
from winnow.errors import InputError
from winnow.models.source import ModelSource


def model_kind(source: ModelSource) -> ModelKind:
    """What the model's forward takes, from its configuration (plain torch modules take tensors)."""
    config = source.config
    if config is None:
        return "tensors"
    name = source.architecture
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        return "clip"
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal-lm"
    if "ImageClassification" in name or (hasattr(config, "image_size") and not hasattr(config, "vocab_size")):
        return "vision"
    return "encoder"


def processor_of(source: ModelSource, kind: ModelKind, records: Records | None) -> Any:
    if kind != "clip" and (kind == "vision" or (records is not None and records.kind == "images")):
        return source.image_processing() or _timm_normalization(source.module)
    tokenizer = source.tokenizer()
    if kind == "clip":
        return tokenizer, source.image_processing()
    if tokenizer is None and records is not None and records.kind in ("text", "pairs"):
        raise InputError(
            f"{source.spec} brings no tokenizer for the text in {records.name}: put its tokenizer files into the folder, or pass tokenizer=."
        )
    return tokenizer


def _timm_normalization(model: nn.Module | None) -> dict[str, Any] | None:
    """Mean and deviation of pixels that a model of timm carries with it, as settings of an image processor; else None."""
    given = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(given, Mapping) or not given.get("mean") or not given.get("std"):
        return None
    return {"do_resize": False, "image_mean": list(given["mean"]), "image_std": list(given["std"])}
