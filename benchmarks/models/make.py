"""Models that the benchmarks need and the shared data folder lacks: trained or written once, then cached.

    python -m benchmarks.models.make vit                 # ViT for CIFAR-10, from scratch
    python -m benchmarks.models.make minilm-sst2         # MiniLM-L6 fine-tuned on SST-2
    python -m benchmarks.models.make vit-source          # the same ViT for the first five classes only, to be moved to the others
    python -m benchmarks.models.make clip-small          # a small CLIP for pairs of images and captions made from labels
    python -m benchmarks.models.make char-lstm           # a character LSTM on Tiny Shakespeare
    python -m benchmarks.models.make random-llama --params 1b    # random bf16 Llama, for memory benchmarks
    python -m benchmarks.models.make all                 # vit and minilm-sst2

Each model is a Hugging Face folder with a ``metrics.json`` in ``$WINNOW_CACHE`` (default
``~/.cache/winnow-benchmarks``); a second call finds it. Data come from ``$WINNOW_DATA`` (default
``../shared/data`` beside the repository). ``get(name)`` does the same from Python.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import CACHE, DATA
from benchmarks.models.char_lstm import LSTM_MINUTES, char_lstm
from benchmarks.models.clip import CLIP_MINUTES, clip_small
from benchmarks.models.training import (
    CIFAR_CLASSES,
    CIFAR_MEAN,
    CIFAR_STD,
    SEED,
    SOURCE_CLASSES,
    TOKENS,
    augment,
    cifar10,
    normalize,
    optimize,
    sst2,
)

# Work is fixed in examples, not seconds, so that a seed gives the same model on a slow day. The minutes are what
# the default took on one core of an AMD EPYC with AVX512-BF16; --minutes scales the work in proportion.
VIT_MINUTES, VIT_EPOCHS = 28.0, 9.0
SOURCE_MINUTES, SOURCE_EPOCHS = 22.0, 14.0  # of half the images: reckoned from the steps of VIT_MINUTES, not measured
SST2_MINUTES, SST2_PHRASES = 6.5, 30_000


def vit(
    folder: Path, scale: float, classes: range = range(10), epochs: float = VIT_EPOCHS, name: str = "cifar10 test"
) -> dict[str, Any]:
    """ViT for CIFAR-10 (patch 4, hidden 192, 6 layers, 3 heads; 1.8 M parameters), trained from scratch."""
    from transformers import ViTConfig, ViTForImageClassification

    names = [CIFAR_CLASSES[i] for i in classes]

    config = ViTConfig(
        image_size=32, patch_size=4, hidden_size=192, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    # On a CPU the backward of fused attention is 2.5 times slower than plain matrix products.
    model = ViTForImageClassification._from_config(config, attn_implementation="eager")
    images_u8, labels = cifar10("train", classes)
    generator = torch.Generator().manual_seed(SEED)
    batch = 128
    steps = round(epochs * scale * len(labels) / batch)
    passes = steps * batch // len(labels) + 1
    order = torch.cat([torch.randperm(len(labels), generator=generator) for _ in range(passes)])

    def batch_loss(step: int) -> torch.Tensor:
        # Most of the training sees zoomed windows at 24 pixels (37 tokens, not 65): half the time a step, and a
        # stronger augmentation; the end sees the images as the evaluation does.
        index = order[step * batch : (step + 1) * batch]
        early = step < 0.65 * steps
        pixels = augment(normalize(images_u8[index]), 24 if early else 32, 0.5 if early else 0.2, generator)
        logits = model(pixel_values=pixels, interpolate_pos_encoding=early).logits
        return F.cross_entropy(logits.float(), labels[index], label_smoothing=0.1)

    # Muon (torch >= 2.9) is ahead of AdamW in a run this short: benchmarks/README.md has the trial.
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "classifier" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "classifier" in name]
    muon = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.05)
    optimize(model, [muon, torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0)], steps, batch_loss)
    images_u8, labels = cifar10("test", classes)
    with torch.inference_mode():
        logits = torch.cat([model(pixel_values=normalize(part)).logits for part in images_u8.split(500)])
    model.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": CIFAR_MEAN, "image_std": CIFAR_STD,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return {"accuracy": accuracy, "test": name, "test_examples": len(labels), "steps": steps, "batch": batch}


def vit_source(folder: Path, scale: float) -> dict[str, Any]:
    """The same ViT for the first five classes: what a ticket for the other five starts from."""
    return vit(folder, scale, SOURCE_CLASSES, SOURCE_EPOCHS, "cifar10 test, first five classes")


def minilm_sst2(folder: Path, scale: float) -> dict[str, Any]:
    """MiniLM-L6 with a classification head, one pass over a random part of SST-2 ``train_a``."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = DATA / "minilm-l6"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager",
        id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1},
    )  # fmt: skip

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        return dict(tokenizer(texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"))

    texts, labels = sst2("train_a")
    generator = torch.Generator().manual_seed(SEED)
    batch = 32
    chosen = torch.randperm(len(texts), generator=generator)[: round(SST2_PHRASES * scale)].tolist()
    batches = similar_lengths(chosen, [len(t) for t in texts], batch, generator)

    def batch_loss(step: int) -> torch.Tensor:
        index = batches[step]
        logits = model(**encode([texts[i] for i in index])).logits
        return F.cross_entropy(logits.float(), labels[index])

    optimize(model, [torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)], len(batches), batch_loss)
    texts, labels = sst2("validation")
    with torch.inference_mode():
        logits = torch.cat([model(**encode(texts[i : i + 32])).logits for i in range(0, len(texts), 32)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    result = {"accuracy": accuracy, "test": "sst2 validation", "test_examples": len(labels)}
    return result | {"steps": len(batches), "batch": batch}


def similar_lengths(indices: list[int], lengths: list[int], batch: int, generator: torch.Generator) -> list[list[int]]:
    """Batches of near-equal length in random order: sorted within pools of 50 batches, so that little is padded."""
    pools = [sorted(indices[i : i + 50 * batch], key=lengths.__getitem__) for i in range(0, len(indices), 50 * batch)]
    batches = [pool[i : i + batch] for pool in pools for i in range(0, len(pool), batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


# hidden size, feed-forward, layers, heads, key-value heads: 1.03 B (TinyLlama's block) and 317 M parameters
LLAMA_SHAPES = {"1b": (2048, 5632, 23, 32, 4), "300m": (1024, 2816, 24, 16, 16)}
SHARD_BYTES = 200_000_000


def random_llama(folder: Path, params: str) -> dict[str, Any]:
    """Random bf16 Llama with reference-lm's tokenizer, written shard by shard: no more than one shard is in memory."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, feed_forward, layers, heads, kv_heads = LLAMA_SHAPES[params]
    config = LlamaConfig(
        vocab_size=4096, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=2048, bos_token_id=0,
        eos_token_id=0, tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + sizes[name] > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    files = {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards)}
    for file, names in files.items():
        save_file({name: random_tensor(name, shapes[name]) for name in names}, folder / file, metadata={"format": "pt"})
        print(file, file=sys.stderr, flush=True)
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(DATA / "reference-lm" / file, folder / file)
    return {"parameters": sum(sizes.values()) // 2, "shards": len(shards)}


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Norms are one, the rest N(0, 0.02^2) in bf16, from a seed of its own: the same in whatever order it is asked."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)


# What trains it, and the minutes of its default.
TRAINED: dict[str, tuple[Callable[[Path, float], dict[str, Any]], float]] = {
    "vit": (vit, VIT_MINUTES),
    "minilm-sst2": (minilm_sst2, SST2_MINUTES),
    "vit-source": (vit_source, SOURCE_MINUTES),
    "clip-small": (clip_small, CLIP_MINUTES),
    "char-lstm": (char_lstm, LSTM_MINUTES),
}


def get(name: str, minutes: float | None = None, params: str = "1b") -> Path:
    """The cached folder of a model of :data:`TRAINED` or of "random-llama"; made first when it is not there.

    ``minutes`` scales the training from its default and has a folder of its own; ``params`` is "1b" or "300m".
    """
    if name not in (*TRAINED, "random-llama"):
        raise ValueError(f"unknown model {name!r}: choose {', '.join(TRAINED)} or random-llama")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be above 0, not {minutes}")
    label = f"{name}-{params}" if name == "random-llama" else name if minutes is None else f"{name}-{minutes:g}min"
    final = CACHE / label
    if final.is_dir():
        return final
    if not DATA.is_dir():
        raise FileNotFoundError(f"no data at {DATA}: set WINNOW_DATA to the folder of real models and data")
    partial = CACHE / f".{label}.{os.getpid()}.partial"
    partial.mkdir(parents=True)
    try:
        torch.manual_seed(SEED)
        start, cpu = time.time(), time.process_time()
        if name == "random-llama":
            metrics = random_llama(partial, params)
        else:
            make, usual = TRAINED[name]
            metrics = make(partial, (minutes or usual) / usual)
        metrics |= {
            "seed": SEED, "seconds": round(time.time() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
            "threads": torch.get_num_threads(), "machine": platform.machine(), "versions": {
                package: version(package) for package in ("torch", "transformers", "safetensors", "numpy")
            } | {"python": platform.python_version()},
        }  # fmt: skip
        (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        try:
            partial.rename(final)
        except OSError:  # another process was faster, with the same result
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def main() -> None:
    parser = argparse.ArgumentParser(description="Train or write the models of the benchmarks, once.")
    parser.add_argument("model", nargs="?", default="all", choices=[*TRAINED, "random-llama", "all"])
    parser.add_argument("--minutes", type=float, help="scale the training to about this long on one core")
    parser.add_argument("--params", choices=sorted(LLAMA_SHAPES), default="1b", help="size of random-llama")
    args = parser.parse_args()
    for name in ["vit", "minilm-sst2"] if args.model == "all" else [args.model]:
        folder = get(name, args.minutes, args.params)
        print(folder)
        print((folder / "metrics.json").read_text(), end="")


if __name__ == "__main__":
    main()
