"""Made-up reports of realistic shape, for the tests of the page: none of these figures was measured."""

from __future__ import annotations

import base64
import math
import struct
import zlib

from winnow.records.compression import (
    Baseline,
    Candidate,
    ChangedExample,
    ClassQuality,
    Cost,
    Layer,
    Memory,
    ModelInfo,
    Report,
    Requested,
    Sizes,
    SkippedTensor,
    Stage,
    TaskInfo,
    Verdict,
)


def _png() -> str:
    """A picture of 8 x 8 grey pixels, as a data URI."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    rows = b"".join(b"\0" + bytes((x * 28 + y * 8) % 256 for x in range(8)) for y in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


FACTS = {
    "machine": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory": "16.8 GB", "system": "Linux 6.1", "accelerator": None},
    "versions": {"winnow": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.17.0", "numpy": "2.4.6"},
    "seeds": {"calibration": 0, "evaluation": 0},
    "hashes": {
        "model": "sha256:dc0691c66fd901151e5a4ab5f4d8f47e28b1d2c53dd9ab10f3f59732459d3dca",
        "calibration_data": "sha256:9b2f8f0e6d2e40d0a9f4a5a7f3d11c7e7b2f1f54d0a6f9f6f2b0d9f8a7c6b5a4",
        "recipe": "sha256:1f0c2a7be35f4a0c8b7d5e6f9a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
    },
}


def _ppl(name: str, kind: str, bits: float, quality: float, *, dense: float = 42.82, **more: object) -> Candidate:
    drop = 100 * (quality / dense - 1)
    width = 0.25 + abs(drop) * 0.06
    known = math.isfinite(quality)
    more |= {"bits_per_weight": bits, "file_bytes": int(3_300_000 + 9_437_184 * bits / 8), "drop": 0.0}
    if known:
        more |= {"low": quality * 0.985, "high": quality * 1.015}
    if kind != "dense":
        more |= {"drop": drop, "agreement": 0.01}
        if known:
            away = abs(math.log(quality / dense))
            more |= {"drop_low": drop - width, "drop_high": drop + width}
            more |= {"agreement": max(0.04, 1 - away * 0.9), "kl": away * 1.1, "kl_p99": away * 7}
    return Candidate(name=name, kind=kind, quality=quality, **more)


def _layer(name: str, block: str | None, kind: str, rows: int, cols: int, share: float, **more: float) -> Layer:
    zeros = int(share * rows * cols)
    more |= {"zeros": zeros, "sparsity": zeros / (rows * cols)}
    return Layer(name=f"{name}.weight", block=block, kind=kind, rows=rows, cols=cols, **more)


def language_model(layers: int = 42) -> Report:
    """A small causal language model: seven matrices in each of six blocks, or as many as asked for."""
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    kinds += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    rows = []
    for i in range(layers):
        block, kind = f"model.layers.{i // 7}", kinds[i % 7]
        shape = (1024, 384) if "gate" in kind or "up" in kind else (384, 1024) if "down" in kind else (384, 384)
        depth = (i // 7) / max(1, (layers - 1) // 7)
        share = round(0.5 + 0.12 * math.sin(3 * depth + i % 7), 4)
        error, bits = 0.012 * math.exp(2.2 * depth + 0.5 * math.cos(i)), 4 * (1 - share) + 1 + 0.13
        more = {"error": error, "bits_per_weight": bits, "seconds": 0.3 + 0.1 * (i % 7)}
        rows.append(_layer(f"{block}.{kind}", block, "linear", *shape, share, **more))
    chosen = {"method": "sparsegpt + least squares", "seconds": 44.0, "folder": "out/sparsegpt-50-int4", "chosen": True}
    candidates = [
        _ppl("dense bf16", "dense", 16.0, 42.82, sparsity=0.0, values="bf16"),
        _ppl("int8 RTN", "quantized", 8.08, 42.83, sparsity=0.0, values="int8", method="rtn", seconds=0.4),
        _ppl("int4 RTN g128", "quantized", 4.13, 43.56, sparsity=0.0, values="int4", method="rtn", seconds=0.5),
        _ppl("int4 GPTQ g128", "quantized", 4.13, 43.31, sparsity=0.0, values="int4", method="gptq", seconds=21.0),
        _ppl("int4 RTN g32", "quantized", 4.5, 43.22, sparsity=0.0, values="int4", method="rtn", seconds=0.5),
        _ppl("int4 GPTQ g32", "quantized", 4.5, 43.09, sparsity=0.0, values="int4", method="gptq", seconds=22.0),
        _ppl("int3 RTN g128", "quantized", 3.13, 47.9, sparsity=0.0, values="int3", method="rtn", seconds=0.5),
        _ppl("int3 GPTQ g128", "quantized", 3.13, 45.7, sparsity=0.0, values="int3", method="gptq", seconds=21.5),
        _ppl("SparseGPT 50%", "pruned", 9.0, 45.6, sparsity=0.5, values="keep", method="sparsegpt", seconds=31.0),
        _ppl("SparseGPT 70%", "pruned", 5.8, 60.1, sparsity=0.7, values="keep", method="sparsegpt", seconds=30.0),
        _ppl("SparseGPT 90%", "pruned", 2.6, 401.0, sparsity=0.9, values="keep", method="sparsegpt", seconds=29.0),
        _ppl("magnitude 50%", "pruned", 9.0, 48.3, sparsity=0.5, values="keep", method="magnitude", seconds=0.9),
        _ppl("magnitude 90%", "pruned", 2.6, 2572.0, sparsity=0.9, values="keep", method="magnitude", seconds=0.9),
        _ppl("SparseGPT 50% + int8", "pruned+quantized", 5.04, 45.62, sparsity=0.5, values="int8", method="sparsegpt"),
        _ppl("SparseGPT 50% + int4", "pruned+quantized", 3.13, 46.9, sparsity=0.5, values="int4", **chosen),
        _ppl("SparseGPT 70% + int4", "pruned+quantized", 2.33, 63.0, sparsity=0.7, values="int4", method="sparsegpt"),
    ]
    zeros = sum(layer.zeros or 0 for layer in rows)
    skipped = [SkippedTensor(name="model.embed_tokens.weight", numel=1_572_864, reason="embedding")]
    skipped.append(SkippedTensor(name="lm_head.weight", numel=1_572_864, reason="tied to model.embed_tokens.weight"))
    for i in range(max(1, layers // 7)):
        for part in ("input_layernorm", "post_attention_layernorm"):
            skipped.append(SkippedTensor(name=f"model.layers.{i}.{part}.weight", numel=384, reason="normalization"))
    return Report(
        title="reference-lm, half of its weights removed",
        created="2026-11-22T18:49:03Z",
        verdict=Verdict(
            sentence="Three times smaller, but plain 3-bit GPTQ reaches a lower perplexity in the same bytes.",
            tone="mixed",
        ),
        next_step="Take `out/int3-gptq-g128` if size is all you need. Keep this one if you plan to fine-tune with the zeros held.",
        undo="The dense model was not touched: it is still at `./reference-lm`. `winnow export out --to dense` writes the pruned one without winnow's format.",
        command="winnow compress ./reference-lm --data corpus/train-0.txt.gz --eval corpus/test.txt.gz --sparsity 0.5 --values int4 --method sparsegpt --seed 0 --out out",
        model=ModelInfo(
            name="reference-lm",
            architecture="LlamaForCausalLM",
            kind="causal language model",
            parameters=11_015_040,
            prunable=9_437_184,
            prunable_share=9_437_184 / 11_015_040,
            hash="sha256:dc0691c66fd901151e5a4ab5f4d8f47e28b1d2c53dd9ab10f3f59732459d3dca",
        ),
        task=TaskInfo(
            name="language modelling",
            metric="perplexity",
            higher_is_better=False,
            evaluation_data="corpus/test.txt.gz",
            calibration_data="corpus/train-0.txt.gz, first 128 segments",
            n=302_277,
            segment_length=256,
            disjoint=True,
            calibration_tokens=32_768,
        ),
        chosen="SparseGPT 50% + int4",
        baseline=Baseline(
            name="int3 GPTQ g128",
            label="int3 g128 GPTQ",
            file_bytes=6_992_298,
            quality=45.7,
            dominates=True,
            drop=2.63,
            drop_low=2.1,
            drop_high=3.2,
            chosen_is="worse",
            n=1182,
        ),
        candidates=candidates,
        layers=rows,
        requested=Requested(
            budget="sparsity 0.5", zeros_requested=zeros, zeros_reached=zeros, structure="unstructured", difference=0
        ),
        skipped=skipped,
        sizes=Sizes(
            dense_file=22_036_200,
            file=7_012_400,
            packed_values=2_359_296,
            masks=1_179_648,
            scales=147_456,
            dense_tensors=3_155_712,
            other=170_288,
        ),
        memory=Memory(peak_bytes=612_000_000, limit_bytes=2_000_000_000),
        timing=[
            Stage(stage="Open the model", seconds=0.31),
            Stage(stage="Calibrate and prune", seconds=43.7),
            Stage(stage="Pack", seconds=0.84),
            Stage(stage="Evaluate", seconds=61.2),
            Stage(stage="Quantized baselines", seconds=86.0),
        ],
        cost=Cost(seconds_total=192.1, calibration_tokens=32_768, energy="not measured: this machine has no counter"),
        changed=[
            ChangedExample(
                input="The castle was built in the early 12th", truth="century", dense="century", pruned="and"
            ),
            ChangedExample(input="She was born in Vienna ,", truth="Austria", dense="Austria", pruned="Germany"),
        ],
        notes=["The model saw about 1.6 tokens per parameter in training: a well-trained one loses more from pruning."],
        **FACTS,
    )


def classifier(classes: int = 10, changed: int = 7) -> Report:
    """A convolutional classifier of photographs, with per-class recall and examples whose answer changed."""
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    names += [f"a class with a rather long name, number {i}" for i in range(10, classes)]
    shapes = [("conv1", None, 16, 27)]
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for i in range(3):
            block = f"layer{stage}.{i}"
            before = width // 2 if i == 0 and stage > 1 else width
            shapes.append((f"{block}.conv1", block, width, before * 9))
            shapes.append((f"{block}.conv2", block, width, width * 9))
    rows = []
    for i, (name, block, r, c) in enumerate(shapes):
        share = min(0.93, 0.18 + 0.05 * i)
        more = {"error": 0.004 * 1.22**i, "bits_per_weight": 16 * (1 - share) + 1, "seconds": 0.02}
        rows.append(_layer(name, block, "conv", r, c, share, **more))

    def candidate(name: str, kind: str, bits: float, quality: float, **more: object) -> Candidate:
        drop = 92.6 - quality
        dense = kind == "dense"
        return Candidate(
            name=name, kind=kind, bits_per_weight=bits, file_bytes=int(27_000 + 270_000 * bits / 8), quality=quality,
            low=quality - 0.52, high=quality + 0.5, drop=drop, drop_low=None if dense else drop - 0.3,
            drop_high=None if dense else drop + 0.3, agreement=None if dense else max(0.1, (99.6 - 1.3 * abs(drop)) / 100),
            **more,
        )  # fmt: skip

    return Report(
        title="resnet20 on CIFAR-10, 70% of its weights removed",
        created="2026-11-22T18:49:03+00:00",
        verdict=Verdict(
            sentence="7.4 times smaller for 0.7 points of accuracy: smaller and better than every plain quantization measured.",
            tone="good",
        ),
        next_step="Load it with `winnow.load(\"out\")`, and run your own acceptance test before you replace the dense model.",
        undo="Nothing was replaced: delete `out` and go on with resnet20.safetensors.",
        command="winnow compress models.py:resnet20 --weights resnet20.safetensors --data cifar10 --sparsity 0.7 --values int8 --out out",
        model=ModelInfo(
            name="resnet20", architecture="ResNet", kind="image classifier", parameters=272_474, prunable=270_896,
            prunable_share=270_896 / 272_474, hash="sha256:" + "ab" * 32,
        ),
        task=TaskInfo(
            name="image classification", metric="accuracy", higher_is_better=True, unit="%",
            evaluation_data="CIFAR-10 test", calibration_data="CIFAR-10 train, 1,024 images", n=10_000, disjoint=True,
        ),
        chosen="LAMP 70% + int8",
        candidates=[
            candidate("dense fp32", "dense", 32.0, 92.6, sparsity=0.0),
            candidate("int8 RTN", "quantized", 8.2, 92.55, sparsity=0.0, seconds=0.2),
            candidate("int4 RTN g32", "quantized", 4.5, 89.9, sparsity=0.0, seconds=0.2),
            candidate("int4 GPTQ g32", "quantized", 4.5, 91.4, sparsity=0.0, seconds=3.0),
            candidate("LAMP 50%", "pruned", 17.0, 92.4, sparsity=0.5, seconds=5.0),
            candidate("LAMP 70%", "pruned", 10.6, 91.95, sparsity=0.7, seconds=5.0),
            candidate("LAMP 90%", "pruned", 4.2, 55.1, sparsity=0.9, seconds=5.0),
            candidate("magnitude, uniform 90%", "pruned", 4.2, 13.7, sparsity=0.9, seconds=1.0),
            candidate("LAMP 70% + int8", "pruned+quantized", 3.6, 91.9, sparsity=0.7, seconds=6.0, chosen=True,
                      method="LAMP, batch norm recalibrated", folder="out"),
        ],
        layers=rows,
        requested=Requested(
            budget="sparsity 0.7", zeros_requested=189_627, zeros_reached=189_627, structure="unstructured", difference=0
        ),
        skipped=[
            SkippedTensor(name="fc.weight", numel=640, reason="output head"),
            SkippedTensor(name="fc.bias", numel=10, reason="bias"),
            *[SkippedTensor(name=f"layer{s}.{i}.bn{k}.weight", numel=16 * 2 ** (s - 1), reason="normalization")
              for s in (1, 2, 3) for i in range(3) for k in (1, 2)],
        ],
        sizes=Sizes(dense_file=1_103_000, file=148_500, packed_values=81_269, masks=33_862, scales=2_752,
                    dense_tensors=6_312, other=24_305),
        memory=Memory(peak_bytes=402_000_000),
        timing=[Stage(stage="Score and allocate", seconds=1.1), Stage(stage="Recalibrate batch norm", seconds=4.4),
                Stage(stage="Evaluate", seconds=31.0)],
        cost=Cost(seconds_total=37.2),
        classes=[
            ClassQuality(name=n, n=1000, dense=93.1 - 0.4 * (i % 7), pruned=92.9 - 0.4 * (i % 7) - [0, 0.1, 1.7, 3.9, 0.4, 2.6, -0.3][i % 7])
            for i, n in enumerate(names)
        ],
        changed=[
            ChangedExample(input=f"test image {17 + 31 * i}", truth="cat", dense="cat", pruned="dog", image=_png())
            for i in range(changed)
        ],
        **FACTS,
    )  # fmt: skip


def minimal() -> Report:
    """Only what a report cannot do without."""
    return Report(
        title="a model",
        verdict=Verdict(sentence="Nothing was measured yet.", tone="mixed"),
        model=ModelInfo(name="net"),
    )


def hostile() -> Report:
    """Every text is an attack on the page."""
    bad = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> & {{ 7 * 7 }} \u202e\x00"
    long = "model." + "averyverylongmodulename." * 12 + "weight"
    report = classifier()
    report = report.model_copy(
        update={
            "title": bad,
            "verdict": Verdict(sentence=bad + " `code<b>`", tone="bad"),
            "model": ModelInfo(name=bad, architecture=long, kind=bad, parameters=1, hash=bad),
            "task": TaskInfo(name=bad, metric="acc<b>uracy", unit="%", evaluation_data=bad, calibration_data=bad),
            "next_step": bad,
            "undo": bad,
            "command": bad + long,
            "notes": [bad, long],
            "candidates": [
                c.model_copy(update={"name": bad + c.name, "note": bad, "method": bad, "folder": long})
                for c in report.candidates
            ],
            "layers": [
                x.model_copy(update={"name": bad + x.name, "block": bad + "." + (x.block or "0")})
                for x in report.layers
            ],
            "classes": [ClassQuality(name=bad, n=1, dense=50.0, pruned=10.0), ClassQuality(name=long, dense=1.0)],
            "changed": [ChangedExample(input=bad * 20, truth=bad, dense=bad, pruned=long)],
            "skipped": [SkippedTensor(name=bad, numel=3, reason=bad), SkippedTensor(name=long, numel=3, reason=long)],
            "requested": Requested(budget=bad, zeros_requested=5, zeros_reached=7, structure=bad, difference=2),
            "timing": [Stage(stage=bad, seconds=1.0)],
            "cost": Cost(energy=bad),
            "machine": {bad: bad},
            "versions": {bad: [bad, bad]},
            "seeds": {bad: 1},
            "hashes": {"h": bad},
        }
    )
    return Report.model_validate(report.model_dump())  # as text enters in real life
