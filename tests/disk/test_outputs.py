"""Folders that are written have one owner: nothing of anybody else is replaced, and what is damaged is made again."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import winnow
from accidents import figures, give
from small import classifier, points
from winnow.disk.ownership import claim, first_foreign, read_mark, write_mark
from winnow.disk.work import check_output
from winnow.errors import FormatError, InputError, WinnowError
from winnow.formats.output import OutputFolder
from winnow.pipeline.verb import run_recipe
from winnow.run.store import Store

QUICK = dict(method="magnitude", baselines="none", speed=False)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return give(tmp_path_factory.mktemp("given"))


@pytest.fixture
def packed(given, tmp_path):
    return Path(shutil.copytree(given / "packed", tmp_path / "packed"))


def everything(root: Path) -> dict[str, bytes | str]:
    """Every file, folder and link below, with what is in it."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return found


VERBS = {
    "compress": lambda out, given: winnow.compress(classifier(), None, sparsity=0.5, out=out, **QUICK),
    "save": lambda out, given: winnow.compress(classifier(), None, sparsity=0.5, **QUICK).save(out),
    "export": lambda out, given: winnow.export_dense(given / "packed", out),
    "find_ticket": lambda out, given: winnow.find_ticket(classifier(), points(32), sparsity=0.5, method="random", steps=1, out=out),
    "run": lambda out, given: run_recipe(given / "recipe.yaml", out),
}  # fmt: skip


# --- what is somebody else's stays --------------------------------------------------------------------------------------

OTHERS = {
    "a page of another tool": {"report.json": "{}"},
    "a page with a format": {"report.json": '{"format": 1, "versions": {"winnow": "0.1"}}', "thesis.tex": "x"},
    "a run": {"run.json": "{}", "weights.bin": "x"},
    "a model": {"config.json": '{"model_type": "llama"}', "model.safetensors": "x"},
    "a model that says packed": {"config.json": '{"quantization_config": {"quant_method": "winnow"}}', "notes.txt": "x"},
    "a ticket": {"ticket.json": '{"winnow_ticket": 1}', "diary.md": "x"},
    "an empty mark": {".winnow.json": "", "thesis.tex": "x"},
    "a mark that lies": {".winnow.json": '{"winnow": 1, "kind": "model", "files": {"thesis.tex": null}, "sha256": "0"}', "thesis.tex": "x"},
    "a manifest that lies": {"manifest.json": '{"format_version": 1, "files": {"config.json": "0"}}', "config.json": "{}", "report.json": "{}"},
    "a hidden file": {".env": "secret"},
    "deep below": {"a/b/c/thesis.tex": "x"},
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("where", ["out", "out.work", ".out.winnow-old"])
def test_a_folder_of_others_is_refused_before_any_work(given, tmp_path, monkeypatch, verb, what, where):
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("worked"))
    for name, text in OTHERS[what].items():
        (tmp_path / where / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where / name).write_text(text)
    before = everything(tmp_path)
    with pytest.raises(InputError) as error:
        VERBS[verb](tmp_path / "out", given)
    assert "\n" not in str(error.value) and where in str(error.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("verb", VERBS)
def test_links_are_not_followed_into_the_folders_of_others(given, tmp_path, verb):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    for name in ("out.work", "out"):
        (tmp_path / name).symlink_to("mine")
        before = everything(tmp_path)
        with pytest.raises(InputError):
            VERBS[verb](tmp_path / "out", given)
        assert everything(tmp_path) == before
        (tmp_path / name).unlink()


def test_an_output_that_is_a_link_stays_one(given, tmp_path):
    (tmp_path / "out").symlink_to("large-disk")
    winnow.export_dense(given / "packed", tmp_path / "out")
    winnow.export_dense(given / "packed", tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "large-disk" / "model.safetensors").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large-disk", "out"]


CHANGES = {
    "added": lambda folder: (folder / "notes.txt").write_text("mine"),
    "added below": lambda folder: ((folder / "runs").mkdir(), (folder / "runs" / "events").write_text("mine")),
    "edited": lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text() + "\n"),
    "a card edited": lambda folder: (folder / "README.md").write_text("my own words"),
    "trained on": lambda folder: save_file({"w": torch.ones(3)}, folder / "model.winnow.safetensors"),
    "a link": lambda folder: ((folder / "model.winnow.safetensors").unlink(), (folder / "model.winnow.safetensors").symlink_to("elsewhere")),
    "a bench": lambda folder: (folder / "bench.json").write_text("{}"),
    "a folder of git": lambda folder: ((folder / ".git").mkdir(), (folder / ".git" / "HEAD").write_text("ref")),
}  # fmt: skip


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_user_added_or_changed_is_named_and_stays(packed, change, marked):
    if not marked:  # as versions before the mark left it
        (packed / ".winnow.json").unlink()
    CHANGES[change](packed)
    before = everything(packed.parent)
    with pytest.raises(InputError, match="something else") as error:
        VERBS["compress"](packed, packed)
    assert any(name.rpartition("/")[2] in str(error.value) for name in before)
    assert everything(packed.parent) == before


