"""``run --poc``: a recipe's ticket stage tried for a few minutes before the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.disk.work import work_folder
from winnow.errors import InputError
from winnow.pipeline.located import located
from winnow.pipeline.materials import Materials, Standing, open_materials
from winnow.pipeline.reading import read_recipe
from winnow.pipeline.schema import Evaluate, Pipeline, Ticket, Train
from winnow.pipeline.stages import Progress, keys, standing, training
from winnow.run.store import unsealed

if TYPE_CHECKING:
    from winnow.tickets.trial.verdict import Verdict


def try_recipe(
    recipe: str | Path,
    minutes: float,
    out: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    progress: Progress | None = None,
) -> Verdict:
    """A trial in minutes of a recipe's ticket stage: whether the whole run is worth it. Writes nothing.

    The training is the stage's own, shrunk; see :func:`winnow.tickets.trial.verb.poc`. The ticket may lose what the first
    ``max_drop`` of an eval stage after it allows, without one the 2 points that trials allow. A ticket that starts from the train
    stage's model starts from it here where ``OUT.work`` has that model, else from the recipe's, and the reasons say so.

    Args:
        minutes: that the trial may take, about.
        out: folder that the run would write.

    Raises:
        InputError: no minutes, no ticket stage, too few minutes for any trial, or what :func:`winnow.pipeline.verb.run_recipe` would refuse.
    """
    if not 0 < minutes < math.inf:
        raise InputError(f"a trial of {minutes:g} minutes is none: give more than 0, such as --poc 3.")
    pipeline = read_recipe(recipe, sets)
    number = next((i for i, s in enumerate(pipeline.stages) if isinstance(s, Ticket)), None)
    if number is None:
        raise InputError(f"{recipe} has no ticket stage to try: run it without --poc, or add a ticket.")
    from winnow.tickets.trial.size import TooShort
    from winnow.tickets.trial.verb import poc

    stage = pipeline.stages[number]
    with located(recipe, sets):
        found = open_materials(pipeline)
        start = _trained(found, number, out) if stage.start == "before" else None
        short = training(stage, start or found.given, found)
    try:
        verdict = poc(
            short, stage.sparsity, minutes=minutes, methods=(stage.method, "magnitude", "dense"), settings=stage.settings,
            progress=progress, **_limit(pipeline, number),
        )  # fmt: skip
    except TooShort as error:  # methods and seeds are not chosen here
        raise InputError(f"{error.finding}: give --poc {error.minutes:g} or more.") from None
    if start is None and stage.start == "before" and pipeline.before(number, Train) is not None:
        verdict.reasons.append("The train stage is not finished: the trial started from the recipe's model.")
    return verdict


def _limit(pipeline: Pipeline, number: int) -> dict[str, Any]:
    """What the ticket of stage ``number`` may lose: as the gate after it says, if there is one."""
    gates = [s.max_drop for s in pipeline.stages[number + 1 :] if isinstance(s, Evaluate) and s.max_drop is not None]
    return {"max_drop": gates[0]} if gates else {}


def _trained(found: Materials, number: int, out: str | Path | None) -> Standing | None:
    """The model of the train stage before stage ``number``, where an earlier run has left it."""
    for i, stage in enumerate(found.pipeline.stages[:number]):
        if isinstance(stage, Train) and out is not None:
            key = keys(found)[i]
            root = work_folder(Path(out))
            folder = root / key / found.label
            if unsealed(root / f"{key}.json") is not None and folder.is_dir():
                return standing(folder, found, key, f"stage {i + 1} (train)")
    return None
