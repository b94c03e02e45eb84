"""Sentences about options: flags on the command line, keywords in Python, and no third way."""

from __future__ import annotations

import pytest

import winnow
from command import refused
from command import winnow as on_the_command_line
from small import classifier
from winnow.errors import InputError, keywords


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("set a budget: --sparsity 0.5, --size 40MB or --max-drop 1.", 'set a budget: sparsity=0.5, size="40MB" or max_drop=1.'),
        ("give --data (and --eval), or --no-speed.", "give data (and eval), or speed=False."),
        ("add --overwrite, or name a folder: --out DIR.", "add overwrite=True, or name a folder: out=DIR."),
        ("no compression can satisfy --floor 99.9. Nothing was written.", "no compression can satisfy floor=99.9. Nothing was written."),
        ("lower the rate (--set lr=0.01), or take --set loss=mse.", 'lower the rate (settings={"lr": 0.01}), or take settings={"loss": "mse"}.'),
        ("--time and --set steps: leave out --set blockwise.", 'time and settings "steps": leave out settings "blockwise".'),
        ("recipe.yaml, --set data=no.npz: it does not exist", "recipe.yaml, sets data=no.npz: it does not exist"),
        ("run `winnow export DIR --out X` or pip install --force-reinstall it", "run `winnow export DIR --out X` or pip install --force-reinstall it"),
        ("a--b and x -- y hold no flag", "a--b and x -- y hold no flag"),
    ],
)  # fmt: skip
def test_flags_become_keywords(flags, said):
    error = InputError(flags)
    assert (error.flagged, str(error), keywords(said)) == (flags, said, said)


@pytest.mark.parametrize(
    ("options", "flag", "keyword"),
    [
        ({"samples": 0}, "--samples must be at least 1", "samples must be at least 1"),
        ({"sparsity": 0.5, "max_drop": 1}, "--sparsity and --max-drop are", "sparsity and max_drop are"),
        ({}, "--bits-per-weight 3", "bits_per_weight=3"),
        ({"sparsity": 0.5, "method": "wanda"}, "give --data", "give data"),
    ],
)
def test_python_names_the_keyword_and_the_command_the_flag(tmp_path, options, flag, keyword):
    with pytest.raises(InputError) as error:
        winnow.compress(classifier(), **options)
    assert keyword in str(error.value) and "--" not in str(error.value)
    assert flag in error.value.flagged
    if options.get("method") == "wanda":  # through the command line as well
        given = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
        assert flag in refused(on_the_command_line("compress", "small:classifier", *given, "--out", tmp_path / "o"))
