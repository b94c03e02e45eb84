"""A search that was killed, at any step, ends bit for bit as one that was not."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from isp_samples import Killed, Killer, cross_entropy, mlp, noisy, same_tickets, search, sgd, training
from places import SUPPORT
from winnow.disk import files
from winnow.errors import FormatError, WinnowError
from winnow.run.store import Store
from winnow.tickets.methods.imp import ImpSettings
from winnow.tickets.methods.isp.isp import isp
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Search
from winnow.train.task import run as run_module
from winnow.train.task.run import Diverged, Run


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(run_module, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)  # slow, and no test here pulls the plug


@pytest.fixture
def killer(monkeypatch):
    return Killer(monkeypatch)


# two rounds of two candidates of two steps within 12 steps
STEPS, ALL = 12, 12 + 2 * 2 * 2


@pytest.mark.parametrize("aggregate", ["vote", "mean_abs", "forecast"])
def test_killed_at_every_step_in_turn(killer, tmp_path, aggregate):
    given = training(steps=STEPS, loss=noisy)
    options = {"aggregate": aggregate, "seed_steps": 2, "average": aggregate == "forecast"}
    whole = list(isp(search(given, **options)))
    assert killer.taken == ALL
    for at in range(0, ALL, 1 if aggregate == "vote" else 3):
        store = Store(tmp_path / f"{aggregate}-{at}")
        killer.arm(at)
        with pytest.raises(Killed):
            list(isp(search(given, store=store, **options)))
        killer.arm(-1)
        same_tickets(list(isp(search(given, store=store, **options))), whole)
        # Candidates are stored whole: at most one step of one is taken twice. The main training repeats nothing.
        assert ALL - at <= killer.taken <= ALL - at + 1
    assert not list(tmp_path.rglob("candidate-*"))


@pytest.mark.parametrize("at", [3, 7, 13])
def test_sgd_with_momentum_and_killed_twice(killer, tmp_path, at):
    given = training(steps=STEPS, optimizer=sgd, lr=0.05)
    whole = list(isp(search(given, seed_steps=2)))
    store = Store(tmp_path)
    for cut in (at, 2):
        killer.arm(cut)
        with pytest.raises(Killed):
            list(isp(search(given, seed_steps=2, store=store)))
    killer.arm(-1)
    same_tickets(list(isp(search(given, seed_steps=2, store=store))), whole)


def test_stopped_by_progress(tmp_path):
    """Whatever a progress function raises (Ctrl-C in a notebook) leaves a state to go on from."""
    given = training(steps=STEPS)
    whole = list(isp(search(given, seed_steps=2)))
    seen = 0

    def telling(left):
        def told(step, total, text):
            nonlocal seen
            seen += 1
            if seen == left:
                raise Killed

        return lambda label: told

    left = 0
    while True:
        left, seen = left + 3, 0
        store = Store(tmp_path / str(left))
        try:
            list(isp(search(given, seed_steps=2, store=store, progress=telling(left))))
            break
        except Killed:
            same_tickets(list(isp(search(given, seed_steps=2, store=store))), whole)
    assert seen == STEPS + 2 * 2  # every step and every candidate was told, and a stop at every third was tried


def test_an_optimizer_with_state_of_its_own(killer, tmp_path):
    """Numbers kept in groups and beside the moments come back too."""

    class Slower(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["calls"] = group.get("calls", 0) + 1
                for p in group["params"]:
                    self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
                    if p.grad is not None:
                        p.grad.div_(group["calls"] + self.state[p]["seen"])
            return super().step(closure)

    given = training(steps=6, optimizer=lambda p, lr, wd: Slower(p, lr, momentum=0.9))
    whole = Run(given)
    whole.advance_to(6)
    killer.arm(4)
    with pytest.raises(Killed):
        Run(given, folder=tmp_path).advance_to(6)
    cut = Run(given, folder=tmp_path)
    assert cut.step == 4
    cut.advance_to(6)
    assert cut.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(cut.model.parameters(), whole.model.parameters()))


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first = torch.nn.Linear(10, 10)
        self.shared, self.again = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)
        self.again.weight = self.shared.weight
        self.head = torch.nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.again(self.shared(self.first(x).relu()).relu()))


def test_tied_weights(killer, tmp_path):
    given = training(Tied(), steps=6)
    whole = Run(given)
    whole.advance_to(6)
    assert whole.model.again.weight is whole.model.shared.weight
    killer.arm(3)
    with pytest.raises(Killed):
        Run(given, folder=tmp_path).advance_to(6)
    cut = Run(given, folder=tmp_path)
    cut.advance_to(6)
    assert cut.model.again.weight is cut.model.shared.weight
    assert torch.equal(cut.model.shared.weight, whole.model.shared.weight)


def advanced(given, folder, step):
    run = Run(given, folder=folder)
    run.advance_to(step)
    return run


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_weights_that_are_not_finite_are_never_stored(tmp_path, where, clip):
    """A gradient may be NaN where the loss is not."""
    bad = False

    def loss(model, batch):
        if where == "loss":
            return cross_entropy(model, batch) * (float("nan") if bad else 1.0)
        root = (model[0].weight[0, 0] * 0).sqrt() if bad else 0.0  # 0 with an infinite derivative, times 0
        return cross_entropy(model, batch) + root * 0.0

    given = training(steps=6, loss=loss, clip=clip)
    whole = advanced(given, None, 6)
    advanced(given, tmp_path, 3)
    bad = True
    with pytest.raises(Diverged, match="lower the learning rate"):
        advanced(given, tmp_path, 6)
    bad = False
    run = Run(given, folder=tmp_path)
    assert run.step == 3
    run.advance_to(6)
    assert run.losses == whole.losses


def test_the_last_step_may_not_end_in_nan_either():
    given = training(steps=3, clip=None)
    run = Run(given)
    run.advance_to(3)
    with torch.no_grad():
        run.model[0].weight[0, 0] = float("inf")
    with pytest.raises(Diverged, match="not finite after step 3"):
        run.finish()


def test_a_full_disk_leaves_the_checkpoint(monkeypatch, tmp_path):
    given = training(steps=STEPS)
    whole = list(isp(search(given, seed_steps=2)))
    for room in (0, 1, 4, 7, 9, 16):  # checkpoints and candidates that still fit
        store, left = Store(tmp_path / str(room)), room

        def full(handle):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(WinnowError, match="disk is full"):
            list(isp(search(given, seed_steps=2, store=store)))
        assert not list(store.root.rglob("*.tmp"))
        monkeypatch.setattr(files.os, "fsync", lambda handle: None)
        same_tickets(list(isp(search(given, seed_steps=2, store=store))), whole)


def test_a_damaged_checkpoint_costs_its_steps_and_one_of_another_training_is_refused(tmp_path, caplog):
    given = training(steps=4)
    run = advanced(given, tmp_path, 2)
    assert run.file is not None
    data = run.file.read_bytes()
    flipped = bytearray(data)
    flipped[-3] ^= 1
    for wrong in (*(data[:cut] for cut in (0, 5, 100, len(data) // 2, len(data) - 1)), bytes(flipped)):
        run.file.write_bytes(wrong)
        caplog.clear()
        again = Run(given, folder=tmp_path)
        assert again.step == 0 and again.cost.steps == 0 and not again.losses and not again.notes
        assert all(torch.equal(t, given.model.state_dict()[n]) for n, t in again.model.state_dict().items())
        (record,) = caplog.records
        assert record.levelname == "WARNING" and "starts again from its beginning" in record.getMessage()
        assert str(run.file) in record.getMessage() and "\n" not in record.getMessage()
    again.advance_to(2)
    again.save()  # in the place of the damaged one
    assert Run(given, folder=tmp_path).step == 2
    run.file.write_bytes(data)
    other = training(Tied(), steps=4)
    with pytest.raises(FormatError, match=r"of another training: delete it and run again\.$"):
        Run(other, folder=tmp_path)
    assert Run(given, folder=tmp_path).step == 2


SEARCHES = {
    "isp": ({"rate": 0.4, "candidates": 2, "look_ahead": 2, "budget": 0.5, "seed_steps": 2}, 11),
    "isp-plain": ({"rate": 0.4, "budget": 0.5, "seed_steps": 2}, 8),
    "magnitude": ({}, 7),
    "snip": ({}, 7),
    "grasp": ({"temperature": 1.0}, 7),
    "gradual": ({"every": 2}, 9),
    "earlybird": ({"every": 2, "queue": 2, "patience": 0.5}, 9),
    "imp-rewind": ({"rate": 0.4}, 20),
    "lrr": ({"rate": 0.4}, 20),
    "dense": ({}, 5),
}


@pytest.mark.parametrize("method", SEARCHES)
def test_a_truncated_checkpoint_stops_no_search(killer, tmp_path, caplog, method):
    """Killed, its newest checkpoint cut short, started again: bit for bit the search that nothing happened to."""
    chosen, at = SEARCHES[method]
    settings = METHODS[method].settings_class(**chosen)
    given, rates = training(steps=STEPS, loss=noisy), [0.0] if method == "dense" else [0.6]

    def tickets(store=None):
        return list(METHODS[method].finder(Search(method, given, rates, settings, store)))

    whole = tickets()
    killer.arm(at)
    with pytest.raises(Killed):
        tickets(Store(tmp_path))
    newest = max(tmp_path.rglob("run.safetensors"), key=lambda f: f.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    same_tickets(tickets(Store(tmp_path)), whole)
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_finished_training_of_a_trajectory_has_to_be_whole(killer, tmp_path):
    """The weights that a ticket of an earlier sparsity is made of: its training is over and is not done again."""
    given = training(steps=STEPS)
    list(METHODS["imp"].finder(Search("imp", given, [0.4, 0.6], ImpSettings(rate=0.4), Store(tmp_path))))
    last = max(tmp_path.rglob("run.safetensors"), key=lambda f: f.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(FormatError, match="delete the store and run again"):
        list(METHODS["imp"].finder(Search("imp", given, [0.4, 0.6], ImpSettings(rate=0.4), Store(tmp_path))))


def test_a_damaged_candidate_is_computed_again(killer, tmp_path):
    given = training(steps=STEPS)
    whole = list(isp(search(given, seed_steps=2)))
    store = Store(tmp_path)
    killer.arm(2 + 2 + 1)  # within the second candidate of the first round
    with pytest.raises(Killed):
        list(isp(search(given, seed_steps=2, store=store)))
    (file,) = tmp_path.rglob("candidate-*")
    file.write_bytes(file.read_bytes()[:-1])
    killer.arm(-1)
    same_tickets(list(isp(search(given, seed_steps=2, store=store))), whole)
    assert killer.taken == ALL - 2  # the two main steps were kept, all candidates done anew


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from isp_samples import *
from winnow.run.store import Store
from winnow.tickets.methods.isp.isp import isp
run_module.SAVE_EVERY = -1.0
work = run_module.Run.one
def told(self, *args, **options):
    print("step", flush=True)
    return work(self, *args, **options)
run_module.Run.one = told
for ticket in isp(search(training(steps={steps}), seed_steps=2, store=Store(__import__("pathlib").Path({out!r})))):
    torch.save(ticket.model.state_dict(), {out!r} + "/model.pt")
"""


@pytest.mark.slow
def test_a_killed_process_started_again_ends_equal(tmp_path):
    (whole,) = isp(search(training(steps=STEPS), seed_steps=2))

    def start():
        script = SCRIPT.format(tests=str(SUPPORT), steps=STEPS, out=str(tmp_path))
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)

    process = start()
    assert process.stdout is not None
    for _ in range(9):  # into the second candidate of the second round
        assert process.stdout.readline().strip() == "step"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    rest, _ = start().communicate(timeout=300)
    assert ALL - 10 <= rest.split().count("step") < ALL
    state = torch.load(tmp_path / "model.pt")
    assert all(torch.equal(state[n], t) for n, t in whole.model.state_dict().items())


def test_models_are_never_changed():
    model = mlp()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    list(isp(search(training(model, steps=STEPS))))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
