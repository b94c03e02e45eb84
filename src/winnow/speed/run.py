"""The measuring of a bench, step by step: the race, energy, loading in a fresh process, layer by layer."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from winnow.errors import InputError, WinnowError
from winnow.machine import energy
from winnow.machine.bandwidth import read_bandwidth
from winnow.machine.load import OtherPrograms
from winnow.measure.latency import SLOT_SECONDS, Step
from winnow.records import speed as speed_schema
from winnow.records.speed import Absent, Bench
from winnow.speed.contender import BuildContext, Contender, TorchContender, Unavailable
from winnow.speed.families import builders
from winnow.speed.fresh_process import measure_fresh
from winnow.speed.layers import layer_speeds, rows_seen
from winnow.speed.race import race, reason
from winnow.speed.subject import Subject
from winnow.speed.workload import Work
from winnow.terminal.progress import Expected, Progress, Update, expect

T = TypeVar("T")
TIMING, BUILDING, MEASURING = "timing layers for accelerate", "building contenders", "measuring"
LOADING, BY_LAYER = "loading in a fresh process", "layer by layer"
FRESH = ("dense", "packed")  # what another process can load from the folder


@dataclass
class BenchRun:
    """The measuring itself, step by step; ``found`` grows, so that an interrupt loses nothing."""

    subject: Subject
    work: list[Work]
    found: Bench
    requested: list[str]
    rounds: int
    threads: int
    scratch: Path
    per_layer: bool
    progress: Progress
    contenders: list[Contender] = field(default_factory=list)
    decided: dict[str, dict[int, str]] = field(default_factory=dict)

    def run(self) -> None:
        expect(self.progress, self._stages())
        try:
            self._race()
            self._energy()
            rows = self._rows() if self.per_layer and not self.found.interrupted else {}
            accelerated = (c for c in self.contenders if isinstance(c, TorchContender) and c.decisions)
            self.decided = next((c.decisions for c in accelerated), {})
            for contender in self.contenders:
                contender.close()
            gc.collect()
            if not self.found.interrupted:
                self._fresh()
                self._layers(rows)
        except KeyboardInterrupt:
            self.found.interrupted = True

    def _stages(self) -> list[Expected]:
        """What is to come. A layer's timing is reported while contenders are built, so it is named before them."""
        slots = len(self.requested) * self.rounds * len(self.work)
        artifact = self.subject.artifact
        layers = 1.0 * len(artifact.packed_names) if artifact is not None and self.per_layer else 0.0
        guesses = {TIMING: 5.0, BUILDING: 10.0, MEASURING: slots * SLOT_SECONDS, LOADING: 8.0, BY_LAYER: layers}
        return [Expected(name, name, seconds) for name, seconds in guesses.items() if seconds]

    def _race(self) -> None:
        self.bandwidth = read_bandwidth()
        self.found.bandwidth = speed_schema.Bandwidth(**asdict(self.bandwidth))
        base = self.subject.base
        context = BuildContext(
            self.subject, self.scratch, self.threads, "bf16" in self.requested, self.requested, self.subject.dense(base), self.work,
            self.progress(TIMING),
        )  # fmt: skip
        self._build(context)
        references = {base: _outputs(self.contenders[0], self.work)}
        if base != "artifact" and any(c.base == "artifact" for c in self.contenders):
            about = speed_schema.Contender(name="expanded", kind="dense", weights="float32")
            expanded = TorchContender(about, self.subject.dense("artifact"))
            references["artifact"] = _outputs(expanded, self.work)
            expanded.close()
        stage = self.progress(MEASURING)
        with OtherPrograms() as others:
            finish = race(self.contenders, self.work, references, self.rounds, bandwidth=self.bandwidth, progress=stage)
        self.found.others = others.busy
        self.found.cases, self.found.measures = finish.cases, finish.measures
        self.found.interrupted = finish.interrupted
        seen = {m.contender for m in finish.measures}
        self.found.contenders = [c.about for c in self.contenders if c.name in seen]
        for (name, case), why in finish.dropped.items():
            everywhere = name not in seen
            if not any(a.name == name and a.reason == why for a in self.found.absent):
                self.found.absent.append(Absent(name=name, reason=why if everywhere else f"{case}: {why}"))

    def _build(self, context: BuildContext) -> None:
        for name, make in self._each(BUILDING, list(builders(context)), lambda maker: maker[0]):
            try:
                self.contenders.append(make())
            except Exception as error:  # a model that cannot run in bfloat16, a layer that a runtime lacks
                if name == "dense float32":
                    raise
                self.found.absent.append(Absent(name=name, reason=reason(error)))

    def _energy(self) -> None:
        """Joules of one call of the last case of batch 1 (of the first case where there is none)."""
        meter, description = energy.open_meter()
        self.found.energy = description
        if meter is None or self.found.interrupted:
            return
        work = _decoding_or_first(self.work)
        racing = [c for c in self.contenders if self.found.measure(c.name, work.case.name)]
        self.found.energy = f"{description}, per call of: {work.case.name}"
        try:
            with torch.inference_mode():
                for contender in self._each("energy", racing, lambda contender: contender.name):
                    contender.prepare(work)
                    used = energy.energy_of(_endless(contender, work), meter)
                    if used is not None:
                        contender.about.energy, contender.about.energy_kind = used.joules, used.kind
        finally:
            meter.close()

    def _rows(self) -> dict[str, int]:
        if self.subject.artifact is None:
            self.found.notes.append("layers are timed for folders that winnow compress wrote: this one is not.")
            return {}
        dense = self.contenders[0]
        assert isinstance(dense, TorchContender) and dense.model is not None
        return rows_seen(dense.model, self.subject.artifact, _decoding_or_first(self.work))

    def _layers(self, rows: dict[str, int]) -> None:
        if not rows or self.subject.artifact is None:
            return
        left = len(self.subject.artifact.pruned_names) - len(rows)
        if left:
            self.found.notes.append(
                f"{left} packed tensors (convolutions, experts) are timed in the whole model only: their product alone is not what they do."
            )
        stage = self.progress(BY_LAYER)
        for layer in layer_speeds(
            self.subject.artifact, rows, self.bandwidth, bf16="bf16" in self.requested, progress=stage
        ):
            kernel = self.decided.get(layer.name.removesuffix(".weight"), {})
            layer.runs_on = next((kernel[n] for n in sorted(kernel) if n >= layer.inputs), None)
            self.found.layers.append(layer)

    def _fresh(self) -> None:
        todo = [c for c in self.found.contenders if c.name.split()[0] in FRESH]
        for about in self._each(LOADING, todo, lambda about: about.name):
            try:
                seen = measure_fresh(self.subject, about.name, self.work[0], self.threads, self.scratch)
            except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
                self.found.notes.append(f"{error}.")
                continue
            about.load_seconds, about.load_bytes, about.run_bytes = (seen.get(k) for k in ("seconds", "load", "run"))

    def _each(self, stage: str, items: Sequence[T], name: Callable[[T], str]) -> Iterator[T]:
        """The items one after the other, each reported by its name as the progress of a stage."""
        report: Update = self.progress(stage)
        for done, item in enumerate(items):
            report(done, len(items), name(item))
            yield item
        report(len(items), len(items), "")


@torch.inference_mode()
def _outputs(contender: Contender, work: Sequence[Work]) -> dict[str, torch.Tensor]:
    found = {}
    for one in work:
        try:
            found[one.case.name] = contender.output(one)
        except Unavailable:  # no contender can do this work here; the race reports it
            found[one.case.name] = torch.empty(0)
        except WinnowError:
            raise
        except Exception as error:
            raise InputError(
                f"the dense model does not run on its inputs ({reason(error)}): give inputs that it takes with --data"
            ) from error
    return found


def _decoding_or_first(work: Sequence[Work]) -> Work:
    return next((one for one in work if one.tokens is not None), work[0])


def _endless(contender: Contender, work: Work) -> Step:
    """Calls without end: decoding restarts after its last token, so that the cache does not grow for ever."""
    if work.tokens is None:
        return contender.begin(work)()
    steps, begin = work.tokens.shape[1], contender.begin(work)
    state: dict[str, Any] = {"left": 0}

    def step() -> object:
        if state["left"] == 0:
            state["left"], state["step"] = steps, begin()
        state["left"] -= 1
        return state["step"]()

    return step
