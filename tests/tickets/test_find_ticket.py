"""``find_ticket``: what comes out of it, what it writes, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from small import convnet
from small import images as pictures
from ticket_inputs import bert, clip, mlp, rows, save_bert, save_images, sentences, tokenizer, trainer, vit, write_csv
from winnow.errors import InputError, WinnowError
from winnow.masks.mask import MaskSet
from winnow.report import folder
from winnow.tickets import METHODS, find_ticket, training_from
from winnow.tickets.method import Method
from winnow.tickets.methods.registry import DEFAULT
from winnow.tickets.verb import sparsities


def zeros_of(model, names):
    return sum(int((model.get_parameter(n) == 0).sum()) for n in names)


def families(tmp_path):
    """name -> (model, data, settings, a batch of inputs)."""
    x, y = rows(60)
    pixels, labels = pictures(30)
    yield "mlp", (mlp(), (x, y), {}, lambda m: m(x[:5]))
    yield "conv", (convnet(), (pixels, torch.tensor(labels)), {}, lambda m: m(pixels[:5]))
    words = tokenizer()(["the film was good", "a sad cat"], return_tensors="pt", padding=True)
    yield "bert", (save_bert(tmp_path / "bert"), sentences(30), {}, lambda m: m(**words).logits)
    noise = torch.randn(4, 3, 8, 8)
    yield "vit", (vit(), save_images(tmp_path / "images"), {}, lambda m: m(noise).logits)


@pytest.mark.hf
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_every_family_gets_exactly_its_zeros(tmp_path, number, method):
    pytest.importorskip("transformers")
    _, (model, data, settings, run) = list(families(tmp_path))[number]
    found = find_ticket(model, data, sparsity=0.7, method=method, steps=3, batch=8, **settings)
    masks, ticket = found.masks, found.ticket
    assert ticket.zeros == round(0.7 * masks.numel) == masks.zeros
    assert zeros_of(found.model, masks) >= ticket.zeros
    for name, mask in masks.items():
        weight = found.model.get_parameter(name).detach().flatten(1)
        assert not weight[~mask.unpack()].any(), name
    assert not found.model.training and torch.isfinite(run(found.model)).all()
    assert ticket.cost.main == 3 and ticket.evaluation.metric == "accuracy"


def test_the_ticket_is_the_training_by_hand():
    """One-shot magnitude, three plain steps, written out."""
    import copy

    x, y = rows(64)
    training = training_from(
        mlp(), (x, y), steps=3, batch=16, lr=0.1, clip=None, task="none",
        optimizer=lambda parameters, lr, decay: torch.optim.SGD(parameters, lr),
    )  # fmt: skip
    found = find_ticket(training, sparsity="50%", method="magnitude")
    model = copy.deepcopy(training.model)
    names = list(training.scope().prunables)
    flat = torch.cat([model.get_parameter(n).detach().abs().flatten() for n in names])
    line = flat.sort().values[round(0.5 * len(flat))]
    keeps = {n: model.get_parameter(n).detach().abs() >= line for n in names}
    from winnow.train.task.run import Run

    draw = Run(training)
    model.train()
    for step in range(3):
        with torch.no_grad():
            for n, keep in keeps.items():
                model.get_parameter(n).mul_(keep)
        inputs, labels = training.examples.take(draw._draw(step, "main"))
        for p in model.parameters():
            p.grad = None
        F.cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * (1 - step / 3) * p.grad
    with torch.no_grad():
        for n, keep in keeps.items():
            model.get_parameter(n).mul_(keep)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, msg=name)


def test_a_model_that_was_given_is_not_changed():
    model, before = mlp(), mlp().state_dict()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    find_ticket(model, rows(40), sparsity=0.5, method="random", steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_dense_gives_one_ticket_without_zeros():
    found = find_ticket(mlp(), rows(60), sparsity=[0.5, 0.8], method="dense", steps=4)
    assert len(found.tickets) == 1 and found.ticket.zeros == found.masks.zeros == 0 and found.ticket.sparsity == 0
    assert found.ticket.cost.main == 4 and found.ticket.cost.weighted == pytest.approx(4)
    with pytest.raises(InputError, match="choose one of 0"):
        found.save("nowhere", 0.5)
    again = find_ticket(mlp(), rows(60), sparsity=0, method="dense", steps=4)
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_the_same_seed_finds_the_same_ticket_and_another_another():
    data = rows(60)
    one, again, other = (find_ticket(mlp(), data, sparsity=0.6, method="random", steps=3, seed=s) for s in (0, 0, 1))
    assert all(one.masks[n] == again.masks[n] for n in one.masks)
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in one.model.state_dict().items())
    assert any(one.masks[n] != other.masks[n] for n in one.masks)


def test_several_sparsities_and_their_folders(tmp_path):
    out = tmp_path / "out"
    found = find_ticket(mlp(), rows(60), sparsity=["50%", 0.8], method="magnitude", steps=2, out=out)
    assert [round(t.sparsity, 2) for t in found.tickets] == [0.5, 0.8] and found.ticket is found.tickets[1]
    index = json.loads((out / "ticket.json").read_text())
    assert [e["zeros"] for e in index["tickets"]] == [t.zeros for t in found.tickets]
    for entry, ticket in zip(index["tickets"], found.tickets):
        model = mlp()
        from safetensors.torch import load_file

        model.load_state_dict(load_file(out / entry["folder"] / "model.safetensors"))
        x = torch.randn(7, 20)
        assert torch.equal(model.eval()(x), ticket.model(x))
    one = found.save(tmp_path / "half", "50%")
    assert json.loads((one / "ticket.json").read_text())["zeros"] == found.tickets[0].zeros
    with pytest.raises(InputError, match=r"0\.5, 0\.8"):
        found.save(tmp_path / "none", 0.6)


def test_the_report_is_written_with_the_tickets(tmp_path):
    from winnow.report.ticket import page

    out = tmp_path / "out"
    found = find_ticket(mlp(), rows(60), sparsity=[0.5, 0.8], method="magnitude", steps=2, out=out)
    report = page.read(out)
    assert report == found.report and (out / "ticket.html").read_text() == page.render(report)
    assert [(t.zeros, t.cost.steps) for t in report.tickets] == [(t.zeros, t.cost.steps) for t in found.tickets]
    assert report.steps == 2 and report.dense is None and report.settings == found.settings.model_dump(mode="json")
    assert report.tickets[1].figure.value == pytest.approx(100 * found.ticket.evaluation.value)
    alone = page.read(found.save(tmp_path / "one", 0.5))
    assert [t.zeros for t in alone.tickets] == [found.tickets[0].zeros]
    with pytest.raises(InputError, match=r"its ticket: the default, here: 0\.8"):  # of two tickets one would go
        found.save(out)
    found.save(out, overwrite=True)  # a folder with a report is a ticket like before, and is replaced
    assert len(page.read(out).tickets) == 1 and not (out / "sparsity-0.5").exists()


def test_a_report_that_cannot_be_written_leaves_the_old_ticket(tmp_path, monkeypatch):
    found = find_ticket(mlp(), rows(40), sparsity=0.5, method="random", steps=1, out=tmp_path / "t")
    before = sorted((f.name, f.read_bytes()) for f in (tmp_path / "t").iterdir())

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "atomic_file", full)
    with pytest.raises(WinnowError, match="No space left"):
        found.save(tmp_path / "t")
    assert sorted((f.name, f.read_bytes()) for f in (tmp_path / "t").iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


@pytest.mark.hf
def test_transformers_says_nothing_between_ours(tmp_path, capfd):
    pytest.importorskip("transformers")
    folder = save_bert(tmp_path / "bert")
    capfd.readouterr()
    found = find_ticket(folder, sentences(30), sparsity=0.6, method="magnitude", steps=1, out=tmp_path / "t")
    assert any("fresh head" in note for note in found.training.notes)
    find_ticket(tmp_path / "t", sentences(30), sparsity=0.7, method="magnitude", steps=1, out=tmp_path / "u")
    assert capfd.readouterr() == ("", "")


@pytest.mark.hf
def test_a_saved_hugging_face_ticket_loads_and_gives_the_same_logits(tmp_path):
    transformers = pytest.importorskip("transformers")
    data = write_csv(tmp_path / "train.csv", sentences(40, names=True))
    out = tmp_path / "out"
    found = find_ticket(save_bert(tmp_path / "bert"), data, sparsity=0.6, method="magnitude", steps=3, lr=1e-3, out=out)
    assert found.folder == out and not (tmp_path / "out.work").exists() and not (tmp_path / "out.partial").exists()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    words = transformers.AutoTokenizer.from_pretrained(out)
    batch = words(["the film was good", "a sad cat"], return_tensors="pt", padding=True)
    assert torch.equal(model(**batch).logits, found.model(**batch).logits)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    masks = MaskSet.load(out / "masks.safetensors")
    assert masks.zeros == found.ticket.zeros and all(masks[n] == found.masks[n] for n in masks)
    story = json.loads((out / "ticket.json").read_text())
    assert story["method"] == "magnitude" and story["cost"]["main"] == story["cost"]["steps"] == 3
    assert story["evaluation"]["metric"] == "accuracy" and story["history"][0]["zeros"] == story["zeros"]
    assert story["training"]["lr"] == 1e-3 and set(story["versions"]) >= {"winnow", "torch"}
    assert any("fresh head" in note for note in story["notes"])
    # what was saved is a model like any other: it can be pruned further
    again = find_ticket(out, data, sparsity=0.7, method="magnitude", steps=1, eval=sentences(9, seed=8, names=True))
    assert type(again.model) is type(found.model) and again.ticket.zeros == round(0.7 * masks.numel)


@pytest.mark.hf
def test_a_saved_clip_ticket_fits_the_classifier_built_anew(tmp_path):
    pytest.importorskip("transformers")
    from safetensors.torch import load_file

    from winnow.tickets import clip_image_classifier

    data = (torch.randn(16, 3, 8, 8), torch.arange(16) % 2)
    found = find_ticket(
        clip_image_classifier(clip(), tokenizer(), ["cat", "dog"]), data, sparsity=0.5, method="magnitude", steps=2
    )
    found.save(tmp_path / "clip")
    model = clip_image_classifier(clip(), tokenizer(), ["cat", "dog"])
    model.load_state_dict(load_file(tmp_path / "clip" / "model.safetensors"))
    pixels = torch.randn(3, 3, 8, 8)
    assert torch.equal(model(pixels), found.model(pixels))


@pytest.mark.hf
@pytest.mark.shared_data
def test_a_real_encoder_with_a_fresh_head(tmp_path, shared_data):
    """Six layers of 384: what is pruned is counted by hand, what is written is what was measured."""
    transformers = pytest.importorskip("transformers")
    data = [{"text": r["text"], "label": r["label"]} for r in sentences(24)]
    found = find_ticket(
        shared_data / "minilm-l6", data, sparsity="80%", method="magnitude", steps=2, batch=4, out=tmp_path / "t"
    )
    assert found.masks.numel == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert found.ticket.zeros == found.masks.zeros == round(0.8 * found.masks.numel)
    assert found.training.kind == "encoder" and any("fresh head" in note for note in found.training.notes)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "t").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    batch = words(["a fine film", "a poor one, alas"], return_tensors="pt", padding=True)
    assert torch.equal(model(**batch).logits, found.model(**batch).logits)


def test_a_ticket_is_replaced_by_the_next_and_nothing_else_is(tmp_path):
    found = find_ticket(mlp(), rows(40), sparsity=0.5, method="random", steps=1)
    folder = found.save(tmp_path / "t")
    (folder / "ticket.json").write_text((folder / "ticket.json").read_text().replace("random", "other"))
    found.save(folder)
    assert json.loads((folder / "ticket.json").read_text())["method"] == "random"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for target, says in ((tmp_path / "mine", "not winnow's"), (tmp_path / "file", "is a file")):
        with pytest.raises(InputError, match=says):
            found.save(target)
        with pytest.raises(InputError, match=says):  # before any work
            find_ticket(mlp(), rows(40), sparsity=0.5, method="random", steps=10**9, out=target)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_write_that_fails_leaves_the_old_ticket(tmp_path, monkeypatch):
    found = find_ticket(mlp(), rows(40), sparsity=0.5, method="random", steps=1)
    folder = found.save(tmp_path / "t")
    before = sorted((f.name, f.read_bytes()) for f in folder.iterdir())

    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MaskSet, "save", full)
    with pytest.raises(Exception, match="disk is full"):
        found.save(folder)
    assert sorted((f.name, f.read_bytes()) for f in folder.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    data, given = rows(60), dict(sparsity=[0.4, 0.7], method="magnitude", batch=8, lr=1e-2, steps=6)
    whole = find_ticket(mlp(), data, out=tmp_path / "whole", **given)
    steps = []

    def progress(stage):
        def told(done, total, what):
            steps.append((stage, done))
            if len(steps) == 9:  # in the second of two trainings
                raise KeyboardInterrupt

        return told

    with pytest.raises(KeyboardInterrupt):
        find_ticket(mlp(), data, out=tmp_path / "cut", progress=progress, **given)
    assert (tmp_path / "cut.work").is_dir() and not (tmp_path / "cut").exists()
    found = find_ticket(mlp(), data, out=tmp_path / "cut", progress=progress, **given)
    assert [done for stage, done in steps if "40%" in stage] == [1, 2, 3, 4, 5, 6]  # the first was not done again
    for one, other in zip(whole.tickets, found.tickets):
        assert one.zeros == other.zeros and one.evaluation.value == other.evaluation.value
        for name, tensor in one.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], tensor), name
    assert not (tmp_path / "cut.work").exists()


def test_another_training_does_not_take_up_what_was_left(tmp_path):
    data = rows(60)

    def stop(stage):
        def told(done, total, what):
            if "70%" in stage:
                raise KeyboardInterrupt

        return told

    given = dict(sparsity=[0.4, 0.7], method="magnitude", batch=8, steps=3)
    with pytest.raises(KeyboardInterrupt):
        find_ticket(mlp(), data, out=tmp_path / "t", progress=stop, **given)
    found = find_ticket(mlp(), data, out=tmp_path / "t", lr=0.02, **given)
    fresh = find_ticket(mlp(), data, lr=0.02, **given)
    for name, tensor in fresh.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name


def test_loaders_and_trainings_and_trainers_are_models_too():
    x, y = rows(40)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    found = find_ticket(
        mlp(), loader, sparsity=0.5, method="magnitude", epochs=1, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])
    )
    assert found.ticket.cost.main == 5 and found.ticket.evaluation is None
    with pytest.raises(InputError, match="leave out data"):
        find_ticket(found.training, (x, y), sparsity=0.5)
    with pytest.raises(InputError, match="leave out lr"):
        find_ticket(found.training, sparsity=0.5, lr=0.1)


@pytest.mark.hf
def test_a_trainer_is_searched_with_its_own_settings(tmp_path):
    transformers = pytest.importorskip("transformers")

    theirs = trainer(tmp_path, max_steps=3)
    found = find_ticket(theirs, sparsity=0.5, method="magnitude", out=tmp_path / "t")
    assert found.training.lr == 3e-4 and found.ticket.cost.main == 3 and found.ticket.evaluation.n == 12
    batch = tokenizer()("the film was good", return_tensors="pt")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "t").eval()
    assert torch.equal(loaded(**batch).logits, found.model(**batch).logits)
    assert (tmp_path / "t" / "tokenizer.json").exists()


def test_files_of_the_models_folder_travel_to_their_places(tmp_path):
    x, y = rows(40)
    (tmp_path / "own.txt").write_text("own")
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    training = training_from(mlp(), loader, epochs=1, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    training = replace(training, files={"LICENSE": tmp_path / "own.txt", "1_Pooling/own.txt": tmp_path / "own.txt"})
    for _ in range(2):  # and the folder stays winnow's, so that it is replaced
        find_ticket(training, sparsity=0.5, method="magnitude", out=tmp_path / "t")
        assert (
            (tmp_path / "t" / "LICENSE").read_text() == (tmp_path / "t" / "1_Pooling" / "own.txt").read_text() == "own"
        )


# -- what is refused


@pytest.mark.parametrize(
    "given,says",
    [
        (0.0, "removes nothing"),
        (1.0, "outside 0 to 1"),
        (80, "did you mean 80%"),
        ([0.8, 0.5], "do not rise"),
        ([0.5, "50%"], "do not rise"),
        ([], "no sparsity"),
        ("much", "no number"),
    ],
)
def test_sparsities_are_rising_shares(given, says):
    with pytest.raises(InputError, match=says):
        sparsities(given)


def test_sparsities_are_read_from_numbers_and_text():
    assert sparsities("80%") == [0.8] and sparsities([0.5, "60%", "0.7"]) == [0.5, 0.6, 0.7]
    assert sparsities("50%, 90%") == [0.5, 0.9] and sparsities(0, zero=True) == [0.0]


def test_unknown_methods_and_settings_are_named():
    with pytest.raises(
        InputError, match=r"'imps' is not known \(did you mean imp\?\): choose one of ticket, random, .*\(or dense"
    ):
        find_ticket(mlp(), rows(40), sparsity=0.5, method="imps")
    with pytest.raises(InputError, match="no setting 'rates'"):
        find_ticket(mlp(), rows(40), sparsity=0.5, method="imp", settings={"rates": 0.2})
    with pytest.raises(InputError, match="rate"):
        find_ticket(mlp(), rows(40), sparsity=0.5, method="imp", settings={"rate": 1.2})


def test_a_recipe_lists_the_same_methods():
    from winnow.pipeline.stages.ticket import Ticket

    lists = []
    for give in (
        lambda: find_ticket(mlp(), rows(40), sparsity=0.5, method="imps"),
        lambda: Ticket(sparsity=0.5, method="imps"),
    ):
        with pytest.raises(ValueError if lists else InputError) as error:
            give()
        lists.append(re.search(r"choose one of ([\w, -]+\w)", str(error.value))[1].split(", "))
    named = ["ticket", *(m for m in METHODS if m != "dense")]
    assert lists[0] == named  # of sparse training a recipe makes a train stage
    assert [n.split(" ")[0] for n in lists[1]] == [m for m in named if m != "sparse-training"]


class Recurrent(nn.Module):
    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.r, self.h = nn.GRU(5, 8, num_layers=layers, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.h(self.r(x.view(-1, 4, 5))[0][:, -1])


def test_a_model_without_prunable_weights_is_told_its_own_names():
    for layers, asked in ((1, '"r.weight_hh_l0", "r.weight_ih_l0"'), (3, '"r"')):
        with pytest.raises(InputError, match=rf"nothing to prune .*include=\[{asked}\]\.$"):
            find_ticket(Recurrent(layers), rows(40), sparsity=0.5, method="random", steps=1)
        include = [n.strip('"') for n in asked.split(", ")]
        found = find_ticket(Recurrent(layers), rows(40), sparsity=0.5, method="random", steps=1, include=include)
        assert len(found.masks) == 2 * layers and all(n.startswith("r.weight") for n in found.masks)
    assert list(find_ticket(Recurrent(), rows(40), sparsity=0.5, method="random", steps=1, include="r.*").masks)
    with pytest.raises(InputError, match="name those with include"):
        find_ticket(nn.Sequential(nn.Linear(20, 4)), rows(40), sparsity=0.5, method="random", steps=1)


def test_a_search_is_shown_in_a_few_lines(tmp_path):
    found = find_ticket(mlp(), rows(60), sparsity=[0.5, 0.8], method="magnitude", steps=2, out=tmp_path / "t")
    lines = repr(found).splitlines()
    assert len(lines) == 3 and "magnitude" in lines[0] and str(tmp_path / "t") in lines[0]
    for line, ticket in zip(lines[1:], found.tickets):
        assert line.strip() == repr(ticket) and f"({ticket.zeros:,} of {found.masks.numel:,})" in line
        assert f"accuracy {100 * ticket.evaluation.value:.2f}%" in line and "2 steps" in line
    assert "accuracy" not in repr(find_ticket(mlp(), rows(60), sparsity=0.5, method="random", steps=1, task="none"))


@pytest.mark.hf
@pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_have_the_rights_that_the_umask_gives(tmp_path, umask):
    pytest.importorskip("transformers")
    old = os.umask(umask)
    try:
        plain = find_ticket(mlp(), rows(60), sparsity=[0.5, 0.8], method="random", steps=1, out=tmp_path / "plain")
        plain.save(tmp_path / "one")
        find_ticket(
            save_bert(tmp_path / "bert"), sentences(30), sparsity=0.5, method="random", steps=1, out=tmp_path / "hf"
        )
    finally:
        os.umask(old)
    files = [f for name in ("plain", "one", "hf") for f in (tmp_path / name).rglob("*") if f.is_file()]
    assert len([f for f in files if f.suffix == ".safetensors"]) == 8
    assert {f.stat().st_mode & 0o777 for f in files} == {0o666 & ~umask}


def test_a_model_that_learned_nothing_is_told():
    x, y = rows(800)
    y = (y == 0).long()  # a quarter of ones
    idle = find_ticket(mlp(2), (x, y), sparsity=0.5, method="magnitude", steps=1, lr=1e-9)
    usual = 100 * np.bincount(idle.ticket.evaluation.truth).max() / idle.ticket.evaluation.n
    (note,) = [n for n in idle.ticket.notes if "most frequent answer" in n]
    assert f"({usual:.2f}%)" in note and f"{100 * idle.ticket.evaluation.value:.2f}%" in note
    learned = find_ticket(mlp(2), (x, y), sparsity=0.5, method="magnitude", steps=150, lr=1e-2)
    assert learned.ticket.evaluation.value > 0.85 and not learned.ticket.notes


def test_an_evaluation_that_is_no_number_is_told():
    x, y = rows(60)
    ready = training_from(mlp(), (x, y)).evaluate
    calls = []

    def torn(model):
        calls.append(model)
        found = ready(model)
        return found if len(calls) == 1 else replace(found, value=math.nan, details={"nan_examples": 3})

    ticket = find_ticket(mlp(), (x, y), sparsity=0.5, method="random", steps=1, eval=torn).ticket
    (note,) = ticket.notes
    assert "nan, not a number (on 3 of 12 examples)" in note and "NaN in the evaluation data" in note


def test_nothing_is_trained_where_something_is_wrong(monkeypatch):
    def never(search):
        raise AssertionError("work began")

    monkeypatch.setattr(Method, "finder", property(lambda self: never), raising=False)
    x, y = rows(40)
    nan = mlp()
    nan.first.weight.data[0, 0] = float("nan")
    for model, data, says in (
        (nan, (x, y), "holds NaN"),
        (mlp().requires_grad_(False), (x, y), "frozen"),
        (mlp(), (x, torch.zeros(40, dtype=torch.int64)), "every record has class 0"),
        (mlp(), x, "no labels"),
        (mlp(), None, "labelled data"),
        ("no/such/folder", (x, y), "does not exist"),
    ):
        with pytest.raises(InputError, match=says):
            find_ticket(model, data, sparsity=0.5, method="magnitude")


def test_the_default_is_a_method_that_is_there_and_text_encoders_take_the_papers_values(monkeypatch):
    assert DEFAULT in METHODS
    seen = []

    def look(search):
        seen.append(search)
        yield from METHODS["magnitude"].finder(search)

    monkeypatch.setitem(vars(METHODS[DEFAULT]), "finder", look)
    found = find_ticket(mlp(), rows(40), sparsity=0.5, steps=2)
    assert found.method == DEFAULT and seen[0].settings.preset == "clip"
    pytest.importorskip("transformers")
    find_ticket(bert(), sentences(30), sparsity=0.5, steps=2, processor=tokenizer(), settings={"candidates": 2})
    assert (seen[1].settings.preset, seen[1].settings.candidates) == ("bert", 2)
