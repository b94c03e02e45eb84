"""The model card: README.md of a compressed folder, what a hub page shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow import words
from winnow.disk.files import write_text
from winnow.disk.ownership import PARENT_CARD
from winnow.records.compression import Candidate, Report
from winnow.report.compression import phrases
from winnow.report.compression.front_matter import front_matter, parents_front_matter
from winnow.report.compression.tables import bits
from winnow.report.compression.view import notes
from winnow.report.draw.markdown import fenced, prose

FINE_TUNE = (
    "Training without masks fills the zeros in. Fine-tune with LoRA, then `winnow.train.merge(peft_model)`: it merges the adapters "
    "and leaves pruned weights zero. Or train all weights with `Trainer(..., callbacks=[winnow.train.WinnowCallback()])`."
)
_IMPORT = "import winnow  # makes from_pretrained read packed weights"


def card(report: Report, parent: dict[str, Any] | None = None, *, embeds: bool = False) -> str:
    """Markdown with the front matter the Hugging Face hub reads: origin, what was done, figures, how to load.

    ``parent``: what is kept of the front matter of the model's own card; ``embeds``: the folder is one of sentence-transformers.
    """
    chosen = report.picked
    lines = ["---", front_matter(report, parent or {}, embeds=embeds), "---", ""]
    lines += [f"# {prose(report.title)}", "", prose(report.verdict.sentence), ""]
    if chosen is not None:
        before: list[Candidate | None] = [c for c in (report.dense, report.ticket) if c is not None] or [None]
        heads = ["dense" if c is None or c.kind == "dense" else "the ticket, before packing" for c in before]
        lines += [f"| | {' | '.join([*heads, 'this model'])} |", "|---" * (len(heads) + 2) + "|"]
        sparse = [words.percent(c.sparsity) if c is not None and c.kind == "ticket" else "" for c in before]
        was = words.size(report.sizes.dense_file)
        rows = [
            ("zeros among prunable weights", *sparse, words.percent(chosen.sparsity)),
            ("bits per prunable weight", *("" if c is None else bits(c) for c in before), bits(chosen)),
            ("weights file", *(was for _ in before), words.size(report.sizes.file)),
        ]
        if chosen.quality is not None and report.yardstick is not None:
            task = report.task
            values = [phrases.quality(c.quality, task) for c in before if c is not None]
            ends = phrases.span(chosen.low, chosen.high, task)
            rows.append((task.metric, *values, phrases.with_interval(phrases.quality(chosen.quality, task), ends)))
            if moved := phrases.change(chosen, task):
                moved = phrases.with_interval(moved, phrases.change_span(chosen, task))
                given = "the ticket" if phrases.against(report) == "ticket" else "dense"
                rows.append((f"against {given}", *("" for _ in before), moved))
            if left := phrases.recovered(chosen, report):
                rows.append((f"{task.metric} recovered", *("" for _ in before), left))
        lines += [f"| {' | '.join(map(prose, row))} |" for row in rows]
        if report.task.evaluation_data:
            said = f"{prose(report.task.evaluation_data)} ({words.count(report.task.n)} examples)"
            lines += ["", f"Measured on {said}, which calibration did not see."]
    if noted := [*notes(report), *report.remarks]:
        lines += ["", "## Notes", "", *(f"- {prose(note)}" for note in noted)]
    code = [_IMPORT, ""]
    if report.model.kind == "plain torch":
        code += ['model = winnow.load("this folder", factory=your_function_that_builds_the_model)']
    else:
        architecture = report.model.architecture
        code += [
            f"from transformers import {architecture}",
            "",
            f'model = {architecture}.from_pretrained("this folder")',
        ]
    if embeds:
        code += [
            "",
            "from sentence_transformers import SentenceTransformer",
            "",
            'encoder = SentenceTransformer("this folder")',
        ]
    if parent is not None:
        lines += ["", f"The card of the model that was compressed: [{PARENT_CARD}]({PARENT_CARD})."]
    lines += ["", "## Load", "", *fenced("\n".join(code), "python"), ""]
    if report.model.kind != "plain torch" and chosen is not None and chosen.sparsity:
        lines += ["## Fine-tune", "", FINE_TUNE, ""]
    if report.undo:
        lines += ["## Undo", "", prose(report.undo), ""]
    if report.command:
        lines += ["## Repeat", "", *fenced(report.command), ""]
    return "\n".join(lines)


def of_export(card: str) -> str:
    """The card of a folder for the same model written dense, which loads without winnow."""
    said = (
        "The weights in this folder are the same model's, written dense by `winnow export`: they load without winnow."
    )
    return card.replace(f"{_IMPORT}\n\n", "").replace("\n## Load\n", f"\n{said}\n\n## Load\n", 1)


def write(report: Report, folder: Path) -> Path:
    """Writes ``README.md`` unless the folder brought one of its own."""
    path = folder / "README.md"
    if not path.exists():
        parent = parents_front_matter(folder / PARENT_CARD) if (folder / PARENT_CARD).is_file() else None
        write_text(path, card(report, parent, embeds=(folder / "modules.json").is_file()))
    return path
