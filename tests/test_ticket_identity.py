"""Two trainings have one name only where they give one result: everything that a function holds counts."""

from __future__ import annotations

import enum
import functools
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
from torch.utils.data import DataLoader, Dataset, IterableDataset

import winnow
from baseline_samples import Killed
from winnow.train.examples import Examples
from winnow.train.task import run as runs
from winnow.train.task.describe import LIMIT, describe
from winnow.train.task.from_trainer import TrainerLoss
from winnow.train.task.identity import examples_hash, function_name, training_identity
from winnow.train.task.parts import ITEMS, Indescribable
from winnow.train.task.training import Training


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 3))


def training(loss, **changes) -> Training:
    torch.manual_seed(1)
    x = torch.randn(24, 6)
    return Training(network(), Examples([(x, x[:, :3].argmax(1))], 6), loss, 12, **{"lr": 1e-2, **changes})


# -- one kind of function each, made for a value; what differs between two values is nothing but a setting


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

    def __call__(self, model, batch):
        return self.a


class Itself(Called):
    """Refers to itself, to its own method and to its parent."""

    def __init__(self, a):
        super().__init__(a)
        self.parent, self.again, self.children = self, self.method, [Called(a)]
        self.children[0].parent = self


class Focal(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.inner, self.a = nn.CrossEntropyLoss(), a

    def forward(self, logits, labels):
        return self.inner(logits, labels) * self.a


class Counted(dict):
    pass


@dataclass(frozen=True)
class Valued:
    a: float
    of: list = field(default_factory=list)


class Kind(enum.Enum):
    FEW = 1
    MANY = 2


def closure(over):
    return lambda model, batch: over(model(batch[0]), batch[1])


def keyword_only(a):
    def loss(model, batch, *, smoothing=a):
        return smoothing

    return loss


def default(a):
    def loss(model, batch, smoothing=a):
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


def class_code(a):
    class Loss(Called):
        if a == 1:

            def __call__(self, model, batch):
                return 1
        else:

            def __call__(self, model, batch):
                return 2

    return Loss(0.0)


def of_global(a):
    space = {"__name__": "mine", "F": F, "SMOOTHING": a}
    exec("def inner(): return SMOOTHING\ndef loss(model, batch): return inner()", space)
    return space["loss"]


def of_module(a):
    module = types.ModuleType("settings_of_mine")
    module.smoothing, module.other = a, object()
    space = {"__name__": "mine", "settings": module}
    exec("def loss(model, batch): return settings.smoothing", space)
    return space["loss"]


def seeded(a):
    return Called(torch.Generator().manual_seed(a))


def subclassed(a):
    made = Counted(x=1)
    made.a = a
    return Called(made)


KINDS = {
    "object": Called, "slots": Slotted, "bound method": lambda a: Called(a).method, "cycle": Itself,
    "closure over a number": lambda a: lambda m, b: a, "closure over a loss": lambda a: closure(nn.CrossEntropyLoss(label_smoothing=a / 9)),
    "closure over a module": lambda a: closure(Focal(a)), "weights of a module": lambda a: closure(nn.CrossEntropyLoss(weight=torch.full((3,), float(a)))),
    "closure over an object": lambda a: closure(Called(a)), "keyword-only default": keyword_only, "default": default,
    "attribute of a function": attributed, "decorated": decorated, "class attribute": class_attribute, "class code": class_code,
    "partial": lambda a: functools.partial(F.cross_entropy, label_smoothing=a), "partial of an object": lambda a: functools.partial(Called(a)),
    "partial's position": lambda a: functools.partial(F.cross_entropy, a), "dataclass": lambda a: Valued(a), "nested dataclass": lambda a: Valued(0, [Valued(a)]),
    "tensor": lambda a: Called(torch.tensor([1, a])), "dtype": lambda a: Called(torch.zeros(2, dtype=(torch.int8, torch.uint8)[a - 1])),
    "shape": lambda a: Called(torch.zeros(a, 3 - a)), "bfloat16": lambda a: Called(torch.tensor(a, dtype=torch.bfloat16)),
    "array": lambda a: Called(np.arange(2000) == 1000 + a), "array's number": lambda a: Called(np.float32(a)), "enum": lambda a: Called(Kind(a)),
    "path": lambda a: Called(Path(f"/data/{a}")), "set": lambda a: Called({"x", "y", a}), "order of a dict": lambda a: Called({a: 0, 3 - a: 0}),
    "dict subclass": subclassed, "number or text": lambda a: Called([1, "1"][a - 1]), "number or truth": lambda a: Called([1, True][a - 1]),
    "nesting": lambda a: Called([((1,), 2), ((1, 2),)][a - 1]), "global through a function": of_global, "attribute of a module": of_module,
    "generator": seeded, "lock beside": lambda a: Called((threading.Lock(), a)), "function": lambda a: Called((F.relu, F.gelu)[a - 1]),
    "builtin": lambda a: Called((torch.add, torch.sub)[a - 1]), "class": lambda a: Called((torch.optim.SGD, torch.optim.Adam)[a - 1]),
    "loader": lambda a: Called(DataLoader(Rows(5), batch_size=a)), "items": lambda a: Called(DataLoader(Rows(5, a))),
    "trainer": lambda a: TrainerLoss(Trainer(a)), "attribute of a trainer": lambda a: TrainerLoss(Trainer(1, temperature=a)),
}  # fmt: skip


class Rows(Dataset):
    def __init__(self, n, first=0):
        self.n, self.first, self.read = n, first, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read += 1
        return torch.tensor([self.first + i])


class Trainer:
    """The face of a transformers Trainer."""

    def __init__(self, smoothing, **more):
        self.args = types.SimpleNamespace(label_smoothing_factor=smoothing)
        self.model, self.train_dataset, self.state = Unreadable(), Unreadable(), Unreadable()
        vars(self).update(more)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss * self.args.label_smoothing_factor

    def get_train_dataloader(self):
        raise AssertionError


class Unreadable:
    def __reduce__(self):
        raise AssertionError("looked into")

    def __init__(self):
        self.held = (i for i in range(3))  # no description


@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_differ_have_names_that_differ(kind):
    one, again, other = (function_name(KINDS[kind](a)) for a in (1, 1, 2))
    assert one == again != other


def test_neither_lines_nor_unrelated_globals_count():
    def loss(text, **more):
        space = {"__name__": "mine", **more}
        exec(text, space)
        return space["loss"]

    text = "def loss(model, batch):\n    return model(batch) * scale"
    base = describe(loss(text, scale=2))
    assert base == describe(loss("\n\n# a comment\n" + text, scale=2, unrelated=5))
    assert base != describe(loss(text, scale=3)) and base != describe(loss(text.replace("*", "+"), scale=2))
    assert base != describe(loss(text))  # not defined


def test_modules_imported_inside_of_a_function_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for number in (1, 2):
        name = f"losses_of_mine_{number}"
        (tmp_path / f"{name}.py").write_text(f"from losses_shared_{number} import scale\n")
        (tmp_path / f"losses_shared_{number}.py").write_text(f"def scale(): return {number}\n")
        space: dict = {"__name__": "mine"}
        exec(f"def loss(m, b):\n    from {name} import scale\n    import sklearn.nothing\n    return scale()", space)
        found.append(space["loss"])
    first = describe(found[0])
    assert first == describe(found[0]) != describe(found[1])
    sys.modules["losses_of_mine_1"].scale.__defaults__ = (1,)
    assert describe(found[0]) != first
    assert "sklearn.nothing" not in sys.modules


# -- what cannot be named


@pytest.mark.parametrize("make", [
    lambda: (i for i in range(3)), lambda: open(os.devnull),  # noqa: SIM115
    lambda: torch.zeros(2, device="meta"), threading.local,
    lambda: DataLoader(Stream()), lambda: list(range(LIMIT)), lambda: torch.eye(2).to_sparse(),
])  # fmt: skip
def test_what_cannot_be_named_never_matches_and_says_so(make):
    held = make()
    with pytest.raises(Indescribable):
        describe(Called(held))
    theirs = training(Called(held))
    one, two = training_identity(theirs), training_identity(theirs)
    assert one["loss"] != two["loss"] and one["model"] == two["model"] and one["structure"] == two["structure"]
    assert len(theirs.notes) == 1 and "the loss cannot be recognized" in theirs.notes[0]
    if hasattr(held, "close"):
        held.close()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


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


def test_a_loss_that_holds_the_model_and_the_data_does_not_look_into_them(monkeypatch):
    theirs = training(None)
    held = Called(0.1)
    held.model, held.examples, held.weight = theirs.model, theirs.examples, theirs.model[0].weight
    known = {id(theirs.model): "model", id(theirs.examples): "examples", id(theirs.model[0].weight): "weight"}
    monkeypatch.setattr("winnow.train.task.parts._tensor", None)
    base = function_name(held, known)
    with torch.no_grad():
        theirs.model[0].weight.add_(1)
    theirs.examples.batches.clear()
    assert function_name(held, known) == base
    assert (
        training_identity(theirs.replaced(loss=held))["loss"] == training_identity(theirs.replaced(loss=held))["loss"]
    )


def test_of_a_data_set_a_few_items_are_read_and_of_a_trainers_none():
    rows = Rows(100_000)
    describe(Called(DataLoader(rows)))
    assert 0 < rows.read <= ITEMS
    state = torch.get_rng_state()
    theirs = Trainer(0.1)
    theirs.train_dataset = rows = Rows(10)
    describe(TrainerLoss(theirs))
    assert rows.read == 0 and torch.equal(state, torch.get_rng_state())


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
        found = function_name(TrainerLoss(made))
        assert made.train_dataset.read == 0
        return found

    base = named()
    assert base == named()
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
import sys; sys.path.insert(0, {tests!r})
import test_ticket_identity as t
from winnow.train.task.identity import function_name, training_identity
from winnow.run.store import stage_key
for kind, make in t.KINDS.items():
    print(kind, function_name(make(1)))
print(stage_key("ticket", training=training_identity(t.training(t.KINDS["cycle"](1)))))
"""


def test_two_processes_give_the_same_names():
    text = SCRIPT.format(tests=str(Path(__file__).parent))
    printed = [
        subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert printed[0] == printed[1] and printed[0].count("\n") == len(KINDS) + 1


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
