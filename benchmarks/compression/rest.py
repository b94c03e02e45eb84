"""What --rest is worth where embeddings dominate: MiniLM-L6 on SST-2, beside int8 by ONNX Runtime.

    python -m benchmarks.compression.rest --out rest                    # the model is made first, see benchmarks/models/make.py
    python -m benchmarks.compression.rest --out rest --sparsity 0.5 --method alps

60% zeros in int8 with what is not pruned kept, in int8 and in int4; plain int8, with the embeddings and without; and, where
onnxruntime and onnx are installed, ``quantize_dynamic`` of the exported model (int8, all operators that it takes by default),
run by onnxruntime. Bytes are those of the weights file, accuracy is of the whole validation split. ``rest.md`` has the table.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import winnow
from benchmarks.common import DATA
from benchmarks.models.make import get
from winnow.data import open_data

TRAIN, EVAL = DATA / "sst2/train_b.tsv.gz", DATA / "sst2/validation.tsv.gz"


def compressed(model: Path, out: Path, sparsity: float, method: str) -> list[tuple[str, int, float]]:
    """(what, bytes, accuracy) of the dense model, the pruned ones and plain int8."""
    rows = []
    for rest in ("keep", "int8", "int4"):
        report = winnow.compress(
            model, TRAIN, eval=EVAL, column="sentence", label="label", task="classification", sparsity=sparsity, method=method,
            values="int8", rest=rest, group_size=32, baselines="rtn" if rest == "keep" else "none", speed=False, out=out / rest,
        ).report  # fmt: skip
        for c in report.candidates:
            if c.name == report.chosen:
                rows.append((f"{100 * sparsity:g}% + int8, rest {rest}", c.file_bytes, c.quality))
            elif rest == "keep" and not c.name.startswith("int4"):
                rows.append((c.label if c.kind != "dense" else "dense", c.file_bytes, c.quality))
    return rows


def by_onnxruntime(model: Path, out: Path) -> list[tuple[str, int, float]]:
    """The same of ONNX Runtime's dynamic quantization; nothing where it is not installed."""
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        return []
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    dense = AutoModelForSequenceClassification.from_pretrained(model, attn_implementation="eager").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    names, example = (
        ["input_ids", "attention_mask", "token_type_ids"],
        tokenizer(["a text", "b"], return_tensors="pt", padding="longest"),
    )
    plain, small = out / "dense.onnx", out / "int8.onnx"
    torch.onnx.export(
        dense, tuple(example[n] for n in names), str(plain), input_names=names, output_names=["logits"], dynamo=False,
        dynamic_axes={n: {0: "batch", 1: "length"} for n in names},
    )  # fmt: skip
    quantize_dynamic(plain, small, weight_type=QuantType.QInt8)
    records = open_data(EVAL, column="sentence", label="label")
    rows = []
    for what, path in (("float32", plain), ("int8, quantize_dynamic", small)):
        session, right = onnxruntime.InferenceSession(str(path)), 0
        for text, label in zip(records.inputs, records.labels, strict=True):
            fields: Any = tokenizer([text.strip()], return_tensors="np", padding=False)
            right += int(session.run(None, {n: fields[n] for n in names})[0].argmax()) == int(label)
        rows.append((f"ONNX Runtime {version('onnxruntime')}, {what}", path.stat().st_size, 100 * right / len(records)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("rest"))
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--method", default="sparsegpt")
    parser.add_argument("--minutes", type=float, help="of training, where the model has to be made (default: its own)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = get("minilm-sst2", given.minutes)
    rows = [*by_onnxruntime(model, given.out), *compressed(model, given.out, given.sparsity, given.method)]
    lines = ["| model | file, MB | accuracy, % |", "|---|--:|--:|"]
    lines += [
        f"| {what} | {size / 1e6:.2f} | {quality:.2f} |"
        for what, size, quality in sorted(rows, key=lambda row: -row[1])
    ]
    (given.out / "rest.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
