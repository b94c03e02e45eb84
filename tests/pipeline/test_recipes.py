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
    assert {"bert-ticket.yaml", "vision-ticket.yaml"} <= {p.name for p in RECIPES}
    stages = [s.kind for s in read_recipe(recipe).stages]
    assert stages == ["train", "eval", "ticket", "compress", "eval"]
    assert f"winnow run recipes/{recipe.name} --out" in recipe.read_text()
    changed = read_recipe(recipe, small_values(recipe))
    assert changed.model != read_recipe(recipe).model and changed.stages[0].steps <= 100


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
