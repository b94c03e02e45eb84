"""``winnow bench``: opens the model, builds the contenders, times them interleaved, and records the results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from winnow.disk.made import describe
from winnow.errors import InputError
from winnow.kernels import native
from winnow.machine.facts import machine
from winnow.naming import without_paths
from winnow.records.speed import Bench
from winnow.report.compression.page import write_bench
from winnow.report.speed import page as pages
from winnow.speed.families import FAMILIES, families
from winnow.speed.run import BenchRun
from winnow.speed.subject import open_subject
from winnow.speed.workload import TOKENS, make_work
from winnow.terminal.progress import ProgressOption, watch
from winnow.version import __version__

ROUNDS = 15
# Variables of the environment that change how fast things run.
_SETTINGS = ("OMP_WAIT_POLICY", "WINNOW_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")


def bench(
    folder: str | Path | nn.Module,
    *,
    batch: int | Sequence[int] | str | None = None,
    length: int | Sequence[int] | str | None = None,
    tokens: int = TOKENS,
    rounds: int = ROUNDS,
    threads: int | None = None,
    contenders: Sequence[str] | str | None = None,
    per_layer: bool = False,
    data: Any = None,
    column: str | None = None,
    tokenizer: Any = None,
    factory: str | None = None,
    reference: str | Path | nn.Module | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
    progress: ProgressOption = None,
) -> Bench:
    """Times a compressed model against the dense baseline on this machine; all contenders are interleaved in one run.

    Args:
        folder: what ``winnow compress`` wrote; any other model is benched too, without the packed contenders.
        batch: inputs of a case, several as a list or "1,8"; by default 1 and 8 (a decoder: 1).
        length: tokens of an input, likewise; by default 32 and 128 (a decoder: 128).
        tokens: decoded after the prompt, one at a time.
        rounds: of every case; fewer than 6 give no interval.
        threads: of every contender (default: as many as torch uses).
        contenders: of "dense", "bf16", "compile", "int8", "onnx", "openvino", "packed", "accelerated"; by default all. Dense is
            always among them; "bf16" adds that type to dense, compiled, packed and accelerated.
        per_layer: also time every packed matrix alone, with its weights coming from memory.
        data: real inputs; by default random ones of the kind the model reads. A plain torch model needs some.
        factory: ``package.module:function`` that builds a plain torch model, whose weights are in ``folder``.
        reference: the dense original, for its own file size and loading; by default the artifact expanded.
        out: JSON file; a page of the same name is written beside it. By default bench.json in the artifact's folder.
        overwrite: replace another finished bench there; the same one may always be measured again.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.

    Raises:
        InputError: an argument, the folder or the data cannot be used, or another bench would be replaced.

    Ctrl-C ends the measuring; the result holds what was whole by then, and says so. Before anything is, it is raised.
    """
    requested = _names(contenders)
    families(requested)
    batches, lengths = _numbers(batch, "batch"), _numbers(length, "length")
    for name, value in (("tokens", tokens), ("rounds", rounds), ("threads", 1 if threads is None else threads)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1.")
    subject = open_subject(folder, factory=factory, reference=reference)
    target = pages.target(out, subject.folder if subject.artifact is not None else None)
    work, inputs = make_work(
        subject.source, batches=batches, lengths=lengths, tokens=tokens, data=data, column=column, tokenizer=tokenizer
    )
    made = describe(
        "bench",
        dict(
            batch=batches, length=lengths, tokens=tokens, rounds=rounds, threads=threads, contenders=requested, per_layer=per_layer,
            column=column, inputs=inputs, processor=machine().get("cpu"),
        ),
        {"weights": subject.source.sha256(), "reference": None if subject.reference is None else subject.reference.sha256()},
    )  # fmt: skip
    if target is not None and not overwrite:
        pages.refuse_other(target, made)
    with native.torch_threads(threads) as used, tempfile.TemporaryDirectory(prefix="winnow-bench-") as scratch:
        found = Bench(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=command,
            made=made,
            model=str(subject.source.spec) if factory is None else str(folder),
            architecture=subject.source.architecture,
            reference="the artifact, expanded" if subject.reference is None else str(subject.reference.spec),
            inputs=inputs,
            machine=_machine(used),
        )
        if subject.artifact is None:
            found.reference = found.model
        with watch(progress) as stages:
            BenchRun(subject, work, found, requested, rounds, used, Path(scratch), per_layer, stages).run()
    if not found.measures:
        if found.interrupted:
            raise KeyboardInterrupt
        first = found.absent[0]
        raise InputError(f"nothing could be measured: {first.name} {first.reason}.")
    if target is not None:
        typed = [folder, reference, data, out]
        write_bench(Bench.model_validate(without_paths(found.model_dump(), typed)), target)
        found.written = str(target)
    return found


def _machine(threads: int) -> dict[str, Any]:
    """What a figure depends on besides the model."""
    facts = {**machine(), "threads": threads, "winnow": __version__}
    facts["instruction set"] = native.isa() if native.available() else "no native kernels"
    if hasattr(os, "getloadavg"):
        facts["load average"] = f"{os.getloadavg()[0]:.2f} when it began"
    facts |= {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    for name in ("onnxruntime", "openvino"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _names(given: Sequence[str] | str | None) -> list[str]:
    if given is None:
        return list(FAMILIES)
    return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else list(given)


def _numbers(given: int | Sequence[int] | str | None, name: str) -> list[int] | None:
    """ "1,8" as numbers, in order, each once. Raises InputError for anything that is not a count."""
    if given is None:
        return None
    parts: Sequence[Any] = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        raise InputError(f"--{name} {given} is not a list of counts: write it like 1,8.") from None
    if not numbers or min(numbers) < 1:
        raise InputError(f"--{name} {given} must be 1 or more.")
    return list(dict.fromkeys(numbers))
