"""``sign_ablation``: are a learned mask's signs worth more than its magnitudes?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from winnow.disk.made import describe
from winnow.disk.work import check_made, check_output, work_folder
from winnow.errors import InputError
from winnow.formats.output import OutputFolder
from winnow.machine.facts import machine
from winnow.masks.unwrap import plain_module
from winnow.models.modules import build
from winnow.models.source import open_model
from winnow.naming import without_paths
from winnow.records.compression import ModelInfo, Verdict
from winnow.records.signs import SignArm, SignContrast, SignReport
from winnow.records.ticket import Figure, MethodLine
from winnow.report.signs.verdict import judge
from winnow.run.store import Store, stage_key
from winnow.seeding import torch_seed
from winnow.terminal.progress import Expected, ProgressOption, expect, watch
from winnow.tickets.audit import pooled
from winnow.tickets.reporting import ends_of, scale_of, task_of
from winnow.tickets.signs.arms import NAMES, TEACHER, Trained, Trial
from winnow.tickets.verb import sparsities
from winnow.train.signs import sign_run
from winnow.train.task.check import check_training
from winnow.train.task.from_data import training_from
from winnow.train.task.given import whole
from winnow.train.task.identity import training_identity
from winnow.train.task.starting_model import in_float
from winnow.train.task.training import Training, sgd

CONTRASTS = (("signs", "magnitudes"), ("signs", "random"), ("magnitudes", "random"), ("initial", "random"), ("sign-in", "random"), (TEACHER, "random"))  # fmt: skip
DEMO = "winnow.demo_data:digits_mlp"
DEMO_TRAINING: dict[str, Any] = dict(
    epochs=25, batch=64, lr=0.1, weight_decay=5e-4, optimizer=sgd, schedule="cosine", clip=None, include=("head.weight",)
)  # fmt: skip
Fresh = Callable[[int], nn.Module]


def sign_ablation(
    model: Any = None,
    data: Any = None,
    *,
    sparsity: float | str | Sequence[float | str] = 0.95,
    seeds: int = 3,
    out: str | Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
    progress: ProgressOption = None,
    **training: Any,
) -> SignReport:
    """Trains a learned mask anew from its learned signs, from its learned magnitudes, and from neither.

    A dense network is pruned by gradual magnitude while it trains (masks shrink from a quarter to three quarters of the steps).
    Then its mask is trained for as many steps from: the learned signs with random magnitudes; the learned magnitudes with random
    signs; random weights (normal, variance 2 over the mean kept fan-in); the same random weights by
    :class:`winnow.train.SignIn`; and the weights that the dense network began with. The arms of one seed share mask, batches and
    the draw, so that differences are paired. (Gadhikar et al. 2025, arXiv 2504.12801; signs against magnitudes of tickets: Zhou
    et al. 2019, arXiv 1905.01067.)

    Args:
        model: ``"package.module:function"`` or a function without arguments, which makes other initial weights for every seed; or a
            module, a Hugging Face folder or name, a :class:`winnow.tickets.Training` or a ``transformers.Trainer``, from which every
            seed starts. None: a small network on scikit-learn's digits, with settings of its own where ``training`` has none.
        data: labelled data, as for :func:`winnow.tickets.training_from`.
        sparsity: target sparsity of the prunable weights, or several, rising.
        seeds: trainings of each arm; intervals need three.
        out: folder for signs.json and signs.html. Finished trainings are kept in ``OUT.work`` meanwhile: an ablation that was
            killed goes on where it stood when it is called again.
        overwrite: replace the finished result of another command in ``out``.
        command: shown on the page.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.
        training: keywords of :func:`winnow.tickets.training_from`: ``steps``, ``epochs``, ``batch``, ``lr``, ``optimizer``, ``eval``,
            ``seed`` (of the first), ...

    Raises:
        InputError: an argument, the model or the data must change; the sentence says what.
    """
    rates, count = sparsities(sparsity), whole("seeds", seeds, 1)
    folder = None if out is None else Path(out)
    typed = (model, data, training.get("eval"), training.get("weights"))
    if folder is not None:
        check_output(folder, "signs", inputs=typed)
    first, fresh = _training(model, data, training)
    numbers = [first.seed + i for i in range(count)]
    trainings = [_of_seed(first, fresh, number) for number in numbers]
    check_training(trainings[0])
    if first.evaluate is None:
        raise InputError("the arms are compared by their quality: give labelled data, or evaluation data with eval.")
    numel = first.scope().numel
    with contextlib.ExitStack() as stack:
        store, key, made = None, "signs", None
        if folder is not None:
            identity = training_identity(trainings[0])
            made = describe("signs", {"sparsity": rates, "seeds": numbers}, identity)
            check_made(folder, made, overwrite)
            store = Store(work_folder(folder))
            stack.callback(store.release)
            check_made(folder, made, overwrite)  # under the lock: another ablation may just have finished
            key = stage_key("signs", training=identity, seeds=numbers)
        stages = stack.enter_context(watch(progress))
        expect(stages, [Expected("*", "training")] * (len(NAMES) * len(rates) * count))
        found = {rate: [Trial(t, rate, store, key, stages).all() for t in trainings] for rate in rates}
        report = _report(found, first, numbers, numel, _named(model, first))
        report.command = command
        if folder is not None and store is not None:
            _write(report, folder, [*typed, folder], made, overwrite)
            store.remove()
    return report


def _training(model: Any, data: Any, options: dict[str, Any]) -> tuple[Training, Fresh | None]:
    """The first seed's training, and what makes the initial weights of a seed."""
    ready = isinstance(model, Training)
    if ready or (hasattr(model, "compute_loss") and hasattr(model, "get_train_dataloader")):
        if options or data is not None:
            kind = "Training" if ready else "Trainer"
            raise InputError(f"a {kind} says all about its data and training: leave the rest out, or change it there.")
        if ready:
            return model, None
        from winnow.train.task.from_trainer import training_from_trainer

        return training_from_trainer(model), None
    if model is None:
        if data is not None:
            raise InputError("there is data and no model: give the model that is trained on it.")
        from winnow.demo_data import digits

        records = digits(0)
        (images, labels), (test, answers) = records["train"], records["test"]
        demo: dict[str, Any] = {"eval": {"images": test, "labels": answers}} | DEMO_TRAINING
        if "steps" in options:
            demo.pop("epochs")
        options = demo | options
        model, data = DEMO, {"images": images, "labels": labels}
    if callable(model) and not isinstance(model, nn.Module):
        fresh: Fresh = partial(_called, model)
        return training_from(fresh(whole("seed", options.get("seed", 0))), data, **options), fresh
    source = model
    if not isinstance(model, nn.Module):
        source = open_model(model, options.get("weights"), trust_remote_code=options.get("trust_remote_code", False))
    training = training_from(source, data, **options)
    if (
        isinstance(source, nn.Module)
        or source.factory is None
        or source.folder is not None
        or source.weights is not None
    ):
        note = "every seed starts from the same weights: seeds differ in batches, dropout and what is drawn."
        training.notes.append(note)
        return training, None
    return training, lambda seed: build(source.factory, seed=seed)


