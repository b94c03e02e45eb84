"""Progress: what is told of the time left, bars at every width, lines without a terminal, and who sees what."""

import io
import json
import logging
import re
import threading

import pytest
import torch
from torch import nn

import winnow
from command import winnow as command
from winnow.errors import InputError
from winnow.terminal.bars import NotebookView, Picture
from winnow.terminal.lines import Details, LogView
from winnow.terminal.progress import Expected, Prefixed, Tracker, expect, on_the_command_line, silent, watch
from winnow.terminal.screen import Console


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(tracker, clock, name, seconds, steps=4):
    """A stage of equal steps; yields after each."""
    update = tracker(name)
    update(0, steps, "")
    for step in range(1, steps + 1):
        clock.now += seconds / steps
        update(step, steps, f"step {step}")
        yield step


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tracker(clock):
    return Tracker(clock=clock)


def test_time_left_is_what_stages_of_a_kind_took(tracker, clock):
    """Two candidates: made in 8 s each, measured in 2 s each, after a dense measurement of 2 s: 22 s in all."""
    tracker.expect([Expected("measuring dense", "measuring"), *pairs("a"), *pairs("b")])
    assert tracker.left() is None and tracker.share() is None  # nothing tells how long a measurement takes
    order = [("measuring dense", 2), ("compressing to a", 8), ("measuring a", 2), ("compressing to b", 8), ("measuring b", 2)]  # fmt: skip
    shares, passed = [], 0.0
    for name, seconds in order:
        for step in run(tracker, clock, name, seconds):
            passed += seconds / 4
            if (
                name == "measuring dense"
            ):  # the others are guessed at 5 s; this one's speed is known from its first step on
                assert tracker.left() == pytest.approx(2 - passed + 2 * 5 + 2 * 2)
            else:  # and from the first step of the first that is made on, everything is known
                assert tracker.left() == pytest.approx(22 - passed)
                assert tracker.left_of(tracker.stages[-1]) == pytest.approx(seconds * (4 - step) / 4)
            shares.append(tracker.share())
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[-2] < 1.0
    assert tracker.counts == (5, 5)


def pairs(name):
    return [Expected(f"compressing to {name}", "solving", 5.0), Expected(f"measuring {name}", "measuring")]


def test_what_takes_longer_than_was_reckoned_has_no_known_end(tracker, clock):
    tracker.expect([Expected("train", "train", 10.0), Expected("pack", "pack", 3.0)])
    update = tracker("train")
    update(0, 2, "")
    clock.now += 60  # six times as long as was guessed, and no step yet
    assert tracker.left() is None  # and not "nothing left"
    update(1, 2, "")
    clock.now += 1
    assert tracker.left() == pytest.approx(59 + 3)
    share = tracker.share()
    clock.now += 500  # the next step takes longer than the first
    assert tracker.left() is None and tracker.share() == share == pytest.approx(61 / 123)


def test_a_resumed_run_is_measured_by_what_it_does_now(tracker, clock):
    update = tracker("train")
    update(900, 1000, "")
    clock.now += 10
    update(950, 1000, "")
    assert tracker.left() == pytest.approx(10.0)


def test_a_first_update_that_comes_late_counts_from_the_name(tracker, clock):
    tracker.expect([Expected("measuring a", "measuring"), Expected("measuring b", "measuring")])
    update = tracker("measuring a")
    clock.now += 7
    update(1, 1, "")  # a single batch
    assert tracker.stages[0].length() == 7.0 and tracker.left() == 7.0


def test_stages_that_were_finished_before_are_not_waited_for(tracker, clock):
    """A run that is taken up again names stages and does nothing in them, or leaves them out."""
    tracker.expect([Expected(name, "run", 10.0) for name in ("a", "b", "c", "d")])
    tracker("a")  # named, and found finished
    tracker("c")(0, 1, "")  # b is not even named
    assert tracker.left() == pytest.approx(20.0) and tracker.counts == (0, 2)