@pytest.mark.parametrize("marked", [True, False])
def test_what_is_winnows_alone_is_replaced(packed, marked):
    if not marked:
        (packed / ".winnow.json").unlink()
    (packed / ".DS_Store").write_text("x")
    (packed / "generation_config.json").unlink(missing_ok=True)
    winnow.compress(classifier(), None, sparsity=0.5, out=packed, overwrite=True, **QUICK)
    assert read_mark(packed) is not None and not (packed / ".DS_Store").exists()


def test_pages_written_later_belong_to_the_output(packed):
    from winnow.report.compression.page import read, write

    (packed / "report.html").unlink()
    write(read(packed), packed)
    claim(packed, "bench.json", "bench.html")
    (packed / "bench.json").write_text("{}")
    assert first_foreign(packed, "model") is None
    VERBS["compress"](packed, packed)
    assert not (packed / "bench.json").exists()


def test_another_kind_of_output_is_not_replaced(given, packed, tmp_path):
    with pytest.raises(InputError, match="something else"):
        winnow.export_dense(given / "packed", packed)
    winnow.export_dense(packed, tmp_path / "dense")
    with pytest.raises(InputError, match="something else"):
        VERBS["compress"](tmp_path / "dense", given)


def test_a_mark_holds_only_as_it_was_written(tmp_path):
    (tmp_path / "a").write_text("x")
    write_mark(tmp_path, "model")
    text = (tmp_path / ".winnow.json").read_text()
    assert first_foreign(tmp_path, "model") is None
    rng = random.Random(0)
    for _ in range(100):
        at = rng.randrange(len(text.rstrip()))
        other = chr(33 + (ord(text[at]) - 33 + rng.randint(1, 93)) % 94)
        (tmp_path / ".winnow.json").write_text(text[:at] + other + text[at + 1 :])
        mark = read_mark(tmp_path)
        assert mark is None or (mark == ("model", {"a": mark[1].get("a")}) and text[at].isspace())


# --- what is read is not written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["itself", "slash", "dot", "dots", "link", "inside", "deep inside", "around", "link to around", "through a link"])  # fmt: skip
@pytest.mark.parametrize("what", ["model", "data", "weights"])
def test_an_output_is_apart_from_everything_that_is_read(given, tmp_path, monkeypatch, what, alias):
    place = tmp_path / "above" / "input"
    place.parent.mkdir()
    if what == "data":
        place.mkdir()
        np.savez(place / "train.npz", x=np.zeros((8, 12), np.float32), y=np.zeros(8, int))
    else:
        shutil.copytree(given / "packed", place)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "up").symlink_to(place.parent)
    out = {
        "itself": place, "slash": f"{place}/", "dot": ".", "dots": f"{place}/../input", "link": "link", "inside": place / "new",
        "deep inside": place / "a" / "b", "around": place.parent, "link to around": "up", "through a link": "up/input/new",
    }[alias]  # fmt: skip
    if alias == "dot":
        monkeypatch.chdir(place)
    before = everything(tmp_path)
    if what == "model":
        calls = [lambda: winnow.export_dense(place, out)]
    elif what == "data":
        calls = [lambda: check_output(out, inputs=[place])]
        calls += [lambda: winnow.find_ticket(classifier(), place, sparsity=0.5, steps=1, out=out)]
    else:
        calls = [lambda: winnow.compress("small:classifier", None, weights=place, sparsity=0.9, out=out, **QUICK)]
    for call in calls:
        with pytest.raises(InputError):
            call()
        assert everything(tmp_path) == before


def test_an_input_in_the_folder_of_work_is_not_cleaned_away(given, tmp_path):
    store = Store(tmp_path / "out.work")
    folder = store.folder("train-0123456789abcdef")
    shutil.copytree(given / "packed", folder / "model")
    store.release()
    with pytest.raises(InputError, match="which is read"):
        winnow.compress("small:classifier", None, weights=folder / "model", sparsity=0.9, out=tmp_path / "out", **QUICK)
    assert (folder / "model" / "model.winnow.safetensors").exists()


