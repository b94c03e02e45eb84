"""The public surface, written down once: changing any of it is a decision, made here too."""

import typer

import winnow
from winnow import errors
from winnow.cli import app
from winnow.compression.job import Job
from winnow.compression.methods import METHODS
from winnow.formats.header import FORMAT_VERSION, READABLE

NAMES = {
    "__version__", "accelerate", "bench", "compress", "find_ticket", "tickets", "train", "evaluate", "inspect", "load", "shrink", "export_dense", "find_scope", "Budget", "Mask", "MaskSet",
    "WinnowError", "InputError", "FormatError", "GateError",
}  # fmt: skip

FLAGS = {
    "compress": {
        "--data", "--out", "--vocabulary", "--sparsity", "--bits-per-weight", "--size", "--max-drop", "--eval", "--task", "--column", "--label",
        "--method", "--score", "--group", "--allocation", "--table", "--structure", "--solver", "--values", "--rest", "--group-size",
        "--baselines", "--keep", "--include", "--exclude", "--samples", "--length", "--batch-size", "--eval-limit", "--seed",
        "--sequential", "--damp", "--recalibrate", "--ram", "--device", "--dtype", "--weights", "--trust-remote-code", "--speed",
        "--set", "--time", "--compare-with", "--floor", "--mean", "--std", "--keep-work", "--overwrite", "--push-to-hub", "--dry-run", "--json", "--verbose",
        "--quiet",
    },
    "keep": {"--out", "--overwrite", "--json"},
    "eval": {
        "--data", "--task", "--column", "--label", "--length", "--eval-limit", "--reference", "--harness", "--harness-path",
        "--dtype", "--weights", "--trust-remote-code", "--mean", "--std", "--json", "--verbose", "--quiet",
    },
    "inspect": {"--include", "--exclude", "--weights", "--trust-remote-code", "--json"},
    "bench": {
        "--batch", "--length", "--tokens", "--rounds", "--threads", "--with", "--per-layer", "--data", "--column", "--factory",
        "--reference", "--out", "--overwrite", "--json", "--verbose", "--quiet",
    },
    "report": {"--json"},
    "export": {"--out", "--to", "--overwrite", "--json"},
    "env": {"--json"},
    "signs": {
        "--data", "--eval", "--task", "--column", "--label", "--length", "--sparsity", "--seeds", "--seed", "--steps", "--epochs", "--batch",
        "--lr", "--weight-decay", "--optimizer", "--schedule", "--include", "--exclude", "--weights", "--trust-remote-code", "--out",
        "--overwrite", "--json", "--verbose", "--quiet",
    },
    "demo": {"--out", "--sparsity", "--seed", "--overwrite", "--json", "--verbose", "--quiet"},
    "run": {"--out", "--set", "--executor", "--keep-work", "--overwrite", "--poc", "--dry-run", "--json", "--verbose", "--quiet"},
}  # fmt: skip


def test_python_names():
    assert set(winnow.__all__) == NAMES


def test_verbs_and_flags():
    command = typer.main.get_command(app)
    found = {
        name: {p.opts[0] for p in sub.params if p.param_type_name == "option" and p.name != "help"}
        for name, sub in command.commands.items()
    }
    assert found == FLAGS
    assert {p.opts[0] for p in command.params} == {"--version", "--install-completion", "--show-completion"}


def test_every_flag_of_compress_is_an_option_in_python():
    command = typer.main.get_command(app).commands["compress"]
    names = {p.name for p in command.params} - {"as_json", "verbose", "quiet", "dry_run", "help"}
    assert names - {"model", "data", "out"} == set(Job.model_fields) - {"model", "data", "out", "tokenizer"}


def test_exit_codes():
    codes = {
        e.__name__: e.exit_code for e in (errors.WinnowError, errors.InputError, errors.FormatError, errors.GateError)
    }
    assert codes == {"WinnowError": 1, "InputError": 2, "FormatError": 2, "GateError": 3}


def test_format_version():
    assert FORMAT_VERSION == 3 and READABLE == (1, 2, 3)


def test_methods():
    assert set(METHODS) == {
        "magnitude", "global", "lamp", "random", "wanda", "ria", "owl", "sparsegpt", "sparsegpt+lsq", "swap+lsq", "alps", "alps-lamp",
        "fcpts", "distil", "reconstruct", "zeros",
    }  # fmt: skip


def test_ticket_methods():
    assert set(winnow.tickets.METHODS) == {
        "dense", "random", "magnitude", "snip", "grasp", "synflow", "progressive", "gradual", "earlybird", "imp", "imp-rewind",
        "lrr", "lottery-pool", "sparse-training", "isp", "isp-plain", "isp-matched",
    }  # fmt: skip


def test_packages_for_training():
    assert set(winnow.train.__all__) == {
        "ACDC", "Attached", "Fixed", "GraSP", "Gradual", "HAM", "Hyperbolic", "LightningCallback", "Merged", "RandomMasks", "RigL", "SET", "SNIP",
        "SRSTE", "STR", "SignIn", "Signs", "SparseMethod", "SynFlow", "WinnowCallback", "attach", "merge", "read_state", "write_state",
    }  # fmt: skip
    assert set(winnow.tickets.__all__) == {
        "METHODS", "Found", "ModelSoup", "Ticket", "Training", "clip_image_classifier", "find_ticket", "instant_model_soup", "sign_ablation", "training_from",
        "training_from_trainer", "with_head",
    }  # fmt: skip