def test_a_part_says_what_its_own_stages_are(tracker, clock):
    tracker.expect([Expected("1 train: *", "1"), Expected("2 compress: *", "2")])
    assert tracker.left() is None
    part = Prefixed(tracker, "1 train: ")
    expect(part, [Expected("x", "k", 4.0), Expected("y", "k", 4.0)])
    assert [e.name for e in tracker.planned] == ["1 train: x", "1 train: y", "2 compress: *"]
    for name in ("x", "y"):
        part(name)(1, 1, "")
    expect(Prefixed(tracker, "2 compress: "), [Expected("z", "k", 6.0)])
    assert tracker.left() == 6.0
    expect(lambda name: print, [Expected("x", "k", 1.0)])  # a function of the caller's is not told


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_bar_count_and_time_left_are_there_at_every_width(tracker, clock, width):
    """The description gives way, with an ellipsis; what tells how far it is stays."""
    tracker.expect(
        [Expected("x", "k", 40.0), Expected("training on digits and letters at 70% sparsity", "t"), Expected("y", "k")]
    )
    tracker("x")(1, 1, "")
    update = tracker("training on digits and letters at 70% sparsity")
    update(0, 100000, "")
    clock.now += 30
    update(25000, 100000, "bert.encoder.layer.11.attention.output.dense, step 300 of 1000")
    lines = drawn(tracker, width)
    assert len(lines) == 2 and all(len(line) <= width for line in lines)
    stage, total = lines
    assert "━" in stage and "25000/100000" in stage and stage.endswith("1:30 left")
    assert "━" in total and "25%" in total and total.endswith("1:30 left")
    assert stage.startswith("training on") and ("…" in stage) == (width < 120 + 40)
    assert total.startswith("total: 1 of 3") or "…" in total


def drawn(tracker, width):
    screen = Console(width=width, file=io.StringIO(), record=True, force_terminal=True, color_system=None)
    screen.print(Picture(tracker))
    return [line.rstrip() for line in screen.export_text(clear=True).splitlines() if line.strip()]


def test_unknown_time_is_said_to_be_unknown(tracker):
    (opening,) = drawn(tracker, 80)
    assert opening.startswith("preparing, 0:00 so far") and opening.endswith("-:-- left")
    tracker.expect([Expected("a", "k"), Expected("b", "k")])
    tracker("a")(0, 5, "")
    stage, total = drawn(tracker, 80)
    assert stage.endswith("0/5 -:-- left") and total.endswith("-:-- left") and "%" not in total


def test_lines_of_a_log(tracker, clock, caplog):
    """When the work begins, then stage, done of total and time left, and the end of a stage that took a second or more."""
    caplog.set_level(logging.INFO, logger="winnow")
    tracker.expect([Expected("train", "t"), Expected("pack", "p", 20.0)])
    beaten = threading.Event()
    view = tracker.view = LogView(tracker, every=0.01)
    line = view.line
    view.line = lambda: (beaten.set(), line())[1]
    with view:
        update = tracker("train")
        update(0, 4000, "")
        clock.now += 10
        update(1000, 4000, "loss 1.2")
        beaten.clear()
        assert beaten.wait(10)  # told by time alone, with no update
        clock.now += 30
        update(4000, 4000, "")
        for name, seconds in (("pack", 0.9), ("check", 1.5)):
            for _ in run(tracker, clock, name, seconds):
                pass
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert said[0] == "train: started" and said[-2:] == ["train: done in 40 s", "check: done in 1.5 s"]
    assert set(said[1:-2]) == {"train: 1,000 of 4,000, 30 s left; total: 16%, 50 s left"}
    assert not [t for t in threading.enumerate() if t.name == "winnow-progress"]


def test_details_are_said_at_debug(tracker, caplog):
    caplog.set_level(logging.DEBUG, logger="winnow")
    tracker.view = Details()
    tracker("walk")(3, 7, "encoder.\x1b[2Jlayer.3")
    assert [r.getMessage() for r in caplog.records] == ["walk: 3 of 7, encoder.\\x1b[2Jlayer.3"]


def test_a_notebook_gets_one_output_that_needs_no_widgets(tracker, clock):
    tracker.view = view = NotebookView(tracker)
    view._show = lambda force=False: None  # IPython is not asked
    tracker.expect([Expected("measuring <b>", "m"), Expected("pack", "p", 5.0)])
    for _ in run(tracker, clock, "measuring <b>", 20):
        pass
    tracker("pack")(1, 10, "")
    page = view.page()
    assert "<summary>1 of 2 stages in 20 s</summary>" in page and "measuring &lt;b&gt;, 20 s" in page
    assert "━" in page and "1/10" in page and "script" not in page
    assert "━" not in view.page(live=False)


