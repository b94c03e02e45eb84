"""Two trainings have one name only where they give one result: all that a function is made of and uses counts."""

from __future__ import annotations

import enum
import functools
import importlib
import linecache
import os
import subprocess
import sys
import threading
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import winnow
from baseline_samples import Killed
from places import SUPPORT
from winnow.run.identity import LIMIT, Unnameable, fingerprint
from winnow.train.examples import Examples
from winnow.train.task import run as runs
from winnow.train.task.from_trainer import TrainerLoss
from winnow.train.task.identity import examples_hash, training_identity
from winnow.train.task.training import Training


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 3))


def training(loss, **changes) -> Training:
    torch.manual_seed(1)
    x = torch.randn(24, 6)
    return Training(network(), Examples([(x, x[:, :3].argmax(1))], 6), loss, 12, **{"lr": 1e-2, **changes})


# -- values: what differs between two of a kind is nothing but a setting


class Called:
    def __init__(self, a):
        self.a = a

    def __call__(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=self.a)

    def method(self, model, batch):
        return self(model, batch)


class Slotted:
    __slots__ = ("a", "empty")

    def __init__(self, a):
        self.a = a


class Itself(Called):
    """Refers to itself, to its own method and to its parent."""

    def __init__(self, a):
        super().__init__(a)
        self.parent, self.again, self.children = self, self.method, [Called(a)]
        self.children[0].parent = self


class Counted(dict):
    pass


@dataclass(frozen=True)
class Valued:
    a: float
    of: list = field(default_factory=list)


class Kind(enum.Enum):
    FEW = 1
    MANY = 2


class Rows(Dataset):
    def __init__(self, n, first=0):
        self.n, self.first, self.read = n, first, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read += 1
        return torch.tensor([self.first + i])


def closure(over):
    return lambda model, batch: over(model(batch[0]), batch[1])


def keyword_only(a):
    def loss(model, batch, *, smoothing=a):
        return smoothing

    return loss


def attributed(a):
    def loss(model, batch):
        return loss.smoothing

    loss.smoothing = a
    return loss


def decorated(a):
    @functools.wraps(F.cross_entropy)
    def loss(model, batch):
        return a

    return torch.no_grad()(functools.lru_cache(loss))


def class_attribute(a):
    return type("Loss", (Called,), {"smoothing": a, "__module__": __name__})(0.0)


