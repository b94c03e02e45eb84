"""Small models and data that the tests make themselves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual two-layer block with a norm."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Classifier(nn.Module):
    """Three repeated blocks between an input layer and a head; 6 prunable matrices of 24 x 48."""

    def __init__(self, features: int = 12, width: int = 24, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.blocks = nn.ModuleList(Block(width, 2 * width) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ConvNet(nn.Module):
    """Convolutions with batch norms, no repeated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(F.max_pool2d(x, 2))))
        return self.fc(x.mean((2, 3)))


class Float32Only(nn.Module):
    """Makes float32 tensors itself, as the time embedding of a diffusion model does."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x):
        f = x[:, :1].float() * 2.0 ** torch.arange(8)
        return self.c(self.b(self.a(torch.cat([f.sin(), f.cos()], 1)).relu()))


def classifier() -> Classifier:
    torch.manual_seed(1)
    return Classifier()


def convnet() -> ConvNet:
    torch.manual_seed(1)
    return ConvNet()


def points(n: int = 400, features: int = 12, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Three clouds in ``features`` dimensions, correlated inputs."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(3, features)) * 1.5
    labels = rng.integers(0, 3, n)
    mix = np.random.default_rng(8).normal(size=(features, features)) / 3
    x = centers[labels] + rng.normal(size=(n, features)) @ mix
    return torch.tensor(x, dtype=torch.float32), labels


def write_points(folder: Path, train: int, test: int) -> None:
    """``train.npz`` and ``test.npz``, so many points each."""
    for name, count, seed in (("train", train, 0), ("test", test, 5)):
        x, y = points(count, seed=seed)
        np.savez(folder / f"{name}.npz", x=x.numpy(), y=y)


def images(n: int = 120, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 1, 8, 8)) * 0.5
    for i, c in enumerate(labels):
        x[i, 0, 2 * c : 2 * c + 2] += 1.5
    return torch.tensor(x, dtype=torch.float32), labels


def trained(model: nn.Module, x: torch.Tensor, y: np.ndarray, steps: int = 60) -> nn.Module:
    """A few steps of Adam: enough for answers that mean something."""
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    target = torch.as_tensor(y)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    return model.eval()


WORDS = ["the", "a", "cat", "dog", "sun", "moon", "sat", "ran", "saw", "ate", "red", "big", "old", "new", "on", "by"]
WORDS += ["with", "and", "then", "they", "we", "to", "home"]


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(6, 14))) + " ." for _ in range(n)]


def word_tokenizer(words: list[str], **special: str) -> Any:
    """A tokenizer of transformers: the id of a word is its place, words end at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=special["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def save_llama(
    folder: Path, *, layers: int = 3, tied: bool = False, shards: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    """A tiny random Llama with a word tokenizer, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = ["<unk>", "<s>", "</s>", ".", *WORDS]
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="30KB" if shards else "5GB")
    word_tokenizer(vocabulary, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path
