"""Tiny random models of many families, with ragged padded batches and what is known about them by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

VOCAB = 61
TEXT = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**TEXT, **SIZES, "intermediate_size": 48}
SHARED = {"num_key_value_heads": 2}
HEADS = {**SHARED, "head_dim": 8}


@dataclass
class Family:
    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], list[Any]]
    weights: int  # in-scope weights, counted by hand
    blocks: list[str]
    mask: Callable[[str], str | None] = lambda layer: "attention_mask"  # which mask holds for a layer's input


def text(length: int, lengths: list[int], seed: int, prefix: str = "") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (len(lengths), length), generator=generator)
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    return {f"{prefix}input_ids": ids * mask, f"{prefix}attention_mask": mask}


def ragged() -> list[dict[str, torch.Tensor]]:
    return [text(9, [9, 5, 2], 0), text(7, [3, 7], 1), text(6, [6, 6], 2)]


def images(count: int, seed: int, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def hf(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        kind = getattr(transformers, name)
        return spread(kind(kind.config_class(**options)).eval())

    return build


def spread(model: nn.Module) -> nn.Module:
    """Larger random weights: the default initialisation hardly lets a token see the others."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def layers(prefix: str, count: int = 2) -> list[str]:
    return [f"{prefix}.{i}" for i in range(count)]


def t5_batches() -> list[dict[str, torch.Tensor]]:
    # The second batch has equal lengths on both sides, the third no decoder mask.
    first = {**text(8, [8, 4, 2], 3), **text(5, [5, 2, 3], 4, "decoder_")}
    second = {**text(6, [6, 3], 5), **text(6, [2, 6], 6, "decoder_")}
    third = {**text(6, [6, 3], 7), **text(6, [6, 6], 8, "decoder_")}
    del third["decoder_attention_mask"]
    return [first, second, third]


def t5_mask(layer: str) -> str:
    crosses = "EncDecAttention" in layer and layer.rpartition(".")[2] in ("k", "v")
    return "attention_mask" if layer.startswith("encoder") or crosses else "decoder_attention_mask"


def clip_batches() -> list[dict[str, torch.Tensor]]:
    # 5 tokens of text are as many as 2 x 2 patches and the class token.
    batches = [text(5, [5, 3], 9), text(7, [7, 4], 10)]
    for i, batch in enumerate(batches):
        batch["input_ids"] = batch["input_ids"].scatter(1, batch["attention_mask"].sum(1, keepdim=True) - 1, VOCAB - 1)
        batch["pixel_values"] = images(2, 20 + i)
    return batches


class SmallCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stages = nn.Sequential(Residual(8, 1), Residual(8, 8))
        self.tail = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(torch.relu(self.stem(x)))
        return self.head(self.tail(x).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)  # writes to the block's own input
        self.first = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, (1, 3), padding="same", dilation=2, padding_mode="reflect")
        self.short = nn.Conv2d(channels, channels, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(x)
        return self.second(self.norm(self.first(x))) + self.short(x)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))))


