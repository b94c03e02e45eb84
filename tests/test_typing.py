"""What type checkers and editors see: the keywords of every public function, and what it returns."""

import ast
import builtins
import configparser
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typing_extensions import get_type_hints

import winnow
from winnow.compression.job import Job
from winnow.compression.keywords import InputKeywords, Keywords
from winnow.compression.options import Inputs, Pixels, Texts

ROOT = Path(__file__).parents[1]
# What is checked into another type: lists of names, and pixel means written as text.
WIDER = {Texts: Sequence[str], Pixels | None: float | str | Sequence[float] | None}

WRONG = """
from typing import Any
from typing_extensions import assert_type

import winnow
from winnow.compression.plan import Plan
from winnow.compression.result import Result
from winnow.pipeline.execution import PlannedStage
from winnow.pipeline.verb import RunResult, run_recipe
from winnow.tickets.verb import Found

def check(flag: bool) -> None:
    assert_type(winnow.compress("m", "d", sparsity=0.6, out="o"), Result)
    assert_type(winnow.compress("m", "d", sparsity=0.6, dry_run=False), Result)
    assert_type(winnow.compress("m", "d", sparsity=[0.5, "70%"], dry_run=True), Plan)
    assert_type(winnow.compress("m", sparsity=0.6, dry_run=flag), Result | Plan)
    assert_type(run_recipe("r.yaml", "o"), RunResult)
    assert_type(run_recipe("r.yaml", dry_run=True), list[PlannedStage])
    assert_type(winnow.find_ticket("m", "d", sparsity=0.8), Found)
    winnow.compress("m", include=["head"], mean=(0.5, 0.5, 0.5), std="0.2", table={"a": 0.5}, settings={"steps": 3})
    given: dict[str, Any] = {"sparsity": 0.6}
    winnow.compress("m", **given)
    winnow.compress("m", valuess="int8")  # wrong
    winnow.compress("m", values="int5")  # wrong
    winnow.compress("m", method="wnada")  # wrong
    winnow.compress("m", sparsity=0.5, dry_run=True).save("o")  # wrong
    winnow.evaluate("m", "d", tsk="lm")  # wrong
    winnow.find_ticket("m", "d", sparsity=0.8, stesp=3)  # wrong
    winnow.load("o", pakced=True)  # wrong
    winnow.export_dense("o", "p", to="onnx")  # wrong
"""


@pytest.mark.parametrize(
    ("keywords", "fields", "own"), [(Keywords, Job, {"model", "data", "out"}), (InputKeywords, Inputs, set())]
)
def test_keywords_are_the_options(keywords, fields, own):
    types = {n: WIDER.get(f.annotation, f.annotation) for n, f in fields.model_fields.items() if n not in own}
    assert get_type_hints(keywords) == types


def test_what_keywords_widen_is_taken():
    job = Job("m", sparsity=0.5, include=["head"], mean="0.5,0.4", std=0.2)
    assert job.include == ("head",) and job.mean == (0.5, 0.4) and job.std == (0.2,)


@pytest.mark.parametrize(("function", "fields"), [(winnow.compress, Job), (winnow.evaluate, Inputs)])
def test_signature_and_docstring_list_the_options(function, fields):
    parameters = inspect.signature(function).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if function is winnow.compress:  # in the order of the help: the budget first
        own = ["model", "data", "out", "dry_run", "progress", "command"]
        assert list(parameters)[: len(own) + 2] == [*own, "sparsity", "bits_per_weight"]
    for name, field in fields.model_fields.items():
        assert name in parameters
        if name not in ("model", "data", "out"):
            assert parameters[name].default == field.default
            words = f"{name}: {field.description}"
            assert field.description and words in " ".join(inspect.getdoc(function).split())


@pytest.fixture(scope="module")
def snippets(tmp_path_factory):
    """A folder with right and wrong calls, and with README's Python as it stands."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "calls.py").write_text(WRONG, encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    given = sorted({name for block in blocks for name in read_first(ast.parse(block))} - {"winnow"})
    lines = ["from typing import Any", "import winnow", "def there() -> Any: ..."]
    lines += [*(f"{name}: Any = there()" for name in given), *blocks]
    (folder / "readme.py").write_text("\n".join(lines), encoding="utf-8")
    return folder


def read_first(block: ast.Module) -> set[str]:
    """Names that an example takes as there: read before they are set."""
    names = [n for n in ast.walk(block) if isinstance(n, ast.Name) and n.id not in dir(builtins)]
    made = {n.id: n.lineno for n in reversed(names) if isinstance(n.ctx, ast.Store)}
    imported = {
        a.asname or a.name for n in ast.walk(block) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names
    }
    read = {n.id for n in names if isinstance(n.ctx, ast.Load) and n.lineno <= made.get(n.id, n.lineno)}
    return read - imported


def wrong_lines() -> set[tuple[str, int]]:
    return {("calls.py", i) for i, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}


@pytest.mark.slow
def test_mypy_knows_the_options(snippets):
    pytest.importorskip("mypy")
    config = configparser.ConfigParser()
    config["mypy"] = {"ignore_missing_imports": "true", "follow_imports": "silent"}
    config["mypy-torch.*,transformers.*,scipy.*,sklearn.*"] = {"follow_imports": "skip"}  # minutes, and no part of it
    with open(snippets / "mypy.ini", "w", encoding="utf-8") as file:
        config.write(file)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "calls.py", "readme.py"]
    done = subprocess.run(command, cwd=snippets, capture_output=True, text=True, env=environment())
    found = re.findall(r"^(\w+\.py):(\d+): error: (.*)", done.stdout, re.M)
    assert {(name, int(line)) for name, line, _ in found} == wrong_lines(), (found, done.stderr)


@pytest.mark.slow
def test_pyright_knows_the_options(snippets):
    pytest.importorskip("pyright")
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "calls.py", "readme.py"],
        cwd=snippets, capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    errors = [e for e in json.loads(done.stdout)["generalDiagnostics"] if e["severity"] == "error"]
    found = {(Path(e["file"]).name, e["range"]["start"]["line"] + 1) for e in errors}
    assert found == wrong_lines(), errors


def environment():
    return {**os.environ, "MYPYPATH": str(ROOT / "src")}
