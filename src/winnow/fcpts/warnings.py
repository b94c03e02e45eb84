"""What a reader should know before trusting a learned allocation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from winnow.words import listed

if TYPE_CHECKING:
    from winnow.records.allocation import AllocationRecord

SMALL = 10_000  # prunable weights
FEW, FEW_PER_CLASS = 256, 10  # calibration examples
WIDE, UNLIKE = 0.05, 0.8  # spread and correlation over seeds
OFF = 0.01  # between the rate the thresholds came to and the requested one
LIMIT = 0.99  # of a group
NO_BETTER = 0.9  # of the loss of a model that always gives the same answer


def warnings_for(
    record: AllocationRecord,
    *,
    quality: float | None = None,
    floor: float | None = None,
    examples: int,
    classes: int | None = None,
) -> list[str]:
    """One sentence for every reason to doubt the result, the gravest first; empty if there is none.

    Args:
        quality: of the pruned model, in the unit of ``floor``; higher is better.
        floor: the quality below which to warn.
        examples: of the calibration data.
        classes: width of the outputs, where they are classes.
    """
    found: list[str | None] = []
    if quality is not None and floor is not None and not quality >= floor:  # NaN is below every floor
        found.append(f"Quality is {quality:.4g}, below the floor of {floor:g}: take a lower sparsity or more steps.")
    found.append(_collapsed(record))
    if record.numel is not None and record.numel < SMALL:
        found.append(
            f"The model has only {record.numel:,} prunable weights: below {SMALL:,} there is little to gain and "
            "single weights count, so look at the quality closely."
        )
    found += [_few(examples, classes), _one_sided(record, examples)]
    stability = record.stability
    if stability is not None and (
        (stability.spread is not None and stability.spread > WIDE)
        or (stability.correlation is not None and stability.correlation < UNLIKE)
    ):
        found.append(
            f"The allocation is unstable: over {stability.seeds} seeds a layer's rate spreads by up to "
            f"{_figure(stability.spread)} and the rates correlate at {_figure(stability.correlation)} "
            f"(steady: at most {WIDE:g} and at least {UNLIKE:g}); take more calibration data or more steps."
        )
    if record.raw_rate is not None and record.target is not None and abs(record.raw_rate - record.target) > OFF:
        found.append(
            f"The thresholds came to a rate of {record.raw_rate:.4f} where {record.target:.4f} was requested: the exact "
            "selection made up the difference after training; take more steps or a larger penalty (--set penalty=)."
        )
    if spent := [layer.name for layer in record.layers if _at_limit(layer.rate, layer.numel)]:
        found.append(
            f"{'A layer is' if len(spent) == 1 else f'{len(spent)} layers are'} at the limit, {LIMIT:.0%} pruned "
            f"({listed(spent, 3)}): what the limit kept there was pruned in other layers; use a lower sparsity."
        )
    return [sentence for sentence in found if sentence is not None]


def _few(examples: int, classes: int | None) -> str | None:
    enough = max(FEW, FEW_PER_CLASS * (classes or 0))
    if examples >= enough:
        return None
    why = f"{FEW_PER_CLASS} for each of {classes} classes; " if enough > FEW else ""
    return f"Only {examples:,} calibration examples; use at least {enough:,} ({why}see --samples)."


def _collapsed(record: AllocationRecord) -> str | None:
    """Training that broke down: from a step too large on, whatever goes in, the same comes out."""
    if record.constant is None or not record.losses:
        return None
    last = record.losses[-max(len(record.losses) // 10, 1) :]
    if sum(last) / len(last) < NO_BETTER * record.constant:
        return None
    return (
        f"The model ends no better than one that always gives the same answer (loss {sum(last) / len(last):.3g}, that one's is "
        f"{record.constant:.3g}): halve the learning rate (--set lr=), set a smaller clip, or take a lower sparsity."
    )


def _one_sided(record: AllocationRecord, examples: int) -> str | None:
    """Data sorted by class, of which only the beginning was taken, is a common accident."""
    if record.answers is None or record.classes is None:
        return None
    if record.answers > 1 and 2 * record.answers >= min(record.classes, examples):
        return None
    return (
        f"On the calibration data the dense model gives only {record.answers} of its {record.classes} answers: "
        "shuffle the data, or take a part that holds every class."
    )


def _at_limit(rate: float, numel: int) -> bool:
    """Whether no further whole weight may be pruned."""
    pruned = round(rate * numel)
    return pruned > 0 and pruned >= int(LIMIT * numel)


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
