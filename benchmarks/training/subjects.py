"""The networks of this study, trained from random weights, and which data is for what.

========  ==========================================  ============================  ====================  ==============
subject   network                                     trains on                     selection             test
========  ==========================================  ============================  ====================  ==============
resnet    ResNet-20, 0.27 M parameters                12,500 JPEG training images   5,000 other ones      10,000 (JPEG)
vit       ViT of benchmarks/models, 1.8 M, 24 pixels  12,500 JPEG training images   5,000 other ones      10,000 (JPEG)
lm        Llama, hidden 128, 4 layers, 1.3 M          4 million tokens of corpus    half of corpus valid  half of test
========  ==========================================  ============================  ====================  ==============

Learning rates are chosen on the selection data, figures come from the test data. An epoch is one pass over the training
part. Images are shifted by up to 4 pixels and mirrored. The figure of a language model is its loss, in nats a token.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import adapters
from benchmarks.common import CACHE, data
from benchmarks.models.training import cifar10, normalize

SPLIT_SEED = 54321
TRAINED, SELECTED = 12_500, 5_000  # images
TRAINED_TOKENS, TESTED_TOKENS, LENGTH = 4_000_000, 131_072, 128


@dataclass(frozen=True)
class Subject:
    """A network and its task.

    Attributes:
        model: seed -> the network with the random weights of that seed.
        examples: size of the training part.
        loss: (model, index of training examples, generator of the augmentation) -> mean cross-entropy.
        measure: (model, "selection" or "test") -> each example's figure [n]: 1 or 0 (right or wrong), or its loss.
        optimizer: parameters, learning rate -> the optimizer, its weight decay included.
        lr: learning rate that the tuning is centred on.
        falls: whether less is better.
        seconds: processor seconds of an epoch, for the first estimate.
    """

    model: Callable[[int], torch.nn.Module]
    examples: int
    loss: Callable[[torch.nn.Module, torch.Tensor, torch.Generator], torch.Tensor]
    measure: Callable[[torch.nn.Module, str], np.ndarray]
    optimizer: Callable[[Iterator[torch.nn.Parameter], float], torch.optim.Optimizer]
    batch: int
    lr: float
    falls: bool
    seconds: float


# --- images


@cache
def _images(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = cifar10("test" if part == "test" else "train")
    if part == "test":
        return images, labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen = order[:SELECTED] if part == "selection" else order[SELECTED : SELECTED + TRAINED]
    return images[chosen], labels[chosen]


def _moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image shifted by up to 4 pixels, black beyond its edges, and half of them mirrored."""
    n, side = len(images), images.shape[-1]
    padded = F.pad(images, (4, 4, 4, 4))
    rows, columns = torch.randint(9, (2, n, 1), generator=generator) + torch.arange(side)
    mirrored = torch.randint(2, (n, 1), generator=generator).bool()
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _small(images_u8: torch.Tensor) -> torch.Tensor:
    return F.interpolate(normalize(images_u8), size=(24, 24), mode="bilinear", antialias=True)


def _channels_last(images_u8: torch.Tensor) -> torch.Tensor:
    return normalize(images_u8).contiguous(memory_format=torch.channels_last)


def _image_loss(
    model: torch.nn.Module, index: torch.Tensor, generator: torch.Generator, pixels: Callable[[torch.Tensor], Any]
) -> torch.Tensor:
    images, labels = _images("train")
    return F.cross_entropy(_logits(model, pixels(_moved(images[index], generator))), labels[index])


def _image_measure(model: torch.nn.Module, part: str, pixels: Callable[[torch.Tensor], Any]) -> np.ndarray:
    images, labels = _images(part)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = torch.cat([_logits(model, pixels(piece)).argmax(1) for piece in images.split(500)])
    return (found == labels).numpy()


def _logits(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    output = model(pixels)
    return (output if torch.is_tensor(output) else output.logits).float()


def _resnet(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = adapters.resnet_class()(3)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # fan_in, as the group's networks
    return model.to(memory_format=torch.channels_last)


def _vit(seed: int) -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=24, patch_size=4, hidden_size=192, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=10,
    )  # fmt: skip
    return ViTForImageClassification._from_config(config, attn_implementation="eager")


# --- text


@cache
def _windows(part: str) -> torch.Tensor:
    """Token windows int64 [n, LENGTH + 1] of a split of corpus; tokens are kept in the cache folder."""
    from tokenizers import Tokenizer

    file = CACHE / "training" / f"corpus-{part}.npy"
    if file.exists():
        return _cut(np.load(file))
    name, limit = {
        "train": ("train-0", TRAINED_TOKENS), "selection": ("valid", TESTED_TOKENS), "test": ("test", TESTED_TOKENS),
    }[part]  # fmt: skip
    with gzip.open(data("corpus", f"{name}.txt.gz"), "rt", encoding="utf-8") as text:
        documents = text.read().split("<|endoftext|>\n")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(documents))  # every source, whatever the limit
    tokenizer = Tokenizer.from_file(str(data("reference-lm", "tokenizer.json")))
    ids: list[int] = []
    for i in order:
        ids += [*tokenizer.encode(documents[i]).ids, 0]
        if len(ids) >= limit:
            break
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_name(f".{os.getpid()}-{file.name}")
    np.save(partial_file, np.array(ids[:limit], np.int16))
    partial_file.rename(file)
    return _cut(np.load(file))


def _cut(ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].astype(np.int64)).view(-1, LENGTH + 1)


def _lm(seed: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=True, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def _text_loss(model: torch.nn.Module, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    windows = _windows("train")[index]
    return F.cross_entropy(model(windows[:, :-1]).logits.float().flatten(0, 1), windows[:, 1:].flatten())


def _text_measure(model: torch.nn.Module, part: str) -> np.ndarray:
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for windows in _windows(part).split(32):
            logits = model(windows[:, :-1]).logits.float().transpose(1, 2)
            found.append(F.cross_entropy(logits, windows[:, 1:], reduction="none").mean(1))
    return torch.cat(found).numpy()


def _sgd(parameters: Iterator[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)


def _adamw(parameters: Iterator[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)


def _pictures(pixels: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {
        "examples": TRAINED, "batch": 64, "falls": False,
        "loss": partial(_image_loss, pixels=pixels), "measure": partial(_image_measure, pixels=pixels),
    }  # fmt: skip


SUBJECTS = {
    "resnet": Subject(model=_resnet, optimizer=_sgd, lr=0.1, seconds=26, **_pictures(_channels_last)),
    "vit": Subject(model=_vit, optimizer=_adamw, lr=1e-3, seconds=60, **_pictures(_small)),
    "lm": Subject(
        _lm,
        TRAINED_TOKENS // (LENGTH + 1),
        _text_loss,
        _text_measure,
        _adamw,
        batch=16,
        lr=2e-3,
        falls=True,
        seconds=200,
    ),
}
