"""Whole searches as jobs: the tickets of an executor elsewhere are those made here, to the bit."""

from __future__ import annotations

import logging

import pytest

from baseline_samples import QUICK, find, same, task
from elsewhere import Elsewhere, Stopped
from winnow.run.store import Store
from winnow.tickets.jobs import tickets_of
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Search

RATES = [0.3, 0.5, 0.8]
APART = [name for name, entry in METHODS.items() if name != "dense" and not entry.trajectory]


def search(method, executor, store=None, **more):
    settings = METHODS[method].settings_class(**{**QUICK.get(method, {}), **more})
    return Search(method, task(steps=24), RATES, settings, store, executor=executor)


def here(method, **more):
    return find(method, task(steps=24), RATES, **more)


@pytest.mark.parametrize("method", APART)
def test_every_sparsity_is_a_job_and_changes_nothing(method):
    executor = Elsewhere()
    same(tickets_of(search(method, executor)), here(method))
    assert executor.jobs == len(RATES)


def test_trajectories_with_a_budget_are_apart_too():
    executor = Elsewhere()
    same(tickets_of(search("imp", executor, budget=2.0)), here("imp", budget=2.0))
    assert executor.jobs == len(RATES)


def test_one_trajectory_stays_in_one_piece_and_says_so(caplog):
    executor = Elsewhere()
    with caplog.at_level(logging.WARNING):
        same(tickets_of(search("imp", executor)), here("imp"))
    assert executor.jobs == 0 and "imp serves all sparsities by one trajectory" in caplog.text


def test_one_sparsity_sends_the_candidates_of_isp_and_warns_elsewhere(caplog):
    for method, jobs in (("isp", 2), ("isp-matched", 0)):
        executor = Elsewhere()
        given = search(method, executor, rate=0.5)
        given = Search(method, given.training, [0.5], given.settings, executor=executor)
        same(tickets_of(given), find(method, task(steps=24), [0.5], rate=0.5))
        assert executor.jobs == jobs  # one round of two candidates
    assert "isp-matched is one sequence of trainings at one sparsity" in caplog.text and "isp is" not in caplog.text


@pytest.mark.parametrize("method", ["isp", "snip"])
def test_finished_jobs_are_not_done_again(method, tmp_path):
    store = Store(tmp_path / "work")
    with pytest.raises(Stopped):
        tickets_of(search(method, Elsewhere(stop=2), store))
    executor = Elsewhere()
    told = []
    again = search(method, executor, store)
    again.progress = lambda label: lambda *line: told.append((label, *line))
    same(tickets_of(again), here(method))
    assert executor.jobs == 1 and (method, 3, 3, "0.3 zeros is there") in told
    all_there = Elsewhere()
    same(tickets_of(search(method, all_there, store)), here(method))
    assert all_there.jobs == 0
