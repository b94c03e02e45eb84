"""The command line as a person meets it: exit codes, one-sentence errors, JSON, and nothing written by a dry run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from command import refused, winnow
from places import SUPPORT
from small import classifier, points, trained, write_points


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save_file(trained(classifier(), *points()).state_dict(), folder / "weights.safetensors")
    write_points(folder, 400, 400)
    return folder


def model(files: Path) -> list[object]:
    return ["small:classifier", "--weights", files / "weights.safetensors"]


def test_compress_report_inspect_eval_export(files, tmp_path):
    out = tmp_path / "out"
    done = winnow(
        "compress", *model(files), "--data", files / "train.npz", "--eval", files / "test.npz", "--sparsity", "60%", "--values", "int8",
        "--samples", 64, "--baselines", "rtn", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and str(out / "report.html") in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["command"].startswith("winnow compress small:classifier") and "--sparsity 60%" in report["command"]

    seen = json.loads(winnow("inspect", out, "--json").stdout)
    assert seen["zeros"] == round(0.6 * 6912) and seen["prunable"] == 6912

    measured = winnow("eval", "small:classifier", "--weights", out, "--data", files / "test.npz", "--json")
    chosen = next(c for c in report["candidates"] if c["chosen"])
    assert json.loads(measured.stdout)["value"] == pytest.approx(chosen["quality"])

    (out / "report.html").unlink()
    assert winnow("report", out).returncode == 0 and (out / "report.html").exists()

    assert winnow("export", out, "--out", tmp_path / "dense").returncode == 0
    plain = winnow(
        "eval",
        "small:classifier",
        "--weights",
        next((tmp_path / "dense").glob("*.safetensors")),
        "--data",
        files / "test.npz",
        "--json",
    )
    assert json.loads(plain.stdout)["value"] == pytest.approx(chosen["quality"])


def test_dry_run_writes_nothing(files, tmp_path):
    done = winnow(
        "compress", *model(files), "--data", files / "train.npz", "--sparsity", "0.5", "--dry-run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "3,456 weights pruned" in done.stdout and "peak memory" in done.stdout
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(
        winnow("compress", *model(files), "--sparsity", "0.5", "--dry-run", "--json", cwd=tmp_path).stdout
    )
    assert plan["prunable"] == 6912


def test_max_drop_takes_the_smallest_that_holds_or_ends_with_3(files, tmp_path):
    good = winnow(
        "compress", *model(files), "--data", files / "train.npz", "--eval", files / "test.npz", "--max-drop", "5", "--samples", 64,
        "--out", tmp_path / "good", "--json",
    )  # fmt: skip
    assert good.returncode == 0, good.stderr
    report = json.loads(good.stdout)
    chosen = next(c for c in report["candidates"] if c["chosen"])
    assert chosen["drop_high"] <= 5
    said = refused(
        winnow(
            "compress", *model(files), "--data", files / "train.npz", "--eval", files / "test.npz", "--max-drop", "0.0001", "--samples", 64,
            "--out", tmp_path / "none", "--method", "random", "--baselines", "none",
        ),
        code=3,
    )  # fmt: skip
    assert not (tmp_path / "none").exists()
    assert str(tmp_path / "none.work") in said and (tmp_path / "none.work").is_dir()  # and what it is good for


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--sparsity", "0.5"], "--out"),
        (["--out", "o", "--sparsity", "fifty"], "fifty"),
        (["--out", "o", "--sparsity", "1.2"], "1.2"),
        (["--out", "o"], "set a budget"),
        (["--out", "o", "--sparsity", "0.5", "--data", "nowhere.csv"], "nowhere.csv"),
        (["--out", "o", "--sparsity", "0.5", "--structure", "5:4"], "5:4"),
        (["--out", "o", "--sparsity", "0.5", "--table", "nowhere.json"], "nowhere.json"),
        (["--out", "/proc/winnow", "--sparsity", "0.5", "--method", "magnitude"], "/proc"),
    ],
)  # fmt: skip
def test_wrong_arguments_end_with_2_and_one_sentence(files, tmp_path, args, words):
    assert words in refused(winnow("compress", *model(files), *args, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("./nothing", "does not exist"),
        ("small:nothing", "cannot be found"),
        ("no_such_package:f", "cannot be found"),
        ("small:WORDS", ""),
    ],
)
def test_models_that_are_not_there(spec, words, tmp_path):
    assert words in refused(winnow("inspect", spec, cwd=tmp_path))


def test_folders_that_cannot_be_used(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    assert "config.json" in refused(winnow("inspect", folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "code.Model"}}))
    assert "--trust-remote-code" in refused(winnow("inspect", folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "safetensors" in refused(winnow("inspect", folder))
    (folder / "config.json").write_text("{half")
    assert "JSON" in refused(winnow("inspect", folder))


def test_unknown_flag_and_version():
    done = winnow("compress", "m", "--sparsty", "0.5")
    assert done.returncode == 2 and "--sparsty" in done.stderr
    done = winnow("--version")
    assert done.returncode == 0 and done.stdout.startswith("winnow 0.")


def test_damaged_weights_end_with_2_and_one_sentence(files, tmp_path):
    whole = (files / "weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    for given in (["small:classifier", "--weights", tmp_path / "cut.safetensors"], [folder]):
        said = refused(winnow("compress", *given, "--sparsity", "0.5", "--out", tmp_path / "out"))
        assert "is not a whole safetensors file" in said
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()


def test_interrupt_is_one_sentence_and_the_work_stays(files, tmp_path):
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the parent runs in the background\n"
        "from winnow.compression import prune\n"
        "from winnow.cli import main\n"
        "work = prune.Pruner._prune\n"
        "def stop(self, path, *a):\n"
        "    work(self, path, *a)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "prune.Pruner._prune = stop\n"
        "main(sys.argv[1:])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    args = ["compress", *model(files), "--data", files / "train.npz", "--sparsity", "0.5", "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, env=env)
    assert "run the same command again to resume" in refused(done, code=1)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.work").glob("prune-*/unit-*.safetensors"))


def test_full_disk_is_one_sentence_and_the_rerun_goes_on(files, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    args = ["compress", *model(files), "--data", files / "train.npz"]
    args += ["--sparsity", "0.5", "--method", "wanda", "--task", "none"]
    try:
        refused(winnow(*args, "--out", small / "out"), code=1)
        assert not (small / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        assert winnow(*args, "--out", small / "out").returncode == 0
        assert (small / "out" / "report.html").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_pattern_that_does_not_divide_leaves_nothing_behind(files, tmp_path):
    args = ["--structure", "3:5", "--method", "magnitude", "--out", tmp_path / "out"]
    assert "3:5" in refused(winnow("compress", *model(files), *args))
    assert list(tmp_path.iterdir()) == []
