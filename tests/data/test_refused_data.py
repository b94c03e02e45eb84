"""Data that is not what it says: bombs, labels of other models, records that two sets share, recipes that multiply."""

import errno
import gzip
import io
import json
import os
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import winnow
from small import classifier, points
from winnow import importing
from winnow.data import Records, disjoint, files, open_data, overlap
from winnow.errors import FormatError, InputError, WinnowError, sentence_of
from winnow.measure.classification import model_order
from winnow.measure.prepare import prepare
from winnow.models.source import open_model
from winnow.run import plain_yaml

# Bombs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch):
    """Bounds small enough to be met in a test."""
    monkeypatch.setattr(files, "MIN_BYTES", 1 << 16)
    monkeypatch.setattr(files, "available_memory", lambda: 1 << 21)


def test_a_gzip_bomb_is_unpacked_no_further_than_its_bound(tmp_path, narrow, monkeypatch):
    read = []
    plain = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, n=-1: read.append(n) or plain(self, n))
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"a\n" * (8 << 20)))
    with pytest.raises(InputError, match="unpacks to more than"):
        open_data(tmp_path / "x.txt.gz")
    assert -1 not in read and sum(read) <= files.unpack_limit((tmp_path / "x.txt.gz").stat().st_size) + 2 * files.CHUNK
    (tmp_path / "y.txt.gz").write_bytes(gzip.compress(b"a line\nanother\n" * 2000))
    assert len(open_data(tmp_path / "y.txt.gz")) == 4000


def test_bombs_of_arrays_tables_and_images(tmp_path, narrow):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((200, 4000), np.float32), y=np.zeros(200, np.int64))
    with pytest.raises(InputError, match=r"x\.npz unpacks to 3\.2 MB"):
        open_data(tmp_path / "x.npz")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["a" * 5000] * 1000}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet has .* unpacks to more than"):
        open_data(tmp_path / "x.parquet")
    parts = [
        (b"IHDR", (20_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])),
        (b"IDAT", zlib.compress(b"\0" * 99)),
        (b"IEND", b""),
    ]
    chunks = [len(x).to_bytes(4, "big") + t + x + zlib.crc32(t + x).to_bytes(4, "big") for t, x in parts]
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(InputError, match=r"a\.png (has 20000 x 20000 pixels|is not a readable image)"):
        open_data(tmp_path / "images").inputs[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt.gz", "x.npz", "x.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is no file"):
        open_data(tmp_path / name)


# Labels ---------------------------------------------------------------------------------------------------------------


def labelled(tmp_path, labels):
    rows = "".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(labels))
    (tmp_path / "l.jsonl").write_text(rows)
    return open_data(tmp_path / "l.jsonl", column="text", label="label")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([[1], [2]], "label of record 0 in 'label' is a list"), (["a", {"a": 1}], "record 1 .* is an object"), ([1, 10**30], "record 1 .* larger"),
        (["1", "-" + "9" * 30], "record 1 .* larger"), ([1, None], "record 1 has an empty label"), ([1, 2, 3, "x"], "'x' of record 3 is not a number"),
    ],
)  # fmt: skip
def test_labels_that_are_none(tmp_path, labels, says):
    with pytest.raises(InputError, match=says):
        labelled(tmp_path, labels)


@pytest.mark.parametrize("label", [float("nan"), float("inf"), 1e300, 0.5])
def test_numbers_that_are_no_classes(tmp_path, label):
    with pytest.raises(InputError, match="of record 1 is not a class number"):
        labelled(tmp_path, [1, label]).class_labels()


def test_words_are_the_models_classes_or_refused(tmp_path):
    names = SimpleNamespace(label2id={"bad": 0, "good": 1})
    numbered = SimpleNamespace(label2id={"LABEL_0": 0, "LABEL_1": 1})
    assert model_order(labelled(tmp_path, ["Good", "bad", "good"]), names).tolist() == [1, 0, 1]
    assert model_order(labelled(tmp_path, ["good", "good"]), names).tolist() == [1, 1]
    for labels in (["zebra", "zebra"], ["zebra", "good"], ["no", "yes"], ["١", "٢"]):
        with pytest.raises(InputError, match=r"is none of the model's classes \(bad, good\)"):
            model_order(labelled(tmp_path, labels), names)
    assert model_order(labelled(tmp_path, ["no", "yes", "no"]), numbered).tolist() == [0, 1, 0]  # as many as classes
    with pytest.raises(InputError, match="'yes' is none of the model's classes"):
        model_order(labelled(tmp_path, ["yes", "yes"]), numbered)
    assert model_order(labelled(tmp_path, ["zebra", "ant"]), None).tolist() == [1, 0]  # nothing is known of its classes
    images = Records("images", np.zeros((2, 4, 4), np.uint8), np.asarray([0, 1]), ("n014", "n015"))
    assert model_order(images, SimpleNamespace(label2id={"cat": 0, "dog": 1})).tolist() == [0, 1]


