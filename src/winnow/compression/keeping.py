"""Candidates that were measured and not written: what ``OUT.work`` keeps of them, and how one is written later.

Of each candidate only what the written folder does not hold to the bit is kept, in files like those of the folder
itself: its packed weights, and tensors beside them that calibration changed. What is written of both is byte for byte
what ``--keep`` would have written. Nothing of it needs the model, the data or the code that made it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import torch

from winnow.disk.made import describe
from winnow.disk.ownership import sha256
from winnow.disk.work import check_work, folder_bytes, output_path, work_folder
from winnow.errors import InputError, WinnowError
from winnow.formats.artifact import ArtifactWriter
from winnow.formats.output import OutputFolder
from winnow.formats.packed import PackedTensor
from winnow.formats.packed_file import describe as described
from winnow.formats.packed_file import prunable_of, read_packed, split_keys
from winnow.formats.reader import Artifact, check_listed, is_artifact, read_artifact
from winnow.formats.tensorfile import TensorFile
from winnow.masks.prunable import Prunable
from winnow.run.store import Store, drop, unsealed
from winnow.words import size

if TYPE_CHECKING:
    from winnow.compression.job import Job
    from winnow.compression.outcome import Outcome
    from winnow.records.compression import Report

log = logging.getLogger(__name__)
_KEY = "candidate-"


class _Remainder(ArtifactWriter):
    """Takes what makes up a candidate's folder, and writes only what the folder ``base`` does not hold already."""

    def __init__(self, folder: Path, base: Artifact, shard_bytes: int) -> None:
        super().__init__(folder, shard_bytes, publish=False)
        self._base, self._dense = base, {*base.names} - {*base.packed_names} - base.aliases.keys()
        self._order: list[str] = []
        self.about: dict[str, Any] = {"shard_bytes": shard_bytes}

    def add_packed(self, prunable: Prunable, packed: PackedTensor) -> None:
        name = prunable.name
        self._order.append(name)
        if self._base.descriptions.get(name) == described(prunable, packed):
            parts, held = packed.tensors(), self._base.packed(name).tensors()
            if parts.keys() == held.keys() and all(torch.equal(part, held[n]) for n, part in parts.items()):
                return
        super().add_packed(prunable, packed)

    def add_dense(self, name: str, tensor: torch.Tensor) -> None:
        self._order.append(name)
        if name in self._dense and self._base.shape(name) == tuple(tensor.shape):
            held = self._base.dense(name)
            if held.dtype == tensor.dtype and torch.equal(held, tensor):
                return
        super().add_dense(name, tensor)

    def finish(
        self,
        config: dict[str, Any] | None,
        files: Mapping[str, Path] | None = None,
        recipe: dict[str, Any] | None = None,
        manifest: dict[str, Any] | None = None,
        factory: str | None = None,
    ) -> Path:
        self._shards.close()
        self.about |= dict(
            order=self._order, aliases=self._aliases, config=config, files=list(files or ()), recipe=recipe,
            manifest=manifest, factory=factory,
        )  # fmt: skip
        return self._folder


def store_unwritten(
    outcomes: Sequence[Outcome],
    base: Path,
    store: Store,
    write: Callable[[Outcome, ArtifactWriter], Any],
    shard_bytes: int,
) -> list[str]:
    """Keeps in ``store`` what there is of ``outcomes`` beyond the folder ``base`` that was written, and nothing else.

    ``write`` gives a candidate's whole folder to a writer. The stages that candidates were made of go as they are taken
    over. The output is there already: where the disk is full, a warning says so and the other candidates are not kept.
    Returns the names of those that are.
    """
    artifact, digest = read_artifact(base), sha256(base / "manifest.json")
    stages = [o.pruned.folder if o.pruned is not None else None for o in outcomes]
    kept: dict[str, str] = {}
    try:
        for number, outcome in enumerate(outcomes):
            key = _key(outcome.name, digest)
            if store.read(key) is None:
                folder = store.folder(key)
                for path in folder.iterdir():
                    drop(path)
                remainder = _Remainder(folder, artifact, shard_bytes)
                write(outcome, remainder)
                found = {"candidate": outcome.name, "base": digest, **remainder.about}
                store.write(key, found, files=folder.glob("*.safetensors"))
            kept[outcome.name] = key
            stage = stages[number]
            if stage is not None and stage not in stages[number + 1 :]:
                drop(stage)
    except (WinnowError, OSError) as error:
        log.warning("%s is written, and not all other candidates could be kept for `winnow keep`: %s", base, error)
    store.keep_only({*kept.values(), *(f"{key}.json" for key in kept.values())})
    return list(kept)


