"""CLIP's image tower as a classifier whose head is made of text and stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from winnow.errors import InputError

TEMPLATES = ("a photo of a {}.",)
_TEXTS = 256  # prompts encoded at once


class ImageClassifier(nn.Module):
    """pixel_values [n, C, H, W] -> logits [n, classes]: normalized image features times a frozen head.

    Attributes:
        vision_model, visual_projection: CLIP's, trained as a whole; what is prunable are the matrices of its blocks.
        head: buffer [classes, width], unit-norm text embeddings times exp(logit_scale); no parameter, never pruned.
    """

    head: torch.Tensor

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module, head: torch.Tensor) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = vision_model, visual_projection
        self.register_buffer("head", head)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        return normalize(self.visual_projection(pooled), dim=-1) @ self.head.T


def clip_image_classifier(
    clip_model: nn.Module,
    tokenizer: Any,
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> ImageClassifier:
    """An image classifier out of a CLIP model and the names of classes; the text tower is used once and dropped.

    The head has one row per class: the text embeddings of its prompts, each of norm 1, averaged over the templates,
    normalized again and multiplied by exp(logit_scale); its bias is zero (Radford et al. 2021, section 3.1.4; the setting
    of Jaiswal et al. 2023). With one template the logits are CLIP's ``logits_per_image``.

    Args:
        clip_model: a transformers CLIPModel; it is copied, not changed.
        tokenizer: its tokenizer; or one item per class, its prompts' tokens: a dict of tensors [templates, length] or
            the input_ids alone, for prompts that were tokenized elsewhere (``templates`` is then not read).
        class_names: in the order of the labels.
        templates: prompts with one ``{}`` for the name.

    Raises:
        InputError: no CLIP model, fewer than two classes, or a template without a place for the name.
    """
    names = list(class_names)
    for part in ("text_model", "vision_model", "text_projection", "visual_projection", "logit_scale"):
        if not hasattr(clip_model, part):
            raise InputError(f"{type(clip_model).__name__} has no {part}: give a transformers CLIPModel.")
    if len(names) < 2 or len(set(names)) != len(names):
        raise InputError(
            "a classifier needs at least two classes of different names: give class_names such as ['cat', 'dog']."
        )
    if callable(tokenizer):
        tokens = _tokenized(tokenizer, names, templates)
    elif isinstance(tokenizer, Sequence) and len(tokenizer) == len(names):
        tokens = [dict(t) if isinstance(t, Mapping) else {"input_ids": t} for t in tokenizer]
    else:
        raise InputError(
            f"the prompts cannot be read: give CLIP's tokenizer, or {len(names)} batches of tokens, one a class."
        )
    head = _head(clip_model, tokens)
    vision = copy.deepcopy(clip_model.vision_model)
    return ImageClassifier(vision, copy.deepcopy(clip_model.visual_projection), head).eval()  # type: ignore[arg-type]


def _tokenized(tokenizer: Any, names: Sequence[str], templates: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    from winnow.data.tokens import context_length, encode, pad

    if isinstance(templates, str) or not templates or any(t.count("{}") != 1 for t in templates):
        raise InputError('a template needs one {} for the name of the class: write for example ("a photo of a {}.",).')
    length = min(77, context_length(tokenizer, None, "clip"))
    batches = []
    for name in names:
        tokens = pad(encode([t.format(name) for t in templates], tokenizer, length), tokenizer)
        tokens.pop("token_type_ids", None)
        batches.append(tokens)
    return batches


@torch.no_grad()
def _head(model: Any, tokens: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """float [classes, width]."""
    device = model.logit_scale.device
    training = model.training
    model.eval()
    rows = []
    try:
        for batch in tokens:
            if not len(batch["input_ids"]):
                raise InputError("a class has no prompt: give at least one template.")
            parts = [
                {k: t[i : i + _TEXTS].to(device) for k, t in batch.items()}
                for i in range(0, len(batch["input_ids"]), _TEXTS)
            ]
            embedded = torch.cat([model.text_projection(model.text_model(**p).pooler_output) for p in parts])
            rows.append(normalize(normalize(embedded, dim=-1).mean(0), dim=-1))
    finally:
        model.train(training)
    return torch.stack(rows) * model.logit_scale.exp()
