"""The frontier: every model family by method, allocation, sparsity and value type, beside plain int8 and int4.

    python -m benchmarks.compression.frontier --out frontier                       # everything; hours
    python -m benchmarks.compression.frontier --out frontier --models reference-lm --methods magnitude,wanda --limit 128

One cell is one ``winnow.compress`` (model, method, allocation, value type; all sparsities at once) in a process of its
own, so that its peak of memory is its own. A finished cell is a JSON file under ``--out/cells`` and is not run again, whatever
else is asked for later; ``frontier.md`` and ``frontier.json`` are written anew from all cells after each one. One cell of
each model holds plain int8 and int4 (round-to-nearest and GPTQ). Calibration data are training data, figures are of the
test split (``--limit``: so many evenly spaced examples of it, in cells of their own). File bytes are those of the folder
that was written, then deleted. Peak memory is the process' VmHWM: interpreter, torch and evaluation included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import data

PLAIN = "plain"  # the method of the cell that holds plain quantization
PLAIN_NAMES = tuple(f"{v}-{s}" for v in ("int8", "int4-g128", "int4-g32") for s in ("rtn", "gptq"))


@dataclass(frozen=True)
class Family:
    """One model and its data: paths below the data folder, ``benchmarks.adapters:function``, or a model of models/make.py."""

    kind: str
    model: str
    data: str
    eval: str
    options: dict[str, Any] = field(default_factory=dict)
    pattern: dict[str, Any] = field(default_factory=dict)  # options besides, where an n:m pattern is asked for


FAMILIES = {
    "reference-lm": Family("decoder", "reference-lm", "corpus/train-0.txt.gz", "corpus/test.txt.gz", dict(length=256)),
    "stories260k": Family("decoder", "stories260k", "tinystories/truecased_5190.jsonl.gz", "tinystories/cased_288.jsonl.gz", dict(length=256)),
    "chargpt": Family("decoder, plain torch", "benchmarks.adapters:chargpt", "benchmarks.adapters:shakespeare_train", "benchmarks.adapters:shakespeare_test", dict(task="perplexity")),
    "minilm-stsb": Family("encoder", "minilm-l6", "benchmarks.adapters:stsb_train", "benchmarks.adapters:stsb_test", dict(task="similarity")),
    "minilm-sst2": Family("encoder", "models:minilm-sst2", "sst2/train_b.tsv.gz", "sst2/validation.tsv.gz", dict(column="sentence", label="label", task="classification")),
    "resnet20": Family("CNN, plain torch", "benchmarks.adapters:resnet20", "benchmarks.adapters:resnet_train", "benchmarks.adapters:resnet_test", dict(task="classification", samples=512), dict(exclude=("conv1",))),
    "resnet32": Family("CNN, plain torch", "benchmarks.adapters:resnet32", "benchmarks.adapters:resnet32_train", "benchmarks.adapters:resnet32_test", dict(task="classification", samples=512), dict(exclude=("conv1",))),
    "char-lstm": Family("recurrent, plain torch", "benchmarks.adapters:char_lstm", "benchmarks.adapters:shakespeare_train", "benchmarks.adapters:shakespeare_test", dict(task="perplexity", include=("rnn.*",))),
    "mobilenet": Family("CNN, plain torch", "benchmarks.adapters:mobilenet", "benchmarks.adapters:mobilenet_train", "benchmarks.adapters:mobilenet_test", dict(task="agreement", samples=64)),
    "vit": Family("ViT", "models:vit", "benchmarks.adapters:cifar10_train", "benchmarks.adapters:cifar10_test", dict(task="classification", samples=256)),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    model: str
    method: str
    allocation: str  # "own": what the method brings
    values: str
    group_size: int
    sparsities: tuple[float, ...]
    limit: int | None
    seed: int
    threads: int
    structure: str = "unstructured"

    @property
    def file(self) -> str:
        key = hashlib.sha256(json.dumps(self.__dict__, sort_keys=True).encode()).hexdigest()[:8]
        parts = [self.model, self.method, self.allocation, self.values, self.structure.replace(":", "of"), key]
        return "-".join(parts).replace("+", "_") + ".json"


def run_cell(cell: Cell) -> dict[str, Any]:
    """One call of winnow.compress; returns the cell with its rows."""
    import winnow
    from winnow.machine.facts import machine
    from winnow.machine.memory import peak_rss

    family = FAMILIES[cell.model]
    plain = cell.method == PLAIN
    options = dict(family.options, eval=_data(family.eval), eval_limit=cell.limit, seed=cell.seed)
    if plain:
        options |= dict(sparsity=0.5, method="magnitude", baselines="all", keep=PLAIN_NAMES)
    else:
        options |= dict(
            sparsity=list(cell.sparsities),
            method=cell.method,
            values=cell.values,
            group_size=cell.group_size,
            baselines="none",
        )
        options["allocation"] = None if cell.allocation == "own" else cell.allocation
        if cell.structure != "unstructured":
            options |= dict(structure=cell.structure, sparsity=None, **family.pattern)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        report = winnow.compress(_model(family.model), _data(family.data), out=Path(scratch) / "out", **options).report
        rows = []
        for c in report.candidates:
            if plain and c.kind not in ("dense", "quantized"):
                continue
            weights = report.sizes.dense_file
            if c.kind != "dense":
                weights = sum(f.stat().st_size for f in Path(c.folder).glob("*.safetensors"))
            rows.append(dict(
                candidate=c.name, kind=c.kind, sparsity=c.sparsity, values=c.values, quality=c.quality, low=c.low, high=c.high, drop=c.drop,
                drop_low=c.drop_low, drop_high=c.drop_high, agreement=c.agreement, bits_per_weight=c.bits_per_weight, file_bytes=weights, seconds=c.seconds,
            ))  # fmt: skip
    return dict(
        cell=cell.__dict__, family=family.kind, rows=rows, peak_bytes=peak_rss(), wall_seconds=time.perf_counter() - started,
        metric=report.task.metric, unit=report.task.unit, evaluated=report.task.n, evaluation_data=report.task.evaluation_data,
        calibration_data=report.task.calibration_data, calibration_tokens=report.task.calibration_tokens, parameters=report.model.parameters,
        prunable=report.model.prunable, notes=report.notes, machine=machine(), date=report.created,
    )  # fmt: skip


def _model(spec: str) -> str:
    if spec.startswith("models:"):
        from benchmarks.models.make import get

        return str(get(spec.partition(":")[2]))
    return spec if ":" in spec else str(data(spec))


def _data(spec: str) -> str:
    return spec if ":" in spec else str(data(*spec.split("/")))


def cells(args: argparse.Namespace) -> list[Cell]:
    """What was asked for, without two cells that mean the same recipe."""
    from winnow.compression.methods import resolve

    common_parts = (tuple(args.sparsities), args.limit, args.seed, args.threads)
    found = []
    for model in args.models:
        if not args.no_plain:
            found.append(Cell(model, PLAIN, "own", "all", 0, *common_parts))
        seen = set()
        for method in args.methods:
            for allocation in args.allocations:
                parts = resolve(method, allocation=None if allocation == "own" else allocation)
                if (same := tuple(sorted(parts.items()))) in seen:
                    continue
                seen.add(same)
                for values in args.values:
                    for structure in args.structures:
                        # a pattern names its own rate
                        found.append(Cell(model, method, allocation, values, args.group_size, *common_parts, structure))
    return found


def tables(folder: Path) -> None:
    """frontier.json and frontier.md from every finished cell."""
    done = [json.loads(f.read_text()) for f in sorted((folder / "cells").glob("*.json"))]
    (folder / "frontier.json").write_text(json.dumps(done, indent=1) + "\n")
    lines = []
    for model in [m for m in FAMILIES if any(d["cell"]["model"] == m for d in done)]:
        mine = [d for d in done if d["cell"]["model"] == model]
        for limit in sorted({d["cell"]["limit"] or 0 for d in mine}):
            part = [d for d in mine if (d["cell"]["limit"] or 0) == limit]
            first = part[0]
            unit = f" ({first['unit']})" if first["unit"] else ""
            lines += [
                f"## {model} ({first['family']})", "",
                f"{first['parameters']:,} parameters, {first['prunable']:,} prunable. {first['metric']}{unit} on {Path(str(first['evaluation_data'])).name}, "
                f"n = {first['evaluated']:,}; calibrated on {Path(str(first['calibration_data'])).name}. Sorted by file size.", "",
                f"| method | allocation | sparsity | data type | {first['metric']} [95%] | lost [95%] | bits/weight | file MB | seconds | peak MB |",
                "|---|---|---|---|---|---|---|---|---|---|", *_rows(part), "",
            ]  # fmt: skip
    (folder / "frontier.md").write_text("\n".join(lines))


def _rows(part: list[dict[str, Any]]) -> list[str]:
    dense_seen, rows = False, []
    for d in part:
        for r in d["rows"]:
            if r["kind"] == "dense":
                if dense_seen:
                    continue
                dense_seen = True
            rows.append((r["file_bytes"], _row(d, r)))
    return [line for _, line in sorted(rows, key=lambda pair: (-pair[0], pair[1]))]


def _row(d: dict[str, Any], r: dict[str, Any]) -> str:
    plain = r["kind"] in ("dense", "quantized")
    values = (
        r["candidate"] if plain else r["values"] + (f"-g{d['cell']['group_size']}" if r["values"] == "int4" else "")
    )
    dense = r["kind"] == "dense"
    columns = [
        "-" if plain else d["cell"]["method"],
        "-" if plain else d["cell"]["allocation"],
        f"{100 * r['sparsity']:.4g}%",
        values,
        _interval(r["quality"], r["low"], r["high"]),
        "-" if dense else _interval(r["drop"], r["drop_low"], r["drop_high"]),
        f"{r['bits_per_weight']:.2f}",
        f"{r['file_bytes'] / 1e6:.2f}",
        "-" if dense else f"{r['seconds']:.1f}",
        "-" if dense else f"{d['peak_bytes'] / 1e6:.0f}",
    ]
    return "| " + " | ".join(columns) + " |"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    """Four digits; what is not a finite number says so."""
    shown = ["-" if v is None else f"{v:.4g}" for v in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("frontier"), help="folder of cells and tables")
    parser.add_argument("--models", type=common.listed(str), default=list(FAMILIES), help=f"of {','.join(FAMILIES)}")
    parser.add_argument(
        "--methods",
        type=common.listed(str),
        default=["magnitude", "lamp", "wanda", "sparsegpt", "sparsegpt+lsq", "alps"],
    )
    parser.add_argument(
        "--allocations",
        type=common.listed(str),
        default=["own"],
        help="own (the method's), uniform, global, erk, lamp, owl, alphapruning",
    )
    parser.add_argument("--values", type=common.listed(str), default=["keep", "int8", "int4"], help="value types")
    parser.add_argument(
        "--structures", type=common.listed(str), default=["unstructured"], help="unstructured, 2:4 and other n:m"
    )
    parser.add_argument("--group-size", type=int, default=128, help="inputs that share an int4 scale")
    parser.add_argument("--sparsities", type=common.listed(float), default=[0.5, 0.7, 0.9])
    parser.add_argument("--limit", type=int, help="at most this many examples (segments) of the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-plain", action="store_true", help="leave out the cells of plain quantization")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = common.arguments(parser)
    if args.child:  # a cell as JSON comes on standard input
        asked = json.load(sys.stdin)
        result = run_cell(Cell(**{**asked, "sparsities": tuple(asked["sparsities"])}))
        partial = args.child.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(args.child)
        return
    if unknown := set(args.models) - set(FAMILIES):
        parser.error(f"unknown model {', '.join(sorted(unknown))}: choose of {', '.join(FAMILIES)}")
    common.heading(threads=args.threads)
    (args.out / "cells").mkdir(parents=True, exist_ok=True)
    for model in args.models:  # made here where it is not cached, not inside a cell whose memory is measured
        if (spec := FAMILIES[model].model).startswith("models:"):
            subprocess.run(common.script("models.make", spec.partition(":")[2]), check=True)
    asked, failed = cells(args), []
    for i, cell in enumerate(asked):
        file = args.out / "cells" / cell.file
        started = time.perf_counter()
        if not file.exists():
            command = common.script(
                "compression.frontier", "--threads", str(args.threads), "--child", str(file.resolve())
            )
            if subprocess.run(command, input=json.dumps(cell.__dict__), text=True, check=False).returncode:
                failed.append(file.stem)
        state = "FAILED" if not file.exists() else f"{time.perf_counter() - started:.0f} s"
        print(f"{i + 1}/{len(asked)} {file.stem}: {state}", flush=True)
        tables(args.out)
    print(f"tables: {args.out / 'frontier.md'}, {args.out / 'frontier.json'}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
