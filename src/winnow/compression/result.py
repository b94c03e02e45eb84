"""What a compression leaves behind: the model, its folder, and the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from winnow.compression.hosts import dense_tensors
from winnow.compression.prune import LayerOutcome, Pruned
from winnow.compression.runner import Outcome, Runner
from winnow.errors import InputError
from winnow.formats.artifact import ArtifactWriter, is_artifact, read_artifact
from winnow.formats.packed import PackedTensor
from winnow.measure.memory import give_back
from winnow.naming import name_of, nameless, without_paths

if TYPE_CHECKING:
    from winnow.compression.job import Job
    from winnow.compression.verb import Setup
    from winnow.report.schema import Report


def check_output(folder: Path) -> None:
    """Refuses a folder that holds something winnow did not write, before any work. Raises InputError."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another --out.")
    if any(folder.iterdir()) and not is_artifact(folder) and not (folder / "report.json").exists():
        raise InputError(f"{folder} holds something that is not winnow's: choose another --out, or empty it.")


STREAMED_SHARD = 64 << 20  # bytes


@dataclass
class Result:
    """The outcome of ``compress``.

    Attributes:
        outcomes: every candidate that was made and measured, the chosen one first.
        report: what ``report.html`` shows, as data.
        folder: where it was written; None until :meth:`save` when no ``out`` was given.
    """

    outcomes: list[Outcome]
    report: Report
    folder: Path | None = None
    _setup: Any = field(default=None, repr=False)
    _runner: Any = field(default=None, repr=False)
    _scratch: contextlib.ExitStack | None = field(default=None, repr=False)

    @property
    def chosen(self) -> Outcome:
        return self.outcomes[0]

    @property
    def layers(self) -> list[LayerOutcome]:
        """Per-layer zeros, error and bits of the chosen candidate."""
        assert self.chosen.pruned is not None
        return self.chosen.pruned.layers

    @property
    def model(self) -> nn.Module:
        """The compressed model, dense in memory with its zeros in place, in eval mode.

        Raises:
            InputError: the model was streamed and never whole in memory; load the written folder instead.
        """
        if self._setup.host.streamed:
            raise InputError(f"the model was streamed: load it with winnow.load({str(self.folder)!r}).")
        assert self.chosen.pruned is not None
        with self._setup.host.with_weights(
            self._runner.weights(self.chosen.pruned), self._setup.scope, self.chosen.pruned.extra
        ) as model:
            return model

    def save(self, out: str | Path, candidate: str | None = None) -> Path:
        """Writes a candidate's folder (the chosen one unless named) with the report beside the weights.

        Raises:
            InputError: no such candidate, or the folder holds something else.
        """
        outcome = self.chosen if candidate is None else next((o for o in self.outcomes if o.name == candidate), None)
        if outcome is None:
            raise InputError(
                f"there is no candidate {candidate!r}: choose one of {', '.join(o.name for o in self.outcomes)}."
            )
        folder = write_folder(self._setup, self._runner, outcome, Path(out))
        if candidate is None:
            from winnow.report import card
            from winnow.report.html import write

            given = public(self.report, self._setup.job, out)
            write(given, folder)
            card.write(given, folder)
            self.folder = folder
        return folder

    def hold(self, scratch: contextlib.ExitStack) -> None:
        """Keeps the packed results alive as long as this object."""
        self._scratch = scratch

    def __del__(self) -> None:
        if self._scratch is not None:
            self._scratch.close()


