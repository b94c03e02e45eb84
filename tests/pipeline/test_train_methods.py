"""A train stage with a method: every training method by its name, its options as fields, and weights drawn anew."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import winnow
from places import REPO, SUPPORT
from small import Classifier, classifier
from winnow.errors import InputError
from winnow.pipeline.reading import read_recipe
from winnow.pipeline.verb import run_recipe
from winnow.train.methods import METHODS
from winnow.train.methods.by_name import combines, fields_of, make
from winnow.train.methods.fixed import Fixed

HEAD = "name: clouds\nmodel: small:classifier\nweights: weights.safetensors\ndata: train.npz\neval: test.npz\nstages:\n"
NUMEL = 6 * 24 * 48
EVERY = {**{n: ", sparsity: 80%" for n in METHODS}, "fixed": "", "sr-ste": ", structure: '2:4'"}


def recipe(tmp_path, fields, more=""):
    path = tmp_path / "r.yaml"
    path.write_text(f"{HEAD}  - train: {{{fields}}}\n{more}")
    return path


def zeros_of(state):
    """Counted without winnow: of the matrices of the blocks."""
    return sum(int((t == 0).sum()) for n, t in state.items() if n.startswith("blocks") and t.ndim == 2)


@pytest.fixture
def sparse(here, tmp_path):
    """The weights with half of each block's matrices zero, the largest of each row: no method would choose these."""
    state = classifier().state_dict()
    for name, t in state.items():
        if name.startswith("blocks") and t.ndim == 2:
            t[t.abs() >= t.abs().median(1, keepdim=True).values] = 0.0
    save_file(state, tmp_path / "sparse.safetensors")
    return tmp_path / "sparse.safetensors"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(here, tmp_path, sparse, name):
    """Exact zeros, in a folder that loads by itself, and the same again by the same class without a recipe."""
    path = recipe(tmp_path, f"method: {name}{EVERY[name]}, steps: 12, lr: 5e-3, include: ['head.weight']")
    ran = run_recipe(path, tmp_path / "out", sets=[f"weights={sparse}"])
    (stage,) = ran.stages
    state = load_file(ran.folder / "model.safetensors")
    model = Classifier()
    model.load_state_dict(state)
    masks = winnow.MaskSet.load(ran.folder / "masks.safetensors")
    assert stage.figures["method"] == name and name in stage.what and "head.weight" in masks
    assert stage.figures["zeros"] == masks.zeros == json.loads((ran.folder / "ticket.json").read_text())["zeros"]
    assert all(not state[n][~m.unpack()].any() for n, m in masks.items())
    if "sparsity" in fields_of(name):
        assert masks.zeros == round(0.8 * (NUMEL + 72))
    elif "structure" in fields_of(name):
        assert masks.zeros == (NUMEL + 72) // 2
    else:  # the model's own zeros
        before = load_file(sparse)
        assert masks.zeros == zeros_of(before) and all(torch.equal(state[n] == 0, before[n] == 0) for n in masks)
    report = json.loads((ran.folder / "ticket-report.json").read_text())["training"]
    assert {x["name"]: x["rate"] for x in report["layers"]} == {n: m.zeros / m.numel for n, m in masks.items()}
    assert len(report["losses"]) == 12 and report["losses"][-1] < report["losses"][0]
    assert name in (ran.folder / "ticket.html").read_text()


class Scored(Fixed):
    """Keeps the weights whose gradient is largest, by batches and a loss (for this test; Nobody 2000)."""

    def __init__(self, sparsity: float | str, batches: Any, *, loss: Any = None, power: float = 1.0) -> None:
        super().__init__()
        self.sparsity, self.batches, self.loss, self.power = sparsity, list(batches), loss, power

    def start(self, attached: Any) -> None:
        model = attached.model
        gradients = torch.autograd.grad(sum(self.loss(model, b) for b in self.batches), list(attached.weights.values()))
        scores = torch.cat([g.abs().flatten() ** self.power for g in gradients])
        least = scores.sort().values[round(self.sparsity * len(scores))]
        attached.set({n: g.abs() ** self.power >= least for n, g in zip(attached.weights, gradients)})


