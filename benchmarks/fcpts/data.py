"""The models of this study and their data: what calibrates, what settings are chosen on, what is reported on.

============  ======================  ============================================  ==================  ==================
model         calibration, 1024       drawn from                                    hold-out, labelled  test
============  ======================  ============================================  ==================  ==================
resnet20      images, no labels       46,000 JPEG training images                   4,000 other ones    10,000 JPEG images
resnet32      images, no labels       2,800 lossless training images                1,200 other ones    1,000 lossless
resnet32-jpeg as resnet20, the model as resnet32: images of a kind it was not trained on (dense about 83%)
vit           images, no labels       as resnet20                                   as resnet20         as resnet20
minilm-sst2   phrases, no labels      SST-2 ``train_a``                             2,000 of train_b    872 (validation)
============  ======================  ============================================  ==================  ==================

ResNet-32 was trained on the original CIFAR-10 and loses ten points on re-compressed images, so its figures come from the
5,000 lossless images there are. The image models were trained on their hold-out images, so hold-out accuracies are
optimistic: they serve to choose settings and nothing else. Calibration draws differ from seed to seed, the hold-out never.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks import adapters
from benchmarks.common import data
from benchmarks.models.make import get
from benchmarks.models.training import TOKENS, cifar10, normalize, sst2
from benchmarks.splits import Split

CALIBRATION = 1024
HOLD_OUT_SEED = 12345


@dataclass(frozen=True)
class Subject:
    """One model with its data. ``batch`` and ``lr`` are where every method's tuning starts; ``step`` is for the clock.

    Attributes:
        model: the dense model as ``winnow.compress`` takes it: a module, or a folder.
        draw: seed -> 1024 calibration inputs as a user has them: a tensor, uint8 images, texts.
        step: processor seconds of a training step on the machine this was written on, for the first estimate.
    """

    model: Callable[[], torch.nn.Module | str]
    draw: Callable[[int], Any]
    hold_out: Callable[[], Split]
    test: Callable[[], Split]
    batch: int
    lr: float
    step: float
    about: str


@cache
def _jpeg(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    return cifar10(part)


@cache
def _lossless(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = runpy.run_path(str(data("cifar10", "load.py")))["lossless"]()
    images, labels = found[:2] if part == "train" else found[2:]
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def _parts(count: int, held: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the hold-out and of the pool that calibration draws from: the same in every run."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(HOLD_OUT_SEED))
    return order[:held], order[held:]


def _drawn(pool: torch.Tensor, seed: int) -> torch.Tensor:
    return pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]]


def _images(
    source: Callable[[str], Any], held: int, scale: Callable[[torch.Tensor], torch.Tensor], *, raw: bool = False
) -> dict[str, Any]:
    """draw, hold_out and test of an image model; ``raw``: calibration images are handed over as uint8."""

    def draw(seed: int) -> Any:
        images, _ = source("train")
        chosen = images[_drawn(_parts(len(images), held)[1], seed)]
        return chosen.numpy() if raw else scale(chosen)

    def hold_out() -> Split:
        images, labels = source("train")
        chosen = _parts(len(images), held)[0]
        return Split(scale(images[chosen]), labels[chosen])

    def test() -> Split:
        images, labels = source("test")
        return Split(scale(images), labels)

    return dict(draw=draw, hold_out=hold_out, test=test)


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(get("minilm-sst2"))


def _encode(texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(_tokenizer()(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"))


@cache
def _phrases() -> tuple[list[str], list[str], torch.Tensor]:
    """Pool of phrases to calibrate with (none of them in the hold-out or the test), and the hold-out with labels."""
    texts, labels = sst2("train_b")
    chosen = _parts(len(texts), 2000)[0].tolist()
    held = [texts[i] for i in chosen]
    taken = {*held, *sst2("validation")[0]}
    return [t for t in sst2("train_a")[0] if t not in taken], held, labels[chosen]


def _draw_phrases(seed: int) -> list[str]:
    pool = _phrases()[0]
    return [pool[i] for i in _drawn(torch.arange(len(pool)), seed).tolist()]


def _held_phrases() -> Split:
    _, texts, labels = _phrases()
    return Split(_encode(texts), labels)


def _test_sentences() -> Split:
    texts, labels = sst2("validation")
    return Split(_encode(texts), labels)


_scaled = lambda images: adapters.imagenet_scaled(images.numpy())  # noqa: E731
_text = dict(draw=_draw_phrases, hold_out=_held_phrases, test=_test_sentences)

SUBJECTS = {
    "resnet20": Subject(lambda: adapters.resnet("resnet20_jpegft").eval(), **_images(_jpeg, 4000, _scaled), batch=64, lr=0.01, step=0.16, about="ResNet-20, CIFAR-10 (JPEG)"),
    "resnet32": Subject(lambda: adapters.resnet("resnet32").eval(), **_images(_lossless, 1200, _scaled), batch=64, lr=0.01, step=0.31, about="ResNet-32, CIFAR-10 (lossless)"),
    "resnet32-jpeg": Subject(lambda: adapters.resnet("resnet32").eval(), **_images(_jpeg, 4000, _scaled), batch=64, lr=0.01, step=0.31, about="ResNet-32, CIFAR-10 (JPEG, not what it was trained on)"),
    "vit": Subject(lambda: str(get("vit")), **_images(_jpeg, 4000, normalize, raw=True), batch=32, lr=0.01, step=0.35, about="ViT (1.8 M), CIFAR-10 (JPEG)"),
    "minilm-sst2": Subject(lambda: str(get("minilm-sst2")), **_text, batch=16, lr=0.01, step=0.3, about="MiniLM-L6, SST-2"),
}  # fmt: skip


@cache
def source(name: str) -> torch.nn.Module | str:
    """The dense model as ``winnow.compress`` takes it; it changes neither a module nor a folder."""
    return SUBJECTS[name].model()


def dense(name: str) -> torch.nn.Module:
    """The dense model, a copy, in eval mode."""
    from winnow.models.source import open_model

    return copy.deepcopy(open_model(source(name)).load())


@cache
def hold_out(name: str) -> Split:
    return SUBJECTS[name].hold_out()


@cache
def test(name: str) -> Split:
    return SUBJECTS[name].test()
