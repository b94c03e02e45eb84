"""Arguments, recipes and data as they come: whatever is wrong with them ends in one sentence and a documented exit code.

Valid inputs are mutated - by bytes, and by what they are made of - and given to the command line in this process. Exit codes are
0 to 3, standard error holds no traceback and no control character, and nothing that is refused is left half done. Everything
is seeded; the long form of each test is marked slow.
"""

import contextlib
import gzip
import io
import json
import os
import random
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from small import classifier, points, trained, word_tokenizer
from winnow.cli import main

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
WORDS = ["the", "a", "film", "book", "was", "is", "very", "good", "great", "fine", "bad", "awful", "dull"]


# Data of a shape that a model does not take is another matter: this one takes all.
ANY_SHAPE = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(1, 8), torch.nn.Linear(8, 3)
    def forward(self, x):
        return self.b(self.a(x.float().reshape(len(x), -1).mean(1, keepdim=True)))
def net():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a plain model, a text classifier and valid data of every form; the current folder meanwhile."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("fuzz")
    x, y = points(96)
    save_file(trained(classifier(), x, y).state_dict(), folder / "weights.safetensors")
    np.savez(folder / "train.npz", x=x.numpy(), y=y)
    np.savez_compressed(folder / "test.npz", x=points(64, seed=5)[0].numpy(), y=points(64, seed=5)[1])
    text_model(folder / "bert")
    draw = random.Random(1)
    rows = [{"text": " ".join(draw.choices(WORDS, k=6)), "label": draw.choice(["bad", "good"])} for _ in range(40)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows))
    (folder / "test.tsv").write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in rows))
    (folder / "test.txt").write_text("".join(r["text"] + "\n" for r in rows))
    (folder / "test.jsonl.gz").write_bytes(gzip.compress((folder / "test.jsonl").read_bytes(), mtime=0))
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    from PIL import Image

    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(3):
            picture = Image.fromarray(np.random.default_rng(i).integers(0, 255, (4, 3, 3), dtype=np.uint8))
            picture.save(folder / "images" / name / f"{i}.{'png' if i else 'bmp'}")
    (folder / "any_shape.py").write_text(ANY_SHAPE)
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def text_model(folder):
    from transformers import BertConfig, BertForSequenceClassification

    words = ["[PAD]", "[UNK]", *WORDS]
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    word_tokenizer(words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def run(*argv):
    """(exit code, standard error) of a command line; an exception that is no sentence is one the caller sees."""
    out, err = io.StringIO(), io.StringIO()
    state = torch.random.get_rng_state()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(a) for a in argv])
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        torch.random.set_rng_state(state)
    return code, err.getvalue()


def check(argv, codes=(0, 1, 2, 3)):
    """Runs a command line and asserts what the exit codes of this project promise."""
    shown = " ".join(str(a)[:60] for a in argv)
    try:
        code, err = run(*argv)
    except BaseException as error:
        raise AssertionError(f"{shown!r} ends in {type(error).__name__}: {error}") from error
    assert code in codes, f"{shown!r}: exit code {code}, {err}"
    assert "Traceback" not in err and not CONTROL.search(err), f"{shown!r}: {err!r}"
    if code:
        assert err.strip(), f"{shown!r}: exit code {code} without a word"
    return code, err


# Arguments ------------------------------------------------------------------------------------------------------------

PLAIN = ["small:classifier", "--weights", "weights.safetensors", "--data", "train.npz"]
NUMBERS = ["-1", "0", "1", "2", "1.5", "nan", "inf", "-inf", "1e400", "9" * 25, "-" + "9" * 25, "1e-400", "²", "٣"]
NUMBERS += ["", " ", "x", "0x10", "1_0", "50%"]
TEXTS = ["", " ", "x" * 300, "ü", "a,b", "*", "[", "[red]", "[/]", "\x1b[31m", "../..", "/dev/null", ".", "~"]
TEXTS += ["os:system", "builtins:len", ":", "a:b", "%", "{}", "--", "2:4", "9:4", "block:0x0", "block:99999x1"]
OPTIONS = {
    "compress": ["--sparsity", "--bits-per-weight", "--size", "--max-drop", "--eval", "--task", "--column", "--label", "--method", "--score",
                 "--group", "--allocation", "--table", "--structure", "--solver", "--values", "--group-size", "--baselines", "--keep", "--include",
                 "--exclude", "--samples", "--length", "--batch-size", "--eval-limit", "--seed", "--damp", "--sequential", "--ram", "--device",
                 "--dtype", "--weights", "--set", "--time", "--compare-with", "--floor", "--push-to-hub", "--out", "--data"],
    "eval": ["--task", "--column", "--label", "--length", "--eval-limit", "--reference", "--harness", "--dtype", "--weights", "--data"],
    "inspect": ["--include", "--exclude", "--weights"],
}  # fmt: skip


