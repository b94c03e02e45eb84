"""What a compression leaves behind: the model, its folder, and the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.compression.checks import check_loadable
from winnow.compression.hosts import dense_tensors, main_dtype, written_names
from winnow.compression.keeping import keep, store_unwritten
from winnow.compression.outcome import Layers, Outcome, Pruned
from winnow.compression.sizes import shard_bytes
from winnow.errors import InputError, disk_errors, meant
from winnow.formats.artifact import ArtifactWriter, read_artifact
from winnow.formats.output import OutputFolder
from winnow.formats.packed import PackedTensor
from winnow.machine.memory import trim_heap
from winnow.masks.ties import tensors_of
from winnow.naming import name_of, nameless, without_paths
from winnow.notebook import Card, Shown

if TYPE_CHECKING:
    from winnow.compression.job import Job
    from winnow.compression.setup import Setup
    from winnow.records.compression import Report
    from winnow.run.store import Store


@dataclass(repr=False)
class Result(Shown):
    """The outcome of ``compress``.

    Attributes:
        outcomes: every candidate that was made and measured, the chosen one first.
        report: what ``report.html`` shows, as data.
        folder: where it was written; None until :meth:`save` when no ``out`` was given.
        url: where it was uploaded, with ``push_to_hub``.
    """

    outcomes: list[Outcome]
    report: Report
    folder: Path | None = None
    _setup: Any = field(default=None, repr=False)
    _written: frozenset[str] = field(default=frozenset(), repr=False)  # candidates, where an ``out`` was given
    _scratch: contextlib.ExitStack | None = field(default=None, repr=False)
    url: str | None = None

    @property
    def chosen(self) -> Outcome:
        return self.outcomes[0]

    @property
    def layers(self) -> Layers:
        """Per-layer zeros, error and bits of the chosen candidate: a list that has ``to_frame()``, too."""
        assert self.chosen.pruned is not None
        return Layers(self.chosen.pruned.layers)

    @property
    def metrics(self) -> dict[str, float]:
        """Flat figures for an experiment tracker; see :attr:`winnow.records.compression.Report.metrics`."""
        return self.report.metrics

    def to_frame(self) -> Any:
        """The candidates as a pandas DataFrame; see :meth:`winnow.records.compression.Report.to_frame`."""
        return self.report.to_frame()

    def plot(self, ax: Any = None) -> Any:
        """Quality against file size on matplotlib axes, which are returned; see :func:`winnow.report.compression.plot.plot`."""
        from winnow.report.compression.plot import plot

        return plot(self.report, ax)

    def _card(self) -> Card:
        said = self.report._card()
        place = ("folder", "" if self.folder is None else str(self.folder))
        return replace(said, kind="Result", facts=[*said.facts, place])

    @property
    def model(self) -> nn.Module:
        """The compressed model, dense in memory with its zeros in place, in eval mode, in the types of the model given.

        Raises:
            InputError: the model was streamed and never whole in memory; load the written folder instead.
        """
        if self._setup.host.streamed:
            raise InputError(f"the model was streamed: load it with winnow.load({str(self.folder)!r}).")
        assert self.chosen.pruned is not None
        self._setup.host.as_stored()
        with self.chosen.pruned.in_place(self._setup.host, self._setup.scope) as model:
            model.winnow_zeros = {layer.name: layer.zeros for layer in self.layers}  # type: ignore[assignment]
            return model

    def save(self, out: str | Path, candidate: str | None = None, *, overwrite: bool = False) -> Path:
        """Writes a candidate's folder (the chosen one unless named) with the report beside the weights.

        Args:
            candidate: its name in the report. Where the compression had an ``out``, the others are written of what
                ``OUT.work`` keeps of them (as by ``winnow keep``).
            overwrite: replace what another job, or another candidate, left there.

        Raises:
            InputError: no such candidate, one that is not kept any more, the folder holds something else, or a model of these shapes could
                not be loaded.
        """
        outcome = next((o for o in self.outcomes if candidate in (None, o.name)), None)  # the chosen one is the first
        if outcome is None:
            names = [o.name for o in self.outcomes]
            raise InputError(
                f"there is no candidate {candidate!r}{meant(candidate, names)}: choose one of {', '.join(names)}."
            )
        check_loadable(self._setup.source)
        job = self._setup.job
        if job.out is not None and outcome.name not in self._written:
            return keep(job.out, outcome.name, out, overwrite=overwrite)
        folder = Path(out)
        made = self._setup.made
        if outcome is not self.chosen or job.keep or len(job.budgets()) > 1:  # else it is what ``out`` would hold
            made["options"] |= {"candidate": outcome.name}
        output = OutputFolder(folder, inputs=inputs_of(self._setup), made=made, overwrite=overwrite)
        try:
            write_folder(self._setup, outcome, output.path)
            if candidate is None:
                from winnow.compression.reporting import sizes_of

                self.report.sizes = sizes_of(self._setup, outcome, output.path)
                _write_report(self.report, job, out, output.path, whole=True)
            output.publish()
        finally:
            output.discard()
        if candidate is None:
            self.folder = folder
        return folder

    def hold(self, scratch: contextlib.ExitStack) -> None:
        """Keeps the packed results alive as long as this object."""
        self._scratch = scratch

    def __del__(self) -> None:
        if self._scratch is not None:
            self._scratch.close()


def finish(
    setup: Setup,
    outcomes: list[Outcome],
    chosen: list[Outcome],
    store: Store,
    *,
    timing: dict[str, float],
    **figures: Any,
) -> Result:
    """Writes the requested folders and the report, of which ``timing`` and ``figures`` are a part.

    The ``store`` of the candidates keeps those that were not written where the job says so, else it is removed.
    """
    from winnow.compression.reporting import build_report
    from winnow.compression.speed import quick_speed

    out = setup.job.out
    kept = [o for o in outcomes if o.name in setup.job.keep and o not in chosen]
    inside: dict[str, str] = {}  # folders by candidate, in the output
    output = None
    if out is not None:
        output = OutputFolder(out, inputs=inputs_of(setup), made=setup.made, overwrite=setup.job.overwrite)
    try:
        if output is not None:
            writing = time.perf_counter()
            inside = {o.name: "" if chosen == [o] else o.name for o in (*chosen, *kept)}
            for name, place in inside.items():
                with disk_errors(output.path):
                    (output.path / place).mkdir(exist_ok=True)
                write_folder(setup, next(o for o in outcomes if o.name == name), output.path / place)
            timing["write"] = time.perf_counter() - writing
        folders = {name: out / place for name, place in inside.items()} if out is not None else {}
        main = inside.get(chosen[0].name)
        report = build_report(
            setup, outcomes, chosen, folders, timing=timing, **figures,
            filled=None if output is None or main is None else output.path / main,
        )  # fmt: skip
        if setup.job.speed:
            report.speed = quick_speed(setup, chosen[0])
        if output is not None:
            assert out is not None
            _write_report(report, setup.job, out, output.path, whole=chosen == outcomes[:1])
            output.publish()
    finally:
        if output is not None:
            output.discard()
    if out is not None:
        others = [o for o in outcomes if o.name not in inside] if setup.job.keep_work else []
        base, size = folders[chosen[0].name], shard_bytes(setup.host)
        if not (
            others and store_unwritten(others, base, store, lambda o, into: write_folder(setup, o, base, into), size)
        ):
            store.remove()
        for outcome in outcomes:  # the stages go; what was written is read from its folder
            assert outcome.pruned is not None
            outcome.pruned.packed = _from_folder(folders.get(outcome.name), outcome.name, setup.host.stored)
    return Result([*chosen, *(o for o in outcomes if o not in chosen)], report, out, setup, frozenset(inside))


def inputs_of(setup: Setup) -> list[Any]:
    """What a job reads, of which no output may take the place."""
    job, source = setup.job, setup.source
    return [source.origin.folder, source.weights, job.data, job.eval, job.compare_with, job.vocabulary]


def _write_report(report: Report, job: Job, out: str | Path, folder: Path, *, whole: bool) -> None:
    """Files are given away: names stand in place of the paths that the person typed.

    ``whole``: the folder is one candidate's, and gets a model card.
    """
    from winnow.report.compression import card
    from winnow.report.compression.page import write

    typed = [job.model, job.data, job.eval, job.weights, job.out, job.compare_with, out]
    report = type(report).model_validate(without_paths(report.model_dump(), typed))
    write(report, folder)
    if whole:
        card.write(report, folder)


def write_folder(setup: Setup, outcome: Outcome, folder: Path, into: ArtifactWriter | None = None) -> Path:
    """Fills a folder with one candidate, to load: packed weights, everything dense as it was, companions and provenance.

    ``into``: what takes it, in place of a writer of the whole folder.
    """
    assert outcome.pruned is not None and outcome.candidate.recipe is not None
    source, host = setup.source, setup.host
    with into or ArtifactWriter(folder, shard_bytes(host), publish=False) as writer:
        for name, tensor in _dense(setup, outcome.pruned):
            writer.add_dense(name, tensor)
        for name, prunable in (setup.scope.prunables | outcome.pruned.rest).items():
            for written in written_names(host, name):
                # A tied head is stored under the embedding's name; the module that multiplies by it stays the head.
                writer.add_packed(replace(prunable, name=written), outcome.pruned.packed(name))
            if host.streamed:
                trim_heap()
        config = None
        if source.config is not None:
            config = nameless(source.config.to_dict())
            for key in ("quantization_config", "transformers_weights"):  # how the weights given were stored
                config.pop(key, None)
            config["architectures"] = config.get("architectures") or [type(host.model).__name__]
            if (dtype := main_dtype(host)) is not None:  # which is what from_pretrained will make of all
                config["dtype"] = str(dtype).removeprefix("torch.")
        else:
            for name, stored in host.stored.items():
                if name != stored:
                    writer.add_alias(name, stored)
        beside = source.companions([setup.job.data, setup.job.eval])
        recipe, origin = outcome.candidate.recipe.key(), manifest(setup, outcome)
        return writer.finish(config=config, files=beside.files, recipe=recipe, manifest=origin, factory=source.factory)


def manifest(setup: Setup, outcome: Outcome) -> dict[str, Any]:
    """Where a folder comes from and what was measured of it; nothing in it changes from run to run but the figures."""
    from winnow.records.parts import finite
    from winnow.version import __version__

    e = outcome.evaluation
    return {
        "parent": {"model": name_of(setup.source.spec), "sha256": setup.source.origin.sha256()},
        "data": setup.prepared.hashes,
        "candidate": outcome.name,
        "versions": {"winnow": __version__, "torch": torch.__version__},
        "seed": setup.job.seed,
        "zeros": sum(layer.zeros for layer in outcome.pruned.layers) if outcome.pruned else 0,
        "metrics": {} if e is None else finite(dict(metric=e.metric, value=e.value, low=e.low, high=e.high, n=e.n)),
    }


def _dense(setup: Setup, pruned: Pruned) -> Iterator[tuple[str, torch.Tensor]]:
    """What is written beside the packed tensors: as it was, but for what calibration changed, and for views of memory
    of which a packed tensor is another view."""
    host, scope = setup.host, setup.scope
    changed = {host.first[name]: tensor for name, tensor in pruned.extra.items()}
    views = host.views_of(scope)
    packed = {host.first[name] for name in pruned.rest}
    for name, tensor in dense_tensors(host, scope):
        if host.first[name] in packed:
            continue
        if host.first[name] in changed:
            yield name, changed[host.first[name]].to(tensor.dtype)
        elif name in views:
            with pruned.in_place(host, scope) as model:
                yield name, tensors_of(model)[name].detach().to(tensor.dtype, copy=True)
        else:
            yield name, tensor


def _from_folder(folder: Path | None, name: str, stored: dict[str, str]) -> Callable[[str], PackedTensor]:
    if folder is None:

        def removed(_: str) -> PackedTensor:
            raise InputError(f"{name} was measured and not written: result.save(FOLDER, candidate={name!r}) writes it.")

        return removed
    artifact = read_artifact(folder)
    return lambda tensor: artifact.packed(stored[tensor])
