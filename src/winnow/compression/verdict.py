"""What the figures say, in one sentence a person can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from winnow.compression.outcome import Outcome
from winnow.measure.chance import too_good
from winnow.measure.compare import Comparison
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task, written_unit
from winnow.words import number, signed, size

if TYPE_CHECKING:
    from winnow.records.compression import Candidate

SMALL_DROP = 1.0  # points, or per cent of perplexity: what most users accept without asking
LARGE_DROP = 5.0
Tone = Literal["good", "mixed", "bad"]
T = TypeVar("T", Outcome, "Candidate")


@dataclass(frozen=True)
class Judgement:
    """The sentence, its tone, what to do next, and the candidate that is the better answer (None: the chosen one is)."""

    sentence: str
    tone: Tone
    next_step: str
    better: str | None


@dataclass(frozen=True)
class Options:
    """The words for what to change, which differ between a command and a recipe."""

    measure: str = "give evaluation data with `--eval`"
    less: str = (
        "a lower `--sparsity`, or `--max-drop 1` to let winnow find the smallest file that stays within one point"
    )
    smaller: str = "`--values int8`"
    more: str = "`--eval`"


COMMAND = Options()


def judge(
    chosen: Outcome,
    others: Sequence[Outcome],
    task: Task | None,
    dense: Evaluation | None,
    dense_file: int,
    next_folder: str,
    limit: int | None = None,
) -> Judgement:
    """Compares the chosen candidate with the dense model and with everything else that was measured within its size.

    ``limit``: bytes that were allowed, where a size was requested; otherwise the chosen candidate's own.
    """
    label = chosen.candidate.label
    if chosen.comparison is None or task is None or chosen.evaluation is None or dense is None:
        return unmeasured(label, dense_file, chosen.file_bytes)
    better = winner(chosen, others, limit)
    if better is not None and better.comparison is not None and tone_of(better.comparison) == "bad":
        lost = f"{task.metric} {_value(task, dense)} to {_value(task, chosen.evaluation)}"
        sentence = (
            f"{_shrank(label, dense_file, chosen.file_bytes)}, but it lost too much: {lost}; so did everything within that "
            f"size, the best of it {better.candidate.label} with {_value(task, better.evaluation)} in {size(better.file_bytes)}."
        )
        return Judgement(sentence, "bad", f"Ask for less: {COMMAND.less}.", None)
    if better is not None:
        gain = (
            f"{size(better.file_bytes)} instead of {size(chosen.file_bytes)}, "
            f"{task.metric} {_value(task, better.evaluation)} instead of {_value(task, chosen.evaluation)}"
        )
        if better.candidate.kind == "quantized":
            sentence = f"Plain quantization is the better answer here: {better.candidate.label} gives {gain}."
        elif better.candidate.recipe is not None and _same_zeros(chosen, better):
            sentence = f"Store the same zeros in narrower values: {better.candidate.label} gives {gain}."
        else:
            sentence = f"Another candidate is the better answer here: {better.candidate.label} gives {gain}."
        step = f"Take that model instead: add `--keep {better.name}` to the command, and it is written to {next_folder}/{better.name}."
        return Judgement(sentence, "bad" if better.candidate.kind == "quantized" else "mixed", step, better.name)
    worse = f"{task.metric} {_value(task, dense)} to {_value(task, chosen.evaluation)} ({change(chosen.comparison)})"
    return weigh(label, dense_file, chosen.file_bytes, worse, chosen.comparison, next_folder)


def unmeasured(label: str, before: int, after: int, options: Options = COMMAND) -> Judgement:
    """Of a file alone."""
    shrank = f"{_shrank(label, before, after)}; quality was not measured."
    return Judgement(shrank, "mixed", f"Measure it: {options.measure}.", None)


def weigh(
    label: str, before: int, after: int, worse: str, loss: Comparison, folder: str, options: Options = COMMAND
) -> Judgement:
    """Of a model that nothing measured beats.

    Args:
        label: what it is, as a person reads it.
        before, after: bytes of the file.
        worse: what became of the quality, in words.
        loss: the same in figures.
        folder: where it is written.
    """
    shrank = _shrank(label, before, after)
    tone = tone_of(loss)
    if tone == "bad":
        return Judgement(f"{shrank}, but it lost too much: {worse}.", tone, f"Ask for less: {options.less}.", None)
    if before <= after:
        return Judgement(
            f"The file did not get smaller ({size(before)} to {size(after)}): {worse}.",
            "bad",
            f"Ask for more zeros or narrower values, e.g. {options.smaller}.",
            None,
        )
    following = (
        f"Use it: `winnow.load({folder!r})`, or `from_pretrained` after `import winnow`."
        if tone == "good"
        else f"Check the examples below that changed; with more evaluation data ({options.more}) the interval narrows."
    )
    return Judgement(f"{shrank}; {worse}.", tone, following, None)


def tone_of(loss: Comparison) -> Tone:
    """What a loss is worth saying: good where it is small for certain."""
    if loss.drop != loss.drop or loss.drop > LARGE_DROP:
        return "bad"
    return "good" if loss.high <= SMALL_DROP or loss.drop <= 0 else "mixed"


def winner(chosen: T, others: Sequence[T], limit: int | None = None) -> T | None:
    """The best candidate of at most ``limit`` bytes (the size of ``chosen``, unless more was allowed) that measured no
    worse than ``chosen``, strictly ahead in quality or size; or None. Both are outcomes, or rows of a report.

    The best in quality, and of equals the smallest: no other within the size is better, so what is named is never
    dominated. Plain quantization that was requested is overruled as any other candidate is. A drop that is not a number
    (the outputs hold NaN) is worse than any other.
    """
    if chosen.file_bytes is None or chosen.drop is None:
        return None
    room, lost = max(chosen.file_bytes, limit or 0), math.inf if math.isnan(chosen.drop) else chosen.drop
    ahead = [
        (o.drop, o.file_bytes, i)
        for i, o in enumerate(others)
        if o.file_bytes is not None and o.drop is not None and o.file_bytes <= room and o.drop <= lost
        if o.file_bytes < chosen.file_bytes or o.drop < lost
    ]
    return others[min(ahead)[2]] if ahead else None


def doubtful(judgement: Judgement, doubts: Sequence[str]) -> Judgement:
    """A judgement with what makes its figures doubtful: it praises nothing."""
    if not doubts:
        return judgement
    sentences = " ".join(f"{d[:1].upper()}{d[1:]}" for d in doubts)
    tone: Tone = "mixed" if judgement.tone == "good" else judgement.tone
    return replace(judgement, sentence=f"{judgement.sentence} {sentences}", tone=tone)


def recalibrated_note(task: Task, dense: Evaluation, again: Evaluation, loss: Comparison, samples: int) -> str:
    """What new batch norms alone do to the dense model: a part of every row of the table but its own."""
    note = (
        f"batch norms of every row but the dense one were estimated anew on up to {samples:,} calibration examples; of the "
        f"dense weights that alone makes {task.metric} {_value(task, again)} from {_value(task, dense)} ({change(loss)})."
    )
    if too_good(loss):
        note += " The dense model gains by it: its inputs are not what it was trained on, look at how they are fed."
    return note


def _same_zeros(chosen: Outcome, other: Outcome) -> bool:
    mine, its = chosen.candidate.recipe, other.candidate.recipe
    return mine is not None and its is not None and (mine.zeros, mine.structure) == (its.zeros, its.structure)


def change(c: Comparison) -> str:
    """The paired change with its interval as a reader expects the signs: minus is worse (perplexity: plus)."""
    unit, sign = (" per cent", 1) if c.relative else (" points", -1)
    low, high = sorted((sign * c.low, sign * c.high))
    return f"{signed(sign * c.drop)}{unit}, 95\u00a0% interval {signed(low)} to {signed(high)}"


def _shrank(label: str, before: int, after: int) -> str:
    return f"{label}: the file is {before / max(after, 1):.2f}x smaller ({size(before)} to {size(after)})"


def _value(task: Task, evaluation: Evaluation | None) -> str:
    assert evaluation is not None
    unit = written_unit(task)
    space = "\u00a0" if unit else ""
    return f"{number(task.scale * evaluation.value)}{space}{unit}"
