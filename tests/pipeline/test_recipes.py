"""The recipes of the repository, run small with the very values that their own comments give."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import winnow
from places import REPO
from winnow.pipeline.reading import read_recipe
from winnow.pipeline.verb import run_recipe

RECIPES = sorted((REPO / "recipes").glob("*.yaml"))


def small_values(recipe: Path) -> list[str]:
    """What the comment at the top sets in order to run it small."""
    return re.findall(r"--set (\S+=\S+)", recipe.read_text().partition("Small,")[2])


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPO))
    for name in [n for n in sys.modules if n.split(".")[0] == "recipes"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "tiny").mkdir()
    return import_module("recipes.tiny")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_it_is_sound_and_says_how_to_run_it_small(recipe):
    assert {"bert-ticket.yaml", "vision-ticket.yaml", "sparse-cnn.yaml"} <= {p.name for p in RECIPES}
    assert f"winnow run recipes/{recipe.name} --out" in recipe.read_text()
    given, changed = read_recipe(recipe), read_recipe(recipe, small_values(recipe))
    stages = [s.kind for s in given.stages]
    if recipe.stem == "sparse-cnn":  # brings its model and data along
        assert stages == ["train", "compress", "eval"] and changed.stages[0].epochs <= 4
        return
    assert stages == ["train", "eval", "ticket", "compress", "eval"]
    assert changed.model != given.model and changed.stages[0].steps <= 100


def check(ran, sparsity):
    """Learned something, exact zeros, and one file smaller than the other."""
    train, first, ticket, packed, last = (s.figures for s in ran.stages)
    assert train["value"] == first["value"] > 75 and ticket["value"] > 75
    record = json.loads((ran.folder / "run.json").read_text())
    assert packed["zeros"] == ticket["zeros"] and abs(ticket["sparsity"] - sparsity) < 1e-3
    assert packed["file_bytes"] < packed["dense_file"] and last["drop"]["high"] <= 30
    assert [s["key"] for s in record["stages"]] == [s.key for s in ran.stages]
    assert (ran.folder / "report.html").exists()


def test_vision(tiny):
    recipe = REPO / "recipes" / "vision-ticket.yaml"
    tiny.write_vision(Path("tiny"))
    ran = run_recipe(recipe, "tiny/out", sets=small_values(recipe), keep_work=True)
    check(ran, 0.6)
    ticket = load_file(next(Path("tiny/out.work").glob("ticket-*/network/model.safetensors")))
    model = winnow.load("tiny/out", factory=tiny.network)
    assert all(torch.equal(t, ticket[n]) for n, t in model.state_dict().items())  # batch norms too


def test_a_sparse_cnn_from_scratch(tmp_path, monkeypatch):
    """Sign-In from random weights on built-in data: it learns, and what is packed has exactly the zeros of the training."""
    pytest.importorskip("sklearn")
    from winnow.demo_data import digits, digits_cnn

    recipe = REPO / "recipes" / "sparse-cnn.yaml"
    monkeypatch.chdir(tmp_path)
    ran = run_recipe(recipe, "out", sets=small_values(recipe), keep_work=True, command="winnow run")
    train, packed, last = (s.figures for s in ran.stages)
    assert train["value"] > 85 and train["method"] == "sign-in" and last["drop"]["high"] <= 30
    trained = load_file(next(Path("out.work").glob("train-*/sparse-cnn/model.safetensors")))
    model = winnow.load("out", factory=digits_cnn).eval()
    assert all(torch.equal(t, trained[n]) for n, t in model.state_dict().items())
    zeros = sum(int((trained[f"body.{i}.weight"] == 0).sum()) for i in (0, 4, 8))
    assert zeros == packed["zeros"] == train["zeros"] == round(0.95 * 32 * 9 * (1 + 64 + 128))
    assert int((trained["head.weight"] == 0).sum()) == 0 and packed["file_bytes"] < packed["dense_file"] / 4
    with torch.no_grad():
        images, labels = digits()["test"]
        right = (model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean()
    assert 100 * right == pytest.approx(train["value"])
    page = (ran.folder / "ticket.html").read_text()
    assert dict(ran.pages) == {"Training": "ticket.html"}
    assert "Training loss" in page and "Sparsity per layer" in page and "sign-in on random masks" in page


@pytest.mark.hf
def test_text(tiny):
    pytest.importorskip("transformers")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    recipe = REPO / "recipes" / "bert-ticket.yaml"
    tiny.write_text(Path("tiny"))
    ran = run_recipe(recipe, "tiny/out", sets=small_values(recipe))
    check(ran, 0.5)
    model = AutoModelForSequenceClassification.from_pretrained("tiny/out").eval()
    tokenizer = AutoTokenizer.from_pretrained("tiny/out")
    texts = ["the film was good", "the song is awful and dull", "we saw it today and it was lovely"]
    with torch.no_grad():
        answers = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(-1)
    assert [model.config.id2label[int(a)] for a in answers] == ["good", "bad", "good"]
