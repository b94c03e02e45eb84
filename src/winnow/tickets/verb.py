"""``find_ticket``: a pretrained model and a task in, a sparse model out of one training."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from torch import nn

from winnow.budget import parse_sparsity
from winnow.disk.made import describe
from winnow.disk.work import check_made, check_output, work_folder
from winnow.errors import FormatError, InputError
from winnow.masks.mask import MaskSet
from winnow.notebook import Card, Shown, figures, frame
from winnow.run.executor import Executor, Local
from winnow.run.store import Store, stage_key
from winnow.terminal.progress import Expected, ProgressOption, expect, watch
from winnow.tickets.jobs import tickets_of
from winnow.tickets.method import levels
from winnow.tickets.methods.registry import METHODS, known
from winnow.tickets.saving import write_tickets
from winnow.tickets.search import Search, Ticket
from winnow.train.task.check import check_training
from winnow.train.task.identity import training_identity
from winnow.train.task.training import Loss, OptimizerFactory, Schedule, Training

if TYPE_CHECKING:
    from winnow.records.ticket import TicketReport

SHOWN = 6  # tickets in the text of a result

log = logging.getLogger(__name__)


@dataclass(repr=False)
class Found(Shown):
    """What a search found.

    Attributes:
        tickets: one per sparsity, in the order given (of method "dense" a single one).
        training: what they were trained by; ``notes`` says what was decided on the way.
        method, settings: how they were found.
        folder: where they were written; None until :meth:`save` where no ``out`` was given.
    """

    tickets: list[Ticket]
    training: Training
    method: str
    settings: BaseModel
    folder: Path | None = None
    _sparsities: list[float] = field(default_factory=list, repr=False)
    _named: str = field(default="", repr=False)  # the model, as the report calls it
    _given: tuple[Any, ...] = field(default=(), repr=False)  # arguments whose paths stay out of what is written

    def __repr__(self) -> str:
        where = "" if self.folder is None else f" in {self.folder}"
        more = [f"and {len(self.tickets) - SHOWN} more"] * (len(self.tickets) > SHOWN)
        shown = map(repr, self.tickets[:SHOWN])
        return "\n  ".join([f"Found {len(self.tickets)} by {self.method}{where}:", *shown, *more])

    def _card(self) -> Card:
        rows = [ticket.told() for ticket in self.tickets]
        notes = [{"note": note} for note in [*self.training.notes, *(n for t in self.tickets for n in t.notes)]]
        facts = [("model", self._named), ("folder", "" if self.folder is None else str(self.folder))]
        several = f"{len(rows)} tickets" if len(rows) > 1 else "a ticket"
        tables = [("tickets", rows), (f"{len(notes)} notes", notes)]
        return Card("Found", f"{several} by {self.method}", facts, tables)

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each ticket. Raises InputError where pandas is missing."""
        return frame([ticket.row() for ticket in self.tickets])

    @property
    def metrics(self) -> dict[str, float]:
        """Flat figures of the sparsest ticket, for an experiment tracker."""
        return figures(self.ticket.row())

    def plot(self, ax: Any = None) -> Any:
        """Quality against sparsity on matplotlib axes, which are returned; see :func:`winnow.report.ticket.plot.plot`."""
        from winnow.report.ticket.plot import plot

        return plot(self.report, ax)

    @property
    def ticket(self) -> Ticket:
        """The sparsest one."""
        return self.tickets[-1]

    @property
    def model(self) -> nn.Module:
        """The sparsest model, in eval mode, a plain one with its zeros in place."""
        return self.ticket.model

    @property
    def masks(self) -> MaskSet:
        return self.ticket.masks

    @property
    def report(self) -> TicketReport:
        """All tickets with their figures, costs and masks; :func:`winnow.report.ticket.page.write` makes the page of it."""
        return self._report(self.tickets)

    def save(self, folder: str | Path, sparsity: float | str | None = None, *, overwrite: bool = False) -> Path:
        """Writes one ticket (the sparsest unless named) as a plain folder.

        It loads without winnow. Hugging Face models: ``from_pretrained(folder)``, tokenizer included. Others: the model's
        own code, then ``model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))``.
        :func:`winnow.load` is for packed folders, which :func:`winnow.compress` makes of such a folder. Beside the
        weights ``masks.safetensors`` (:meth:`winnow.MaskSet.load`), ``ticket.json``, and the report of this
        ticket: ``ticket.html`` and ``ticket-report.json``. The folder appears whole or not at all; this ticket, saved
        there before, is replaced, with ``overwrite`` any other output of winnow's too.

        Raises:
            InputError: no ticket of this sparsity, or a folder that holds something else.
        """
        ticket = self._at(sparsity)
        report, given = self._report([ticket]), [*self._given, folder]
        # The notes of the search are what they are: what cannot be recognized is no matter any more.
        identity = training_identity(replace(self.training, notes=[]))
        one = next(s for s, t in zip(self._sparsities, self.tickets) if t is ticket) if len(self.tickets) > 1 else None
        made = _made(self.method, identity, self._sparsities, self.settings, saved=one)
        return write_tickets(
            Path(folder), [("", ticket)], self.training, self.settings, report, given, made=made, overwrite=overwrite
        )

    def _report(self, tickets: Sequence[Ticket]) -> TicketReport:
        from winnow.tickets.reporting import build

        return build(tickets, None, self.training, model=self._named, settings=self.settings.model_dump(mode="json"))

    def _at(self, sparsity: float | str | None) -> Ticket:
        if sparsity is None:
            return self.ticket
        target = parse_sparsity(sparsity)
        for given, ticket in zip(self._sparsities, self.tickets):
            if abs(given - target) < 1e-9:
                return ticket
        raise InputError(
            f"there is no ticket of sparsity {target:g}: choose one of {', '.join(f'{s:g}' for s in self._sparsities)}."
        )