def _called(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch_seed(seed):
        return plain_module(factory())


def _of_seed(training: Training, fresh: Fresh | None, seed: int) -> Training:
    if fresh is None:
        return training.replaced(seed=seed)
    return training.replaced(seed=seed, model=in_float(fresh(seed), [], {}).eval())


def _named(model: Any, training: Training) -> str:
    return Path(model).name if isinstance(model, (str, Path)) else type(training.model).__name__


def _report(
    found: dict[float, list[dict[str, Trained]]], training: Training, seeds: list[int], numel: int, name: str
) -> SignReport:
    evaluations = [t.evaluation for trials in found.values() for arms in trials for t in arms.values()]
    task, scale = task_of(evaluations, None), scale_of(evaluations[0])
    arms, contrasts, runs = [], [], []
    for rate, trials in found.items():
        values = {n: [scale * arms[n].evaluation.value for arms in trials] for n in NAMES}
        losses = {n: [arms[n].loss for arms in trials] for n in NAMES}
        arms += [
            SignArm(
                name=n, sparsity=rate, zeros=round(rate * numel), figure=_over_seeds(values[n], ends_of(task)),
                loss=_over_seeds(losses[n], (0.0, math.inf)), values=values[n], losses=losses[n],
            )
            for n in NAMES
        ]  # fmt: skip
        toward = 1 if task.higher_is_better else -1
        for one, other in CONTRASTS:
            gains = [toward * (a - b) for a, b in zip(values[one], values[other], strict=True)]
            lower = [b - a for a, b in zip(losses[one], losses[other], strict=True)]
            contrasts.append(
                SignContrast(first=one, second=other, sparsity=rate, gain=_over_seeds(gains), loss=_over_seeds(lower))
            )
        runs += [sign_run([arms[n].signs for arms in trials], n, rate) for n in NAMES]
    settings = {
        "steps": training.steps, "batch": training.examples.size, "optimizer": getattr(training.optimizer, "__name__", ""),
        "lr": training.lr, "weight_decay": training.weight_decay, "schedule": getattr(training.schedule, "__name__", ""),
        "clip": training.clip, "precision": training.precision,
    }  # fmt: skip
    report = SignReport(
        title=f"Signs against magnitudes: {name}", created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        verdict=Verdict(sentence=""), task=task, runs=runs, arms=arms, contrasts=contrasts, described={n: MethodLine(title=title, brief=brief) for n, (title, brief) in NAMES.items()}, seeds=seeds,
        reference="the dense-to-sparse result",
        model=ModelInfo(
            name=name, architecture=type(training.model).__name__, prunable=numel,
            parameters=sum(p.numel() for p in training.model.parameters()),
        ),
        steps=training.steps, notes=list(training.notes), settings=settings, machine=machine(),
    )  # fmt: skip
    report.verdict = judge(report)
    return report


def _over_seeds(values: list[float], ends: tuple[float, float] = (-math.inf, math.inf)) -> Figure:
    found = pooled([Figure(value=v) for v in values], ends)
    assert found is not None
    return found


def _write(report: SignReport, folder: Path, given: list[Any], made: dict[str, Any] | None, overwrite: bool) -> None:
    from winnow.report.signs.page import write

    output = OutputFolder(folder, "signs", inputs=given[:-1], made=made, overwrite=overwrite)
    try:
        write(type(report).model_validate(without_paths(report.model_dump(), given)), output.path)
        output.publish()
    except BaseException:
        output.discard()
        raise
