"""``winnow run``: recipes are checked to the line, stages are done once, and a kill changes nothing."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import winnow
from command import refused
from command import winnow as command
from places import SUPPORT
from small import classifier, points
from winnow.errors import GateError, InputError
from winnow.pipeline.reading import read_recipe
from winnow.pipeline.trial import try_recipe
from winnow.pipeline.verb import run_recipe
from winnow.records import parts
from winnow.tickets import reporting, verb

RECIPE = """\
name: three clouds
model: small:classifier
weights: weights.safetensors
data: train.npz
eval: test.npz
stages:
  - train:
      steps: 12
      lr: 5e-3
  - eval
  - ticket:
      method: magnitude
      sparsity: 70%
      steps: 12
      lr: 5e-3
      start: model
  - compress:
      baselines: none
      speed: false
      samples: 32
  - eval:
      max_drop: 60
"""


@pytest.fixture(scope="module")
def folder(folder):
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def searches(monkeypatch):
    """What every call of find_ticket was given."""
    calls, work = [], verb.find_ticket

    def spy(model, data, **options):
        calls.append({"model": model, **options})
        return work(model, data, **options)

    monkeypatch.setattr(verb, "find_ticket", spy)
    return calls


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


# -- reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("sparsity: 70%", "sparsity: 1.2", 13, ["stages[3].ticket.sparsity", "1.2"]),
        ("sparsity: 70%", "sparsity: 0", 13, ["ticket.sparsity", "above 0"]),
        ("      sparsity: 70%\n", "", 11, ["ticket.sparsity", "is missing"]),
        ("steps: 12\n      lr: 5e-3\n  - eval", "steps: ten\n  - eval", 8, ["train.steps", "integer", "'ten'"]),
        ("steps: 12\n      lr: 5e-3\n  - eval", "steps: 1\n      epochs: 2\n  - eval", 7, ["steps and epochs"]),
        ("      lr: 5e-3\n  - eval", "      learning_rate: 5e-3\n  - eval", 9, ["learning_rate: is no field", "mean lr?"]),
        ("method: magnitude", "method: magic", 12, ["ticket.method", "magic", "imp-rewind"]),
        ("method: magnitude", "method: dense", 12, ["ticket.method", "train"]),
        ("method: magnitude", "method: imp\n      settings:\n        rte: 0.1", 14, ["settings.rte", "rate?"]),
        ("method: magnitude", "method: imp\n      settings:\n        rate: 3", 14, ["settings.rate", "less than 1"]),
        ("method: magnitude", "settings: {aggregate: sum}", 12, ["settings.aggregate", "'sum'"]),
        ("- compress:", "- compres:", 17, ["stages[4].compres", "compress?"]),
        ("samples: 32", "samples: many", 20, ["compress.samples", "integer"]),
        ("samples: 32", "values: int9", 20, ["compress.values: 'int9' is not known: choose one of keep, bf16"]),
        ("samples: 32", "samples: 0", 20, ["compress.samples: must be at least 1"]),
        ("samples: 32", "structure: 2of4", 20, ["compress.structure: unknown structure '2of4'"]),
        ("samples: 32", "time: soon", 20, ["compress.time: 'soon' is no time"]),
        ("samples: 32", "method: zeros\n      time: 3m", 21, ["compress.time: time is for methods that train"]),
        ("samples: 32", "method: alps\n      sparsity: 0.5\n      settings: {steps: 3}", 22, ["leave out settings.steps"]),
        ("name: three clouds", "name: yes\nlength: false", 2, ["length: must be a number, not false"]),
        ("data: train.npz", "data: true", 4, ["data: must be text, not true"]),
        ("method: magnitude", "method: imp\n      settings: {rate: true}", 13, ["ticket.settings: rate must be a number, not true"]),
        ("method: magnitude", "method: isp\n      settings: {average: true}", None, []),
        ("samples: 32", "recalibrate: true", None, []),
        ("samples: 32", "table: {head: true}", 20, ["compress.table: head must be a number, not true"]),
        ("samples: 32", "method: fcpts\n      sparsity: 0.5\n      settings: {steps: true}", 22, ["compress.settings: steps must be a number"]),
        ("samples: 32", "method: fcpts\n      sparsity: 0.5\n      settings: {step: 3}", 22, ["'step'"]),
        ("samples: 32", "sparsity: 0.5,0.7", 20, ["compress.sparsity", "one sparsity"]),
        ("samples: 32", "method: zeros\n      sparsity: 0.5", 21, ["method zeros keeps the zeros that the model has: leave out sparsity"]),
        ("baselines: none", "baselines: some", 18, ["compress.baselines", "'some'"]),
        ("max_drop: 60", "max_drop: -1", 22, ["eval.max_drop", "greater than 0"]),
        ("data: train.npz", "dta: train.npz", 4, ["dta", "data?"]),
        ("model: small:classifier\n", "", 1, ["model", "is missing"]),
        ("data: train.npz", "data: a.npz\ndata: b.npz", 4, ["data", "second time"]),
        ("data: train.npz", "data: [train.npz", 5, ["no YAML"]),
        ("data: train.npz", "\tdata: train.npz", 4, ["no YAML"]),
        ("data: train.npz", "data: !!python/name:os.system x", 4, ["no YAML"]),
        ("data: train.npz\n", "", 6, ["train needs data"]),
        ("executor", "executor", None, []),
        ("name: three clouds", "executor: spark", 1, ["executor", "local or ray"]),
        ("name: three clouds", "task: similarity", 7, ["train", "similarity"]),
        ("name: three clouds", "length: 1", 1, ["length"]),
        ("  - eval\n", "  - eval: 3\n", 10, ["stages[2].eval", "mapping"]),
        ("  - eval\n", "  - eval:\n    train: {}\n", 10, ["stages[2]", "one of"]),
        ("  - eval\n", "  - compress: {sparsity: 0.5}\n", 11, ["ticket cannot follow compress"]),
        ("  - eval\n", "  - train\n", 10, ["one of each"]),
        ("  - eval\n", "", None, []),
        (RECIPE[RECIPE.index("  - train") : RECIPE.index("  - ticket")], "", 12, ["ticket.start", "start model"]),
        (RECIPE[RECIPE.index("  - train") :], "  - eval\n", 6, ["nothing is made"]),
        (RECIPE[RECIPE.index("  - train") :], "", 6, ["must be a list"]),
        (RECIPE[RECIPE.index("stages") :], "", 1, ["stages: must be a list"]),
        (RECIPE[RECIPE.index("  - train") :], "  - compress\n", 7, ["set a budget"]),
        (RECIPE[RECIPE.index("  - train") :], "  - compress: {structure: 2:5}\n  - train", 8, ["cannot follow"]),
        (RECIPE[RECIPE.index("  - train") :], "  - eval: {max_drop: 1}\n  - compress: {sparsity: 0.5}\n", 7, ["leave it out"]),
        ("  - eval\n", "  - eval: {max_drop: 1}\n", 10, ["leave it out"]),
        ("  - eval\n", "  - eval\n  - eval: {max_drop: 1}\n", 11, ["leave it out"]),
        (RECIPE[RECIPE.index("  - train") :], "  - ticket: {sparsity: 0.5}\n  - eval: {max_drop: 1}\n", 8, ["train stage or an eval"]),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_line_and_field(tmp_path, old, new, line, words):
    path = written(tmp_path, RECIPE.replace(old, new, 1))
    if line is None:
        read_recipe(path)
        return
    with pytest.raises(InputError) as error:
        read_recipe(path)
    text = str(error.value)
    assert text.startswith(f"{path}, line {line}: ") and text.endswith(".") and "\n" not in text, text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "mapping"), ("- a\n- b\n", "mapping"), ("&a [*a]\n", "mapping|no YAML"), ("a: *b", "no YAML")],
)
def test_files_that_are_no_recipe(tmp_path, content, words):
    with pytest.raises(InputError, match=words):
        read_recipe(written(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "nothing.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_recipe(tmp_path / "b.yaml")


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    text = "model: m\nstages:\n  - compress: {structure: 2:4, damp: 1e-2, recalibrate: false, size: null}\n"
    stage = read_recipe(written(tmp_path, text)).stages[0]
    assert (stage.structure, stage.damp, stage.recalibrate, stage.size) == ("2:4", 0.01, False, None)


def test_set_puts_values_in_place(here):
    sets = [
        "seed=4", "train.epochs=2", "ticket.sparsity=80%", "ticket.settings.x=1", "eval.1.eval_limit=9", "eval.2.max_drop=3",
        "ticket.method=isp-plain", "ticket.settings={rate: 0.3}",
    ]  # fmt: skip
    recipe = read_recipe("recipe.yaml", sets)
    assert recipe.seed == 4 and (recipe.stages[0].steps, recipe.stages[0].epochs) == (None, 2)
    assert recipe.stages[2].sparsity == 0.8 and recipe.stages[2].settings == {"rate": 0.3}
    assert recipe.stages[1].eval_limit == 9 and recipe.stages[4].max_drop == 3


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["ticket.sparsity=3"], ["sets ticket.sparsity=3", "ticket.sparsity", "outside 0 to 1"]),
        (["tickt.sparsity=0.3"], ["no stage tickt"]),
        (["eval.max_drop=3"], ["2 eval stages", "eval.1.max_drop"]),
        (["eval.3.max_drop=3"], ["there are 2"]),
        (["foo=3"], ["foo", "no field of a recipe"]),
        (["train.steps"], ["is not stage.field=value"]),
        (["ticket.method.x=1"], ["holds a value"]),
        (["ticket.method=[a"], ["no YAML"]),
        (["train.steps=1", "train.epochs=2"], ["mutually exclusive"]),
    ],
)
def test_set_mistakes_are_named(here, sets, words):
    with pytest.raises(InputError) as error:
        read_recipe("recipe.yaml", sets)
    for word in words:
        assert word in str(error.value)


# -- running ------------------------------------------------------------------------------------------------------------


def test_from_weights_to_the_packed_folder(here, tmp_path, searches):
    out = tmp_path / "out"
    ran = run_recipe("recipe.yaml", out, keep_work=True, command="winnow run recipe.yaml")
    assert [c["method"] for c in searches] == ["dense", "magnitude"]
    assert [c["weights"] for c in searches] == [Path("weights.safetensors")] * 2  # start: model
    assert {p.name for p in out.iterdir()} == {
        "config.json", "manifest.json", "model.winnow.safetensors", "recipe.yaml", "report.html", "report.json", "README.md",
        "run.json", "run.yaml", "ticket.html", "ticket-report.json", ".winnow.json",
    }  # fmt: skip
    assert (out / "run.yaml").read_text() == RECIPE
    for path in out.iterdir():
        assert b".work" not in path.read_bytes(), path  # nothing points to what goes away
    ticket = load_file(next((tmp_path / "out.work").glob("ticket-*/three-clouds/model.safetensors")))
    packed = winnow.load(out, factory=classifier)
    assert all(torch.equal(t, ticket[n]) for n, t in packed.state_dict().items())
    zeros = sum(int((ticket[n] == 0).sum()) for n in winnow.find_scope(packed).prunables)
    assert zeros == round(0.7 * 6912)

    record = json.loads((out / "run.json").read_text())
    assert [s["kind"] for s in record["stages"]] == ["train", "eval", "ticket", "compress", "eval"]
    assert record["stages"][2]["figures"]["zeros"] == record["stages"][3]["figures"]["zeros"] == zeros
    assert record["stages"][0]["figures"]["steps"] == 12
    first, last = record["stages"][1]["figures"], record["stages"][4]["figures"]
    measured = winnow.evaluate("small:classifier", "test.npz", weights=out)
    assert last["value"] == pytest.approx(measured.value) and last["against_value"] == pytest.approx(first["value"])
    assert last["drop"]["drop"] == pytest.approx(first["value"] - last["value"])
    assert json.loads((out / "manifest.json").read_text())["parent"]["model"] == "small:classifier"
    assert ran.folder == out and not any(s.reused for s in ran.stages)


def test_a_gate_stops_before_anything_is_replaced(here, tmp_path, searches):
    out = tmp_path / "out"
    hard = ["eval.2.max_drop=0.001", "ticket.sparsity=0.99"]
    with pytest.raises(GateError, match=r"stage 5 \(eval\): accuracy lost .* stage 1 \(train\).*max_drop is 0.001"):
        run_recipe("recipe.yaml", out, sets=hard)
    assert not out.exists() and len(searches) == 2
    planned = run_recipe("recipe.yaml", out, sets=hard, dry_run=True)
    assert all(s.finished for s in planned)
    run_recipe("recipe.yaml", out, sets=["eval.2.max_drop=100", "ticket.sparsity=0.99"])
    assert len(searches) == 2 and (out / "run.json").exists()
    before = (out / "model.winnow.safetensors").read_bytes()
    with pytest.raises(GateError):
        run_recipe("recipe.yaml", out, sets=["eval.2.max_drop=0.001", "ticket.sparsity=0.98"], overwrite=True)
    assert (out / "model.winnow.safetensors").read_bytes() == before


def test_a_dry_run_counts_the_steps_of_isp(here, tmp_path):
    sets = ["ticket.method=isp", "ticket.steps=100", "ticket.settings={rate: 0.3, candidates: 2, look_ahead: 3}"]
    planned = run_recipe("recipe.yaml", tmp_path / "out", sets=sets, dry_run=True)
    (steps,) = [s.steps for s in planned if s.kind == "ticket"]
    assert steps > 100 and (steps - 100) % 6 == 0  # two candidates of three steps every round


def test_a_dry_run_writes_nothing_and_counts_steps(here, tmp_path):
    sets = ["ticket.method=imp", "train.epochs=2", "train.batch=50"]
    planned = run_recipe("recipe.yaml", tmp_path / "out", sets=sets, dry_run=True)
    assert [(s.kind, s.steps, s.finished) for s in planned] == [
        ("train", 2 * 5, False), ("eval", None, False), ("ticket", 12 * (6 + 1), False), ("compress", None, False), ("eval", None, False),
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert [s.key for s in run_recipe("recipe.yaml", sets=sets, dry_run=True)] == [s.key for s in planned]


def test_keys_follow_everything_that_decides(here, tmp_path):
    def keys(*sets, **options):
        return [s.key for s in run_recipe("recipe.yaml", sets=sets, dry_run=True, **options)]

    base = keys()
    assert keys("ticket.steps=13")[:2] == base[:2] and not set(keys("ticket.steps=13")[2:]) & set(base)
    assert keys("compress.values=int8")[:3] == base[:3]
    assert keys("eval.2.max_drop=1") == base
    assert keys("executor=local") == base == keys(executor="local")
    for change in ("seed=1", "train.lr=1e-3", "length=9", "task=classification"):
        assert not set(keys(change)) & set(base) or change.startswith("train")
    # The ticket starts from the given model, so another dense training leaves it as it is.
    assert (
        keys("train.lr=1e-3")[2] == base[2]
        and keys("train.lr=1e-3", "ticket.start=before")[2] != keys("ticket.start=before")[2]
    )
    x, y = points(240, seed=9)
    np.savez(tmp_path / "other.npz", x=x.numpy(), y=y)
    assert not set(keys(f"data={tmp_path / 'other.npz'}")[2:]) & set(base)


def test_the_ticket_goes_on_from_the_training_unless_told(here, tmp_path, searches):
    run_recipe("recipe.yaml", tmp_path / "out", sets=["ticket.start=before", "ticket.steps=1", "train.steps=1"])
    assert searches[0]["weights"] == Path("weights.safetensors")
    assert searches[1]["weights"].parts[-3].startswith("train-")


def test_a_ticket_alone_and_a_compression_alone(here, tmp_path):
    shared = "model: small:classifier\nweights: weights.safetensors\ndata: train.npz\nstages:\n"
    alone = written(tmp_path, shared + "  - ticket: {method: magnitude, sparsity: 0.5, steps: 3}\n")
    ran = run_recipe(alone, tmp_path / "a")
    assert {"masks.safetensors", "model.safetensors", "ticket.json", "run.json"} <= {
        p.name for p in ran.folder.iterdir()
    }
    assert "48 of the records of train.npz were held out" in ran.notes[0]
    alone.write_text(
        shared
        + "  - compress: {sparsity: 0.5, method: magnitude, baselines: none, speed: false}\n  - eval: {max_drop: 99}\n"
    )
    ran = run_recipe(alone, tmp_path / "b")
    assert ran.stages[1].figures["against"] == "the model given"
    assert winnow.inspect("small:classifier", weights=tmp_path / "b").zeros == 3456
    run_recipe(alone, tmp_path / "a", overwrite=True)  # a folder of winnow's is replaced


def test_an_eval_stage_may_bring_its_own_data(here, tmp_path):
    x, y = points(50, seed=11)
    np.savez(tmp_path / "more.npz", points=x.numpy(), kind=y)
    sets = [f"eval.1.data={tmp_path / 'more.npz'}", "eval.1.column=points", "eval.1.label=kind"]
    ran = run_recipe("recipe.yaml", tmp_path / "out", sets=sets)
    assert ran.stages[1].figures["n"] == 50 and ran.stages[4].figures["n"] == 160
    assert ran.stages[4].figures["drop"]["n"] == 160  # the first model, measured on this stage's data


def test_an_executor_of_ones_own_reaches_the_search(here, tmp_path, searches):
    from winnow.run.executor import Local

    mine = Local()
    run_recipe("recipe.yaml", tmp_path / "out", sets=["ticket.steps=1", "train.steps=1"], executor=mine)
    assert all(c["executor"] is mine for c in searches)
    with pytest.raises(InputError, match="spark"):
        run_recipe("recipe.yaml", tmp_path / "other", executor="spark")


def test_what_cannot_be_used_is_refused_before_any_work(here, tmp_path, searches):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InputError, match="not winnow's"):
        run_recipe("recipe.yaml", tmp_path / "mine")
    with pytest.raises(InputError, match="out=DIR"):
        run_recipe("recipe.yaml")
    with pytest.raises(InputError, match="share 240 records"):
        run_recipe("recipe.yaml", tmp_path / "o", sets=["eval.1.data=train.npz"])
    x, _ = points(60, seed=2)
    np.savez(tmp_path / "scores.npz", x=x.numpy(), y=np.linspace(0, 1, 60))
    with pytest.raises(InputError, match="scores"):
        run_recipe("recipe.yaml", tmp_path / "o", sets=[f"data={tmp_path / 'scores.npz'}"])
    assert searches == [] and not (tmp_path / "o.work").exists()


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("data: train.npz", "data: none.npz", 4, "data: none.npz does not exist in {here}, the current folder, from which relative paths start: give"),
        ("data: train.npz", "data: /none.npz", 4, "data: /none.npz does not exist: give"),
        ("eval: test.npz", "eval: train.npz", 5, "eval: train.npz and train.npz share 240 records"),
        ("model: small:classifier\nweights: weights.safetensors", "model: ./distil", 2, "model: ./distil does not exist in {here}, the current"),
        ("weights: weights", "weights: none", 3, "weights: none.safetensors does not exist in {here}"),
        ("eval: test.npz", "eval: test.npz\ncolumn: words", 6, "column: train.npz has no array 'words'"),
        ("eval: test.npz", "eval: test.npz\nlabel: z", 6, "label: train.npz has no array 'z'"),
        ("data: train.npz", "data: rows.jsonl\ncolumn: words", 5, "column: rows.jsonl has no column 'words': give column one of a, b (or"),
        ("data: train.npz", "data: rows.jsonl", 4, "data: rows.jsonl: which column is the text is not clear: give column one of a, b (or"),
        ("  - eval\n", "  - eval:\n      data: none.npz\n", 11, "stages[2].eval.data: none.npz does not exist in"),
        ("  - eval\n", "  - eval:\n      data: rows.jsonl\n      column: c\n", 12, "stages[2].eval.column: rows.jsonl has no column 'c'"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_named_with_line_and_field(here, tmp_path, old, new, line, words):
    (here / "rows.jsonl").write_text('{"a": "one", "b": "two"}\n{"a": "three", "b": "four"}\n')
    path = written(tmp_path, RECIPE.replace(old, new, 1))
    for go in (lambda: run_recipe(path, dry_run=True), lambda: try_recipe(path, 1)):
        with pytest.raises(InputError) as error:
            go()
        text = str(error.value)
        assert text.startswith(f"{path}, line {line}: {words.format(here=Path.cwd())}"), text
        assert "--" not in text and "\n" not in text and text.endswith(".")


def test_what_a_set_names_and_cannot_be_opened(here):
    with pytest.raises(InputError, match=r"^recipe\.yaml, sets data=no\.npz: data: no\.npz does not exist in "):
        run_recipe("recipe.yaml", sets=["seed=1", "data=no.npz"], dry_run=True)
    with pytest.raises(
        InputError, match=r"^recipe\.yaml, sets eval\.2\.data=no\.npz: stages\[5\]\.eval\.data: no\.npz"
    ):
        run_recipe("recipe.yaml", sets=["eval.2.data=no.npz"], dry_run=True)


def test_labels_that_are_missed_later_are_named_as_a_field(here, tmp_path):
    x, _ = points(40, seed=3)
    np.savez(tmp_path / "bare.npz", x=x.numpy())
    with pytest.raises(InputError, match=r"has no labels") as error:
        run_recipe("recipe.yaml", tmp_path / "o", sets=[f"data={tmp_path / 'bare.npz'}"])
    assert "label" in str(error.value) and "--label" not in str(error.value)


def test_one_run_at_a_time(here, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out.work").mkdir()
    with open(tmp_path / "out.work" / ".lock", "a") as other:  # another open file: as another process has it
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"^another run is writing out: wait for it or choose another out\.$"):
            run_recipe("recipe.yaml", tmp_path / "out")
    run_recipe("recipe.yaml", tmp_path / "out", sets=["train.steps=1", "ticket.steps=1"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_record_is_json_whatever_the_figures():
    found = parts.finite({"high": float("inf"), "drop": {"low": float("nan"), "n": 3}, "list": [1.5, (2.0,)]})
    assert found == {"high": None, "drop": {"low": None, "n": 3}, "list": [1.5, [2.0]]}


# -- the ticket's page and the trial ------------------------------------------------------------------------------------


def test_the_tickets_page_compares_with_the_dense_training(here, tmp_path):
    from winnow.report.ticket import page

    out = tmp_path / "out"
    ran = run_recipe("recipe.yaml", out, keep_work=True, command="winnow run recipe.yaml")
    report = page.read(out)
    (line,), figures = report.tickets, [s.figures for s in ran.stages]
    assert (line.method, line.zeros, report.command) == ("magnitude", figures[2]["zeros"], "winnow run recipe.yaml")
    assert report.model.name == "three-clouds" and report.task.evaluation_data.endswith("test.npz")
    assert report.dense.value == pytest.approx(figures[0]["value"])
    assert line.figure.value == pytest.approx(figures[2]["value"])
    dense, ticket = (next((tmp_path / "out.work").glob(f"{k}-*/three-clouds/model.safetensors")) for k in ("train", "ticket"))  # fmt: skip
    paired = winnow.evaluate("small:classifier", "test.npz", weights=ticket)
    other = winnow.evaluate("small:classifier", "test.npz", weights=dense)
    assert line.drop.value == pytest.approx(other.value - paired.value) == report.rows[0].drop.value
    assert "against dense" in report.verdict.sentence and report.verdict.sentence in (
        out / "ticket.html"
    ).read_text().replace("&#160;", "\u00a0")
    # the ticket is taken up, and its page speaks of the other dense training
    again = run_recipe("recipe.yaml", out, sets=["train.steps=1"], keep_work=True, overwrite=True)
    assert [s.reused for s in again.stages[:3]] == [False, False, True]
    assert page.read(out).dense.value == pytest.approx(again.stages[0].figures["value"])
    kept = page.read(next((tmp_path / "out.work").glob("ticket-*/three-clouds/ticket.json")).parent)
    assert kept.dense is None and kept.tickets[0].drop is None


def test_the_tickets_page_is_the_report_of_both_searches(here, tmp_path, monkeypatch):
    from rich.console import Console

    from winnow.pipeline.table import ran_table
    from winnow.report.ticket import page

    found, work = [], verb.find_ticket

    def search(*args, **options):
        found.append(work(*args, **options))
        return found[-1]

    monkeypatch.setattr(verb, "find_ticket", search)
    ran = run_recipe("recipe.yaml", tmp_path / "out")
    dense, ticket = found
    whole = reporting.build(ticket.tickets, dense.ticket.evaluation, ticket.training, title="Ticket of three-clouds", model="three-clouds",
        data=page.read(ran.folder).task.evaluation_data, settings=ticket.settings.model_dump(mode="json"))  # fmt: skip
    assert page.read(ran.folder) == whole
    console = Console(width=2000, record=True, file=io.StringIO())
    console.print(ran_table(ran))
    assert f"Ticket: {(ran.folder / 'ticket.html').resolve()}" in console.export_text()


def test_a_training_alone_has_no_tickets_page(here, tmp_path):
    text = "model: small:classifier\nweights: weights.safetensors\ndata: train.npz\nstages:\n  - train: {steps: 2}\n"
    ran = run_recipe(written(tmp_path, text), tmp_path / "out")
    assert not (ran.folder / "ticket.html").exists() and (ran.folder / "model.safetensors").exists()


def test_a_trial_is_of_the_training_that_the_run_would_do(here, tmp_path, monkeypatch):
    from winnow.tickets.trial import verb as tried
    from winnow.train.task.identity import training_identity

    seen, work = [], verb.find_ticket

    def spy(training, sparsity, **options):
        seen.append((training, sparsity, options))
        return "verdict"

    def search(*args, **options):
        found = work(*args, **options)
        seen.append(found.training)
        return found

    monkeypatch.setattr(tried, "poc", spy)
    sets = ["ticket.exclude=['blocks.0.*']", "ticket.epochs=2", "ticket.batch=24", "ticket.warmup=0.1"]
    assert try_recipe("recipe.yaml", 1.5, sets=sets) == "verdict"
    monkeypatch.setattr(verb, "find_ticket", search)
    run_recipe("recipe.yaml", tmp_path / "out", sets=sets)
    (training, sparsity, options), _, theirs = seen
    assert training_identity(training) == training_identity(theirs) and training.steps == 20
    assert sparsity == 0.7 and options["minutes"] == 1.5
    assert options["methods"] == ("magnitude", "magnitude", "dense")


def test_a_trial_starts_from_a_finished_train_stage(here, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from winnow.tickets.trial import verb as tried

    starts = []

    def spy(training, sparsity, **options):
        starts.append({n: t.clone() for n, t in training.model.state_dict().items()})
        return SimpleNamespace(reasons=[])

    monkeypatch.setattr(tried, "poc", spy)
    sets = ["ticket.start=before"]
    before = try_recipe("recipe.yaml", 1, tmp_path / "out", sets=sets)
    assert "not finished" in before.reasons[0]
    run_recipe("recipe.yaml", tmp_path / "out", sets=sets, keep_work=True)
    after = try_recipe("recipe.yaml", 1, tmp_path / "out", sets=sets)
    trained = load_file(next((tmp_path / "out.work").glob("train-*/three-clouds/model.safetensors")))
    assert after.reasons == [] and all(torch.equal(t, trained[n]) for n, t in starts[1].items())
    assert any(not torch.equal(t, trained[n]) for n, t in starts[0].items())


def test_a_trial_judges_by_the_gate_after_the_ticket(here, tmp_path, monkeypatch):
    from winnow.tickets.trial import verb as tried

    limits = []
    monkeypatch.setattr(tried, "poc", lambda *_, **options: limits.append(options.get("max_drop", "its own")))
    gate = "  - eval:\n      max_drop: 60\n"
    for text in (
        RECIPE,
        RECIPE.replace(gate, ""),
        RECIPE.replace("  - compress", "  - eval: {max_drop: 5}\n  - compress"),
        RECIPE.replace("max_drop: 60", "eval_limit: 20").replace(
            "  - ticket", "  - eval: {data: more.npz}\n  - ticket"
        ),
    ):
        x, y = points(30, seed=21)
        np.savez("more.npz", x=x.numpy(), y=y)
        try_recipe(written(tmp_path, text), 1)
    assert limits == [60, "its own", 5, "its own"]


def test_trials_that_cannot_be(here, tmp_path):
    with pytest.raises(InputError, match=r"may take up to [\d.]+ minutes here: give poc=[\d.]+ or more\.$"):
        try_recipe("recipe.yaml", 1e-6, sets=["ticket.steps=5000"])
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="more than 0"):
            try_recipe("recipe.yaml", minutes)
    text = "model: small:classifier\nweights: weights.safetensors\ndata: train.npz\nstages:\n  - train: {steps: 2}\n"
    with pytest.raises(InputError, match="no ticket stage"):
        try_recipe(written(tmp_path, text), 1)


def test_text_and_table_of_a_trial_give_a_loss_one_sign():
    """Right on 150 of 200 instead of 180: -15 points in both, as in the report."""
    from types import SimpleNamespace

    from rich.console import Console

    from winnow.measure.evaluation import Evaluation
    from winnow.pipeline.table import trial_table
    from winnow.tickets.trial.verdict import Full, Verdict, judge

    def right(count: int) -> Evaluation:
        answers = np.arange(200) < count
        return Evaluation(
            "accuracy", count / 200, 0.0, 1.0, answers.astype(float), np.where(answers, 0, 1), 200, np.zeros(200, int)
        )

    found = {"dense": [right(180)], "ticket": [right(150)]}
    *_, reasons, skill, drop, gain = judge(found, right(20), "ticket", 0.9)
    tickets = [
        SimpleNamespace(method=m, zeros=0, sparsity=0.9, cost=SimpleNamespace(steps=1, seconds=1.0), evaluation=e)
        for m, (e,) in found.items()
    ]
    verdict = Verdict("no-go", "No-go.", reasons, skill, drop, gain, Full(1, 1.0, 1, 1.0), 1, 1, 1.0, tickets, None)
    console = Console(width=2000, record=True, file=io.StringIO())
    console.print(trial_table(verdict))
    shown = console.export_text().splitlines()
    change = re.search(r"against dense: (−15\.00 points \(−.* to −.*\))", "\n".join(shown))
    assert change and next(line for line in shown if line.startswith("ticket")).rstrip().endswith(change[1])


# -- as a process -------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from winnow.run import store
from winnow.tickets import verb
from winnow.train.task import run
store.code_version = lambda: "the same in both processes, whatever is edited meanwhile"
run.SAVE_EVERY = -1.0
one, search = run.Run.one, verb.find_ticket
def told(self, *args, **options):
    print("step", flush=True)
    return one(self, *args, **options)
def named(*args, **options):
    print("stage", options["method"], flush=True)
    return search(*args, **options)
run.Run.one, verb.find_ticket = told, named
from winnow.pipeline.verb import run_recipe
run_recipe("recipe.yaml", {out!r})
"""


