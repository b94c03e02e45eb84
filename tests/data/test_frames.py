"""DataFrames and dicts of splits as data. ``datasets`` is not needed: its tables are known by what they can do."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import winnow
from winnow.data import open_data
from winnow.data.frames import both_splits, held_out_split, train_split
from winnow.errors import InputError

pandas = pytest.importorskip("pandas")


class Table:
    """What winnow uses of a ``datasets.Dataset``."""

    def __init__(self, columns, names=None):
        self._columns = columns
        self.column_names = list(columns)
        self.features = {k: type("ClassLabel", (), {"names": names})() for k in columns}

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key):
        return self._columns[key]


class TableDict(dict):
    """``datasets.DatasetDict``: a dict that has ``column_names``, too, by split."""

    @property
    def column_names(self):
        return {k: v.column_names for k, v in self.items()}


def texts(n, start=0):
    return {"idx": list(range(n)), "sentence": [f"text number {i}" for i in range(start, start + n)], "label": [i % 2 for i in range(n)]}  # fmt: skip


def numbers(n=120, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)).eval()


def test_a_frame_of_texts_is_read_like_the_same_file(tmp_path):
    frame = pandas.DataFrame(texts(6))
    frame.to_csv(tmp_path / "a.csv", index=False)
    file, memory = open_data(tmp_path / "a.csv"), open_data(frame.sample(frac=1, random_state=0).sort_index())
    assert memory.kind == "text" and memory.inputs == file.inputs and list(memory.labels) == list(file.labels)
    pairs = open_data(pandas.DataFrame({"premise": ["a", "b"], "hypothesis": ["c", "d"]}))
    assert pairs.kind == "pairs" and pairs.inputs == [("a", "c"), ("b", "d")]


def test_class_names_and_categories_become_classes():
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": pandas.Categorical(["spam", "ham", "spam"])})
    records = open_data(frame)
    assert list(records.labels) == [1, 0, 1] and records.label_names == ("ham", "spam")


def test_a_frame_of_numbers_is_the_matrix_of_all_columns_but_the_label():
    x, y = numbers()
    frame = pandas.DataFrame(x, columns=[f"f{i}" for i in range(8)], index=range(7, 127)).assign(target=y)
    records, same = open_data(frame), open_data((x, y))
    assert torch.equal(records.inputs[0], same.inputs[0]) and records.sha256 == same.sha256
    assert len(open_data(frame[["f0", "f1"]])) == 120


def test_what_a_frame_lacks_is_said_in_a_sentence():
    x, _ = numbers(4)
    frame = pandas.DataFrame(x, columns=list("abcdefgh"))
    frame.loc[2, "c"] = None
    with pytest.raises(InputError, match="column 'c' has missing values"):
        open_data(frame)
    with pytest.raises(InputError, match="no column 'z': give label one of a, b"):
        open_data(frame, label="z")
    with pytest.raises(InputError, match="'text' holds nothing in record 1"):
        open_data(pandas.DataFrame({"text": ["a", None], "label": [0, 1]}))
    with pytest.raises(InputError, match="record 1 has an empty label"):
        open_data(pandas.DataFrame({"text": ["a", "b"], "label": ["x", None]}))
    with pytest.raises(InputError, match="is empty"):
        open_data(frame[:0])


def test_splits_by_name():
    parts = TableDict(train=Table(texts(4)), validation=Table(texts(2)), test=Table(texts(3)))
    assert both_splits(parts, None) == (parts["train"], parts["validation"])
    assert both_splits(parts, parts["test"]) == (parts["train"], parts["test"])
    assert both_splits(TableDict(train=parts["train"]), None) == (parts["train"], None)
    assert both_splits("a.csv", TableDict(test=parts["test"], train=parts["train"])) == ("a.csv", parts["test"])
    assert train_split(TableDict(everything=parts["test"])) is parts["test"]  # there is only one
    assert held_out_split([1, 2]) == [1, 2]
    with pytest.raises(
        InputError, match=r"data has the splits a, b, none called train: give one of them, as data\['a'\]"
    ):
        train_split({"a": parts["train"], "b": parts["test"]})
    assert len(open_data(parts)) == 4


def test_a_dataset_dict_calibrates_on_train_and_measures_on_validation():
    x, y = numbers(200)
    frame = pandas.DataFrame(x, columns=[f"f{i}" for i in range(8)]).assign(label=y)
    parts = {"train": frame[:120], "validation": frame[120:]}
    given = dict(sparsity=0.5, baselines="none", speed=False, progress=False)
    one = winnow.compress(net(), parts, **given)
    two = winnow.compress(net(), (x[:120], y[:120]), eval=(x[120:], y[120:]), **given)
    assert one.report.hashes == two.report.hashes and one.report.task.n == 80
    assert winnow.evaluate(net(), parts, progress=False).n == 80
    found = winnow.find_ticket(net(), parts, sparsity=0.5, steps=4, progress=False)
    assert found.ticket.evaluation.n == 80 and found.training.examples.count == 120


def test_neither_package_is_imported_for_other_data():
    code = (
        "import sys, torch, winnow\n"
        "from winnow.data import open_data\n"
        "open_data((torch.zeros(4, 2), torch.zeros(4).long())); open_data({'train': [1.0]} and ['a', 'b'])\n"
        "sys.exit(int('pandas' in sys.modules or 'datasets' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
