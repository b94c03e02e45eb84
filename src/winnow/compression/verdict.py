"""What the figures say, in one sentence a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from winnow.compression.prepare import written_unit
from winnow.compression.runner import Outcome
from winnow.measure.compare import Comparison
from winnow.measure.quality import Evaluation, Task
from winnow.report.words import number, signed, size

if TYPE_CHECKING:
    from winnow.report.schema import Candidate

SMALL_DROP = 1.0  # points, or per cent of perplexity: what most users accept without asking
LARGE_DROP = 5.0
Tone = Literal["good", "mixed", "bad"]


@dataclass(frozen=True)
class Judgement:
    """The sentence, its tone, what to do next, and the candidate that is the better answer (None: the chosen one is)."""

    sentence: str
    tone: Tone
    next_step: str
    better: str | None


@dataclass(frozen=True)
class Options:
    """How what to change is said, which differs between a command and a recipe."""

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
) -> Judgement:
    """Compares the chosen candidate with the dense model and with plain quantization of at most its size."""
    label = chosen.candidate.label
    if chosen.comparison is None or task is None or chosen.evaluation is None or dense is None:
        return unmeasured(label, dense_file, chosen.file_bytes)
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


def winner(chosen: Outcome, others: Sequence[Outcome]) -> Outcome | None:
    """The smallest candidate that is no larger than ``chosen`` and measured no worse, strictly ahead in one; or None.

    Plain quantization that was asked for is never overruled by it: only a smaller or better model is.
    """
    number = _best(_standing(chosen), [_standing(o) for o in others])
    return None if number is None else others[number]


def winning_row(chosen: Candidate, others: Sequence[Candidate]) -> Candidate | None:
    """:func:`winner` among the rows of a report."""
    number = _best((chosen.file_bytes, chosen.drop), [(c.file_bytes, c.drop) for c in others])
    return None if number is None else others[number]


def _standing(outcome: Outcome) -> tuple[int | None, float | None]:
    return outcome.file_bytes, None if outcome.comparison is None else outcome.comparison.drop


def _best(mine: tuple[int | None, float | None], others: Sequence[tuple[int | None, float | None]]) -> int | None:
    """The number of the first one ahead, by bytes and drop; None where there is none or ``mine`` was not measured."""
    bytes_, drop = mine
    if bytes_ is None or drop is None:
        return None
    ahead = [
        (b, d, i)
        for i, (b, d) in enumerate(others)
        if b is not None and d is not None and b <= bytes_ and d <= drop and (b < bytes_ or d < drop)
    ]
    return min(ahead)[2] if ahead else None


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