class Encoder(nn.Module):
    """torch.nn.TransformerEncoder under a name for its padding mask."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, src_key_padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(self.encoder(x, src_key_padding_mask=src_key_padding_mask))


def encoder_batches() -> list[dict[str, torch.Tensor]]:
    found = []
    for seed, (length, lengths) in enumerate([(6, [6, 4, 1]), (4, [4, 2, 3, 4])]):
        x = torch.randn(len(lengths), length, 16, generator=torch.Generator().manual_seed(seed))
        found.append({"x": x, "src_key_padding_mask": torch.arange(length) >= torch.tensor(lengths)[:, None]})
    return found


def torch_model(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return spread(make().eval())

    return build


def text_model(name: str, model: str, options: dict[str, Any], weights: int, blocks: str = "model.layers") -> Family:
    return Family(name, hf(model, **options), ragged, weights, layers(blocks))


def no_mask(layer: str) -> None:
    return None


def key_padding(layer: str) -> str:
    return "src_key_padding_mask"


# Attention of a block, hidden 32: q, k, v and o 32 x 32 each; with 2 key/value heads of 8: k and v 32 x 16.
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OSS = {**SMALL, **HEADS, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
MIXED = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
PATCHES = {"image_size": 16, "patch_size": 8}
CLIP = {
    "text_config": {**SMALL, "eos_token_id": VOCAB - 1},
    "vision_config": {**SIZES, **PATCHES, "hidden_size": 16, "intermediate_size": 24},
}
FAMILIES = [
    # 2 * (2*32*32 + 2*32*16 + 3*32*48)
    text_model("llama", "LlamaForCausalLM", {**SMALL, **SHARED}, 15360),
    # the same, head_dim 8
    text_model("qwen3", "Qwen3ForCausalLM", {**SMALL, **HEADS}, 15360),
    text_model("mistral", "MistralForCausalLM", {**SMALL, **SHARED, "sliding_window": 3}, 15360),
    # 2 * (32*96 + 32*32 + 32*128 + 128*32)
    text_model("gpt2", "GPT2LMHeadModel", {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}, 24576, "transformer.h"),
    # 2 * (4*32*32 + 2*32*48)
    text_model(
        "opt",
        "OPTForCausalLM",
        {**TEXT, **SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
        14336,
        "model.decoder.layers",
    ),
    # 2 * (32*96 + 32*32 + 2*32*48)
    text_model("gpt_neox", "GPTNeoXForCausalLM", SMALL, 14336, "gpt_neox.layers"),
    # 2 * (4*32*32 + 2*32*48)
    text_model("phi", "PhiForCausalLM", SMALL, 14336),
    # 2 * (2*32*32 + 2*32*16 + 3*32*48)
    text_model("gemma", "GemmaForCausalLM", {**SMALL, **HEADS}, 15360),
    text_model("gemma2", "Gemma2ForCausalLM", {**SMALL, **HEADS, "sliding_window": 3}, 15360),
    text_model("gemma3", "Gemma3ForCausalLM", {**SMALL, **HEADS, **MIXED}, 15360),
    # 2 * (2*32*32 + 2*32*16 + 4 experts * 3*32*48)
    text_model("mixtral", "MixtralForCausalLM", {**SMALL, **SHARED, "num_local_experts": 4}, 43008),
    # 2 * (2*32*32 + 2*32*16 + 4 experts * 3*32*16)
    text_model("qwen3_moe", "Qwen3MoeForCausalLM", {**SMALL, **HEADS, **MOE}, 18432),
    # 2 * (2*32*32 + 2*32*16 + 4 experts * 3*32*32), experts stored [E, in, out]
    text_model("gpt_oss", "GptOssForCausalLM", OSS, 30720),
    # 2 * (4*32*32 + 2*32*48)
    text_model("bert", "BertForSequenceClassification", SMALL, 14336, "bert.encoder.layer"),
    text_model(
        "roberta", "RobertaForMaskedLM", {**SMALL, "max_position_embeddings": 20}, 14336, "roberta.encoder.layer"
    ),
    # encoder 2 * (4*32*32 + 2*32*48), decoder 2 * (8*32*32 + 2*32*48)
    Family(
        "t5",
        hf("T5ForConditionalGeneration", **T5, decoder_start_token_id=0),
        t5_batches,
        36864,
        [*layers("encoder.block"), *layers("decoder.block")],
        t5_mask,
    ),
    # 2 * (4*32*32 + 2*32*48)
    Family(
        "vit",
        hf("ViTForImageClassification", **SIZES, **PATCHES, intermediate_size=48),
        lambda: [{"pixel_values": images(3, 0)}, {"pixel_values": images(2, 1)}],
        14336,
        layers("vit.layers"),
        no_mask,
    ),
    # text 2 * (4*32*32 + 2*32*48), images 2 * (4*16*16 + 2*16*24)
    Family(
        "clip",
        hf("CLIPModel", **CLIP, projection_dim=16),
        clip_batches,
        17920,
        [*layers("text_model.encoder.layers"), *layers("vision_model.encoder.layers")],
        lambda layer: "attention_mask" if layer.startswith("text") else None,
    ),
    # stem 3*8*9, block 0: 8*8*9 + 8*8*3 + 8*8, block 1: 8*1*9 + 8*8*3 + 8*8, tail 8*12
    Family("cnn", torch_model(SmallCNN), lambda: [images(3, 0), [images(2, 1)]], 1472, layers("stages"), no_mask),
    # 10*16 + 16*16
    Family("mlp", torch_model(MLP), lambda: [torch.randn(7, 10), torch.randn(4, 10)], 416, [], no_mask),
    # 2 * (48*16 + 16*16 + 2*16*24)
    *(
        Family(n, torch_model(partial(Encoder, first)), encoder_batches, 3584, layers("encoder.layers"), key_padding)
        for n, first in (("encoder", True), ("encoder_time_first", False))
    ),
]
TORCH = {"cnn", "mlp", "encoder", "encoder_time_first"}


def family(name: str) -> Family:
    """The family of a name; the test is skipped where it needs transformers and there is none."""
    if name not in TORCH:
        import pytest

        pytest.importorskip("transformers")
    return next(f for f in FAMILIES if f.name == name)