@pytest.mark.parametrize("fields", ["method: scored, power: 2", "method: sign-in, masks: scored, power: 2"])
def test_a_new_method_is_one_line(here, tmp_path, monkeypatch, fields):
    """Its fields are the plain parameters of its class; seed, batches and loss come from the training."""
    monkeypatch.setitem(METHODS, "scored", Scored)
    path = recipe(tmp_path, f"{fields}, sparsity: 75%, steps: 4, lr: 5e-3, batch: 16")
    ran = run_recipe(path, tmp_path / "out")
    assert ran.stages[0].figures["zeros"] == round(0.75 * NUMEL) and "scored" in ran.stages[0].what
    path = recipe(tmp_path, f"{fields}, sparsity: 75%, batches: 3")
    with pytest.raises(InputError, match=r"train.batches: is no field of a train stage with method"):
        read_recipe(path)


def test_options_are_those_of_the_class(here, tmp_path):
    """Built from a recipe's fields: own ones, those of inner masks beside them or under their name, the rest by the steps."""
    stage = read_recipe(
        recipe(tmp_path, "method: sign-in, sparsity: 90%, masks: rigl, fraction: 0.2, beta: 0.5")
    ).stages[0]
    built = make(stage.method, stage.settings(), steps=1000, seed=7)
    assert (built.beta, built.every, built.end, built.inner.fraction, built.inner.sparsity) == (
        {"*": 0.5},
        100,
        900,
        0.2,
        0.9,
    )
    assert (built.inner.every, built.inner.end, built.inner.seed) == (50, 750, 7)
    fields = "method: sign-in, sparsity: 0.5, every: 9, end: null, masks: {gradual: {every: 3, end: 30}}"
    stage = read_recipe(recipe(tmp_path, fields)).stages[0]
    built = make(stage.method, stage.settings(), steps=100, seed=0)
    assert (built.every, built.end, built.inner.every, built.inner.end) == (9, None, 3, 30)


@pytest.mark.parametrize("name", METHODS)
def test_the_guide_lists_its_fields(name):
    rows = [
        r
        for r in (REPO / "docs/guide/training.md").read_text().splitlines()
        if r.startswith("| `") and f"`{name}`" in r.split("|")[1]
    ]
    assert len(rows) == 1, f"{name}: give it a row in the table of docs/guide/training.md"
    theirs = fields_of("random") if combines(name) else {}  # of its masks
    missing = [f for f in fields_of(name) if f not in theirs and f"`{f}`" not in rows[0].split("|")[2]]
    assert not missing, f"{name}: name these fields in its row: {missing}"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ("method: sign-inn", "method", "there is no training method 'sign-inn' (did you mean sign-in?): choose one of acdc, fixed, gradual"),
        ("method: rigl", "sparsity", "is missing"),
        ("method: rigl, sparsity: 90", "sparsity", "outside 0 to 1 (did you mean 90%?)"),
        ("method: rigl, sparsity: 0", "sparsity", "a sparsity of 0 removes nothing"),
        ("method: rigl, sparsity: true", "sparsity", "must be a number, not true"),
        ("method: rigl, sparsity: 90%, beta: 1", "beta", "is no field of a train stage with method rigl"),
        ("method: rigl, sparsity: 90%, fractoin: 0.3", "fractoin", "with method rigl (did you mean fraction?)"),
        ("method: rigl, sparsity: 90%, fraction: 2", "fraction", "fraction is 2.0: give a number between 0 and 1"),
        ("method: rigl, sparsity: 90%, every: 5, end: 2", "end", "give 1 <= every <= end"),
        ("method: random, sparsity: 90%, distribution: erkk", "distribution", "'erkk' is not known (did you mean erk?)"),
        ("method: sign-in, sparsity: 90%, every: 0", "every", "give 1 or more"),
        ("method: sign-in, sparsity: 90%, beta: -1", "beta", "give a positive number"),
        ("method: sign-in, sparsity: 90%, steps: 20, every: 30", "every", "the first reset would come at step 30"),
        ("method: sign-in, sparsity: 90%, masks: riggle", "masks", "there are no masks 'riggle'"),
        ("method: sign-in, sparsity: 90%, masks: sign-in", "masks", "there are no masks 'sign-in'"),
        ("method: sign-in, masks: fixed, sparsity: 90%", "sparsity", "is no field of a train stage with method sign-in"),
        ("method: sign-in, sparsity: 90%, masks: {rigl: {evry: 2}}", "masks", "masks.rigl.evry: is no field of"),
        ("sparsity: 90%", "sparsity", "is no field of a train stage without a method"),
        ("include: ['head.*']", "include", "is of a method: name one"),
        ("from_scratch: 3", "from_scratch", "must be a valid boolean"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_line_and_field(tmp_path, fields, field, words):
    lines = [f"      {part}" for part in fields.replace(", ", "\n").replace("{rigl:\n", "{rigl: ").split("\n")]
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "  - train:\n" + "\n".join(lines) + "\n")
    named = 8 + next((i for i, line in enumerate(lines) if line.startswith(f"      {field}:")), -1)
    with pytest.raises(InputError) as error:
        read_recipe(path)
    text = str(error.value)
    assert text.startswith(f"{path}, line {named}: stages[1].train.{field}") and words in text, text
    assert text.endswith(".") and "\n" not in text