# Records that two sets share ------------------------------------------------------------------------------------------


def test_few_shared_records_are_left_out_of_what_is_fitted():
    x, y = points(400)
    other, truth = points(200, seed=5)
    other[:6] = x[[3, 50, 51, 52, 300, 399]]
    records, held_out = (open_data(d) for d in ((x, y), (other, truth)))
    kept, note = disjoint(records, held_out)
    assert overlap(kept, held_out) == 0 and len(kept) == 394
    assert "6 of the 400 records" in note and "left out of the calibration data" in note
    gone = {3, 50, 51, 52, 300, 399}
    assert torch.equal(kept.inputs[0], x[[i for i in range(400) if i not in gone]])
    assert disjoint(kept, held_out) == (kept, None)
    other[:100] = x[:100]  # half of what is measured on is left, and all of it is new
    kept, note = disjoint(records, open_data((other, truth)))
    assert torch.equal(kept.inputs[0], x[100:]) and "100 of the 400 records" in note
    other[:101] = x[:101]
    with pytest.raises(InputError, match="share 101 records, which is most of one of them"):
        disjoint(records, open_data((other, truth)))
    few = open_data((x[:8], y[:8]))
    with pytest.raises(InputError, match="share 5 records"):  # of the evaluation data little, of the other most
        disjoint(few, open_data((torch.cat([x[:5], other + 9]), np.concatenate([y[:5], truth]))))


def test_shared_stretches_of_running_texts_are_left_out():
    lines = [f"line {i} of a text that goes on, with words of its own {i * i}" for i in range(300)]
    other = [f"another line {i} that has nothing to do with it, {i * 7}" for i in range(300)]
    held_out = Records("text", [*other[:150], *lines[100:104], *other[150:]], joiner="\n", name="b")
    records = Records("text", lines, joiner="\n", name="a")
    assert overlap(records, held_out) > 0
    kept, note = disjoint(records, held_out)
    assert overlap(kept, held_out) == 0 and kept.inputs == [*lines[:100], *lines[104:]] and "4 of the 300" in note


def test_compress_leaves_out_and_says_so():
    x, y = points(300)
    held, truth = points(200, seed=5)
    held[0] = x[7]
    result = winnow.compress(
        classifier(), (x, y), eval=(held, truth), sparsity=0.5, method="magnitude", baselines="none", speed=False
    )
    assert any("1 of the 300 records" in note for note in result.report.notes)


# Recipes that multiply ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 9, 40])
def test_aliases_are_counted_before_they_are_written_out(width):
    depth = 60
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, depth))
    with pytest.raises(InputError, match=r"r\.yaml, line \d+: this comes to more than 20,000 values"):
        plain_yaml.read(bomb, "r.yaml")


def test_aliases_that_come_to_little_are_values():
    value, _ = plain_yaml.read("a: &x {n: 1}\nb: [*x, *x]\nc: {<<: *x, m: 2e-5}\nd: 2:4\n", "r.yaml")
    assert value == {"a": {"n": 1}, "b": [{"n": 1}, {"n": 1}], "c": {"n": 1, "m": 2e-5}, "d": "2:4"}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: !!int x\n", 2, "'x' is no int"), ("a: !!bool maybe", 1, "no bool"), ("a: !!float .inf", 1, "no float"), ("a: 1e999", 1, "too large"),
        ("a: " + "9" * 5000, 1, "too large"), ("\n? [a]\n: 1", 2, "a key is a word"), ("a: &x [*x]", 1, "holds itself"), ("a: !!set {b}", 1, "tag !!set"),
        ("a: !!python/name:os.system x", 1, "tag"), ("a: 1\na: 2", 1, "second time"), ("a: 1\n\x00", 2, r"\\x00"), ("a\n\n\x1b[31m", 3, r"\\x1b"),
        ("[" * 100, 1, "no YAML"), ("a: !<str> b", 1, "tag"),
    ],
)  # fmt: skip
def test_what_recipes_do_not_hold_is_named_with_its_line(text, line, says):
    with pytest.raises(InputError, match=says) as caught:
        plain_yaml.read(text, "r.yaml")
    assert str(caught.value).startswith(f"r.yaml, line {line}") and "\x1b" not in str(caught.value)


# Functions that are named, weights that are not -----------------------------------------------------------------------


