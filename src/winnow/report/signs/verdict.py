"""A record of signs in one sentence."""

from __future__ import annotations

from winnow import words
from winnow.records.compression import TaskInfo, Verdict
from winnow.records.signs import SignArm, SignReport, SignRun
from winnow.records.ticket import Figure
from winnow.report.compression import phrases


def told(run: SignRun, title: str, command: str | None = None) -> SignReport:
    """The record of one training."""
    first, last = run.points[0], run.points[-1]
    said = f"After {words.count(last.step)} steps {words.percent(last.flip_share) or 'none'} of the kept weights have another sign than at initialisation"
    if last.alignment is not None:
        said += f"; {words.percent(last.alignment)} have the reference’s sign ({words.percent(first.alignment)} at the start)"
    healths = [p.health for p in run.points if p.health is not None]
    if healths:
        said += f"; beta fell to {words.percent(min(healths))} of its target at its lowest"
    verdict = Verdict(sentence=f"{said}.", tone="mixed", answer="Signs recorded")
    return SignReport(title=title, command=command, verdict=verdict, runs=[run], steps=last.step)


def judge(report: SignReport) -> Verdict:
    """What the ablation says at its highest sparsity."""
    level, task = report.levels[-1], report.task
    arms = {arm.name: arm for arm in report.arms if arm.sparsity == level}
    found = report.contrast("signs", "magnitudes", level)
    assert found is not None

    def reaches(arm: SignArm) -> str:
        return phrases.quality(arm.figure.value, task)

    said = (
        f"At {words.percent(level)} sparsity the learned signs with random magnitudes reach {reaches(arms['signs'])}, the learned "
        f"magnitudes with random signs {reaches(arms['magnitudes'])}: {difference(found.gain, task)}"
    )
    said += f", paired over {len(report.seeds)} seeds." if len(report.seeds) > 1 else ", of one seed."
    sign_in = report.contrast("sign-in", "random", level)
    if sign_in is not None:
        said += (
            f" From a random start Sign-In reaches {reaches(arms['sign-in'])}, plain training {reaches(arms['random'])}: "
            f"{difference(sign_in.gain, task)}."
        )
    low, high = found.gain.low, found.gain.high
    if low is None or high is None or low <= 0 <= high:
        return Verdict(sentence=said, tone="mixed", answer="Not told apart")
    return Verdict(sentence=said, tone="good", answer="Signs matter more" if low > 0 else "Magnitudes matter more")


def difference(gain: Figure, task: TaskInfo) -> str:
    """A paired difference with its interval: "+4.10 points (+2.20 to +6.00)"."""
    text = words.amount(words.signed(gain.value), "points" if task.unit == "%" else task.unit)
    return phrases.with_interval(text, interval(gain))


def interval(gain: Figure) -> str:
    if gain.low is None or gain.high is None:
        return ""
    return f"{words.signed(gain.low)} to {words.signed(gain.high)}"
