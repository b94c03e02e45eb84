"""The finished result of another job is replaced where that is asked for, and nowhere else; the same job may always run again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import winnow
from accidents import figures, give
from small import classifier, points
from winnow.disk.made import describe, difference
from winnow.disk.ownership import made_by
from winnow.errors import InputError, WinnowError
from winnow.formats.output import OutputFolder
from winnow.pipeline.verb import run_recipe

PLAIN = dict(method="magnitude", baselines="none", speed=False)
TICKET = dict(method="random", steps=1, batch=16)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = give(tmp_path_factory.mktemp("given"))
    winnow.compress(classifier(), None, sparsity=0.6, out=folder / "other", **PLAIN)
    return folder


def other_model():
    model = classifier()
    with torch.no_grad():
        model.blocks[0].up.weight[0, 0] += 1
    return model


def compress(out, model=classifier, data=None, **options):
    return winnow.compress(model(), data, out=out, **{"sparsity": 0.5, **PLAIN, **options})


def saved(out, overwrite=False, **options):
    return compress(None, **options).save(out, overwrite=overwrite)


def found(out, model=classifier, sparsity=0.5, **options):
    return winnow.find_ticket(model(), points(32), sparsity=sparsity, out=out, **{**TICKET, **options})


def found_saved(out, sparsity=0.5, overwrite=False, **options):
    return winnow.find_ticket(classifier(), points(32), sparsity=0.5, **{**TICKET, **options}).save(out, overwrite=overwrite)  # fmt: skip


# by verb: the job, another one that differs in an option, and one that differs in what is read, each with the words for it
JOBS = {
    "compress": (
        lambda given, out, **o: compress(out, **o),
        lambda given, out, **o: compress(out, sparsity=0.7, **o), "its sparsity: 0.5, here: 0.7",
        lambda given, out, **o: compress(out, other_model, **o), "other weights",
    ),
    "calibrated": (
        lambda given, out, **o: compress(out, data=points(60), task="none", samples=32, **o),
        lambda given, out, **o: compress(out, data=points(60), task="none", samples=16, **o), "its samples: 32, here: 16",
        lambda given, out, **o: compress(out, data=points(60, seed=1), task="none", samples=32, **o), "other calibration data",
    ),
    "save": (
        lambda given, out, **o: saved(out, **o),
        lambda given, out, **o: saved(out, seed=1, **o), "its seed: the default, here: 1",
        lambda given, out, **o: saved(out, model=other_model, **o), "other weights",
    ),
    "export": (
        lambda given, out, **o: winnow.export_dense(given / "packed", out, **o),
        lambda given, out, **o: winnow.export_dense(given / "packed", out, shard_bytes=9000, **o), "its shard_bytes",
        lambda given, out, **o: winnow.export_dense(given / "other", out, **o), "other weights",
    ),
    "find_ticket": (
        lambda given, out, **o: found(out, **o),
        lambda given, out, **o: found(out, steps=2, **o), "its steps: 1, here: 2",
        lambda given, out, **o: found(out, other_model, **o), "other weights",
    ),
    "ticket saved": (
        lambda given, out, **o: found_saved(out, **o),
        lambda given, out, **o: found_saved(out, lr=0.5, **o), "its lr",
        lambda given, out, **o: found_saved(out, seed=3, **o), "its seed: 0, here: 3",
    ),
    "run": (
        lambda given, out, **o: run_recipe(given / "recipe.yaml", out, **o),
        lambda given, out, **o: run_recipe(given / "recipe.yaml", out, sets=["ticket.sparsity=50%"], **o), "its ticket.sparsity: 0.6, here: 0.5",
        lambda given, out, **o: run_recipe(given / "recipe.yaml", out, sets=[f"data={given / 'test.npz'}", f"eval={given / 'train.npz'}"], **o), "other data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_only_the_same_job_replaces_its_result_unasked(given, tmp_path, monkeypatch, job):
    same, *others = JOBS[job]
    out = tmp_path / "out"
    same(given, out)
    right = figures(out)
    same(given, out)  # the same once more, to the same result
    assert figures(out) == right
    (tmp_path / "mine").mkdir()
    for call, words in zip(others[::2], others[1::2]):
        with monkeypatch.context() as patch:
            if job != "save" and job != "ticket saved":  # which have done their work before they are saved
                patch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("worked"))
                patch.setattr(OutputFolder, "publish", lambda *_: pytest.fail("wrote"))
            with pytest.raises(InputError, match="finished result of another command") as error:
                call(given, out)
        assert words in str(error.value) and "overwrite=True" in str(error.value) and "\n" not in str(error.value)
        assert figures(out) == right and sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]
        call(given, out, overwrite=True)
        assert figures(out) != right
        same(given, out, overwrite=True)
        assert figures(out) == right


def test_another_verb_and_an_unknown_maker(given, tmp_path):
    out = tmp_path / "out"
    compress(tmp_path / "saved")
    saved(tmp_path / "saved")  # what a run writes and what its result saves are one, unless the run wrote several
    compress(tmp_path / "several", sparsity="0.5,0.7")
    with pytest.raises(InputError, match="its candidate"):
        saved(tmp_path / "several", sparsity="0.5,0.7")
    found(out)
    with pytest.raises(InputError, match="by find_ticket"):
        compress(out)
    folder = OutputFolder(tmp_path / "old")  # as a version left it that did not say what it was
    (folder.path / "model.bin").write_text("x")
    folder.publish()
    with pytest.raises(InputError, match="which one is not recorded"):
        compress(tmp_path / "old")
    compress(tmp_path / "old", overwrite=True)


def test_an_output_that_a_kill_left_aside_counts(given, tmp_path):
    out = tmp_path / "out"
    compress(out)
    out.rename(tmp_path / ".out.winnow-old")
    with pytest.raises(InputError, match=r"its sparsity: 0\.5, here: 0\.7"):
        compress(out, sparsity=0.7)
    compress(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_result_that_comes_during_the_work_stays(given, tmp_path, monkeypatch):
    """Of two runs with other recipes that begin at once, the second is refused when it gets its turn, and when it is done."""
    from winnow.compression import setup as setups
    from winnow.compression import verb

    out = tmp_path / "out"
    set_up = setups.set_up

    def overtaken(job):
        made = set_up(job)
        monkeypatch.setattr(verb, "set_up", set_up)
        compress(out, sparsity=0.7)
        return made

    monkeypatch.setattr(verb, "set_up", overtaken)
    monkeypatch.setattr(verb, "Runner", verb.Runner)
    with pytest.raises(InputError, match=r"its sparsity: 0\.7, here: 0\.5"):
        compress(out)
    assert made_by(out)["options"]["sparsity"] == [0.7]
    folder = OutputFolder(tmp_path / "late", made=describe("compress", {"sparsity": 0.5}, {}))
    (folder.path / "a.txt").write_text("x")
    shutil.copytree(out, tmp_path / "late")
    with pytest.raises(InputError, match="finished result of another command"):
        folder.publish()
    folder.discard()
    assert made_by(tmp_path / "late") == made_by(out)


def test_a_killed_run_leaves_the_place_to_any_recipe(given, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compress(out, data=points(60), task="none", samples=32)
    assert (tmp_path / "out.work").is_dir() and not out.exists()
    compress(out, data=points(60), task="none", samples=32, sparsity=0.7)
    assert winnow.load(out, factory=classifier) is not None and not (tmp_path / "out.work").exists()


def test_a_read_only_folder_is_one_sentence(given, tmp_path, monkeypatch):
    import os

    opened = os.open

    def denied(path, flags, *rest, **more):
        if "out.work" in str(path) and flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    compress(tmp_path / "out")
    right = figures(tmp_path / "out")
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(WinnowError) as error:
        compress(tmp_path / "out", sparsity=0.7, overwrite=True)
    assert "\n" not in str(error.value) and figures(tmp_path / "out") == right


def test_a_bench_of_other_settings_is_replaced_only_when_asked(given, tmp_path, monkeypatch):
    from winnow.records.speed import Measure, Times
    from winnow.speed import verb

    class Quick:
        """Writes down one figure in place of an hour of them."""

        def __init__(self, subject, work, found, *rest):
            self.found = found

        def run(self):
            times = Times(median=1, p95=1, q1=1, q3=1, n=1)
            self.found.measures.append(Measure(contender="dense", case="one", times=times, per_second=1))

    monkeypatch.setattr(verb, "BenchRun", Quick)
    monkeypatch.setattr(verb, "write_bench", lambda bench, data: data.write_text(bench.to_json()))
    data = dict(factory="small:classifier", data=points(32)[0], contenders="dense", batch=1)
    folder = Path(shutil.copytree(given / "packed", tmp_path / "packed"))
    for out in (None, tmp_path / "mine.json"):
        place = out or folder / "bench.json"
        winnow.bench(folder, rounds=2, out=out, **data)
        winnow.bench(folder, rounds=2, out=out, **data)
        with pytest.raises(InputError, match=r"another finished bench \(its rounds: 2, here: 3\)"):
            winnow.bench(folder, rounds=3, out=out, **data)
        assert json.loads(place.read_text())["made"]["options"]["rounds"] == 2
        winnow.bench(folder, rounds=3, out=out, overwrite=True, **data)
        found = json.loads(place.read_text())
        assert found["made"]["options"]["rounds"] == 3
        place.write_text(json.dumps({**found, "interrupted": True}))  # stopped half-way, as Ctrl-C leaves it
        winnow.bench(folder, rounds=2, out=out, **data)
    with pytest.raises(InputError, match="other weights"):
        winnow.bench(given / "other", rounds=2, out=tmp_path / "mine.json", **data)


def test_the_demo_is_refused_before_it_trains(tmp_path, monkeypatch):
    from winnow import demo_data
    from winnow.verbs.demo import run

    monkeypatch.setattr(demo_data, "train_digits", lambda *_, **__: pytest.fail("worked"))
    compress(tmp_path / "demo")
    with pytest.raises(InputError, match="finished result of another command"):
        run(tmp_path / "demo")
    beside = OutputFolder(tmp_path / "new-data", "data", made=describe("demo", {"seed": 1}, {}))
    (beside.path / "train.npz").write_text("x")
    beside.publish()
    with pytest.raises(InputError, match="its seed: 1, here: 0"):
        run(tmp_path / "new")
    assert not (tmp_path / "new").exists() and (tmp_path / "new-data" / "train.npz").read_text() == "x"


def test_differences_in_words():
    def job(options, **inputs):
        return describe("compress", options, inputs)

    was = job({"sparsity": [0.5, 0.7], "include": None}, weights="a", data="b")
    assert difference(was, job({"sparsity": (0.5, 0.7)}, data="b", weights="a")) is None
    assert difference(was, job({"sparsity": [0.5]}, data="b", weights="a")) == "its sparsity: 0.5, 0.7, here: 0.5"
    assert difference(was, job({"sparsity": [0.5, 0.7]}, data="c", weights="a")) == "other data"
    table = {f"layer {i}": 0.5 for i in range(20)}
    assert difference(was, job({"sparsity": [0.5, 0.7], "table": table}, data="b", weights="a")) == "with another table"
    assert difference(None, was) == "which one is not recorded"
    assert difference({"by": "run"}, was) == "by run" and difference({**was, "inputs": 3}, was) == "other data"