def base(verb):
    if verb == "compress":
        return ["compress", *PLAIN, "--dry-run"]
    return [verb, *PLAIN] if verb == "eval" else [verb, *PLAIN[:3]]


def cases(count, seed):
    """Every option once with a value that draws suit badly, then more of them; sometimes two at a time."""
    draw = random.Random(seed)
    every = [(verb, option) for verb, options in OPTIONS.items() for option in options]
    for i in range(count):
        verb, option = every[i] if i < len(every) else draw.choice(every)
        argv = [*base(verb), option, draw.choice(draw.choice((NUMBERS, TEXTS)))]
        if (
            draw.random() < 0.5
            and verb == "compress"
            and option not in ("--sparsity", "--size", "--max-drop", "--bits-per-weight")
        ):
            argv += ["--sparsity", "0.5"]
        yield argv


def arguments(count, seed):
    for argv in cases(count, seed):
        check(argv)


def test_arguments(here):
    arguments(60, seed=0)


@pytest.mark.slow
def test_many_arguments(here):
    arguments(600, seed=1)


NUMERIC = ["--sparsity", "--bits-per-weight", "--size", "--max-drop", "--group-size", "--samples", "--length", "--batch-size", "--eval-limit",
           "--seed", "--damp", "--ram", "--time", "--floor"]  # fmt: skip


@pytest.mark.parametrize("option", NUMERIC)
def test_numbers_that_are_none(here, option):
    for value in ("-1", "0", "nan", "inf", "1e400", "9" * 25, "x"):
        budget = [] if option in ("--sparsity", "--bits-per-weight", "--size", "--max-drop") else ["--sparsity", "0.5"]
        code, err = check([*base("compress"), *budget, option, value])
        assert code in (0, 2), (option, value, err)


@pytest.mark.parametrize(
    "argv",
    [
        ["demo", "--seed", "-1"], ["demo", "--out", "test.txt"], ["demo", "--sparsity", "x"], ["report", "."], ["report", "x" * 300],
        ["export", ".", "--out", "e"], ["export", "bert", "--out", "e"], ["run", "."], ["run", "test.npz", "--dry-run"], ["run", "x" * 300, "--dry-run"],
        ["inspect", "os:system"], ["inspect", "sys:exit"], ["inspect", "json:loads"], ["inspect", "small:points"], ["inspect", "nothing/here"],
        ["bench", "."], ["bench", "bert", "--batch", "x"], ["bench", "bert", "--threads", "-1"],
    ],
)  # fmt: skip
def test_other_verbs_refuse_in_one_sentence(here, argv):
    check(argv, codes=(1, 2))


# Recipes --------------------------------------------------------------------------------------------------------------

RECIPE = """\
model: small:classifier
weights: weights.safetensors
data: train.npz
eval: test.npz
seed: 3
stages:
  - train: {steps: 5, lr: 1e-3, batch: 8}
  - eval: {max_drop: 50}
  - ticket: {sparsity: 0.5, steps: 5, method: imp, settings: {rate: 0.3}}
  - compress: {values: int8, samples: 8, baselines: none, speed: false}
  - eval
"""
VALUES = [None, True, -1, 0, 10**18, 1e308, 0.5, "", "x" * 1000, "\u0000", "\u001b[31m", "é", [], {}, [1], {"a": 1}]
VALUES += [[[[]]], {"a": {"b": [1]}}, "0.5", "50%"]
SNIPPETS = [
    "!!int x", "!!float y", "!!bool maybe", "!!python/object:os.system x", "!!binary ?", "!!timestamp x", "!!set {a, b}", "? [a]\n: 1\n", "&a [*a]",
    "*nothing", "9" * 5000, "1e999", "\x00", "\x1b[31m", "\ufffe", "\t", "<<: {a: 1}", "<<: x", "? {a: b}\n: c\n", "- a\n", "{" * 500, "[" * 5000,
    "&x a: *x", "'", '"\\e]0;x\\a"', "%YAML 9.9", "---\n", "...", "|\n", "!<x> y", "~: 1\n", "1: 2\n", "a" * 50000,
]  # fmt: skip


