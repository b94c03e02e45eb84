"""What the figures say, in one sentence a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from winnow.compression.prepare import written_unit
from winnow.compression.runner import Outcome
from winnow.measure.quality import Evaluation, Task
from winnow.report.words import number, size

SMALL_DROP = 1.0  # points, or per cent of perplexity: what most users accept without asking
LARGE_DROP = 5.0


@dataclass(frozen=True)
class Judgement:
    """The sentence, its tone, what to do next, and the candidate that is the better answer (None: the chosen one is)."""

    sentence: str
    tone: Literal["good", "mixed", "bad"]
    next_step: str
    better: str | None


def judge(
    chosen: Outcome,
    others: Sequence[Outcome],
    task: Task | None,
    dense: Evaluation | None,
    dense_file: int,
    next_folder: str,
) -> Judgement:
    """Compares the chosen candidate with the dense model and with plain quantization of at most its size."""
    ratio = dense_file / max(chosen.file_bytes, 1)
    shrank = (
        f"{chosen.candidate.label}: the file is {ratio:.2f}x smaller ({size(dense_file)} to {size(chosen.file_bytes)})"
    )
    if chosen.comparison is None or task is None or chosen.evaluation is None or dense is None:
        return Judgement(
            f"{shrank}; quality was not measured.", "mixed", "Measure it: give evaluation data with `--eval`.", None
        )
    worse = f"{task.metric} {_value(task, dense)} to {_value(task, chosen.evaluation)} ({change(task, chosen)})"
    better = winner(chosen, others)
    if better is not None:
        gain = (
            f"{size(better.file_bytes)} instead of {size(chosen.file_bytes)}, "
            f"{task.metric} {_value(task, better.evaluation)} instead of {_value(task, chosen.evaluation)}"
        )
        if better.candidate.kind == "quantized":
            sentence = f"Plain quantization is the better answer here: {better.candidate.label} gives {gain}."
        else:
            sentence = f"Store the same zeros in narrower values: {better.candidate.label} gives {gain}."
        step = f"Take that model instead: add `--keep {better.name}` to the command, and it is written to {next_folder}/{better.name}."
        return Judgement(sentence, "bad" if better.candidate.kind == "quantized" else "mixed", step, better.name)
    drop = chosen.comparison.drop
    if drop != drop or drop > LARGE_DROP:
        return Judgement(
            f"{shrank}, but it lost too much: {worse}.",
            "bad",
            "Ask for less: a lower `--sparsity`, or `--max-drop 1` to let winnow find the smallest file that stays within one point.",
            None,
        )
    tone: Literal["good", "mixed"] = "good" if chosen.comparison.high <= SMALL_DROP or drop <= 0 else "mixed"
    if ratio <= 1:
        return Judgement(
            f"The file did not get smaller ({size(dense_file)} to {size(chosen.file_bytes)}): {worse}.",
            "bad",
            "Ask for more zeros or narrower values, e.g. `--values int8`.",
            None,
        )
    following = (
        f"Use it: `winnow.load({next_folder!r})`, or `from_pretrained` after `import winnow`."
        if tone == "good"
        else "Check the examples below that changed; with more evaluation data (`--eval`) the interval narrows."
    )
    return Judgement(f"{shrank}; {worse}.", tone, following, None)


def winner(chosen: Outcome, others: Sequence[Outcome]) -> Outcome | None:
    """The smallest candidate that is no larger than ``chosen`` and measured no worse, strictly ahead in one; or None.

    Plain quantization that was asked for is never overruled by it: only a smaller or better model is.
    """
    if chosen.comparison is None:
        return None
    mine = chosen.comparison.drop
    ahead = [
        o
        for o in others
        if o.comparison is not None
        and o.file_bytes <= chosen.file_bytes
        and o.comparison.drop <= mine
        and (o.file_bytes < chosen.file_bytes or o.comparison.drop < mine)
    ]
    return min(ahead, key=lambda o: (o.file_bytes, o.comparison.drop), default=None)  # type: ignore[union-attr]


def change(task: Task, outcome: Outcome) -> str:
    """The paired change with its interval as a reader expects the signs: minus is worse (perplexity: plus)."""
    c = outcome.comparison
    assert c is not None
    unit, sign = (" per cent", 1) if c.relative else (" points", -1)
    low, high = sorted((sign * c.low, sign * c.high))
    return f"{_signed(sign * c.drop)}{unit}, 95\u00a0% interval {_signed(low)} to {_signed(high)}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


def _value(task: Task, evaluation: Evaluation | None) -> str:
    assert evaluation is not None
    unit = written_unit(task)
    space = "\u00a0" if unit else ""
    return f"{number(task.scale * evaluation.value)}{space}{unit}"