def finish(
    setup: Setup, runner: Runner, outcomes: list[Outcome], chosen: list[Outcome], *, started: float, command: str | None
) -> Result:
    """Writes the folders asked for and the report."""
    from winnow.compression.reporting import build_report
    from winnow.compression.speed import quick_speed
    from winnow.report import card
    from winnow.report.html import write

    out = setup.job.out
    kept = [o for o in outcomes if o.name in setup.job.keep and o not in chosen]
    folders: dict[str, Path] = {}
    if out is not None:
        writing = time.perf_counter()
        folders = {o.name: out if chosen == [o] else out / o.name for o in (*chosen, *kept)}
        for name in folders:
            outcome = next(o for o in outcomes if o.name == name)
            write_folder(setup, runner, outcome, folders[name])
        _real_sizes(outcomes, folders)
        runner.timing["write"] = time.perf_counter() - writing
    report = build_report(setup, runner, outcomes, chosen, folders, started=started, command=command)
    if setup.job.speed:
        report.speed = quick_speed(setup, runner, chosen[0])
    result = Result([*chosen, *(o for o in outcomes if o not in chosen)], report, out, setup, runner)
    if out is not None:
        for outcome in outcomes:  # the scratch store goes; what was written is read from its folder
            assert outcome.pruned is not None
            outcome.pruned.packed = _from_folder(folders.get(outcome.name), outcome.name)
        given = public(report, setup.job, out)
        write(given, out)
        if chosen == outcomes[:1]:
            card.write(given, out)
    return result


def public(report: Report, job: Job, out: str | Path) -> Report:
    """The report as files hold it, which are given away: names in place of the paths that the person typed."""
    given = [job.model, job.data, job.eval, job.weights, job.out, job.compare_with, out]
    return type(report).model_validate(without_paths(report.model_dump(), given))


def _real_sizes(outcomes: list[Outcome], folders: dict[str, Path]) -> None:
    """File sizes as written; what headers and padding came to there is added to the ones that were only reckoned."""
    overhead = 0
    for outcome in outcomes:
        if outcome.name in folders:
            size = sum(f.stat().st_size for f in folders[outcome.name].glob("*.safetensors"))
            overhead = overhead or size - outcome.file_bytes
            outcome.file_bytes = size
    for outcome in outcomes:
        if outcome.name not in folders:
            outcome.file_bytes += overhead


def write_folder(setup: Setup, runner: Runner, outcome: Outcome, folder: Path) -> Path:
    """One candidate as a folder that loads: packed weights, everything dense as it was, companions and provenance."""
    assert outcome.pruned is not None and outcome.candidate.recipe is not None
    source, host = setup.source, setup.host
    # A streamed model is written in small shards too: what waits for its shard waits in memory.
    with ArtifactWriter(folder, STREAMED_SHARD) if host.streamed else ArtifactWriter(folder) as writer:
        for name, tensor in _dense(host, setup, outcome.pruned):
            writer.add_dense(name, tensor)
        for name, prunable in setup.scope.prunables.items():
            writer.add_packed(prunable, outcome.pruned.packed(name))
            if host.streamed:
                give_back()
        config = None
        if source.config is not None:
            config = source.config.to_dict()
            config = nameless(config)
            config.pop("quantization_config", None)
            config["architectures"] = config.get("architectures") or [type(host.model).__name__]
        return writer.finish(
            config=config,
            files=source.companions(),
            recipe=outcome.candidate.recipe.key(),
            manifest=manifest(setup, outcome),
            factory=source.factory,
        )


def manifest(setup: Setup, outcome: Outcome) -> dict[str, Any]:
    """Where a folder comes from and what was measured of it; nothing in it changes from run to run but the figures."""
    from winnow import __version__

    e = outcome.evaluation
    return {
        "parent": {"model": name_of(setup.source.spec), "sha256": setup.source.sha256()},
        "data": setup.prepared.hashes,
        "candidate": outcome.name,
        "versions": {"winnow": __version__, "torch": torch.__version__},
        "seed": setup.job.seed,
        "zeros": sum(layer.zeros for layer in outcome.pruned.layers) if outcome.pruned else 0,
        "metrics": {} if e is None else {"metric": e.metric, "value": e.value, "low": e.low, "high": e.high, "n": e.n},
    }


def _dense(host: Any, setup: Setup, pruned: Pruned) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in dense_tensors(host, setup.scope):
        yield name, pruned.extra[name].to(tensor.dtype) if name in pruned.extra else tensor


def _from_folder(folder: Path | None, name: str) -> Callable[[str], PackedTensor]:
    if folder is None:

        def gone(_: str) -> PackedTensor:
            raise InputError(f"{name} was measured but not kept: run again with --keep {name}.")

        return gone
    return read_artifact(folder).packed