def test_steps_that_only_the_data_tells(here, tmp_path):
    path = recipe(tmp_path, "method: sign-in, sparsity: 90%, epochs: 1, every: 30")
    for options in ({"dry_run": True}, {"out": tmp_path / "out"}):
        with pytest.raises(InputError, match=r"line 7: stages\[1\].train.every: the first reset would come at step 30"):
            run_recipe(path, **options)


def test_a_ticket_is_not_compared_with_a_sparse_training(tmp_path):
    path = recipe(tmp_path, "method: random, sparsity: 0.5, steps: 2", "  - ticket: {sparsity: 0.9}\n")
    with pytest.raises(InputError, match=r"line 8: stages\[2\].ticket: a ticket is compared with a dense training"):
        read_recipe(path)
    path.write_text(HEAD + "  - ticket: {sparsity: 0.9, method: rigl}\n")
    with pytest.raises(InputError, match=r"'rigl' .it is one of a train stage"):
        read_recipe(path)


def test_masks_of_a_model_that_has_none(here, tmp_path):
    with pytest.raises(InputError, match="no zeros for fixed to keep"):
        run_recipe(recipe(tmp_path, "method: fixed, steps: 2"), tmp_path / "out")


def test_the_key_follows_every_option(here, tmp_path):
    def key(*sets):
        fields = "method: sign-in, sparsity: 0.9, steps: 100"
        return run_recipe(recipe(tmp_path, fields), sets=[f"train.{s}" for s in sets], dry_run=True)[0].key

    changes = ["method=rigl", "sparsity=0.8", "beta=2", "every=5", "end=null", "distribution=uniform", "masks=rigl", "moments=zero",
        "masks={random: {distribution: uniform}}", "from_scratch=true", "include=[head.weight]"]  # fmt: skip
    assert len({key(), *(key(c) for c in changes)}) == 1 + len(changes) and key() == key("sparsity=90%")


def test_a_period_that_never_comes_is_told(here, tmp_path):
    path = recipe(tmp_path, "method: gradual, sparsity: 0.9, steps: 6, end: 60, every: 1")
    with pytest.warns(UserWarning, match="not the 90% asked for"):
        ran = run_recipe(path, tmp_path / "out")
    assert "is going to end at step 6" in " ".join(ran.stages[0].figures["notes"])
    assert 0 < ran.stages[0].figures["sparsity"] < 0.9


def test_compress_takes_its_zeros(here, tmp_path):
    more = "  - compress: {baselines: none, speed: false, samples: 32}\n  - eval: {max_drop: 60}\n"
    ran = run_recipe(recipe(tmp_path, "method: random, sparsity: 0.7, steps: 8, lr: 5e-3", more), tmp_path / "out")
    packed = winnow.load(ran.folder, factory=classifier).state_dict()
    assert zeros_of(packed) == ran.stages[1].figures["zeros"] == ran.stages[0].figures["zeros"] == round(0.7 * NUMEL)
    page = json.loads((ran.folder / "report.json").read_text())
    assert "with its 70% of zeros stored like every other weight" in page["notes"][0]


# -- from scratch -------------------------------------------------------------------------------------------------------


class Parametric(nn.Module):
    """A parameter of its own, which no layer draws."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.arange(12.0)), Classifier()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x + 0 * self.scale)


def test_weights_drawn_by_the_function(here, tmp_path, monkeypatch):
    """What the function draws under the recipe's seed, not what the file holds."""
    import small

    monkeypatch.setattr(small, "fresh", Classifier, raising=False)
    path = recipe(
        tmp_path,
        "method: random, sparsity: 0.5, rescale: false, from_scratch: true, steps: 1, lr: 1e-30, weight_decay: 0",
    )
    ran = run_recipe(path, tmp_path / "out", sets=["model=small:fresh", "seed=5"])
    torch.manual_seed(5)
    expected, found = Classifier().state_dict(), load_file(ran.folder / "model.safetensors")
    masks = winnow.MaskSet.load(ran.folder / "masks.safetensors")
    for name, t in expected.items():
        assert torch.allclose(found[name], t * masks[name].unpack() if name in masks else t, atol=1e-12), name
    assert "from scratch" in ran.stages[0].what and "drawn anew (seed 5)" in " ".join(ran.stages[0].figures["notes"])


