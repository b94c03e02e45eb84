"""A fresh task head on a pretrained encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.models.pretrained import quiet_transformers
from winnow.models.source import ModelSource, open_model
from winnow.seeding import torch_seed

TASKS = {"text": "AutoModelForSequenceClassification", "images": "AutoModelForImageClassification"}


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

    auto = getattr(transformers, TASKS["images" if _takes_images(found.config) else "text"])
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


def _takes_images(config: Any) -> bool:
    return hasattr(config, "image_size") or hasattr(config, "num_channels")


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
