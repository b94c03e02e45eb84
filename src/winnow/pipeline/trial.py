"""``run --poc``: a recipe's ticket stage tried for a few minutes before the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from winnow.disk.work import work_folder
from winnow.errors import InputError
from winnow.pipeline.inputs import Checkpoint, RecipeInputs, open_inputs
from winnow.pipeline.reading import located, read_recipe
from winnow.pipeline.stages.eval import Evaluate
from winnow.pipeline.stages.ticket import Ticket
from winnow.pipeline.stages.train import Train
from winnow.run.store import unsealed
from winnow.terminal.progress import ProgressOption
from winnow.tickets.trial.verdict import Verdict


def try_recipe(
    recipe: str | Path,
    minutes: float,
    out: str | Path | None = None,
    *,
    sets: Sequence[str] = (),
    progress: ProgressOption = None,
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
    number = pipeline.index(Ticket)
    if number is None:
        raise InputError(f"{recipe} has no ticket stage to try: run it without --poc, or add a ticket.")
    from winnow.tickets.trial.size import TooShort
    from winnow.tickets.trial.verb import poc

    stage = pipeline.stages[number]
    with located(recipe, sets):
        inputs = open_inputs(pipeline)
        start = _trained(inputs, number, out) if stage.start == "before" else None
        training = stage.training(start or inputs.model, inputs)
    gates = [s.max_drop for s in pipeline.stages[number + 1 :] if isinstance(s, Evaluate) and s.max_drop is not None]
    limit: dict[str, Any] = {"max_drop": gates[0]} if gates else {}
    try:
        verdict = poc(
            training, stage.sparsity, minutes=minutes, methods=(stage.method, "magnitude", "dense"), settings=stage.settings,
            progress=progress, **limit,
        )  # fmt: skip
    except TooShort as error:  # methods and seeds are not chosen here
        raise InputError(f"{error.finding}: give --poc {error.minutes:g} or more.") from None
    if start is None and stage.start == "before" and pipeline.index(Train, before=number) is not None:
        verdict.reasons.append("The train stage is not finished: the trial started from the recipe's model.")
    return verdict


def _trained(inputs: RecipeInputs, number: int, out: str | Path | None) -> Checkpoint | None:
    """The model of the train stage before stage ``number``, where an earlier run has left it."""
    train = inputs.pipeline.index(Train, before=number)
    if train is None or out is None:
        return None
    root, key = work_folder(Path(out)), inputs.keys()[train]
    folder = root / key / inputs.label
    done = unsealed(root / f"{key}.json") is not None and folder.is_dir()
    return inputs.checkpoint(folder, train, key) if done else None
