"""The models of this study, their tasks, and which data is for what.

==========  =====================================  =======================================  ==================  ==============
subject     starts from                            trains on                                selection           test
==========  =====================================  =======================================  ==================  ==============
minilm      MiniLM-L6, a fresh head                24,000 phrases of SST-2 ``train_a``      1,000 of train_b    872 sentences
resnet      ResNet-20 of the original CIFAR-10     46,000 JPEG training images              4,000 other ones    10,000 (JPEG)
vit         ViT of five classes, a fresh head      22,000 images of the other five classes  3,000 other ones    5,000
clip        image tower of a small CLIP, its       23,000 images that it has not seen       2,000 other ones    5,000
            head made of text and frozen
==========  =====================================  =======================================  ==================  ==============

Settings are chosen on the selection data, figures come from the test data. Phrases of the selection are parts of the
same reviews as the training's, and ResNet-20 has seen its selection images in their original form: both are optimistic
there, for every method alike. No augmentation: no training sees an image twice. Word embeddings of MiniLM (half its
parameters, none prunable) are frozen, which halves a step. The two transformers of images work at 24 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import adapters
from benchmarks.common import data
from benchmarks.models.clip import TEMPLATES, pretraining_images
from benchmarks.models.make import get
from benchmarks.models.training import CIFAR_CLASSES, TOKENS, cifar10, normalize, sst2
from benchmarks.splits import Split, correct

SPLIT_SEED = 54321
PHRASES = 24_000  # of the 60,000: more than two trainings see, and as many as the image subjects have
SIDE = 24  # pixels the image transformers see
TARGET_CLASSES = range(5, 10)  # those that SOURCE_CLASSES leaves
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what the ResNets were trained with


@dataclass(frozen=True)
class Subject:
    """A model and its task.

    Attributes:
        model: seed -> the pretrained model with its head; a fresh head's weights come from the seed.
        batches: labelled training data for :class:`winnow.train.examples.Examples`.
        loss: (model, batch) -> cross-entropy.
        batch, steps: examples of an optimizer step and T, unless the command line says otherwise.
        lr: learning rate that the tuning is centred on.
        step: processor seconds of a training step, for the first estimate.
    """

    model: Callable[[int], torch.nn.Module]
    batches: Callable[[], list[Any]]
    selection: Callable[[], Split]
    test: Callable[[], Split]
    loss: Callable[[torch.nn.Module, Any], torch.Tensor]
    batch: int
    lr: float
    step: float
    about: str
    steps: int = 600
    weight_decay: float = 0.01


# --- text


def _minilm(seed: int) -> torch.nn.Module:
    from winnow.train.task.starting_model import with_head

    model = with_head(data("minilm-l6"), 2, seed)
    model.set_attn_implementation("eager")  # faster backward on a processor
    model.bert.embeddings.word_embeddings.requires_grad_(False)
    return model


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data("minilm-l6"))


def _encoded(texts: list[str], labels: torch.Tensor) -> Split:
    return Split(
        dict(_tokenizer()(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")), labels
    )


@cache
def _selected_phrases() -> tuple[list[str], torch.Tensor]:
    texts, labels = sst2("train_b")
    chosen = _order(len(texts))[:1000]
    return [texts[i] for i in chosen.tolist()], labels[chosen]


def _phrases() -> list[dict[str, torch.Tensor]]:
    """``PHRASES`` of ``train_a``, without texts of the selection and the test, in batches of like lengths, padded to the right."""
    taken = {*_selected_phrases()[0], *sst2("validation")[0]}
    texts, labels = sst2("train_a")
    kept = [i for i, t in enumerate(texts) if t not in taken]
    kept = sorted((kept[j] for j in _order(len(kept))[:PHRASES].tolist()), key=lambda i: len(texts[i].split()))
    batches = []
    for i in range(0, len(kept), 1000):
        part = _encoded([texts[j] for j in kept[i : i + 1000]], labels[kept[i : i + 1000]])
        batches.append({**part.inputs, "labels": part.labels})
    return batches


def _text_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {k: t for k, t in batch.items() if k != "labels"}
    return F.cross_entropy(model(**inputs).logits.float(), batch["labels"])


# --- images


@cache
def _images(part: str, classes: range) -> tuple[torch.Tensor, torch.Tensor]:
    return cifar10(part, classes)


def _resnet_pixels(images_u8: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    return (images_u8.float() / 255 - mean) / std


def _small_pixels(images_u8: torch.Tensor) -> torch.Tensor:
    return F.interpolate(normalize(images_u8), size=(SIDE, SIDE), mode="bilinear", antialias=True)


def _image_task(
    pixels: Callable[[torch.Tensor], torch.Tensor],
    classes: range,
    held: int,
    pool: Callable[[], torch.Tensor] | None = None,
    tested: int | None = None,
) -> dict[str, Any]:
    """batches, selection, test and loss; training images stay uint8 until a step needs them.

    ``pool``: the training images that may be used; ``tested``: how many of the test images, the first ones, are.
    """

    def parts() -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.arange(len(_images("train", classes)[1])) if pool is None else pool()
        order = found[_order(len(found))]
        return order[:held], order[held:]

    def batches() -> list[Any]:
        images, labels = _images("train", classes)
        chosen = parts()[1]
        return [(images[chosen], labels[chosen])]

    def selection() -> Split:
        images, labels = _images("train", classes)
        chosen = parts()[0]
        return Split(pixels(images[chosen]), labels[chosen])

    def test() -> Split:
        images, labels = _images("test", classes)
        return Split(pixels(images[:tested]), labels[:tested])

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        output = model(pixels(batch[0]))
        return F.cross_entropy((output if torch.is_tensor(output) else output.logits).float(), batch[1])

    return dict(batches=batches, selection=selection, test=test, loss=loss)


def _resnet(seed: int) -> torch.nn.Module:
    return adapters.resnet("resnet20").eval()


def _vit(seed: int) -> torch.nn.Module:
    from winnow.train.task.starting_model import with_head

    model = with_head(get("vit-source"), len(TARGET_CLASSES), seed)
    model.set_attn_implementation("eager")
    embeddings = model.vit.embeddings
    with torch.no_grad():
        found = embeddings.position_embeddings
        embeddings.position_embeddings = torch.nn.Parameter(_resized(found[0])[None])
    embeddings.image_size = embeddings.patch_embeddings.image_size = (SIDE, SIDE)
    embeddings.patch_embeddings.num_patches = (SIDE // 4) ** 2
    model.config.image_size = SIDE
    return model


def _clip(seed: int) -> torch.nn.Module:
    from transformers import AutoTokenizer, CLIPModel

    from winnow.train.task.clip import clip_image_classifier

    folder = get("clip-small")
    whole = CLIPModel.from_pretrained(folder, attn_implementation="eager")
    model = clip_image_classifier(whole, AutoTokenizer.from_pretrained(folder), CIFAR_CLASSES, TEMPLATES)
    embeddings = model.vision_model.embeddings
    weight = _resized(embeddings.position_embedding.weight.detach())
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(weight, freeze=False)
    embeddings.position_ids = torch.arange(len(weight))[None]
    embeddings.image_size = SIDE
    return model


def _resized(positions: torch.Tensor) -> torch.Tensor:
    """Position embeddings [1 + 8 * 8, width] of 32 pixels for ``SIDE`` pixels, the first (class) token's as it is."""
    grid = positions[1:].T.reshape(1, -1, 8, 8)
    grid = F.interpolate(grid, size=(SIDE // 4, SIDE // 4), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.flatten(2)[0].T])


def _order(count: int) -> torch.Tensor:
    """What is selection (first) and what is training: the same in every run."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))


_text_task = dict(
    batches=_phrases,
    selection=lambda: _encoded(*_selected_phrases()),
    test=lambda: _encoded(*sst2("validation")),
    loss=_text_loss,
)

SUBJECTS = {
    "minilm": Subject(_minilm, **_text_task, batch=16, lr=1e-4, step=0.14, steps=240, about="MiniLM-L6, SST-2"),
    "resnet": Subject(_resnet, **_image_task(_resnet_pixels, range(10), 4000), batch=32, lr=1e-3, step=0.062, about="ResNet-20, CIFAR-10 (original to JPEG)"),
    "vit": Subject(_vit, **_image_task(_small_pixels, TARGET_CLASSES, 3000), batch=16, lr=5e-4, step=0.05, about="ViT (1.8 M), five classes of CIFAR-10 to the other five"),
    "clip": Subject(_clip, **_image_task(_small_pixels, range(10), 2000, lambda: pretraining_images()[1], 5000), batch=16, lr=5e-4, step=0.05, steps=240, about="small CLIP, zero-shot head, CIFAR-10"),
}  # fmt: skip


@cache
def examples(name: str, batch: int) -> Any:
    from winnow.train.examples import Examples

    return Examples(SUBJECTS[name].batches(), batch)


@cache
def selection(name: str) -> Split:
    return SUBJECTS[name].selection()


@cache
def test(name: str) -> Split:
    return SUBJECTS[name].test()


__all__ = ["SUBJECTS", "Split", "Subject", "correct", "examples", "selection", "test"]