def test_watch_takes_functions_and_truth_values(caplog):
    told = []
    with watch(lambda name: lambda *what: told.append((name, *what))) as stages:
        stages("a")(1, 2, "x")
    assert told == [("a", 1, 2, "x")]
    with watch(False) as stages:
        assert stages is silent
    with watch(None) as stages:  # no terminal here, and no one hears INFO
        assert stages is silent
    with pytest.raises(InputError, match="give True, False, or a function"), watch("yes"):
        pass


def test_colors_that_are_forced_make_no_terminal_of_a_log(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services do
    with watch(None) as stages:
        assert stages is silent


def test_true_prints_lines_where_logging_would_leave_them_out(capfd, monkeypatch):
    log = logging.getLogger("winnow")
    monkeypatch.setattr(log, "propagate", False)  # pytest's own handlers are on the root
    with watch(True) as stages:
        stages("a")(1, 1, "")
    said = capfd.readouterr()
    assert said.out == "" and re.fullmatch(r"\S+ \S+ a: started\n", said.err)
    assert log.level == logging.NOTSET and not log.handlers


def test_quiet_and_verbose(capfd):
    with on_the_command_line(quiet=True, verbose=False, as_json=False) as stages:
        stages("a")(0, 2, "")
        logging.getLogger("winnow.somewhere").warning("not this")
    assert capfd.readouterr() == ("", "")
    with on_the_command_line(quiet=False, verbose=True, as_json=True) as stages:
        stages("a")(1, 2, "layer 3")
        stages("b")(1, 1, "")
    said = capfd.readouterr()
    assert said.out == "" and "a: started" in said.err and "a: 1 of 2, layer 3" in said.err
    assert "b: started" in said.err and "b: done in" in said.err
    with pytest.raises(InputError, match="mutually exclusive"):
        on_the_command_line(quiet=True, verbose=True, as_json=False).__enter__()


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()


def labelled(n=96):
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def test_compress_knows_all_its_stages_before_they_begin():
    """Every stage that comes was expected, and all are over at the end: the total is a total."""
    tracker = Tracker()
    seen = []
    first = tracker.expect

    class Listening:
        expect = staticmethod(lambda stages: (seen.extend(stages), first(stages)))
        __call__ = staticmethod(tracker)

    winnow.compress(small(), labelled(), sparsity=[0.5, 0.7], speed=False, progress=Listening())
    assert [s.name for s in tracker.stages] == [e.name for e in seen]
    assert not tracker.planned and all(s.ended is not None for s in tracker.stages)
    assert tracker.left() == 0.0 and tracker.share() == 1.0


def test_find_ticket_knows_how_many_trainings_there_are():
    x, y = labelled()
    for method, trainings in (("gradual", 2), ("imp", 5)):  # dense, then 0.2, 0.3, 0.44, 0.488
        tracker = Tracker()
        winnow.find_ticket(small(), (x, y), sparsity=[0.3, 0.488], method=method, steps=6, batch=16, progress=tracker)
        assert len(tracker.stages) == trainings and not tracker.planned


def test_progress_false_is_silent_all_the_way_down(caplog, capfd):
    caplog.set_level(logging.INFO, logger="winnow")
    winnow.compress(small(), labelled(), sparsity=0.5, progress=False)
    assert not caplog.records and capfd.readouterr().err == ""
    caplog.set_level(logging.DEBUG, logger="winnow")
    winnow.compress(small(), labelled(), sparsity=0.5, baselines="none", speed=False)
    assert [r.getMessage() for r in caplog.records if "started" in r.getMessage()] == [
        "measuring dense: started", "compressing to s50: started", "measuring s50: started", "speed and report: started",
    ]  # fmt: skip


def test_json_stays_json(tmp_path):
    done = command("demo", "--out", tmp_path / "d", "--json")
    assert json.loads(done.stdout)["chosen"] == "s70-int4-g128"
    said = done.stderr.splitlines()
    assert said[0].endswith("training on digits: started") and "training on digits: done in" in done.stderr
    assert len(said) < 20 and not re.search(r"done in (0\.\d s|\d+ ms)", done.stderr)  # two dozen stages take no second
