"""What the command line says before it works: groups, examples that parse, completion, the nearest name, a first step."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from command import winnow
from winnow.allocate import NAMES as ALLOCATIONS
from winnow.cli import app, main
from winnow.cli.examples import FIRST_STEPS
from winnow.cli.flags import given
from winnow.compression import options
from winnow.compression.job import Job
from winnow.compression.methods import METHODS
from winnow.compression.options import PANELS, Inputs
from winnow.compression.recovery import LEARNED, RECOVERIES
from winnow.errors import meant
from winnow.masks.structure import parse_structure
from winnow.measure.quality import _ALIASES, TASKS
from winnow.pipeline.reading import read_recipe
from winnow.run.executor import EXECUTORS
from winnow.scores import NAMES as SCORES
from winnow.solve.chain import NAMES as SOLVERS
from winnow.speed.families import families

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands


def helped(*command: str, columns: int = 80) -> str:
    done = CliRunner().invoke(app, [*command, "--help"], prog_name="winnow", env={"COLUMNS": str(columns)})
    assert done.exit_code == 0
    return done.output


def commands_in(text: str) -> list[list[str]]:
    """The lines that begin with winnow, as a shell splits them."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip().startswith("winnow ")]


def parsed(argv: list[str]) -> dict[str, object]:
    assert argv[0] == "winnow"
    command = COMMANDS[argv[1]]
    with command.make_context(argv[1], argv[2:]) as context:
        return dict(context.params)


def test_choices_are_what_is_registered():
    assert set(get_args(options.Method)) == {"auto", *METHODS}
    assert set(get_args(options.Score)) == set(SCORES)
    assert set(get_args(options.Allocation)) == {*ALLOCATIONS, LEARNED}
    assert set(options.SOLVERS) == {*SOLVERS, *RECOVERIES}
    assert {str(parse_structure(name)) for name in options.STRUCTURES} == set(options.STRUCTURES)
    assert set(get_args(options.AnyTask)) == {"auto", "none", *TASKS, *_ALIASES}


@pytest.mark.parametrize("name", COMMANDS)
def test_three_examples_under_every_command_that_parse(name):
    examples = commands_in(helped(name).partition("Examples:")[2])
    assert len(examples) >= 3
    for argv in examples:
        assert argv[1] == name
        found = parsed(argv)
        if name == "compress":  # its options go together: a budget, a method and its settings
            assert found["out"] or found["dry_run"]
            Job(
                found["model"],
                found["data"],
                **{n: v for n, v in given(found).items() if n in Job.model_fields and n not in ("model", "data")},
            )
        if name == "eval":
            Inputs(**{n: v for n, v in given(found).items() if n in Inputs.model_fields})
        if name == "bench" and found["contenders"]:
            assert set(found["contenders"].split(",")) < set(families(found["contenders"].split(",")))
        if name == "run" and found["sets"]:
            read_recipe(ROOT / "recipes" / "bert-ticket.yaml", found["sets"])


