"""The model card: README.md of a compressed folder, what a hub page shows."""

from __future__ import annotations

from pathlib import Path

from winnow.report import words
from winnow.report.schema import Report


def card(report: Report) -> str:
    """Markdown with the front matter the Hugging Face hub reads: origin, what was done, figures, how to load."""
    chosen, dense = report.picked, report.dense
    lines = ["---", "tags:", "- winnow", "- sparsity", "---", "", f"# {report.title}", "", report.verdict.sentence, ""]
    if chosen is not None:
        lines += ["| | dense | this model |", "|---|---|---|"]
        rows = [
            ("zeros among prunable weights", "", words.percent(chosen.sparsity)),
            ("bits per prunable weight", _bits(dense), _bits(chosen)),
            ("weights file", words.size(report.sizes.dense_file), words.size(report.sizes.file)),
        ]
        if chosen.quality is not None and dense is not None:
            task = report.task
            span = f" ({words.span(chosen.low, chosen.high, task)})" if chosen.low is not None else ""
            rows.append((task.metric, words.quality(dense.quality, task), words.quality(chosen.quality, task) + span))
        lines += [f"| {name} | {before} | {after} |" for name, before, after in rows]
        if report.task.evaluation_data:
            lines += [
                "",
                f"Measured on {report.task.evaluation_data} ({words.count(report.task.n)} examples), which calibration did not see.",
            ]
    lines += ["", "## Load", "", "```python", "import winnow  # makes from_pretrained read packed weights", ""]
    if report.model.kind == "plain torch":
        lines += ['model = winnow.load("this folder", factory=your_function_that_builds_the_model)']
    else:
        lines += [
            f"from transformers import {report.model.architecture}",
            "",
            f'model = {report.model.architecture}.from_pretrained("this folder")',
        ]
    lines += ["```", ""]
    if report.undo:
        lines += ["## Go back", "", report.undo, ""]
    if report.command:
        lines += ["## Repeat", "", "```", report.command, "```", ""]
    return "\n".join(lines)


def write(report: Report, folder: Path) -> Path:
    """Writes ``README.md`` unless the folder brought one of its own."""
    path = folder / "README.md"
    if not path.exists():
        path.write_text(card(report), encoding="utf-8")
    return path


def _bits(candidate: object) -> str:
    bits = getattr(candidate, "bits_per_weight", None)
    return "" if bits is None else f"{bits:.2f}"