def keep(folder: Path | str, candidate: str, out: Path | str | None = None, *, overwrite: bool = False) -> Path:
    """Writes a candidate that a finished compression measured and did not write, of what ``FOLDER.work`` keeps of it.

    Args:
        folder: what ``compress`` wrote.
        candidate: its name in the report.
        out: where to write it; by default ``FOLDER-CANDIDATE``, beside the folder.
        overwrite: replace the finished result of another command there.

    Raises:
        InputError: no such candidate, one that is written already, or one whose weights are not kept any more: then the
            sentence says what makes it again. ``out`` is taken.
        FormatError: the folder or what is kept was damaged.
    """
    folder = output_path(folder)
    place, about, part = _found(folder, candidate)
    base = read_artifact(place)
    check_listed(place, about["files"], base.manifest)
    target = Path(out) if out is not None else folder.with_name(f"{folder.name}-{candidate}")
    made = describe("keep", {"candidate": candidate}, {"folder": about["base"]})
    output = OutputFolder(target, inputs=[folder], made=made, overwrite=overwrite)
    try:
        with ArtifactWriter(output.path, about["shard_bytes"], publish=False) as writer:
            for name in about["order"]:
                file, said = part.get(name, (None, None))
                if file is not None and said is not None:
                    writer.add_packed(prunable_of(name, said), read_packed(file, name, said))
                elif file is not None:
                    writer.add_dense(name, file.read(name))
                elif name in base.descriptions:
                    writer.add_packed(base.prunable(name), base.packed(name))
                else:
                    writer.add_dense(name, base.dense(name))
            for name, of in about["aliases"].items():
                writer.add_alias(name, of)
            writer.finish(
                about["config"], {name: place / name for name in about["files"]}, about["recipe"], about["manifest"], about["factory"]
            )  # fmt: skip
        return output.publish()
    finally:
        output.discard()


def how_to_take(candidate: str, job: Job, folders: Mapping[str, Path]) -> str:
    """How a candidate that was not chosen is had, in words. ``folders``: of those that are written, by name."""
    if candidate in folders:
        return f"it is in {folders[candidate]}"
    if job.out is None:
        return f"`result.save(FOLDER, candidate={candidate!r})` writes it"
    if not job.keep_work:
        return f"add `--keep {candidate} --overwrite` to the command, and it is written to {job.out}/{candidate}"
    return f"`winnow keep {quote(str(job.out))} {candidate}` writes it"


def closing_line(folder: Path | str) -> str | None:
    """What ``FOLDER.work`` holds and is good for, in two lines for 80 columns; None where it keeps no candidate."""
    root = work_folder(folder)
    records = [path for path in sorted(root.glob(f"{_KEY}*.json")) if unsealed(path) is not None]
    if not records:
        return None
    typed = Path(folder).with_name(root.name) if Path(folder).name else root
    place = typed if typed.resolve() == root.resolve() else root  # as short as it was typed
    command, held = f"`winnow keep {quote(str(folder))} NAME`", f"{place} ({size(folder_bytes(root))})"
    if len(records) == 1:
        return f"The other candidate: {command} writes it.\n{held} holds it: delete that when you do not need it."
    return f"{len(records)} other candidates: {command} writes one.\n{held} holds them: delete it when you need none."


def _found(
    folder: Path, candidate: str
) -> tuple[Path, dict[str, Any], Mapping[str, tuple[TensorFile, dict[str, Any] | None]]]:
    """(the written folder it rests on, what is recorded, its own tensors: file, and what it says of a packed one)."""
    from winnow.report.compression.page import read

    report = read(folder)
    names = [c.name for c in report.candidates if not c.unpacked]
    if candidate not in names:
        what = "is the model that was given, not a candidate" if candidate in ("dense", "ticket") else "is no candidate"
        raise InputError(f"{candidate!r} {what} of {folder}: choose one of {', '.join(names)}.")
    chosen = report.picked.name if report.picked is not None else None
    written = folder if is_artifact(folder) and chosen == candidate else folder / candidate
    if is_artifact(written):
        raise InputError(f"{candidate} is written already: {written}.")
    place = folder if is_artifact(folder) else folder / str(chosen)
    root = work_folder(folder)
    check_work(root)
    why = f"{root} is gone" if not root.exists() else f"{root} holds nothing of it"
    if (place / "manifest.json").is_file():
        digest = sha256(place / "manifest.json")
        key = _key(candidate, digest)
        found = unsealed(root / f"{key}.json")
        if found is not None and found[0].get("base") == digest:
            harmed = [name for name, was in found[1].items() if not _is(root / name, was)]
            if not harmed:
                return place, found[0], _tensors([root / name for name in found[1]])
            why = f"{root / harmed[0]} is damaged"
    raise InputError(f"the weights of {candidate} are not kept any more ({why}): {_remade(report, candidate)}.")


def _tensors(files: Iterable[Path]) -> dict[str, tuple[TensorFile, dict[str, Any] | None]]:
    found: dict[str, tuple[TensorFile, dict[str, Any] | None]] = {}
    for file in map(TensorFile, files):
        packed, dense = split_keys(file)
        found |= {name: (file, said) for name, said in packed.items()} | dict.fromkeys(dense, (file, None))
    return found


def _remade(report: Report, candidate: str) -> str:
    """What makes a candidate again, in words."""
    command = report.command or ""
    if command.startswith("winnow compress "):
        return f"`{command} --keep {candidate} --overwrite` makes it again"
    if command.startswith("winnow run "):
        return "a recipe writes one model, so give its compress stage what that candidate has and run it again with --overwrite"
    return f"compress again with keep=[{candidate!r}] and overwrite=True"


def _key(candidate: str, base: str) -> str:
    return _KEY + hashlib.sha256(f"{candidate}:{base}".encode()).hexdigest()[:16]


def _is(path: Path, digest: str) -> bool:
    try:
        return sha256(path) == digest
    except (OSError, WinnowError):
        return False
