"""Tiny transformers models, a word tokenizer and labelled sentences, for the tests of trainings."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

POSITIVE, NEGATIVE = ["good", "fine", "great", "nice"], ["bad", "poor", "sad", "awful"]
FILLER = ["the", "film", "was", "story", "and", "actor", "quite", "very", "music", "a", "of", "cat", "dog", "photo"]


def sentences(n: int, seed: int = 0, names: bool = False) -> list[dict[str, Any]]:
    """Sentences of 5 to 10 words, labelled by the feeling of one of them; no two alike."""
    rng = random.Random(seed)
    rows: dict[str, Any] = {}
    while len(rows) < n:
        label = rng.randrange(2)
        words = [rng.choice(FILLER) for _ in range(rng.randint(4, 9))]
        words.insert(rng.randrange(len(words)), rng.choice(POSITIVE if label else NEGATIVE))
        rows[" ".join(words)] = ("positive" if label else "negative") if names else label
    return [{"text": text, "label": label} for text, label in rows.items()]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *POSITIVE, *NEGATIVE, *FILLER]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def bert(kind: str = "BertModel", **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, hidden_dropout_prob=0.1, **settings,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def save_bert(folder: Path, kind: str = "BertModel", dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    bert(kind, **settings).to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def vit(kind: str = "ViTForImageClassification", **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4,
        num_channels=3, **settings,
    )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def clip() -> Any:
    import transformers

    torch.manual_seed(0)
    text = dict(
        vocab_size=len(tokenizer()), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # its own initialisation hardly tells prompts apart
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape) * 0.3)
    return model


def save_images(folder: Path, per_class: int = 8, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """PNG files of 8 x 8, one subfolder per class, brighter in another half."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = torch.randint(0, 90, (8, 8, 3), generator=generator)
            pixels[4 * (number % 2) : 4 * (number % 2) + 4] += 120
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / name / f"{i}.png")
    return folder


class Mlp(nn.Module):
    def __init__(self, features: int = 20, classes: int = 4) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(features, 32), nn.BatchNorm1d(32)
        self.second, self.head = nn.Linear(32, 32), nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.norm(self.first(x))))))


def mlp(classes: int = 4) -> Mlp:
    torch.manual_seed(1)
    return Mlp(classes=classes)


def rows(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty inputs; the label is the largest of the first four."""
    x = torch.randn(n, 20, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :4].argmax(1)


class Tokens(Dataset):
    def __init__(self, n=20, seed=0):
        self.rows = sentences(n, seed)
        self.tokenizer = tokenizer()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {**self.tokenizer(self.rows[i]["text"]), "labels": self.rows[i]["label"]}


def trainer(tmp_path, kind=None, model=None, optimizers=(None, None), **settings):
    import transformers

    arguments = dict(
        output_dir=str(tmp_path / "out"), use_cpu=True, report_to=[], learning_rate=3e-4, weight_decay=0.05,
        per_device_train_batch_size=4, num_train_epochs=2, seed=11, max_grad_norm=0.7, save_strategy="no",
    )  # fmt: skip
    return (kind or transformers.Trainer)(
        model=model or bert("BertForSequenceClassification"),
        args=transformers.TrainingArguments(**{**arguments, **settings}),
        train_dataset=Tokens(),
        eval_dataset=Tokens(12, seed=7),
        data_collator=transformers.DataCollatorWithPadding(tokenizer()),
        processing_class=tokenizer(),
        optimizers=optimizers,
    )
