"""A small CLIP: an image tower and a text tower trained on pairs of images and captions that are made from labels.

No CLIP weights small enough for a processor core are at hand. This one sees half of the CIFAR-10 training images
(:func:`pretraining_images`); the other half is left for what is done with it later. A caption is a template, the name of
the class, and for a third of the images each "dark" or "bright". Equal captions of a mini-batch are one text: the loss
is CLIP's with several right images a text.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.models.training import CIFAR_CLASSES, SEED, augment, cifar10, normalize, optimize

CLIP_MINUTES, CLIP_EPOCHS = 17.0, 10.0  # of half the images: reckoned from the steps of the ViT, not measured
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a small photo of a {}.",
    "an image of the {}.",
    "a photo of one {}.",
    "there is a {} in the picture.",
)
LIGHTS = ("", "dark ", "bright ")
TOKENS = 16  # longest caption
SHARE = 25_000  # images it is trained on


def pretraining_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training images that the model has seen, and of those it has not."""
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(31))
    return order[:SHARE].sort().values, order[SHARE:].sort().values


def caption(template: int, light: int, name: str) -> str:
    """Template number, word for the light, and name as a sentence: "a dark cat" where the template has "a {}"."""
    return TEMPLATES[template].format(LIGHTS[light] + name)


def make_tokenizer() -> Any:
    """Whole words; id 3 ends a text, and there the text tower is read."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors  # fmt: skip
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.BertPreTokenizer()
    text = " ".join([*TEMPLATES, *LIGHTS, *CIFAR_CLASSES]).replace("{}", " ")
    words = sorted({word for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "<unk>", "</s>", *words])}
    tokenizer = Tokenizer(kinds.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), splitter
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>",
        model_max_length=TOKENS,
    )  # fmt: skip


def make_model(words: int) -> Any:
    """CLIPModel with fresh weights: the image tower is the ViT of make.py, the text tower has two layers of 128."""
    from transformers import CLIPConfig, CLIPModel

    vision = dict(
        image_size=32, patch_size=4, hidden_size=192, intermediate_size=384, num_hidden_layers=6, num_attention_heads=3,
    )  # fmt: skip
    text = dict(
        vocab_size=words, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=3,
    )  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    return CLIPModel._from_config(config, attn_implementation="eager")


def clip_small(folder: Path, scale: float) -> dict[str, Any]:
    """Trains it, with the ViT's recipe; its figure is the zero-shot accuracy on the test images."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    images_u8, labels = cifar10("train")
    seen = pretraining_images()[0]
    images_u8, labels = images_u8[seen], labels[seen]
    generator = torch.Generator().manual_seed(SEED)
    light = _lights(images_u8)
    batch = 128
    steps = round(CLIP_EPOCHS * scale * len(labels) / batch)
    passes = steps * batch // len(labels) + 1
    order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(passes)])
    kinds = [(t, l, c) for t in range(len(TEMPLATES)) for l in range(len(LIGHTS)) for c in range(10)]  # noqa: E741
    texts = [caption(t, l, CIFAR_CLASSES[c]) for t, l, c in kinds]  # noqa: E741
    tokens = dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))

    def batch_loss(step: int) -> torch.Tensor:
        index = order[step * batch : (step + 1) * batch]
        early = step < 0.65 * steps  # as for the ViT: zoomed windows of 24 pixels first
        pixels = augment(normalize(images_u8[index]), 24 if early else 32, 0.5 if early else 0.2, generator)
        template = torch.randint(len(TEMPLATES), (len(index),), generator=generator)
        kind = (template * len(LIGHTS) + light[index]) * 10 + labels[index]
        unique, own = kind.unique(return_inverse=True)
        text = _embedded(model.text_projection, model.text_model, {k: t[unique] for k, t in tokens.items()})
        image = _embedded(
            model.visual_projection, model.vision_model, dict(pixel_values=pixels, interpolate_pos_encoding=early)
        )
        logits = (image @ text.T).float() * model.logit_scale.exp().clamp(max=100.0)
        right = F.one_hot(own, len(unique)).float()
        per_text = -(right / right.sum(0) * logits.log_softmax(0)).sum(0).mean()
        return (F.cross_entropy(logits, own) + per_text) / 2

    hidden = [p for n, p in model.named_parameters() if _hidden(n, p)]
    others = [p for n, p in model.named_parameters() if not _hidden(n, p)]
    optimizers = [torch.optim.Muon(hidden, lr=0.02, weight_decay=0.05), torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0)]  # fmt: skip
    optimize(model, optimizers, steps, batch_loss)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {**_zero_shot(model, tokenizer), "steps": steps, "batch": batch, "pairs": len(labels)}


def _lights(images_u8: torch.Tensor) -> torch.Tensor:
    """0, 1 (dark) or 2 (bright) by the mean of the image, a third each, int64 [n]."""
    mean = images_u8.float().mean((1, 2, 3))
    low, high = mean.quantile(torch.tensor([1 / 3, 2 / 3]))
    return (mean < low).long() + 2 * (mean > high).long()


def _embedded(projection: torch.nn.Module, tower: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return F.normalize(projection(tower(**inputs).pooler_output), dim=-1)


def _hidden(name: str, parameter: torch.nn.Parameter) -> bool:
    """Matrices within the towers' layers, which Muon trains."""
    return parameter.ndim == 2 and ".layers." in name


def _zero_shot(model: torch.nn.Module, tokenizer: Any) -> dict[str, Any]:
    from winnow.train.task.clip import clip_image_classifier

    classifier = clip_image_classifier(model, tokenizer, CIFAR_CLASSES, TEMPLATES)
    images_u8, labels = cifar10("test")
    with torch.inference_mode():
        logits = torch.cat([classifier(normalize(part)) for part in images_u8.split(500)])
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    scale = math.exp(model.logit_scale.item())
    return {"accuracy": accuracy, "test": "cifar10 test, zero-shot", "test_examples": len(labels), "logit_scale": scale}
