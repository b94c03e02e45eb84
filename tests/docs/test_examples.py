"""Every example of the README and of the documentation's pages is run, on models and data made small."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from places import REPO
from winnow import compress
from winnow.cli import main

pytest.importorskip("transformers")
sys.path.insert(0, str(REPO))
from recipes.tiny import images, network, write_text, write_vision

PAGES = ["README.md", "docs/index.md", *sorted(str(p.relative_to(REPO)) for p in (REPO / "docs/guide").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# What makes an example quick: the words of the page, and what is run in their place.
QUICK = {
    "{steps: 1000, lr: 2e-5}": "{steps: 60, lr: 3e-3}",
    "{sparsity: 70%, steps: 1000, lr: 2e-5, start: model}": "{sparsity: 50%, steps: 60, lr: 3e-3, start: model, settings: {look_ahead: 3}}",
    "{max_drop: 2}": "{max_drop: 30}",
    "epochs: 30, batch: 64, lr: 5e-3": "epochs: 2, batch: 64, lr: 5e-3",
    "--ram 2GB --out": "--ram 6GB --out",  # the process of the tests holds more than the example's
    "--batch 1,8 --length 32,128": "--batch 1 --length 8 --rounds 2 --with packed",
}
ELSEWHERE = {"winnow demo --out demo-out": "tests/verbs/test_demo_model.py"}


def encoder(folder: Path, out: Path, zeros: float = 0.0) -> None:
    """A classifier fine-tuned for a few steps on the small texts; ``zeros``: share of its matrices set to zero."""
    import json

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    names = ["bad", "good"]
    labels = dict(num_labels=2, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    model = AutoModelForSequenceClassification.from_pretrained(folder / "encoder", **labels)
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        batch = rows[step * 9 : step * 9 + 32]
        inputs = tokenizer([r["text"] for r in batch], padding=True, return_tensors="pt", return_token_type_ids=False)
        model(**inputs, labels=torch.tensor([names.index(r["label"]) for r in batch])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if zeros and "encoder.layer" in name and weight.ndim == 2:
                weight[weight.abs() <= weight.abs().flatten().quantile(zeros)] = 0.0
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def decoder(folder: Path, out: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with everything that the pages name."""
    folder = tmp_path_factory.mktemp("world")
    write_text(folder)
    write_vision(folder)
    encoder(folder, folder / "my-bert")
    encoder(folder, folder / "my-sparse-bert", zeros=0.5)
    decoder(folder, folder / "my-llm")
    shutil.copytree(folder / "encoder", folder / "bert-base")
    for name, source in (("corpus", "train"), ("held-out", "test")):
        lines = (folder / f"{source}.jsonl").read_text().splitlines()
        (folder / f"{name}.txt").write_text(
            "\n\n".join(" ".join(line.split('"')[3] for line in lines[i::8]) for i in range(8))
        )
    (folder / "mypackage.py").write_text("from recipes.tiny import network as build_resnet\n")
    shutil.move(folder / "network.safetensors", folder / "resnet.safetensors")
    shutil.move(folder / "train.npz", folder / "images.npz")
    training = (REPO / "docs/guide/training.md").read_text()
    recipes = [quick(text) for _, kind, text in FENCE.findall(training) if kind == "yaml"]
    for name, text in zip(("recipe.yaml", "from-scratch.yaml"), recipes, strict=True):
        (folder / name).write_text(text)
    compress(
        str(folder / "my-bert"), str(folder / "train.jsonl"), eval=str(folder / "test.jsonl"), column="text", label="label", sparsity=0.6,
        speed=False, out=folder / "smaller",
    )  # fmt: skip
    compress(
        "recipes.tiny:network", str(folder / "images.npz"), weights=folder / "resnet.safetensors", sparsity=0.5, baselines="none", speed=False,
        task="none", out=folder / "smaller-cnn",
    )  # fmt: skip
    return folder


def for_a_trainer(folder: Path) -> tuple[Any, Any, list[dict[str, Any]]]:
    """A small classifier of texts, arguments for a few steps, and a data set."""
    import json

    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

    model, tokenizer = (
        c.from_pretrained(folder / "my-bert") for c in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()][:32]
    data = [
        {
            **tokenizer(r["text"], padding="max_length", max_length=16, truncation=True),
            "labels": int(r["label"] == "good"),
        }
        for r in rows
    ]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=4, per_device_train_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    return model, arguments, data


def quick(text: str) -> str:
    for words, instead in QUICK.items():
        text = text.replace(words, instead)
    return text


def winnow(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(argv)
    assert done.value.code == 0, argv


def commands(block: str) -> list[str]:
    """The commands of winnow in a shell block; lines that end with a backslash go on."""
    lines = (line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith("winnow ")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* of the weights are zero, not the")  # an example that leaves the training out
@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, world, tmp_path, monkeypatch):
    here = tmp_path / "here"
    shutil.copytree(world, here)
    if "--out smaller\n" in (REPO / page).read_text():  # made here, of another command
        for folder in here.glob("smaller*"):
            shutil.rmtree(folder)
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    (x, y), (x_test, y_test) = ([torch.from_numpy(a) for a in images(96, seed)] for seed in (3, 4))
    model = network()
    text_model, arguments, train_dataset = for_a_trainer(here)
    names = {
        "text_model": text_model, "arguments": arguments, "train_dataset": train_dataset, "torch": torch, "winnow": sys.modules["winnow"], "model": model.eval(), "inputs": x, "labels": y, "x": x, "y": y, "x_test": x_test, "y_test": y_test, "loader": torch.utils.data.DataLoader(list(zip(x, y)), 32),
    }  # fmt: skip
    ran = 0
    for _, kind, text in FENCE.findall((REPO / page).read_text()):
        block = quick(textwrap.dedent(text))
        if kind == "python" and not ("import peft" in block and find_spec("peft") is None):
            if not isinstance(names["model"], type(model)):
                names["model"] = network()
            names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.01)
            exec(compile(block, page, "exec"), names)
            ran += 1
        for command in commands(block) if not kind else ():
            if command not in ELSEWHERE:
                winnow(shlex.split(command)[1:])
                ran += 1
    assert ran or "```" not in (REPO / page).read_text()


def test_what_is_made_quick_is_in_a_page():
    pages = "".join((REPO / page).read_text() for page in PAGES)
    assert all(words in pages for words in (*QUICK, *ELSEWHERE))
    assert all((REPO / test).is_file() for test in ELSEWHERE.values())