def start(folder: Path, out: Path) -> subprocess.Popen:
    script = SCRIPT.format(tests=str(SUPPORT), out=str(out))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env, cwd=folder)


@pytest.mark.slow
def test_a_killed_run_goes_on_inside_its_stage_and_ends_equal(folder, tmp_path):
    whole, _ = start(folder, tmp_path / "whole").communicate(timeout=600)
    assert whole.split().count("step") == 24
    process = start(folder, tmp_path / "cut")
    assert process.stdout is not None
    lines = []
    while lines.count("step") < 12 + 7:
        line = process.stdout.readline()
        assert line, "it ended before it could be killed"
        lines.append(line.strip())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "stage magnitude" in lines and not (tmp_path / "cut").exists()
    rest, _ = start(folder, tmp_path / "cut").communicate(timeout=600)
    assert "stage dense" not in rest and "stage magnitude" in rest
    assert 12 - 7 <= rest.split().count("step") <= 12 - 7 + 2
    for name in ("model.winnow.safetensors", "config.json", "recipe.yaml"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    figures = [
        [s["figures"].get("value") for s in json.loads((tmp_path / n / "run.json").read_text())["stages"]]
        for n in ("cut", "whole")
    ]
    assert figures[0] == figures[1]
    assert not (tmp_path / "cut.work").exists()


def test_on_the_command_line(folder, tmp_path):
    out = tmp_path / "out"
    done = command("run", "recipe.yaml", "--out", out, "--json", "--set", "ticket.sparsity=0.5", cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["stages"][3]["figures"]["zeros"] == 3456 and record["set"] == ["ticket.sparsity=0.5"]
    assert json.loads((out / "report.json").read_text())["command"].startswith("winnow run recipe.yaml")
    gate = command("run", "recipe.yaml", "--out", tmp_path / "no", "--set", "ticket.sparsity=0.99", "--set", "eval.2.max_drop=0.01", cwd=folder)  # fmt: skip
    assert "no.work keeps the finished stages" in refused(gate, code=3) and not (tmp_path / "no").exists()
    sets = ["--set", "ticket.sparsity=0.99", "--set", "eval.2.max_drop=100"]
    kept = command("run", "recipe.yaml", "--out", tmp_path / "no", *sets, "--keep-work", cwd=folder)
    assert "was finished" in kept.stdout and f"{tmp_path / 'no.work'} (" in kept.stdout and "delete it" in kept.stdout
    other = command("run", "recipe.yaml", "--out", tmp_path / "no", cwd=folder)
    assert "finished result of another command (its " in refused(other)


def test_the_command_line_refuses_and_plans(folder, tmp_path):
    (tmp_path / "bad.yaml").write_text(RECIPE.replace("steps: 12", "stps: 12", 1))
    told = refused(command("run", tmp_path / "bad.yaml", "--out", tmp_path / "o", cwd=folder))
    assert "line 8: stages[1].train.stps" in told
    plan = command("run", "recipe.yaml", "--dry-run", cwd=folder)
    assert plan.returncode == 0 and "magnitude, 70% sparsity" in plan.stdout and "to do" in plan.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_trial_on_the_command_line(folder, tmp_path):
    before = sorted(p.name for p in folder.iterdir())
    # Far more minutes than it takes: a trial is never longer than the training.
    done = command("run", "recipe.yaml", "--poc", "9", "--json", "--set", "ticket.steps=30", cwd=folder)
    assert done.returncode != 2, done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == found["exit_code"] == {"go": 0, "no-go": 3, "undecided": 1}[found["decision"]]
    assert {t["method"] for t in found["tickets"]} == {"dense", "magnitude"} and found["reasons"]
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == before
    told = refused(command("run", "recipe.yaml", "--poc", "-1", cwd=folder))
    assert "more than 0" in told