def test_a_place_beside_the_input_is_fine(given, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(given, tmp_path / "here"))
    winnow.export_dense("packed", "packed-dense")
    winnow.find_ticket(classifier(), "train.npz", sparsity=0.5, steps=1, method="random", out="sub/of/it")
    assert Path("packed-dense").is_dir() and Path("sub/of/it/ticket.json").is_file()


# --- two at one place -----------------------------------------------------------------------------------------------------

RACE = """
import sys
from pathlib import Path
import winnow
from winnow.errors import InputError
import winnow.kernels.load
print("ready", flush=True)
sys.stdin.readline()
for _ in range(8):
    try:
        winnow.export_dense(sys.argv[1], sys.argv[2], shard_bytes=4000, overwrite=True)
        print("done", flush=True)
    except InputError as error:
        print(error, flush=True)
print("end", flush=True)
"""


def test_two_threads_do_not_write_to_one_place(tmp_path):
    held, done = threading.Event(), threading.Event()

    def hold():
        folder = OutputFolder(tmp_path / "out")
        held.set()
        done.wait(30)
        folder.discard()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    with pytest.raises(InputError, match="another run is writing out"):
        OutputFolder(tmp_path / "out")
    done.set()
    thread.join()
    OutputFolder(tmp_path / "out").discard()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_never_publish_a_mixture(given, tmp_path):
    """Of two that export different models to one place again and again, the one that is second is refused in one sentence."""
    sources = [tmp_path / "a", tmp_path / "b"]
    rights = []
    for number, source in enumerate(sources):
        torch.manual_seed(number)
        winnow.compress(torch.nn.Sequential(*(torch.nn.Linear(24, 24 + number) for _ in range(3))), None, sparsity=0.5, out=source, **QUICK) if number == 0 else shutil.copytree(given / "packed", source)  # fmt: skip
        rights.append(figures(winnow.export_dense(source, tmp_path / f"right-{number}", shard_bytes=4000)))
    both = [
        subprocess.Popen([sys.executable, "-c", RACE, source, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for source in sources
    ]  # fmt: skip
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].splitlines() for process in both]
    assert all(lines[-1] == "end" for lines in said)
    told = {line for lines in said for line in lines[:-1]}
    assert "done" in told and told <= {"done", "another run is writing out: wait for it or choose another out."}
    assert figures(tmp_path / "out") in rights
    assert not [p.name for p in tmp_path.iterdir() if p.name not in ("a", "b", "out", "right-0", "right-1")]