KINDS = {
    "object": Called, "slots": Slotted, "bound method": lambda a: Called(a).method, "cycle": Itself,
    "closure over a number": lambda a: lambda m, b: a, "closure over a loss": lambda a: closure(nn.CrossEntropyLoss(label_smoothing=a / 9)),
    "weights of a module": lambda a: closure(nn.CrossEntropyLoss(weight=torch.full((3,), float(a)))), "keyword-only default": keyword_only,
    "default": lambda a: lambda m, b, k=a: k, "attribute of a function": attributed, "decorated": decorated, "class attribute": class_attribute,
    "partial": lambda a: functools.partial(F.cross_entropy, label_smoothing=a), "optimizer": lambda a: functools.partial(torch.optim.SGD, momentum=a),
    "dataclass": lambda a: Valued(0, [Valued(a)]), "dtype": lambda a: torch.zeros(2, dtype=(torch.int8, torch.uint8)[a - 1]),
    "shape": lambda a: torch.zeros(a, 3 - a), "bfloat16": lambda a: torch.tensor(a, dtype=torch.bfloat16), "array": lambda a: np.arange(2000) == 1000 + a,
    "array's number": np.float32, "enum": Kind, "path": lambda a: Path(f"/data/{a}"), "set": lambda a: {"x", "y", a}, "order of a dict": lambda a: {a: 0, 3 - a: 0},
    "dict subclass": lambda a: Counted(x=a), "number or text": lambda a: [1, "1"][a - 1], "number or truth": lambda a: [1, True][a - 1],
    "nesting": lambda a: [((1,), 2), ((1, 2),)][a - 1], "generator": lambda a: torch.Generator().manual_seed(a), "function": lambda a: (F.relu, F.gelu)[a - 1],
    "builtin": lambda a: (torch.add, torch.sub)[a - 1], "class": lambda a: (torch.optim.SGD, torch.optim.Adam)[a - 1],
    "loader": lambda a: DataLoader(Rows(5, a), batch_size=2), "lambdas of one line": lambda a: (lambda x: F.relu(x), lambda x: F.gelu(x))[a - 1],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_differ_have_names_that_differ(kind):
    one, again, other = (fingerprint(KINDS[kind](a)) for a in (1, 1, 2))
    assert one == again != other


# -- functions: what differs is the text of a file

HELPERS = "def scaled(loss):\n    return loss * 2\n"
LOSSES = """
import functools
import helpers
from torch.nn import functional as F

WEIGHT, OTHER = 3, [4]

def inner(logits):
    return logits ** 5

def twice(function):
    @functools.wraps(function)
    def run(*given):
        return function(*given) * 6
    return run

class Base:
    def __call__(self, model, batch):
        return self.weighted(model(batch), 7)

class Loss(Base):
    def weighted(self, logits, by):
        return helpers.scaled(logits) * by

@twice
def loss(model, batch):
    terms = [term * WEIGHT for term in inner(model(batch))]
    return sum(terms, 8)

called = Loss()
short = lambda model, batch, smoothing=9: F.cross_entropy(model(batch), batch, label_smoothing=smoothing)
"""


@pytest.mark.parametrize("function,edit,counts", [
    ("loss", ("= 3,", "= 4,"), True), ("loss", ("** 5", "** 6"), True), ("loss", ("* 6", "+ 6"), True), ("loss", ("s, 8", "s, 9"), True),
    ("called", ("), 7", "), 8"), True), ("called", ("* by", "/ by"), True), ("called", ("loss * 2", "loss * 3"), True),
    ("short", ("smoothing=9", "smoothing=1"), True), ("short", ("cross_entropy", "mse_loss"), True),
    ("loss", ("[4]", "[5]"), False), ("loss", ("), 7", "), 8"), False), ("short", ("import helpers", "import helpers  # mine"), False),
])  # fmt: skip
def test_an_edit_of_what_a_function_uses_counts_and_of_the_rest_does_not(function, edit, counts, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def loaded(*change):
        for name, text in (("helpers", HELPERS), ("losses", LOSSES)):
            (tmp_path / f"{name}.py").write_text(text.replace(*change) if change else text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        return getattr(importlib.import_module("losses"), function)

    first = loaded()
    base = fingerprint(first)
    assert base == fingerprint(loaded())
    changed = fingerprint(loaded(*edit))
    assert (changed != base) == counts
    if counts:
        assert fingerprint(first) != changed  # imported before the edit


# -- what cannot be named, and what is


def local_import(model, batch):
    import baseline_samples

    return baseline_samples


@pytest.mark.parametrize("make,told", [
    (lambda: (i for i in range(3)), "a generator"), (lambda: open(os.devnull), "a TextIOWrapper"),  # noqa: SIM115
    (lambda: torch.zeros(2, device="meta"), "a Tensor"), (threading.Lock, "a lock"), (lambda: list(range(LIMIT)), "more than 200,000 values"),
    (lambda: eval("lambda m, b: 1"), "the function <lambda>, which has no source"), (lambda: local_import, "imports baseline_samples inside"),
])  # fmt: skip
def test_what_cannot_be_named_never_matches_and_says_so(make, told, monkeypatch):
    monkeypatch.setitem(
        linecache.cache, "<string>", (15, None, ["lambda m, b: 2\n"], "<string>")
    )  # as Python 3.13 does
    held = make()
    theirs = training(Called(held))
    one, two = training_identity(theirs), training_identity(theirs)
    assert one["loss"] != two["loss"] and one["model"] == two["model"] and one["structure"] == two["structure"]
    (note,) = theirs.notes
    assert note.startswith("the loss cannot be recognized by another process (it holds ") and told in note
    theirs.loss.winnow_name = "mine-1"
    named = training_identity(theirs)["loss"]
    theirs.loss.a = None
    assert named == training_identity(theirs)["loss"]
    theirs.loss.winnow_name = "mine-2"
    assert named != training_identity(theirs)["loss"]
    if hasattr(held, "close"):
        held.close()


def test_a_name_stands_for_what_it_was_given_to_and_no_more():
    def wrapped(function, times):
        @functools.wraps(function)  # takes the name over
        def loss(model, batch):
            return function(model, batch) * times

        return loss

    def named(model, batch):
        return next(stream)

    stream = (i for i in range(3))
    with pytest.raises(Unnameable):
        fingerprint(named)
    named.winnow_name = "mine"
    assert fingerprint(wrapped(named, 1)) == fingerprint(wrapped(named, 1)) != fingerprint(wrapped(named, 2))
    kind = type("Named", (Called,), {"winnow_name": "mine"})
    assert fingerprint(kind(1)) == fingerprint(kind(1)) != fingerprint(kind(2))


# -- the model and the data


def test_the_model_counts_by_its_structure_too():
    base = training_identity(training(Called(0.1)))

    def changed(edit):
        model = network()
        edit(model)
        return training_identity(training(Called(0.1)).replaced(model=model))

    assert changed(lambda m: None) == base
    for edit in (
        lambda m: setattr(m[2], "p", 0.5),
        lambda m: setattr(m, "scale", 2.0),
        lambda m: setattr(m[1], "forward", types.MethodType(lambda self, x: x, m[1])),
        lambda m: m[0].weight.data.mul_(2),
        lambda m: m.register_buffer("extra", torch.ones(1), persistent=False),
    ):
        assert changed(edit) != base


def test_a_loss_that_holds_the_model_and_the_data_does_not_look_into_them():
    theirs = training(held := Called(0.1))
    held.model, held.examples, held.weight = theirs.model, theirs.examples, theirs.model[0].weight
    base = training_identity(theirs)
    with torch.no_grad():
        theirs.model[0].weight.add_(1)
    theirs.examples.joined[0].add_(1)
    changed = training_identity(theirs)
    assert changed["loss"] == base["loss"] and changed["model"] != base["model"] and changed["data"] != base["data"]


def test_batches_of_arrays_count_by_all_their_numbers():
    def batch(changed):
        numbers = np.arange(5000.0)  # printed with dots in the middle
        numbers[2500] += changed
        return Examples([(torch.ones(3), numbers), (torch.ones(2), numbers)], 2)

    assert examples_hash(batch(0)) == examples_hash(batch(0)) != examples_hash(batch(1))


# -- a transformers Trainer


@pytest.mark.hf
def test_a_trainers_loss_counts_and_its_bookkeeping_does_not(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Mine(transformers.Trainer):
        scale = 2

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return self.scaled(model(**inputs).loss)

        def scaled(self, loss):
            return loss * self.scale

    class Other(Mine):
        def scaled(self, loss):
            return loss + self.scale

    config = transformers.BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)  # fmt: skip
    model = transformers.BertForSequenceClassification(config)

    def named(kind=transformers.Trainer, function=None, attributes=(), **settings):
        arguments = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], **settings}
        made = kind(
            model=model, args=transformers.TrainingArguments(**arguments), train_dataset=Rows(4),
            compute_loss_func=function,
        )  # fmt: skip
        vars(made).update(attributes)
        found = training_identity(training(TrainerLoss(made)))["loss"]
        assert made.train_dataset.read == 0
        return found

    base = named()
    assert base == named()
    assert base == named(attributes={"_signature_columns": ["labels", "label"]})  # in another order in every process
    with torch.no_grad():
        model.classifier.weight.add_(1)  # the model has a name of its own
    assert base == named(output_dir=str(tmp_path / "other"), logging_steps=7, save_strategy="no", run_name="second")
    changed = [
        base, named(label_smoothing_factor=0.1), named(label_smoothing_factor=0.2), named(Mine), named(Other),
        named(function=lambda out, labels, num_items_in_batch: out.loss), named(function=lambda out, labels, num_items_in_batch: -out.loss),
        named(Mine, attributes={"scale": 3}), named(Mine, attributes={"teacher": nn.Linear(2, 2)}),
    ]  # fmt: skip
    assert len(set(changed)) == len(changed)


# -- across processes

SCRIPT = """
import sys; sys.path[:0] = {tests!r}
import transformers
import test_identity_of_trainings as t
from winnow.run.store import stage_key
for kind, make in t.KINDS.items():
    print(kind, t.fingerprint(make(1)))
print(t.fingerprint(transformers.GenerationConfig.from_model_config(transformers.LlamaConfig())))
print(stage_key("ticket", training=t.training_identity(t.training(t.KINDS["cycle"](1)))))
"""


@pytest.mark.hf
def test_two_processes_give_the_same_names():
    pytest.importorskip("transformers")
    text = SCRIPT.format(tests=[str(SUPPORT), str(Path(__file__).parent)])
    printed = [
        subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert printed[0] == printed[1] and printed[0].count("\n") == len(KINDS) + 2


@pytest.mark.parametrize("then,goes_on", [(0.0, True), (0.5, False)])
def test_a_killed_search_goes_on_only_with_the_same_loss(then, goes_on, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0.0)
    steps = []

    def search(smoothing, out, kill=None):
        def progress(name):
            def at(done, total, text):
                steps.append(done)
                if kill and done >= kill and not text.startswith("cand"):
                    raise Killed

            return at

        return winnow.find_ticket(
            training(Called(smoothing)), sparsity=0.5, method="magnitude", out=out, progress=progress
        ).model.state_dict()

    with pytest.raises(Killed):
        search(0.0, tmp_path / "one", kill=10)
    steps.clear()
    again = search(then, tmp_path / "one")
    assert (min(steps) > 5) == goes_on
    clean = search(then, tmp_path / "two")
    assert all(torch.equal(a, b) for a, b in zip(again.values(), clean.values()))