def find_ticket(
    model: Any,
    data: Any = None,
    *,
    sparsity: float | str | Sequence[float | str],
    method: str = "ticket",
    steps: int | None = None,
    epochs: float | None = None,
    batch: int = 32,
    lr: float | None = None,
    weight_decay: float | None = None,
    optimizer: OptimizerFactory | None = None,
    schedule: str | Schedule = "linear",
    warmup: float = 0.0,
    clip: float | None = 1.0,
    precision: str = "float32",
    loss: Loss | None = None,
    eval: Any = None,
    task: str = "auto",
    column: str | None = None,
    label: str | None = None,
    length: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    processor: Any = None,
    weights: str | Path | None = None,
    trust_remote_code: bool = False,
    settings: dict[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: ProgressOption = None,
) -> Found:
    """Fine-tunes a pretrained model for a task and returns it with exactly the requested sparsity.

    Args:
        model: a module (not changed), a Hugging Face folder or name, ``"package.module:function"``, a ready
            :class:`winnow.tickets.Training`, or a ``transformers.Trainer``; the last two say all about data and training.
        data: labelled data; it and all arguments up to ``trust_remote_code`` are those of
            :func:`winnow.tickets.training_from`.
        sparsity: target sparsity of the prunable weights, such as 0.8 or "80%", or several, rising.
        method: one of :data:`winnow.tickets.METHODS`; "ticket" is the kind of ISP that measured best, ``isp-matched``.
        settings: of the method, by name (``winnow.tickets.METHODS[method].settings_class``). Unless set, ISP on text encoders takes the
            paper's values for BERT.
        out: folder to write, with the report of the search (``ticket.html``, ``ticket-report.json``); with several
            sparsities a subfolder each. Finished parts are kept in ``OUT.work`` meanwhile: a search that was killed
            goes on where it stood when it is called again. Functions of yours (loss, optimizer, schedule, eval) are
            recognized by their source and the values they use. Where that cannot be, the search begins anew and
            ``Found.training.notes`` says so; a name of your own helps, changed with what the function does:
            ``my_loss.winnow_name = "my-loss-2"``.
        overwrite: replace the finished result of another search in ``out``; the same search may always write there again.
        executor: where independent parts run: whole sparsities, or the candidates of one; here unless given.
        progress: bars or lines by itself, True or False, or a function: see :func:`winnow.terminal.progress.watch`.

    Raises:
        InputError: an argument, the model or the data must change; the sentence says what.
    """
    given = {k: v for k, v in locals().items() if k in _DEFAULTS}
    name = known(method)
    rates = sparsities(sparsity, zero=METHODS[name].open_ended)
    METHODS[name].read_settings(settings or {}, name)  # mistakes are named before anything is read
    folder = None if out is None else Path(out)
    if folder is not None:
        check_output(folder, inputs=(model, data, eval, weights))
    training = _training(model, given)
    chosen = METHODS[name].read_settings(settings or {}, name, training.kind)
    check_training(training)
    named = Path(model).name if isinstance(model, (str, Path)) else ""
    with contextlib.ExitStack() as stack:
        store, key, made = None, "ticket", None
        if folder is not None:
            identity = training_identity(training)
            made = _made(name, identity, rates, chosen)
            check_made(folder, made, overwrite)
            store = Store(work_folder(folder))
            stack.callback(store.release)
            check_made(folder, made, overwrite)  # under the lock: another search may just have finished
            key = stage_key(name, training=identity, sparsities=rates, settings=chosen.model_dump(mode="json"))
        stages = stack.enter_context(watch(progress))
        search = Search(name, training, rates, chosen, store, key, executor or Local(), stages)
        expect(stages, [Expected("*", "training")] * _trainings(search))
        tickets = _searched(search)
        typed = (model, data, eval, weights)  # paths among them stay out of what is written
        found = Found(
            tickets, training, name, chosen, folder, rates if len(tickets) == len(rates) else [0.0], named, typed
        )
        if folder is not None and store is not None:
            parts = [(f"sparsity-{s:g}" if len(tickets) > 1 else "", t) for s, t in zip(rates, tickets)]
            write_tickets(
                folder, parts, training, chosen, found.report, [*typed, folder], made=made, overwrite=overwrite
            )
            store.remove()
    return found


def _made(
    method: str, identity: dict[str, Any], rates: Sequence[float], settings: BaseModel, saved: float | None = None
) -> dict[str, Any]:
    """What a search says of itself (:mod:`winnow.disk.made`); ``saved``: the sparsity of the one ticket that is written."""
    plain = ("steps", "lr", "weight_decay", "clip", "precision", "seed", "include", "exclude", "frozen")
    options = {name: identity[name] for name in plain} | settings.model_dump(mode="json")
    options |= {"method": method, "sparsity": list(rates), "ticket": saved}
    inputs = {name: value for name, value in identity.items() if name not in plain}
    return describe("find_ticket", options, {"weights": inputs.pop("model"), **inputs})


def _searched(search: Search) -> list[Ticket]:
    """The tickets; where a stored part of the search was damaged, all its parts are thrown away and made again."""
    try:
        return tickets_of(search)
    except FormatError as error:
        if search.store is None:
            raise
        log.warning("a stored part of the search is damaged, and the search begins again: %s", error)
        search.store.discard(search.key)
        return tickets_of(search)


def _trainings(search: Search) -> int:
    """Runs of about T steps that the search takes: one a sparsity, or one a round where a trajectory serves them all."""
    entry = METHODS[search.method]
    if not search.executor.local and len(search.sparsities) > 1:
        return 1  # what ends elsewhere is reported as one stage
    if not entry.trajectory:
        return len(search.sparsities)
    searches = [search.sparsities]
    if getattr(search.settings, "budget", None) is not None:  # then each sparsity has its own
        searches = [[s] for s in search.sparsities]
    return sum(1 + len(levels(s, search.settings.rate)) for s in searches)  # the dense one, and one after each round


def sparsities(given: float | str | Sequence[float | str], *, zero: bool = False) -> list[float]:
    """One target or several, rising; ``zero``: 0 is one. Raises InputError."""
    listed = given.split(",") if isinstance(given, str) else given
    rates = [parse_sparsity(p) for p in (listed if isinstance(listed, Sequence) else [listed])]
    if not rates:
        raise InputError("no sparsity: give one such as 0.8, or several, rising.")
    if any(b <= a for a, b in itertools.pairwise(rates)):
        raise InputError(
            f"sparsities {', '.join(map('{:g}'.format, rates))} do not rise: give each once, smallest first."
        )
    if rates[0] == 0 and not zero:
        raise InputError("a sparsity of 0 removes nothing: give more, or method='dense' for the dense training.")
    return rates


def _training(model: Any, given: dict[str, Any]) -> Training:
    ready = isinstance(model, Training)
    if not ready and not (hasattr(model, "compute_loss") and hasattr(model, "get_train_dataloader")):
        from winnow.train.task.from_data import training_from

        return training_from(model, **given)
    plain = (str, int, float, tuple, list)
    changed = [
        k for k, v in given.items() if v is not _DEFAULTS[k] and not (isinstance(v, plain) and v == _DEFAULTS[k])
    ]
    if changed:
        kind = "Training" if ready else "Trainer"
        raise InputError(f"a {kind} says all about its data and training: leave out {changed[0]}, or change it there.")
    if ready:
        return model
    from winnow.train.task.from_trainer import training_from_trainer

    return training_from_trainer(model)


_OWN = ("model", "sparsity", "method", "settings", "out", "overwrite", "executor", "progress")
_DEFAULTS = {n: p.default for n, p in inspect.signature(find_ticket).parameters.items() if n not in _OWN}