# --- what is published ----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_what_was_written_is_not_published(packed, tmp_path, monkeypatch):
    before = everything(tmp_path)
    publish = OutputFolder.publish

    def damaged(self):
        file = next(self.path.rglob("*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        return publish(self)

    monkeypatch.setattr(OutputFolder, "publish", damaged)
    with pytest.raises(FormatError, match="damaged"):
        winnow.compress(classifier(), None, sparsity=0.7, **QUICK).save(packed, overwrite=True)
    assert everything(tmp_path) == before


def test_what_comes_into_the_output_during_the_work_stays(given, tmp_path, monkeypatch):
    out = tmp_path / "out"
    VERBS["compress"](out, given)
    publish = OutputFolder.publish

    def late(self):
        (out / "notes.txt").write_text("mine")
        return publish(self)

    monkeypatch.setattr(OutputFolder, "publish", late)
    with pytest.raises(InputError, match=r"notes\.txt"):
        VERBS["compress"](out, given)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("verb", ["compress", "find_ticket"])
def test_a_run_that_is_refused_leaves_nothing(tmp_path, verb):
    x, y = points(64)
    x[3, 2] = float("inf")
    with pytest.raises(WinnowError):
        if verb == "compress":
            winnow.compress(classifier(), (x, y), sparsity=0.5, method="wanda", out=tmp_path / "a" / "b" / "out")
        else:
            winnow.find_ticket(classifier(), (x, y), sparsity=0.5, steps=3, out=tmp_path / "a" / "b" / "out")
    assert list(tmp_path.iterdir()) == []


# --- what was damaged is made again ---------------------------------------------------------------------------------------

DAMAGE = {
    "a flipped bit": lambda data, rng: _with(data, at := rng.randrange(len(data)), data[at] ^ (1 << rng.randrange(8))),
    "cut short": lambda data, rng: data[: rng.randrange(len(data))],
    "empty": lambda data, rng: b"",
    "no text": lambda data, rng: b"\xff" + data,
    "zeros": lambda data, rng: bytes(len(data)),
    "another digit": lambda data, rng: _digit(data, rng),
    "gone": None,
}


def _with(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def _digit(data: bytes, rng: random.Random) -> bytes:
    places = [i for i, c in enumerate(data) if 48 <= c <= 57]
    if not places:
        return data
    at = rng.choice(places)
    return _with(data, at, 48 + (data[at] - 48 + rng.randint(1, 9)) % 10)


def _jobs(given: Path):
    def compress(out):
        winnow.compress(
            classifier(), points(80), eval=points(60, seed=5), sparsity=0.6, method="sparsegpt", samples=32, baselines="none", speed=False, out=out
        )  # fmt: skip

    def find_ticket(out):
        winnow.find_ticket(classifier(), points(64), sparsity=[0.4, 0.6], method="imp", settings={"rate": 0.4}, steps=2, batch=16, out=out)  # fmt: skip

    def distil(out):
        winnow.compress(
            classifier(), points(80), sparsity=0.6, method="distil", settings={"steps": 4}, samples=32, baselines="none", task="none", speed=False, out=out
        )  # fmt: skip

    def run(out):
        run_recipe(given / "recipe.yaml", out)

    return dict(compress=compress, find_ticket=find_ticket, distil=distil, run=run)


@pytest.mark.parametrize("job", ["compress", "distil", "find_ticket", "run"])
def test_damaged_stages_are_made_again(given, tmp_path, monkeypatch, job):
    _damaged(given, tmp_path, monkeypatch, job, 3)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("job", ["compress", "distil", "find_ticket", "run"])
def test_many_damaged_stages_are_made_again(given, tmp_path, monkeypatch, job):
    _damaged(given, tmp_path, monkeypatch, job, 20)


def _damaged(given, tmp_path, monkeypatch, job, times):
    """One or several files of a run that was stopped just before its end, damaged in every way: the same result at the end."""
    monkeypatch.chdir(tmp_path)
    call, out = _jobs(given)[job], Path("out")
    call(out)
    right = figures(out)
    shutil.rmtree(out)
    publish = OutputFolder.publish

    def stop(self):
        if self.final == out.absolute():
            raise KeyboardInterrupt
        return publish(self)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            call(out)
    kept = shutil.copytree("out.work", tmp_path / "kept")
    files = sorted(p.relative_to(kept) for p in kept.rglob("*") if p.is_file())
    assert len(files) > 3
    rng = random.Random(job)
    for _ in range(times):
        if not Path("out.work").exists():
            shutil.copytree(kept, "out.work")
        what = rng.choice(sorted(DAMAGE))
        for name in rng.sample(files, rng.randint(1, 2)):
            file, harm = Path("out.work") / name, DAMAGE[what]
            data = file.read_bytes()
            if harm is not None:
                file.write_bytes(harm(data, rng) if data else data)
            elif name.name != ".winnow.json":  # without its mark a folder is nobody's, and is refused
                file.unlink()
        call(out)
        assert figures(out) == right, (what, name)
        assert [p.name for p in tmp_path.iterdir() if p.name != "kept"] == ["out"]
        shutil.rmtree(out)


def test_figures_tell_results_apart(given, tmp_path):
    """What the comparison rests on: another seed is another result."""
    for rate in (0.5, 0.6):
        winnow.compress(classifier(), None, sparsity=rate, out=tmp_path / str(rate), **QUICK)
    a, b = (figures(tmp_path / str(rate)) for rate in (0.5, 0.6))
    assert (
        a.keys() == b.keys()
        and a["model.winnow.safetensors"] != b["model.winnow.safetensors"]
        and a["report.json"] != b["report.json"]
    )


def test_a_bench_takes_no_file_of_others(packed, tmp_path):
    for name in ("mine.json", "page.html"):
        (tmp_path / name).write_text("{}")
    for out in ("mine.json", "page.json"):
        with pytest.raises(InputError, match="no bench"):
            winnow.bench(packed, factory="small:classifier", out=tmp_path / out)
    assert json.loads((tmp_path / "mine.json").read_text()) == {} and (tmp_path / "page.html").read_text() == "{}"


def test_the_demo_takes_no_folder_of_others(tmp_path, monkeypatch):
    from winnow import demo_data
    from winnow.verbs.demo import run

    monkeypatch.setattr(demo_data, "train_digits", lambda *_, **__: pytest.fail("worked"))
    for name in ("demo", "demo-data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.npz").write_text("precious")
        before = everything(tmp_path)
        with pytest.raises(InputError):
            run(tmp_path / "demo")
        assert everything(tmp_path) == before
        shutil.rmtree(tmp_path / name)