def test_named_functions_fail_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(
        "import sys\nvalue = 3\ndef wants(a, b): pass\ndef fails():\n    return 1 / 0\ndef leaves(): sys.exit(5)\ndef right(a=1, *b, **c): return a\n"
    )
    (tmp_path / "broken_nets.py").write_text("def f(:\n")
    (tmp_path / "raising_nets.py").write_text("raise SystemExit(3)\n")
    assert importing.call("own_nets:right", "a number") == 1
    for spec, says in {
        "own_nets:wants": "requires the arguments a, b", "own_nets:fails": r"ZeroDivisionError: division by zero \(own_nets.py line 5\)",
        "own_nets:leaves": "SystemExit", "own_nets:value": "is a int", "own_nets:none": "cannot be found", "broken_nets:f": r"SyntaxError.*line 1",
        "raising_nets:f": "SystemExit", "no_such_nets:f": "cannot be found", "os:system": "fails with|requires",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=says):
            importing.call(spec, "a number")


def test_weights_that_nothing_was_learned_with_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_nets.py").write_text(
        "import torch\ndef random(): return torch.nn.Linear(3, 3)\ndef fixed():\n    torch.manual_seed(0)\n    return random()\n"
    )
    assert "--weights" in open_model("two_nets:random").untrained()
    assert open_model("two_nets:fixed").untrained() is None and open_model(nn.Linear(3, 3)).untrained() is None


# Failures of the machine ----------------------------------------------------------------------------------------------


def test_memory_and_disk_are_told_in_one_sentence():
    full = OSError(errno.ENOSPC, "No space left on device", "out/x")
    no_memory = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 6 GB"
    )
    wrapped = InputError("cannot be loaded")
    wrapped.__cause__ = no_memory
    for error, says, code in [
        (MemoryError(), "memory ran out", 1), (no_memory, "memory ran out", 1), (RuntimeError("std::bad_alloc"), "memory ran out", 1),
        (wrapped, "memory ran out", 1), (full, "disk is full (out/x)", 1), (ValueError("I/O error: No space left on device (os error 28)"), "disk is full", 1),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), "(300 characters)", 2), (OSError(errno.EIO, "I/O error", "x"), "check the disk", 1),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), "check the path", 2),
    ]:  # fmt: skip
        sentence, found = sentence_of(error)
        assert says in sentence and found == code and len(sentence) < 200
    for error in (
        RuntimeError("shapes"),
        WinnowError("a"),
        InputError("b"),
        FormatError("No space left on device"),
        KeyError("x"),
    ):
        assert sentence_of(error) is None


def test_a_refusal_that_replaced_an_error_is_no_failure_of_the_machine():
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise InputError("too many samples") from None
    except InputError as error:
        assert sentence_of(error) is None


def test_damaged_archives_are_refused(tmp_path):
    held = io.BytesIO()
    np.savez_compressed(held, x=np.random.default_rng(0).normal(size=(64, 12)).astype("f4"), y=np.arange(64) % 3)
    whole = held.getvalue()
    draw = np.random.default_rng(1)
    for number in range(60):
        data = bytearray(whole)
        for at in draw.integers(len(data), size=8):
            data[at] = draw.integers(256)
        (tmp_path / "x.npz").write_bytes(data)
        try:
            open_data(tmp_path / "x.npz")
        except InputError as error:
            assert "x.npz" in str(error), number


def test_what_chooses_shares_nothing_with_what_is_reported_on_either():
    (x, y), (other, truth) = points(200), points(100, seed=5)
    other[:10] = x[:10]
    found = prepare(
        open_model(classifier()), (x, y), (other, truth), task="auto", column=None, label=None, samples=64, length=None, batch_size=8,
        seed=0, eval_limit=None, select=True,
    )  # fmt: skip
    assert len(found.calibration) + found.selection.n == 190 and found.task.n == 100
    assert any("10 of the 200 records" in note for note in found.notes)


@pytest.mark.shared_data
def test_official_splits_that_share_records_lose_those_in_calibration(shared_data):
    """STS-B, pairs compared as they stand in the files, by hand."""
    import csv

    def rows(split):
        with gzip.open(shared_data / "stsb" / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            return [row[:2] for row in csv.reader(file)]

    def opened(pairs):
        return open_data([{"a": a, "b": b, "y": 1.0} for a, b in pairs], column="a,b", label="y")

    train, dev = rows("train"), rows("dev")
    both = [pair for pair in train if pair in dev]
    assert 0 < len(both) < 10
    kept, note = disjoint(opened(train), opened(dev))
    assert kept.inputs == [tuple(p) for p in train if p not in dev] and f"{len(both)} of the 5,749 records" in note
    few = [*both, *dev[:30]]  # a small evaluation file, of which they are more than a twentieth
    kept, note = disjoint(opened(train), opened(few))
    assert not {*map(tuple, few)} & {*kept.inputs} and "left out of the calibration data" in note
    with pytest.raises(InputError, match="most of one of them"):
        disjoint(opened(train), opened([*train[:40], *dev[:30]]))
