"""Models and data small enough to run the recipes beside this file in a minute: ``python recipes/tiny.py FOLDER``."""

from __future__ import annotations

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

GOOD, BAD = ["good", "great", "fine", "lovely"], ["bad", "awful", "poor", "dull"]
OTHER = ["the", "a", "film", "book", "song", "was", "is", "and", "very", "quite", "we", "saw", "it", "today"]


class Network(nn.Module):
    """Three convolutions with batch norms and a linear head; images of 1 x 12 x 12, three classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 8, 16, 16]
        self.body = nn.Sequential(
            *(
                layer
                for a, b in pairwise(widths)
                for layer in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            )
        )
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def network() -> Network:
    return Network()


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright horizontal bar, a vertical bar, or a square."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    x = rng.normal(size=(count, 1, 12, 12)).astype(np.float32)
    for image, label in zip(x, labels):
        i, j = rng.integers(1, 8, 2)
        height, width = ((2, 8), (8, 2), (4, 4))[label]
        image[0, i : i + height, j : j + width] += 2.0
    return x, labels


def sentences(count: int, seed: int) -> list[dict[str, object]]:
    """Texts with one or two words that say whether they praise."""
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for _ in range(count):
        label = rng.randint(0, 1)
        words = rng.choices(OTHER, k=rng.randint(4, 9))
        for _ in range(rng.randint(1, 2)):
            words.insert(rng.randrange(len(words) + 1), rng.choice((BAD, GOOD)[label]))
        rows.append({"text": " ".join(words), "label": ("bad", "good")[label]})
    return rows


def write_vision(folder: Path) -> None:
    """network.safetensors (weights to start from), train.npz and test.npz."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(network().state_dict(), folder / "network.safetensors")
    for name, count, seed in (("train", 384, 1), ("test", 256, 2)):
        x, y = images(count, seed)
        np.savez(folder / f"{name}.npz", x=x, y=y)


def write_text(folder: Path) -> None:
    """encoder/ (a BERT without a head, random weights, a tokenizer of whole words), train.jsonl and test.jsonl."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *OTHER, *GOOD, *BAD]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "encoder")
    fast.save_pretrained(folder / "encoder")
    seen = {row["text"] for row in sentences(384, 1)}
    test = [row for row in sentences(300, 2) if row["text"] not in seen]
    for name, rows in (("train", sentences(384, 1)), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give an output folder: python recipes/tiny.py FOLDER")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    write_vision(target)
    write_text(target)
