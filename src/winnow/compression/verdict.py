"""What the figures say, in a sentence or two that a person can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from winnow.compression.outcome import Outcome
from winnow.compression.rivals import baseline, beside, winner
from winnow.compression.sides import LARGE_DROP, SMALL_DROP, Sides, figure
from winnow.measure.chance import too_good
from winnow.measure.compare import Comparison
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task, written_unit
from winnow.records.compression import Baseline, TaskInfo
from winnow.words import ratio, signed, size

Tone = Literal["good", "mixed", "bad"]
# In place of "Trade-off": one of the same run is ahead in size or quality; the figures may not be what they seem.
OTHER, CHECK = "Take another candidate", "Check the figures first"


@dataclass(frozen=True)
class Judgement:
    """The sentence, its tone, what to do next, and the candidate that is the better answer (None: the chosen one is).

    ``baseline``: the plain quantization that stands in the first sentence; ``answer``: see :class:`Verdict`.
    """

    sentence: str
    tone: Tone
    next_step: str
    better: str | None
    baseline: Baseline | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Options:
    """The words for what to change, which differ between a command and a recipe."""

    measure: str = "give evaluation data with `--eval`"
    less: str = (
        "a lower `--sparsity`, or `--max-drop 1` to let winnow find the smallest file that stays within one point"
    )
    smaller: str = "`--values int8`"
    more: str = "`--eval`"
    use: str = "`winnow.load(FOLDER)`"  # how the model is loaded; see how_to_use


COMMAND = Options()


def how_to_use(folder: str | None, *, plain: bool = False, factory: str | None = None) -> str:
    """How the model of a written folder is loaded, in words; a ``plain`` torch model by the code that builds it."""
    if folder is None:
        return "it is `result.model`, and `result.save(FOLDER)` writes it"
    if not plain:
        return f"`winnow.load({folder!r})`, or `from_pretrained` after `import winnow`"
    if factory is not None:
        return f"`winnow.load({folder!r}, factory={factory!r})`"
    return f"`winnow.load({folder!r}, factory=build)`, where `build()` makes the model"


def judge(
    chosen: Outcome,
    others: Sequence[Outcome],
    task: Task | None,
    dense: Evaluation | None,
    dense_file: int,
    next_folder: str,
    limit: int | None = None,
    level: str = "all",
    options: Options | None = None,
) -> Judgement:
    """Compares the chosen candidate with the dense model, the nearest plain quantization, and everything else that was
    measured within its size.

    ``limit``: bytes that were allowed, where a size was requested; otherwise the chosen candidate's own. ``level``: the
    baselines that were asked for.
    """
    options = options or replace(COMMAND, use=how_to_use(next_folder))
    label = chosen.candidate.label
    if chosen.comparison is None or task is None or chosen.evaluation is None or dense is None:
        return unmeasured(label, dense_file, chosen.file_bytes)
    info = TaskInfo(metric=task.metric, unit=written_unit(task), higher_is_better=task.higher_is_better)
    found = baseline(chosen, others, task, limit, level)
    sides = Sides(found, chosen.file_bytes, info)
    worse = moved(info, task.scale * dense.value, task.scale * chosen.evaluation.value, chosen.comparison)
    judged = weigh(label, dense_file, chosen.file_bytes, worse, chosen.comparison, options, sides=sides)
    best = winner(chosen, others, limit)
    if best is None or best.evaluation is None or best.comparison is None:
        return judged
    sentence = judged.sentence
    if tone_of(best.comparison) == "bad":
        value = figure(task.scale * best.evaluation.value, info)
        which = f", the best of it {best.candidate.label} with {value} in {size(best.file_bytes)}"
        sentence = _lost_too_much(label, dense_file, chosen.file_bytes, worse, sides)
        sentence += f" So did everything within that size{which if best.name != found.name else ''}."
        return Judgement(sentence, "bad", f"Ask for less: {COMMAND.less}.", None, found)
    if best.name != found.name:
        if judged.tone == "mixed":  # what it depends on is beside the point where another candidate is ahead
            sentence = f"{_shrank(label, dense_file, chosen.file_bytes)}, {worse}{sides.clause}."
        what = "Store the same zeros in narrower values" if _same_zeros(chosen, best) else "Another candidate is ahead"
        ahead = replace(sides, baseline=beside(chosen, best, task, dominates=True))
        sentence += f" {what}: {ahead.instead}."
    quantized = best.candidate.kind == "quantized"
    step = f"Take that model instead: add `--keep {best.name}` to the command, and it is written to {next_folder}/{best.name}."
    return Judgement(sentence, "bad" if quantized else "mixed", step, best.name, found, None if quantized else OTHER)


def unmeasured(label: str, before: int, after: int, options: Options = COMMAND) -> Judgement:
    """Of a file alone."""
    shrank = (
        f"{_shrank(label, before, after)}. Whether that pays depends on its quality, which was not measured, nor was plain "
        "quantization beside it."
    )
    missing = Baseline(missing="plain quantization is compared where quality is measured")
    return Judgement(shrank, "mixed", f"Measure it: {options.measure}.", None, missing, "Quality not measured")


def weigh(
    label: str,
    before: int,
    after: int,
    worse: str,
    loss: Comparison,
    options: Options = COMMAND,
    *,
    sides: Sides,
) -> Judgement:
    """Of a model by itself, its loss against the model it was made of, and the nearest plain quantization.

    Args:
        label: what it is, as a person reads it.
        before, after: bytes of the file.
        worse: what became of the quality, in words.
        loss: the same in figures.
    """
    tone, found = tone_of(loss), sides.baseline
    if tone == "bad":
        sentence = _lost_too_much(label, before, after, worse, sides)
        return Judgement(sentence, tone, f"Ask for less: {options.less}.", None, found)
    if found.dominates:
        return Judgement(replace(sides, label=label).dominated, "bad", "", found.name, found)
    if before <= after:
        return Judgement(
            f"The file did not get smaller ({size(before)} to {size(after)}): {worse}{sides.clause}.",
            "bad",
            f"Ask for more zeros or narrower values, e.g. {options.smaller}.",
            None,
            found,
        )
    conditions = [*(sides.price(loss, before) if tone == "mixed" else []), *sides.choice]
    depends = f" It depends on {', and on '.join(conditions)}." if conditions else ""
    following = (
        f"Check the examples below that changed; with more evaluation data ({options.more}) the interval narrows."
        if conditions
        else f"Use it: {options.use}."
    )
    sentence = f"{_shrank(label, before, after)}, {worse}{sides.clause}.{depends}"
    return Judgement(sentence, "mixed" if conditions else "good", following, None, found)


def tone_of(loss: Comparison) -> Tone:
    """What a loss is worth saying: good where it is small for certain."""
    if loss.drop != loss.drop or loss.drop > LARGE_DROP:
        return "bad"
    return "good" if loss.high <= SMALL_DROP or loss.drop <= 0 else "mixed"


def moved(info: TaskInfo, before: float, after: float, loss: Comparison) -> str:
    """What became of a figure: "accuracy 97.80% to 97.60% (...)"."""
    return f"{info.metric} {figure(before, info)} to {figure(after, info)} ({change(loss)})"


def _lost_too_much(label: str, before: int, after: int, worse: str, sides: Sides) -> str:
    return f"{_shrank(label, before, after)}, but it lost too much: {worse}{sides.clause}."


def doubtful(judgement: Judgement, doubts: Sequence[str]) -> Judgement:
    """A judgement with what makes its figures doubtful: it praises nothing."""
    if not doubts:
        return judgement
    sentences = " ".join(f"{d[:1].upper()}{d[1:]}" for d in doubts)
    first = (
        "Find out first whether the figures below can be right."
        if judgement.better is not None
        else judgement.next_step
    )
    judgement = replace(judgement, sentence=f"{judgement.sentence} {sentences}", next_step=first)
    return replace(judgement, tone="mixed", answer=CHECK) if judgement.tone == "good" else judgement


def recalibrated_note(task: Task, dense: Evaluation, again: Evaluation, loss: Comparison, samples: int) -> str:
    """What new batch norms alone do to the dense model: a part of every row of the table but its own."""
    info = TaskInfo(unit=written_unit(task))
    before, after = (figure(task.scale * e.value, info) for e in (dense, again))
    note = (
        f"batch norms of every row but the dense one were estimated anew on up to {samples:,} calibration examples; of the "
        f"dense weights that alone makes {task.metric} {after} from {before} ({change(loss)})."
    )
    if too_good(loss):
        note += " The dense model gains by it: its inputs are not what it was trained on, look at how they are fed."
    return note


def _same_zeros(chosen: Outcome, other: Outcome) -> bool:
    mine, its = chosen.candidate.recipe, other.candidate.recipe
    return mine is not None and its is not None and (mine.zeros, mine.structure) == (its.zeros, its.structure)


def change(c: Comparison) -> str:
    """The paired change with its interval as a reader expects the signs: minus is worse (perplexity: plus)."""
    unit, sign = ("%", 1) if c.relative else (" points", -1)
    low, high = sorted((sign * c.low, sign * c.high))
    return f"{signed(sign * c.drop)}{unit}, 95% interval {signed(low)} to {signed(high)}"


def _shrank(label: str, before: int, after: int) -> str:
    return f"{label}: the file is {ratio(before, after)} ({size(before)} to {size(after)})"