def mutated_recipe(draw):
    """The text of a recipe with something wrong: a value, a key, a part of the text, or bytes."""
    way = draw.randrange(4)
    if way == 0:  # what it says
        value = yaml.safe_load(RECIPE)
        for _ in range(draw.randint(1, 3)):
            change(value, draw)
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if way == 1:  # a piece of YAML in the place of a value or a line
        lines = RECIPE.splitlines(keepends=True)
        i = draw.randrange(len(lines))
        key, colon, _ = lines[i].partition(": ")
        lines[i] = draw.choice(
            (f"{key}{colon}{draw.choice(SNIPPETS)}\n", draw.choice(SNIPPETS) + "\n", lines[i] * 2, "")
        )
        return "".join(lines)
    if way == 2:  # aliases upon aliases
        depth, width = draw.randint(2, 12), draw.randint(1, 12)
        bomb = "a0: &a0 [x]\n" + "".join(
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, depth)
        )
        return RECIPE + bomb
    data = bytearray(RECIPE.encode())
    for _ in range(draw.randint(1, 8)):
        i = draw.randrange(len(data))
        data[i : i + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
    return bytes(data)


def change(value, draw):
    """Somewhere in a tree of dicts and lists: another value, another key, one that is missing, one twice."""
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(at[key], (dict, list)) and at[key] and draw.random() < 0.8:
            at = at[key]
            continue
        break
    way = draw.randrange(4)
    if way == 0:
        at.pop(key)
    elif way == 1 and isinstance(at, dict):
        at[draw.choice(["stepz", "", "a b", 3, None, True, 1.5, "\u001b"])] = draw.choice(VALUES)
    elif way == 2 and isinstance(at, list):
        at.append(at[key])
    else:
        at[key] = draw.choice(VALUES)


SETS = ["ticket.sparsity=0.9", "seed=-1", "eval.²=1", "train.².steps=1", "=", "a=b=c", "ticket.=1", ".=1", "ticket.settings.rate=[", "ticket.sparsity=!!int x",
        "train.steps=1e999", "eval.9.max_drop=1", "eval.1.max_drop=", "compress.table={a: 1}", "stages=1", "stages=[]", "ticket=", "ticket.x.y.z=1", "\x1b=1"]  # fmt: skip


def recipes(count, seed, place):
    draw = random.Random(seed)
    for number in range(count):
        text = mutated_recipe(draw)
        (place / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        more = ["--set", draw.choice(SETS)] if draw.random() < 0.2 else []
        code, err = check(["run", place / "r.yaml", "--dry-run", *more], codes=(0, 1, 2))
        assert code in (0, 2), (number, text, err)


def test_recipes(here, tmp_path):
    recipes(60, seed=0, place=tmp_path)


@pytest.mark.slow
def test_five_hundred_recipes(here, tmp_path):
    recipes(500, seed=1, place=tmp_path)


# Data -----------------------------------------------------------------------------------------------------------------

FILES = ["test.jsonl", "test.csv", "test.tsv", "test.txt", "test.jsonl.gz", "test.parquet", "train.npz", "test.npz"]
FILES += ["images"]
CELLS = [None, "", " ", "x", "good", "\ud800", "\u0000", "\u001b[31m", 0, -1, 1, 2.5, 10**30, -(10**30), 1e300]
CELLS += [float("nan"), float("inf"), True, [1], {"a": 1}, "١", "9" * 30, "a" * 5000]


def test_cells_of_every_kind(here, tmp_path):
    """One cell of a column, and all of them."""
    rows = [json.loads(line) for line in (here / "test.jsonl").read_text().splitlines()]
    for number, cell in enumerate(CELLS):
        for column in ("text", "label"):
            for changed in ([{**rows[0], column: cell}, *rows[1:]], [{**row, column: cell} for row in rows]):
                target = tmp_path / f"{number}.jsonl"
                target.write_text("".join(json.dumps(row) + "\n" for row in changed))
                argv = ["eval", "bert", "--length", "12", "--data", target, "--column", "text", "--label", "label"]
                code, _ = check(argv, codes=(0, 2))
                if column == "label" and cell not in ("good", 0, 1, True):
                    assert code == 2, f"labels {cell!r} were used, or dropped without a word"


def mutated_data(draw, source, target):
    """A copy of valid data with something wrong; its path."""
    if source.is_dir():
        shutil.copytree(source, target)
        files = sorted(p for p in target.rglob("*") if p.is_file())
        victim = draw.choice(files)
        victim.write_bytes(damaged(draw, victim.read_bytes()))
        return target
    if source.suffix == ".jsonl" and draw.random() < 0.6:
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        for _ in range(draw.randint(1, 4)):
            row = draw.choice(rows)
            row[draw.choice(["text", "label", "other", ""])] = draw.choice(CELLS)
        if draw.random() < 0.3:  # a whole column
            cell = draw.choice(CELLS)
            rows = [{**row, "label": cell} for row in rows]
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif source.suffix in (".csv", ".tsv") and draw.random() < 0.6:
        lines = source.read_text().splitlines()
        for _ in range(draw.randint(1, 3)):
            lines[draw.randrange(len(lines))] = draw.choice(
                ["", "x", "a,b,c", "a\tb\tc", '"', "٣,9" + "9" * 30, "\u0000", "x," + "9" * 30]
            )
        target.write_text("\n".join(lines) + "\n")
    elif source.suffix == ".npz" and draw.random() < 0.6:
        x, y = points(20)
        x, y = x.numpy(), np.asarray(y)
        odd = [
            dict(x=x, y=y[:-1]), dict(x=x.astype("f2"), y=y), dict(x=x * np.nan, y=y), dict(x=np.where(x > 2, np.inf, x), y=y), dict(x=x[:, :3], y=y),
            dict(x=x[0], y=y), dict(x=x, y=y + 1000), dict(x=x, y=y - 5), dict(x=x, y=y * 1e300), dict(x=x.astype(complex), y=y), dict(x=x.astype(str), y=y),
            dict(x=x[:0], y=y[:0]), dict(x=x[:1], y=y[:1]), dict(z=x), dict(), dict(x=x, y=np.stack([y, y])), dict(x=np.float32(3), y=y), dict(x=x[..., None, None], y=y),
        ]  # fmt: skip
        np.savez(target, **draw.choice(odd))
    else:
        target.write_bytes(damaged(draw, source.read_bytes()))
    return target


def damaged(draw, data):
    data = bytearray(data)
    way = draw.randrange(4)
    if way == 0:
        return bytes(data[: draw.randrange(len(data))])
    for _ in range(draw.randint(1, 12)):
        i = draw.randrange(len(data))
        if way == 1:
            data[i] = draw.randrange(256)
        elif way == 2:
            data[i : i + draw.randint(1, 40)] = b"\xff" * draw.randint(0, 40)
        else:
            data[i:i] = draw.randbytes(draw.randint(1, 9))
    return bytes(data)


def data_files(here, place, count, seed):
    draw = random.Random(seed)
    for number in range(count):
        source = here / FILES[number % len(FILES)]
        if not source.exists():  # no pyarrow
            continue
        target = mutated_data(draw, source, place / f"{number}{''.join(source.suffixes)}")
        text = source.suffix not in (".npz", "")
        named = ["--column", "text", "--label", "label"] if text and source.suffix != ".txt" else []
        model = ["bert", "--length", "12"] if text else ["any_shape:net"]
        code, err = check(["eval", *model, "--data", target, *named], codes=(0, 1, 2))
        assert code in (0, 2), (number, target, err)
        if code == 2:
            assert len([line for line in err.splitlines() if line.startswith("winnow: ")]) == 1, err


def test_data_files(here, tmp_path):
    data_files(here, tmp_path, 72, seed=0)


@pytest.mark.slow
def test_five_hundred_data_files(here, tmp_path):
    data_files(here, tmp_path, 500, seed=1)