def test_a_function_that_always_builds_the_same(here, tmp_path, monkeypatch):
    """It may have loaded a file: layers are drawn anew; what none of them draws is named."""
    import small

    path = recipe(tmp_path, "from_scratch: true, steps: 1, lr: 1e-30, weight_decay: 0")
    ran = run_recipe(path, tmp_path / "out")
    given, found = classifier().state_dict(), load_file(ran.folder / "model.safetensors")
    assert all(not torch.allclose(t, given[n]) for n, t in found.items() if t.ndim == 2)
    assert "drawn anew by their reset_parameters" in " ".join(ran.stages[0].figures["notes"])
    again = run_recipe(path, tmp_path / "again")
    assert all(torch.equal(t, found[n]) for n, t in load_file(again.folder / "model.safetensors").items())
    monkeypatch.setattr(small, "parametric", Parametric, raising=False)
    save_file(Parametric().state_dict(), tmp_path / "p.safetensors")
    sets = ["model=small:parametric", f"weights={tmp_path / 'p.safetensors'}"]
    with pytest.raises(
        InputError, match=r"line 7: stages\[1\].train.from_scratch: small:parametric builds scale with the same"
    ):
        run_recipe(path, tmp_path / "other", sets=sets)


def test_a_mask_under_new_weights(here, tmp_path, sparse):
    path = recipe(tmp_path, "method: sign-in, masks: fixed, from_scratch: true, steps: 6, lr: 5e-3")
    ran = run_recipe(path, tmp_path / "out", sets=[f"weights={sparse}"])
    before, found = load_file(sparse), load_file(ran.folder / "model.safetensors")
    for name in winnow.MaskSet.load(ran.folder / "masks.safetensors"):
        assert torch.equal(found[name] == 0, before[name] == 0)
        kept = before[name] != 0
        assert torch.corrcoef(torch.stack([found[name][kept], before[name][kept]]))[0, 1].abs() < 0.3, name


@pytest.mark.hf
def test_a_transformers_model_from_its_configuration(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from recipes.tiny import write_text

    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: encoder\ndata: train.jsonl\neval: test.jsonl\ncolumn: text\nlabel: label\nlength: 32\nseed: 3\nstages:\n"
        "  - train: {method: random, sparsity: 60%, rescale: false, from_scratch: true, steps: 1, lr: 1e-30}\n"
    )
    ran = run_recipe(path, "out")
    found = transformers.AutoModelForSequenceClassification.from_pretrained("out")
    torch.manual_seed(3)
    expected = type(found)(found.config).state_dict()
    given = transformers.AutoModel.from_pretrained("encoder").state_dict()
    masks = winnow.MaskSet.load("out/masks.safetensors")
    assert masks.zeros == round(0.6 * masks.numel) == ran.stages[0].figures["zeros"]
    for name, t in found.state_dict().items():
        assert torch.allclose(t, expected[name] * masks[name].unpack() if name in masks else expected[name], atol=1e-12)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.allclose(found.state_dict()[f"bert.{name}"], given[name])


# -- killed -------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from winnow.run import store
from winnow.train.task import run
store.code_version = lambda: "the same in both processes, whatever is edited meanwhile"
run.SAVE_EVERY = -1.0
one = run.Run.one
def told(self, *args, **options):
    print("step", flush=True)
    return one(self, *args, **options)
run.Run.one = told
from winnow.pipeline.verb import run_recipe
run_recipe({recipe!r}, {out!r})
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_equal(here, tmp_path):
    """kill -9 between a reset and a change of masks, and the same command again: every byte is the same."""
    fields = "method: sign-in, masks: {rigl: {every: 4, end: 20}}, every: 6, sparsity: 80%, from_scratch: true, steps: 24, lr: 5e-3"
    path = recipe(tmp_path, fields)

    def start(out):
        script = SCRIPT.format(tests=str(SUPPORT), recipe=str(path), out=str(tmp_path / out))
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)

    whole, _ = start("whole").communicate(timeout=600)
    assert whole.split().count("step") == 24
    process = start("cut")
    assert process.stdout is not None
    for _ in range(14):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    rest, _ = start("cut").communicate(timeout=600)
    assert 24 - 14 <= rest.split().count("step") <= 24 - 14 + 2
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    losses = [
        json.loads((tmp_path / n / "ticket-report.json").read_text())["training"]["losses"] for n in ("cut", "whole")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 24
