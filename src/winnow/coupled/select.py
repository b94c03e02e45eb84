"""Which coupled units go: scores of whole units, a choice that meets a count of weights, and what makes up for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from winnow.coupled.unit import CoupledUnit, Member, Removal, member_parts, shapes_of
from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.masks.prunable import Scope

Stats = Mapping[str, InputStats | Sequence[InputStats]]  # one per part where a matrix has several


@dataclass(frozen=True)
class Selection:
    """Chosen units (indices into the list, ascending); iterating gives them."""

    chosen: tuple[int, ...]
    zeros: int  # weights that go
    requested: int

    @property
    def difference(self) -> int:
        """Weights that go beyond the request (negative: fewer)."""
        return self.zeros - self.requested

    def __iter__(self) -> Iterator[int]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)


def part_stats(stats: Stats, member: Member, part: int) -> InputStats:
    """Input statistics of one band of a member's matrix. Raises InputError where there are none."""
    if member.name not in stats:
        raise InputError(f"no input statistics for {member.name}: calibrate this layer first")
    found = stats[member.name]
    if not isinstance(found, Sequence):
        return found
    return found[part if len(found) > 1 else 0]


def score_units(
    units: Sequence[CoupledUnit],
    scores: Mapping[str, torch.Tensor],
    how: Literal["sum", "flap"] = "sum",
    stats: Stats | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """One score per unit, float64 [n_units]; the unit with the lowest score per weight goes first.

    ``sum``: the sum of ``scores`` (each [R, C]) over the unit's weights. ``flap`` (FLAP, An et al. 2024,
    arXiv 2312.11983, AL-AM): the fluctuation Var(X_j) * sum_i W_ij^2 of each column of the unit's
    consumers, standardised over the columns of that consumer, averaged over the unit, times the unit's
    number of weights, so that the score per weight is FLAP's metric. ``flap`` needs ``stats`` (inputs of
    the consumers) and ``weights`` (matrices [R, C]) and leaves ``scores`` unread.
    Raises InputError when a tensor it needs is missing.
    """
    if how == "sum":
        return _sums(units, scores)
    if how != "flap":
        raise InputError(f"unknown way to score units {how!r}: use sum or flap")
    if stats is None or weights is None:
        raise InputError("scoring units by flap needs input statistics and weights: pass stats and weights")
    metrics: dict[tuple[str, int], torch.Tensor] = {}
    shapes = {name: (w.shape[0], w.shape[1]) for name, w in weights.items()}
    out = torch.zeros(len(units), dtype=torch.float64)
    for n, unit in enumerate(units):
        columns = []
        for member in unit.members:
            for part in member_parts(member) if member.axis == "cols" else ():
                key = (member.name, part)
                if key not in metrics:
                    band = weights[member.name].chunk(member.parts)[part].double()
                    metric = part_stats(stats, member, part).variance.double().cpu() * band.square().sum(0).cpu()
                    spread = metric.std() if metric.numel() > 1 else metric.new_zeros(())
                    metrics[key] = (metric - metric.mean()) / spread if spread > 0 else torch.zeros_like(metric)
                columns.append(metrics[key][list(member.indices)])
        out[n] = torch.cat(columns).mean() * Removal(shapes).gain(unit)
    return out


def _sums(units: Sequence[CoupledUnit], scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rows: dict[str, torch.Tensor] = {}
    cols: dict[tuple[str, int], torch.Tensor] = {}
    out = torch.zeros(len(units), dtype=torch.float64)
    for n, unit in enumerate(units):
        own_rows: dict[str, tuple[int, ...]] = {}
        for member in unit.members:
            if member.name not in scores:
                raise InputError(f"no scores for {member.name}, which a coupled unit needs: score every prunable layer")
            score = scores[member.name]
            if member.axis == "rows":
                if member.name not in rows:
                    rows[member.name] = score.double().sum(1).cpu()
                out[n] += rows[member.name][list(member.indices)].sum()
                own_rows[member.name] = member.indices
        for member in unit.members:
            for part in member_parts(member) if member.axis == "cols" else ():
                score = scores[member.name]
                if (member.name, part) not in cols:
                    cols[member.name, part] = score.chunk(member.parts)[part].double().sum(0).cpu()
                out[n] += cols[member.name, part][list(member.indices)].sum()
                band = score.shape[0] // member.parts
                shared = [r for r in own_rows.get(member.name, ()) if r // band == part]
                if shared:  # counted with its row and with its column
                    out[n] -= score[shared][:, list(member.indices)].double().sum().cpu()
    return out


def select_units(units: Sequence[CoupledUnit], scores: torch.Tensor, zeros: int, scope: Scope) -> Selection:
    """The units to remove so that ``zeros`` weights go, to within one unit.

    Lowest score per weight first, ties by order; a unit that no longer fits is passed over for later ones
    that do, then one more is taken if that comes nearer (a draw removes fewer). One unit of every group
    stays. Weights that two units share (a row and a column of one matrix) count once.
    Raises InputError when the request is negative or more than the units that may go can give.
    """
    if zeros < 0:
        raise InputError(f"the number of weights to remove must not be negative, got {zeros}")
    shapes = shapes_of(scope)
    density = torch.as_tensor(scores, dtype=torch.float64).cpu()
    if density.shape != (len(units),):
        raise InputError(f"there are {len(units)} units but scores of shape {tuple(density.shape)}: score these units")
    if not bool(torch.isfinite(density).all()):
        raise InputError("some unit scores are not finite: check the weights and the calibration data for NaN")
    density = density / torch.tensor([max(Removal(shapes).gain(u), 1) for u in units], dtype=torch.float64)
    order = torch.sort(density, stable=True).indices.tolist()
    groups = [unit.group for unit in units]
    left = Counter(groups)
    removal = Removal(shapes)
    chosen: list[int] = []

    def take(i: int) -> None:
        removal.add(units[i])
        left[groups[i]] -= 1
        chosen.append(i)

    passed = []
    for i in order:
        if left[groups[i]] > 1 and 0 < removal.gain(units[i]) <= zeros - removal.zeros:
            take(i)
        else:
            passed.append(i)
    while rest := zeros - removal.zeros:
        gain, n = min(
            ((removal.gain(units[i]), n) for n, i in enumerate(passed) if left[groups[i]] > 1), default=(0, -1)
        )
        if n < 0 and rest >= min((removal.gain(units[i]) for i in passed), default=0):
            raise InputError(
                f"{zeros} weights cannot go in whole units: {removal.zeros} is the most while one unit of every layer "
                "stays; lower the sparsity or use another structure"
            )
        if n < 0 or gain - rest >= rest:
            break
        take(passed.pop(n))
        if gain > rest:
            break
    return Selection(tuple(sorted(chosen)), removal.zeros, zeros)


def matrices(source: nn.Module | Mapping[str, torch.Tensor], scope: Scope) -> dict[str, torch.Tensor]:
    """Every prunable of a model, or of stored tensors by name, as its matrix [R, C] (views where possible)."""
    tensors = dict(source.state_dict()) if isinstance(source, nn.Module) else source
    return {name: p.matrix(tensors[name]).detach() for name, p in scope.prunables.items() if name in tensors}


def compensate(
    units: Sequence[CoupledUnit], chosen: Iterable[int], weights: Mapping[str, torch.Tensor], stats: Stats
) -> dict[str, torch.Tensor | None]:
    """What to add to the consumers' biases: W[:, removed] @ mean(X_removed) (FLAP's bias compensation).

    ``weights`` are the dense matrices [R, C] (:func:`matrices`), ``stats`` the consumers' inputs. Returns
    bias name -> delta, float64 [R] (flattened over experts); for a consumer without a bias its weight's
    name -> None: no parameter is invented, so that removal stays uncompensated. Rows of a consumer that
    are themselves removed get no delta. Raises InputError when weights or statistics are missing.
    """
    columns: dict[tuple[str, int], set[int]] = {}
    about = {}
    removed_rows: dict[str, set[int]] = {}
    for i in chosen:
        for member in units[i].members:
            if member.axis == "rows":
                removed_rows.setdefault(member.name, set()).update(member.indices)
                continue
            about[member.name] = member
            for part in member_parts(member):
                columns.setdefault((member.name, part), set()).update(member.indices)
    deltas: dict[str, torch.Tensor | None] = {}
    for (name, part), removed in columns.items():
        member = about[name]
        if member.bias is None:
            deltas[name] = None
            continue
        if name not in weights:
            raise InputError(f"no weights for {name}: pass the dense matrices of every prunable layer")
        weight, index = weights[name], sorted(removed)
        mean = part_stats(stats, member, part).mean.double().to(weight.device)
        band = weight.shape[0] // member.parts
        delta = deltas.setdefault(member.bias, torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device))
        assert delta is not None
        rows = slice(part * band, (part + 1) * band)
        delta[rows] += weight[rows][:, index].double() @ mean[index]
    for name, member in about.items():
        if member.bias is not None and name in removed_rows:
            deltas[member.bias][sorted(removed_rows[name])] = 0  # type: ignore[index]
    return deltas