def test_commands_in_the_documentation_parse():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [
        b for p in pages for b in re.findall(r"^ *```\w*\n(.*?)^ *```", p.read_text(encoding="utf-8"), re.M | re.S)
    ]
    found = [argv for block in blocks for argv in commands_in(textwrap.dedent(block))]
    assert len(found) > 12
    for argv in found:
        parsed(argv)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_nothing_is_cut_or_wider_than_the_terminal(name, columns):
    text = helped(*([name] if name else []), columns=columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text and "..." not in text.replace("[ARGS]...", "")
    for said in (p.help for p in COMMANDS[name].params) if name else (c.help for c in COMMANDS.values()):
        assert "".join(said.split()) in "".join(text.split())


def test_options_stand_in_groups():
    text = helped("compress")
    at = [text.index(f"\n{panel}:\n") for panel in PANELS]
    assert at == sorted(at)
    groups = dict(zip(PANELS, re.split("|".join(f"\n{panel}:\n" for panel in PANELS), text)[1:]))
    flags = {panel: set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", block, re.M)) for panel, block in groups.items()}
    assert flags["Budget"] == {"--sparsity", "--bits-per-weight", "--size", "--max-drop", "--floor"}
    assert {"--data", "--eval", "--column", "--label"} <= flags["Data"]
    assert {"--method", "--structure", "--values", "--set"} <= flags["Method"]
    assert {"--out", "--dry-run", "--json"} <= flags["Output"]
    assert {"--damp", "--seed", "--help"} <= flags["Advanced"]
    assert set().union(*flags.values()) == {
        p.opts[0] for p in COMMANDS["compress"].params if p.param_type_name == "option"
    } | {"--help"}


def complete(line: str) -> list[str]:
    env = {
        **os.environ,
        "_WINNOW_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = subprocess.run([sys.executable, "-m", "winnow"], capture_output=True, text=True, env=env)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("winnow compress m --method ", ["auto", *METHODS]),
        ("winnow compress m --method al", ["alps", "alps-lamp"]),
        ("winnow compress m --solver swap+l", ["swap+lsq"]),
        ("winnow compress m --structure b", ["block:1x4"]),
        ("winnow bench d --with packed,o", ["packed,onnx", "packed,openvino"]),
        ("winnow run r --executor ", list(EXECUTORS)),
        ("winnow eval m --task cl", ["classification"]),
        ("winnow in", ["inspect"]),
        ("winnow compress m --max", ["--max-drop"]),
    ],
)
def test_the_shell_completes(line, names):
    assert sorted(complete(line)) == sorted(names)


def test_completion_imports_no_torch():
    code = "import sys, winnow.cli; assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_can_be_had(shell):
    env = {**os.environ, "_WINNOW_COMPLETE": f"source_{shell}"}
    done = subprocess.run([sys.executable, "-m", "winnow"], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "_WINNOW_COMPLETE=" in done.stdout


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["comprs", "m"], "compress"),
        (["compress", "m", "--sparsty", "0.5"], "--sparsity"),
        (["compress", "m", "--valuess", "int8"], "--values"),
        (["compress", "m", "--method", "wnada", "--sparsity", "0.5", "--out", "o"], "wanda"),
        (["compress", "m", "--values", "Int8", "--sparsity", "0.5", "--out", "o"], "int8"),
        (["eval", "m", "--data", "d", "--task", "clasification"], "classification"),
        (["export", "d", "--out", "o", "--to", "dens"], "dense"),
    ],
)
def test_the_nearest_name_is_offered_at_once(argv, near):
    done = winnow(*argv)
    assert done.returncode == 2
    assert re.search(rf"did you mean '?{near}'?\?", done.stderr, re.I), done.stderr


@pytest.mark.parametrize(
    ("argv", "near"),
    [
        (["--structure", "nueron", "--sparsity", "0.5"], "neuron"),
        (["--solver", "spasegpt+lsq", "--sparsity", "0.5"], "sparsegpt"),
        (["--method", "fcpts", "--sparsity", "0.5", "--set", "stesp=3"], "steps"),
        (["--data", "rows.csv", "--column", "txet", "--sparsity", "0.5"], "text"),
        (["--data", "rows.csv", "--column", "text", "--label", "lable", "--sparsity", "0.5"], "label"),
    ],
)
def test_the_nearest_name_inside_open_values_and_data(argv, near, tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"words {i},{i % 2}\n" for i in range(20)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["compress", "small:classifier", *argv, "--out", "o"])
    assert ended.value.code == 2 and f"did you mean {near}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("wnada", ["wanda", "alps"], "wanda"),
        ("TEXT", ["text", "label"], "text"),
        ("mag", ["magnitude", "lamp"], "magnitude"),  # the beginning of one
        ("a", ["alps", "alps-lamp"], None),  # of two
        ("int9", ["keep", "int8", "int4"], None),  # as near to the one as to the other
        ("", ["a"], None),
        ("zzz", ["alps"], None),
        ("learning_rate", ["lr", "label", "steps"], "lr"),  # what others call it
        ("num_train_epochs", ["steps", "epochs"], "epochs"),
        ("batch_size", ["batch", "data"], "batch"),
        ("sparsity_level", ["structure", "sparsity"], "sparsity"),
        ("--max-length", ["--length", "--label"], "--length"),
        ("learning_rate", ["steps"], None),  # not here
        ("--bogus", ["--out"], None),  # alike in the dashes only
    ],
)
def test_meant(name, known, near):
    assert meant(name, known) == (f" (did you mean {near}?)" if near else "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--samples", "1e3"], "--samples must be a whole number, not '1e3': write 1000."),
        (["--samples=many"], "--samples must be a whole number, not 'many'."),
        (["--damp", "abc"], "--damp must be a number, not 'abc'."),
    ],
)
def test_a_value_that_is_no_number_is_one_sentence(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compress", "small:classifier", *argv, "--out", "o"])
    assert ended.value.code == 2 and capsys.readouterr().err == f"winnow: {said}\n"


def test_alone_it_says_where_to_begin():
    done = winnow()
    assert done.returncode == 0 and done.stderr == ""
    for line, about in FIRST_STEPS:
        assert re.search(rf"^  {re.escape(line)} +{re.escape(about)}$", done.stdout, re.M)
        assert line.split()[1] in COMMANDS
    assert len(FIRST_STEPS) == 5 and max(map(len, done.stdout.splitlines())) <= 80
