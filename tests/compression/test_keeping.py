"""Candidates that were not written: what is kept of them, and that it comes to what ``--keep`` would have written."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch

import winnow
from command import refused
from command import winnow as command
from small import classifier, convnet, images, points, trained, write_points
from winnow.compression import keeping
from winnow.compression.keeping import closing_line, keep
from winnow.errors import InputError
from winnow.pipeline.verb import run_recipe

QUICK = dict(samples=32, speed=False)
SHORT = dict(baselines="rtn")
CASES = {
    "plain": (classifier, points, dict(sparsity=0.6, method="magnitude", **SHORT)),
    "chains": (classifier, points, dict(sparsity=0.6, method="sparsegpt")),
    "batch norms": (convnet, images, dict(sparsity=0.5, method="wanda", values="int8")),  # every candidate has its own
    "whole neurons": (
        classifier,
        points,
        dict(sparsity=0.4, structure="neuron", method="wanda", **SHORT),
    ),  # biases that only some change
    "several": (classifier, points, dict(sparsity="0.5,0.7", method="magnitude", **SHORT)),
    "a limit": (lambda: trained(classifier(), *points()), points, dict(max_drop=50, method="magnitude", **SHORT)),
}


def compressed(case, out, **options):
    make, data, given = CASES[case]
    return winnow.compress(make(), data(), eval=data(60, seed=5), out=out, **{**QUICK, **given, **options})


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".winnow.json"}


@pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
def test_a_candidate_kept_later_is_the_one_that_keep_writes(tmp_path, case):
    result = compressed(case, tmp_path / "out")
    written = {o.name for o in result.outcomes if (tmp_path / "out" / o.name).is_dir()} | {result.chosen.name}
    others = [o.name for o in result.outcomes if o.name not in written]
    assert len(others) > 2 and len(list((tmp_path / "out.work").glob("candidate-*.json"))) == len(others)
    if case == "a limit":  # which takes no --keep before it is known what is tried
        right = compressed(case, None)
        for name in others:
            right.save(tmp_path / "right" / name, candidate=name)
    else:
        compressed(case, tmp_path / "right", keep=tuple(others), keep_work=False)
        assert not (tmp_path / "right.work").exists()
    for name in others:
        kept = keep(tmp_path / "out", name)
        assert kept == tmp_path / f"out-{name}" and files(kept) == files(tmp_path / "right" / name)
    held = sum(p.stat().st_size for p in (tmp_path / "out.work").rglob("*.safetensors"))
    assert held < sum((tmp_path / "right" / n / "model.winnow.safetensors").stat().st_size for n in others)


def test_from_python_by_name(tmp_path):
    result = compressed("plain", tmp_path / "out")
    int8 = next(o for o in result.outcomes if o.name == "int8-rtn")
    with pytest.raises(InputError, match=r"result\.save\(FOLDER, candidate='int8-rtn'\)"):
        int8.pruned.packed("blocks.0.up.weight")
    result.save(tmp_path / "int8", candidate="int8-rtn")
    x, y = points(60, seed=5)
    with torch.no_grad():
        right = winnow.load(tmp_path / "int8", factory=classifier)(x).argmax(1) == torch.as_tensor(y)
    assert float(right.double().mean()) == pytest.approx(int8.evaluation.value)  # the model that was measured
    result.save(tmp_path / "int8", candidate="int8-rtn")  # the same once more
    with pytest.raises(InputError, match="overwrite=True"):
        result.save(tmp_path / "int8", candidate="int4-g32-rtn")
    result.save(tmp_path / "int8", candidate="int4-g32-rtn", overwrite=True)


def test_on_the_command_line(tmp_path):
    write_points(tmp_path, 80, 60)
    job = ["compress", "small:classifier", "--data", "train.npz", "--eval", "test.npz", "--sparsity", "0.6", "--baselines", "rtn", "--no-speed"]  # fmt: skip
    done = command(*job, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0 and "`winnow keep out NAME`" in done.stdout
    last = done.stdout.splitlines()[-2:]
    assert all(len(line) <= 80 for line in last) and last[1].startswith("out.work (")
    done = command("keep", "out", "int8-rtn", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "out-int8-rtn")
    chosen = json.loads((tmp_path / "out" / "report.json").read_text())["chosen"]
    assert "is written already" in refused(command("keep", "out", chosen, cwd=tmp_path))
    assert "is the model that was given" in refused(command("keep", "out", "dense", cwd=tmp_path))
    assert "choose one of" in refused(command("keep", "out", "int3", cwd=tmp_path))
    assert "holds the finished result" in refused(command("keep", "out", "int4-g32-rtn", "-o", "out-int8-rtn", cwd=tmp_path))  # fmt: skip
    shutil.rmtree(tmp_path / "out.work")
    said = refused(command("keep", "out", "int4-g32-rtn", cwd=tmp_path))
    assert "out.work is gone" in said
    again = said.partition("`")[2].partition("`")[0].split()
    assert command(*again[1:], cwd=tmp_path).returncode == 0  # what the sentence says makes it again
    assert (tmp_path / "out" / "int4-g32-rtn" / "model.winnow.safetensors").is_file()


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_was_damaged_is_not_written(tmp_path):
    compressed("plain", tmp_path / "out")
    record = next(p for p in (tmp_path / "out.work").glob("candidate-*.json") if '"int8-rtn"' in p.read_text())
    kept = {p: p.read_bytes() for p in (record, record.with_suffix("") / "model.winnow.safetensors")}
    for path, data in kept.items():
        damage(path)
        with pytest.raises(InputError, match=r"not kept any more .*compress again with keep="):
            keep(tmp_path / "out", "int8-rtn")
        path.write_bytes(data)
    (tmp_path / "out.work" / "candidate-0123456789abcdef").symlink_to(tmp_path)
    with pytest.raises(InputError, match="not winnow's"):
        keep(tmp_path / "out", "int8-rtn")
    (tmp_path / "out.work" / "candidate-0123456789abcdef").unlink()
    keep(tmp_path / "out", "int8-rtn")
    damage(tmp_path / "out" / "manifest.json")  # of another folder than the one it was measured with
    with pytest.raises(InputError, match="holds nothing of it"):
        keep(tmp_path / "out", "int4-g32-rtn")
    assert not (tmp_path / "out-int4-g32-rtn").exists()


def test_the_folder_of_work_holds_candidates_of_its_output_alone(tmp_path):
    compressed("plain", tmp_path / "out")
    first = {p.name for p in (tmp_path / "out.work").iterdir()}
    assert all(name == ".winnow.json" or name.startswith("candidate-") for name in first)
    compressed("plain", tmp_path / "out")  # the same once more
    assert {p.name for p in (tmp_path / "out.work").iterdir()} == first
    compressed("several", tmp_path / "out", overwrite=True)
    assert not first & {p.name for p in (tmp_path / "out.work").iterdir() if p.name != ".winnow.json"}
    compressed("plain", tmp_path / "out", overwrite=True, keep_work=False)
    assert not (tmp_path / "out.work").exists() and closing_line(tmp_path / "out") is None


def test_a_full_disk_costs_the_other_candidates_and_not_the_result(tmp_path, monkeypatch, caplog):
    finish = keeping._Remainder.finish

    def full(self, *given, **more):
        if len(list(self._folder.parent.glob("candidate-*"))) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return finish(self, *given, **more)

    monkeypatch.setattr(keeping._Remainder, "finish", full)
    result = compressed("plain", tmp_path / "out")
    assert "not all other candidates could be kept" in caplog.text
    assert winnow.load(tmp_path / "out", factory=classifier) is not None
    kept = [json.loads(p.read_text())["candidate"] for p in (tmp_path / "out.work").glob("candidate-*.json")]
    assert len(kept) == 1 and "The other candidate: `winnow keep" in closing_line(tmp_path / "out")
    keep(tmp_path / "out", kept[0])
    lost = next(o.name for o in result.outcomes[1:] if o.name not in kept)
    with pytest.raises(InputError, match="not kept any more"):
        result.save(tmp_path / "lost", candidate=lost)


def test_a_recipe_keeps_one_model_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_points(tmp_path, 80, 60)
    stages = "stages:\n  - compress: {sparsity: 0.5, method: magnitude, baselines: rtn, speed: false}\n"
    (tmp_path / "recipe.yaml").write_text("model: small:classifier\ndata: train.npz\neval: test.npz\n" + stages)
    run_recipe("recipe.yaml", tmp_path / "out", command="winnow run recipe.yaml --out out")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == ["out"]
    with pytest.raises(InputError, match="a recipe writes one model"):
        keep(tmp_path / "out", "int8-rtn")
