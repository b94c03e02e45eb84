"""Instant Soup Pruning: one training, pruned on the way by what several short look-aheads agree on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from winnow.masks.global_ranking import global_magnitude
from winnow.masks.mask import MaskSet
from winnow.seeding import seed_of
from winnow.tickets.method import Method
from winnow.tickets.methods.isp.candidates import Pool, gather
from winnow.tickets.methods.isp.denoise import EXACT, adjust, denoise, disagreement, unanimous
from winnow.tickets.methods.isp.look_ahead import copy_into, protocols, scores
from winnow.tickets.methods.isp.plan import IspPlan, IspSettings, plan_isp
from winnow.tickets.search import Round, Search, Ticket, densities
from winnow.train.task.run import Run
from winnow.train.task.training import Training

# Union: this near the target, in shares of all weights, the rest is pruned at once (the official code's stop rule).
CLOSE = 0.05


def isp(search: Search) -> Iterator[Ticket]:
    """Instant Soup Pruning (Jaiswal et al. 2023, arXiv 2306.10460, algorithms 1 and 2), one run for every sparsity.

    Round i trains t (i + 1) steps, then prunes ``rate`` of what is left by the candidates' soup; after the last round
    the rest of T is trained. One optimizer, one schedule, no rewinding. The paper's pruning step as printed is plain
    magnitude pruning (``aggregate="literal"``); see :func:`winnow.tickets.methods.isp.denoise.denoise` for the others.

    Beside the authors' code (VITA-Group/instant_soup, isp_dynamic.py): there candidates differ in their data only, look
    ahead with a fresh optimizer behind a warm-up of 500 steps, at 0 to 8% of the training's rate (they then differ in
    0.03 to 0.33% of the active weights, here in 3 to 16%), and are joined by ``union``; the target is met once, at
    the end; masks are drawn until 45 to 64% of the training, here until ``budget`` of it. Learning rates and decays of
    the candidates, a soup each round and its exact count are the paper's.
    """
    yield from _tickets(search, soup=True, extended=False)


def isp_plain(search: Search) -> Iterator[Ticket]:
    """ISP without candidates: the same rounds and steps, pruned by the training's own weights (``curvature``: and gradients).
    What the soup is measured against."""
    yield from _tickets(search, soup=False, extended=False)


def isp_matched(search: Search) -> Iterator[Ticket]:
    """ISP without candidates whose training is longer by their steps: T' = T + K n C, the schedule stretched over them.

    It is ISP without candidates in all respects with T' as its budget: t and the quarter before the last mask are of T'
    too, so that its masks fall a little later than ISP's own (T = 600, K = 7, n = 4, C = 10: t is 7, not 5). In the strict
    reading of a compute-matched control the extra steps all go to the fine-tuning after the last mask: for that give as
    ``seed_steps``, which sets t, ISP's own.
    """
    yield from _tickets(search, soup=False, extended=True)


def _tickets(search: Search, *, soup: bool, extended: bool) -> Iterator[Ticket]:
    for number, zeros in enumerate(search.zeros):
        sparsity, steps = search.sparsities[number], search.training.steps
        plan = plan_isp(search.settings, sparsity, steps, search.training.examples.parts, extended=extended)
        total = steps + plan.thrown if extended else steps
        run = search.run(f"run-{number}", f"{search.method} at {sparsity:.4g} zeros", steps=total)
        rounds = _Rounds(search, run, f"run-{number}", plan, zeros, plan.candidates if soup else 0)
        rounds.work()
        run.advance_to(total)
        yield search.ticket(run, zeros, history=rounds.history, notes=rounds.notes())


@dataclass
class _Rounds:
    """The rounds of one run: where it stands is in the run's notes."""

    search: Search
    run: Run
    name: str
    plan: IspPlan
    zeros: int  # after the last
    candidates: int

    def __post_init__(self) -> None:
        self.targets = [min(self.search.zeros_at(s), self.zeros) for s in self.plan.levels[:-1]] + [self.zeros]
        self.seed = self.plan.seed_steps

    @property
    def history(self) -> list[Round]:
        return [Round(**r) for r in self.run.notes.get("rounds", [])]

    def work(self) -> None:
        while self.run.attached.zeros < self.targets[-1]:
            number = len(self.history)
            self.run.advance_to(self.seed * (number + 1) * (number + 2) // 2)
            folder = None
            if self.search.store is not None and self.candidates:
                folder = self.search.store.folder(f"{self.search.key}-{self.name}-round-{number}")
            masks, agreement = self._masks(number, folder)
            self.run.prune(masks)
            kept = densities(self.run.keeps)
            done = Round(number + 1, self.run.step, masks.zeros, self.run.cost.steps, densities=kept, **agreement)
            self.run.notes.setdefault("rounds", []).append(asdict(done))
            self.run.save()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _masks(self, number: int, folder: Any) -> tuple[MaskSet, dict[str, Any]]:
        run, settings = self.run, self.search.settings
        weights, pruned = scores(run.attached, run.optimizer, settings.curvature), run.attached.zeros
        zeros = self._zeros(number, pruned)
        if not self.candidates:
            return MaskSet(global_magnitude(weights, run.keeps, zeros, settings.max_rate)), {}
        drawn = protocols(
            self.candidates, run.lr, multipliers=settings.multipliers, decays=settings.decays, share=settings.share,
            seed=seed_of(run.training.seed, run.stream, number),
        )  # fmt: skip
        pool = gather(
            run, drawn, steps=self.plan.look_ahead, zeros=zeros, folder=folder, executor=self.search.executor,
            sums=settings.aggregate == "mean_abs", weights=settings.average or settings.aggregate == "forecast",
            max_rate=settings.max_rate, curvature=settings.curvature, label=f"round {number + 1} of {len(self.targets)}, ",
        )  # fmt: skip
        masks = denoise(
            settings.aggregate, pool, weights, run.keeps, zeros, most=self.targets[-1], max_rate=settings.max_rate,
            mean=self._mean(pool) if settings.aggregate == "forecast" else None, reach=settings.reach,
        )  # fmt: skip
        last = number + 1 == self.plan.most
        if settings.aggregate == "union" and (last or self.targets[-1] - masks.zeros < CLOSE * masks.numel):
            masks = adjust(masks, weights, self.targets[-1], settings.max_rate)
        if settings.average:
            copy_into(run.model, pool.mean())
        return masks, {
            "disagreement": disagreement(pool.masks, run.attached.numel - pruned),
            "unanimous": unanimous(pool.masks, pruned, zeros),
        }

    def _mean(self, pool: Pool) -> dict[str, torch.Tensor]:
        """The candidates' mean as matrices; a frozen weight is its own."""
        mean, found = pool.mean(), self.run.attached.matrices()
        prunables = self.run.scope.prunables
        return {n: prunables[n].matrix(mean[n]) if n in mean else m for n, m in found.items()}

    def _zeros(self, number: int, pruned: int) -> int:
        """Zeros that each candidate's mask gets: the level of the round, or where soups miss it, ``rate`` of what is left."""
        settings, final = self.search.settings, self.targets[-1]
        if not self.candidates or settings.aggregate in EXACT:
            return self.targets[number]
        if settings.aggregate == "intersect" and number + 1 == len(self.targets):
            return final
        return min(final, pruned + max(1, round(self.plan.rate * (self.run.attached.numel - pruned))))

    def notes(self) -> list[str]:
        rounds, total = self.history, self.run.total
        before = rounds[-1].step if rounds else 0
        cost = self.run.cost
        found = [
            f"{len(rounds)} rounds in {before} of {total} steps ({before / total:.0%}), t = {self.seed}; "
            f"{cost.steps} steps in all, {cost.steps / self.search.training.steps:.2f} T."
        ]
        costs = self.candidates or total > self.search.training.steps
        found += [n for n in (self.plan.fewer, self.plan.shorter if costs else "") if n]
        if self.candidates and self.search.settings.aggregate == "literal":
            found.append(
                "aggregate=literal is the paper's algorithm 2 as printed: it equals isp-plain, for more steps."
            )
        return found


def _with_candidates(settings: IspSettings, training: Training, sparsity: float) -> int:
    """A union takes the most rounds where t is the least that it can be."""
    plan = plan_isp(settings, sparsity, training.steps, epoch=1)
    return training.steps + plan.most * plan.candidates * plan.look_ahead


def _with_their_steps(settings: IspSettings, training: Training, sparsity: float) -> int:
    return training.steps + plan_isp(settings, sparsity, training.steps, epoch=1).thrown


_OPTIONS: Any = {"settings_class": IspSettings, "encoder_settings": {"preset": "bert"}, "early_masks": True}
ISP = Method(
    isp, "ISP", "Instant Soup Pruning: pruned during one training by what several short look-aheads agree on",
    planned_steps=_with_candidates, candidates=True, **_OPTIONS,
)  # fmt: skip
ISP_PLAIN = Method(isp_plain, "ISP, no denoisers", "ISP’s rounds without candidates", brief="ISP plain", **_OPTIONS)
ISP_MATCHED = Method(
    isp_matched, "ISP, steps matched",
    "ISP’s rounds without candidates, trained longer by the steps that candidates would take",
    brief="ISP matched", planned_steps=_with_their_steps, **_OPTIONS,
)  # fmt: skip
