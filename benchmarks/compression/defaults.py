"""What the defaults of ``winnow compress`` rest on: every method on every kind of model, side by side.

    python -m benchmarks.compression.defaults --out defaults --run        # the cells, through frontier.py; hours, resumable
    python -m benchmarks.compression.defaults --out defaults              # the table of what is finished

A column is a model at a sparsity (or a pattern), a row a method with its allocation. Figures are what the test split loses
against the dense model, in points, or in % of perplexity; the least loss of a column is bold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import common

# Examples of the test split (segments, for text); what is not named here is evaluated whole.
LIMITS = {"resnet20": 2000, "vit": 1000, "reference-lm": 40, "chargpt": 200, "char-lstm": 200, "stories260k": 96}
MODELS = (
    "resnet20",
    "resnet32",
    "vit",
    "minilm-sst2",
    "minilm-stsb",
    "reference-lm",
    "chargpt",
    "stories260k",
    "char-lstm",
)
METHODS = ("magnitude", "wanda", "sparsegpt", "alps")
ALLOCATIONS = ("uniform", "lamp")


def run(args: argparse.Namespace) -> None:
    """Runs the cells that are not there yet."""
    for model in args.models:
        limit = ["--limit", str(LIMITS[model])] if model in LIMITS else []
        base = common.script("compression.frontier", "--out", str(args.out), "--threads", str(args.threads))
        base += ["--models", model, "--values", "keep", "--no-plain", *limit]
        unstructured = ["--methods", ",".join(METHODS), "--allocations", ",".join(ALLOCATIONS)]
        pattern = ["--methods", ",".join(METHODS), "--structures", "2:4"]
        for part in (unstructured, pattern):
            subprocess.run([*base, *part], check=False)  # a cell that failed is named, the others go on


def table(folder: Path) -> list[str]:
    """Markdown: one block of columns a model."""
    done = [json.loads(f.read_text()) for f in sorted((folder / "cells").glob("*.json"))]
    lines: list[str] = []
    for model in MODELS:
        mine = [d for d in done if d["cell"]["model"] == model]
        if mine:
            lines += _model(model, mine)
    return lines


def _model(model: str, done: list[dict[str, Any]]) -> list[str]:
    losses: dict[tuple[str, str], dict[str, float]] = {}
    for d in done:
        cell = d["cell"]
        for row in d["rows"]:
            if row["kind"] != "dense" and row["drop"] is not None:
                column = cell["structure"] if cell["structure"] != "unstructured" else f"{100 * row['sparsity']:.0f}%"
                losses.setdefault((cell["method"], cell["allocation"]), {})[column] = row["drop"]
    columns = sorted({c for row in losses.values() for c in row}, key=lambda c: (":" in c, c))
    best = {c: min(row[c] for row in losses.values() if c in row) for c in columns}
    first = done[0]
    unit = first["unit"] or "%"
    lines = [
        f"**{model}** ({first['family']}; {first['metric']}, n = {first['evaluated']:,}; lost, {unit})", "",
        "| method | allocation | " + " | ".join(columns) + " |", "|---|---|" + "--:|" * len(columns),
    ]  # fmt: skip
    for (method, allocation), row in sorted(losses.items()):
        cells = ["" if c not in row else f"**{row[c]:.2f}**" if row[c] == best[c] else f"{row[c]:.2f}" for c in columns]
        lines.append(f"| {method} | {'its own' if allocation == 'own' else allocation} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("defaults"), help="folder of cells and tables")
    parser.add_argument("--models", type=common.listed(str), default=list(MODELS), help=f"of {','.join(MODELS)}")
    parser.add_argument("--run", action="store_true", help="run the cells that are not there yet")
    args = common.arguments(parser)
    if args.run:
        run(args)
    print("\n".join(table(args.out)))


if __name__ == "__main__":
    main()
