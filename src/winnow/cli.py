"""The command line: one command a verb, no logic. Exit codes: 0 done, 1 failed, 2 bad arguments, 3 a gate said no."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from winnow.errors import WinnowError, sentence_of
from winnow.terminal.legible import json_for_terminal, legible_logs, visible

app = typer.Typer(
    help="Make trained neural networks smaller and faster by removing weights, and prove whether it paid.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130  # what typer makes of Ctrl-C

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, a Hugging Face name, or package.module:function.")
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="State dict (.safetensors) for package.module:function.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model folder brings.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Calibration data: text, jsonl, csv, tsv, parquet (also .gz), npz, a folder of images, a data set name, or package.module:function."),
]  # fmt: skip
Eval = Annotated[
    str | None, typer.Option("--eval", help="Data to measure on; by default a part of --data is held out.")
]
Task = Annotated[
    str, typer.Option("--task", help="auto, lm, classification, similarity, regression, agreement or none.")
]
Column = Annotated[str | None, typer.Option("--column", help="Column of the text (two for pairs: a,b).")]
Label = Annotated[str | None, typer.Option("--label", help="Column of the label.")]
Length = Annotated[int | None, typer.Option("--length", help="Tokens per sequence.")]
EvalLimit = Annotated[
    int | None, typer.Option("--eval-limit", help="At most this many examples (segments, for text) are measured.")
]
Mean = Annotated[
    str | None, typer.Option("--mean", help="Mean of pixels of 0 to 1, for images: one, or 0.485,0.456,0.406.")
]
Std = Annotated[str | None, typer.Option("--std", help="Standard deviation of pixels, to go with --mean.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Arithmetic: auto, float32 or bfloat16.")]


@app.command(no_args_is_help=True)
def compress(
    model: Model,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(help="Share of zeros among the prunable weights, e.g. 0.6 or 60%; several: 0.5,0.7,0.9."),
    ] = None,
    bits_per_weight: Annotated[
        float | None, typer.Option(help="Bits per prunable weight, index and scales counted.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the weights file, e.g. 40MB.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Find the smallest file that loses at most this many points (per cent, for perplexity)."),
    ] = None,
    eval: Eval = None,
    task: Task = "auto",
    column: Column = None,
    label: Label = None,
    method: Annotated[str, typer.Option(help="A whole recipe by name; auto chooses and says why.")] = "auto",
    score: Annotated[str | None, typer.Option(help="Which weight matters less: magnitude, wanda, ria, random.")] = None,
    group: Annotated[str | None, typer.Option(help="What competes: layer or row.")] = None,
    allocation: Annotated[
        str | None,
        typer.Option(help="How much from which layer: uniform, global, erk, l2, lamp, owl, alphapruning, learned."),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="JSON of rates by name or pattern, as allocation.")] = None,
    structure: Annotated[
        str, typer.Option(help="unstructured, n:m (n kept of m), block:RxC, neuron, head or channel.")
    ] = "unstructured",
    solver: Annotated[
        str | None,
        typer.Option(
            help="What happens to weights that stay: none, sparsegpt, alps, lsq, swap, joined by +; reconstruct, distil."
        ),
    ] = None,
    values: Annotated[str, typer.Option(help="How kept weights are stored: keep, bf16, int8 or int4.")] = "keep",
    group_size: Annotated[int, typer.Option(help="Inputs that share an int4 scale.")] = 128,
    baselines: Annotated[str, typer.Option(help="What to compare with: all, rtn (quick) or none.")] = "all",
    keep: Annotated[
        list[str] | None, typer.Option(help="Also write this candidate, e.g. int4-g128-gptq; repeatable.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Prune these too (name or pattern); repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave these alone (name or pattern); repeatable.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Calibration sequences or images.", show_default="128; 1024 for methods that train or fit"),
    ] = None,
    length: Length = None,
    batch_size: Annotated[int, typer.Option(help="Calibration sequences per forward.")] = 8,
    eval_limit: EvalLimit = None,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    damp: Annotated[float, typer.Option(help="Damping of the Gram matrix, share of its mean diagonal.")] = 0.01,
    sequential: Annotated[
        str,
        typer.Option(
            help="A layer's statistics follow the pruned layers (layer) or blocks (block) before it; auto chooses."
        ),
    ] = "auto",
    recalibrate: Annotated[bool, typer.Option(help="Re-estimate batch-norm statistics.")] = True,
    ram: Annotated[
        str | None, typer.Option(help="Memory limit, e.g. 2GB: the model is streamed from its shards.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where blocks are computed, one at a time, e.g. cuda.")] = "cpu",
    dtype: Dtype = "auto",
    weights: Weights = None,
    trust_remote_code: Trust = False,
    speed: Annotated[bool, typer.Option(help="End with a quick measurement of its speed on this machine.")] = True,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method, e.g. steps=300; repeatable."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Training takes this long and gives its best in it, e.g. 60s or 2m.")
    ] = None,
    compare_with: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An earlier run's folder: compare the learned allocations.")
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="Warn when quality is below this value of the metric, e.g. 80.")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Prune a model to a budget, pack it, measure it, and report."""
    from winnow.compression.plan import plan_table
    from winnow.compression.reporting import command_line
    from winnow.compression.verb import compress as run
    from winnow.errors import InputError
    from winnow.terminal.progress import Bars

    if out is None and not dry_run:
        raise InputError("say where to write: --out DIR (or --dry-run to see the plan).")
    options: dict[str, Any] = dict(
        sparsity=sparsity, bits_per_weight=bits_per_weight, size=size, max_drop=max_drop, eval=eval, task=task, column=column,
        label=label, method=method, score=score, group=group, allocation=allocation, table=_table(table), structure=structure,
        solver=solver, values=values, group_size=group_size, baselines=baselines, keep=tuple(keep or ()), include=tuple(include or ()),
        exclude=tuple(exclude or ()), samples=samples, length=length, batch_size=batch_size, eval_limit=eval_limit, seed=seed,
        damp=damp, sequential=sequential, recalibrate=recalibrate, ram=ram, device=device, dtype=dtype, weights=weights, trust_remote_code=trust_remote_code, speed=speed,
        settings=_settings(settings), time=time, compare_with=compare_with, floor=floor, mean=mean, std=std,
    )  # fmt: skip
    if dry_run:
        plan: Any = run(model, data, out=out, dry_run=True, **options)
        _show(plan_table(plan), plan, as_json)
        return
    with Bars(quiet=as_json) as bars:
        result = run(model, data, out=out, progress=bars.stage, command=command_line(), **options)
    _finished(result.report, out, as_json)  # type: ignore[union-attr, arg-type]


@app.command(no_args_is_help=True)
def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file of stages: train, ticket, compress, eval.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            help="In place of the recipe's, e.g. ticket.sparsity=0.9 or seed=1; repeatable.",
        ),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where independent parts run: local or ray; the results are the same.")
    ] = None,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Leave finished stages in DIR.work, for a changed recipe to go on from.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the stages and write nothing.")] = False,
    poc: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Only try the ticket stage for so long, write nothing, and say whether the run is worth it. Exit codes: 0 go, 3 no-go, 1 undecided (or failed: then without a verdict), 2 bad arguments.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe of several stages: train, find a ticket, compress, measure. Goes on where it was stopped."""
    from winnow.compression.reporting import command_line
    from winnow.errors import InputError
    from winnow.pipeline.table import planned_table, ran_table
    from winnow.pipeline.verb import run_recipe
    from winnow.terminal.progress import Bars, console

    if poc is not None:
        if dry_run:
            raise InputError("--poc and --dry-run exclude each other: give one of them.")
        _try(recipe, poc, out, sets or (), as_json)
    options: dict[str, Any] = dict(sets=sets or (), executor=executor, keep_work=keep_work)
    if dry_run:
        stages: Any = run_recipe(recipe, out, dry_run=True, **options)
        _print(json.dumps([vars(s) for s in stages])) if as_json else console().print(planned_table(stages))
        return
    with Bars(quiet=as_json) as bars:
        ran: Any = run_recipe(recipe, out, progress=bars.stage, command=command_line(), **options)
    if as_json:
        _print((ran.folder / "run.json").read_text(encoding="utf-8").rstrip())
    else:
        console().print(ran_table(ran), soft_wrap=False)


def _try(recipe: Path, minutes: float, out: Path | None, sets: Sequence[str], as_json: bool) -> NoReturn:
    """The trial of a recipe; its answer is the exit code too."""
    from winnow.pipeline.table import trial, trial_table
    from winnow.pipeline.trial import try_recipe
    from winnow.records.parts import finite
    from winnow.terminal.progress import Bars, console

    with Bars(quiet=as_json) as bars:
        verdict = try_recipe(recipe, minutes, out, sets=sets, progress=bars.stage)
    _print(json.dumps(finite(trial(verdict)), indent=1)) if as_json else console().print(trial_table(verdict))
    raise typer.Exit(verdict.exit_code)


@app.command(no_args_is_help=True)
def eval(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="Data to measure on.")],
    task: Task = "auto",
    column: Column = None,
    label: Label = None,
    length: Length = None,
    eval_limit: EvalLimit = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Compare with this (dense) model, or these weights of it: paired change, agreement, KL."),
    ] = None,
    harness: Annotated[list[str] | None, typer.Option(help="Also run this local lm-eval task; repeatable.")] = None,
    harness_path: Annotated[Path | None, typer.Option(help="Folder of the lm-eval task files.")] = None,
    dtype: Dtype = "auto",
    weights: Weights = None,
    trust_remote_code: Trust = False,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """Measure a model, packed or dense, alone or against another."""
    from winnow.terminal.progress import Bars
    from winnow.verbs.evaluate import evaluate, evaluation_table

    with Bars(quiet=as_json) as bars:
        found = evaluate(
            model, data, task=task, column=column, label=label, length=length, eval_limit=eval_limit, reference=reference,
            harness_tasks=harness or [], harness_path=harness_path, dtype=dtype, weights=weights,
            trust_remote_code=trust_remote_code, mean=mean, std=std, progress=bars.stage,
        )  # fmt: skip
    _show(evaluation_table(found), found, as_json)


@app.command(no_args_is_help=True)
def inspect(
    model: Model,
    include: Annotated[list[str] | None, typer.Option(help="Count these as prunable too; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave these alone; repeatable.")] = None,
    weights: Weights = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """List a model's or a packed folder's layers: shape, prunable or why not, sparsity, bits."""
    from winnow.verbs.inspect import inspect as look
    from winnow.verbs.inspect import inspection_table

    found = look(
        model, weights=weights, include=include or (), exclude=exclude or (), trust_remote_code=trust_remote_code
    )
    _show(inspection_table(found), found, as_json)


@app.command(no_args_is_help=True)
def bench(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder that compress wrote (any other model is timed dense only).")
    ],
    batch: Annotated[str | None, typer.Option(help="Inputs a call, e.g. 1,8.")] = None,
    length: Annotated[
        str | None, typer.Option(help="Tokens an input, e.g. 32,128; of a decoder: of the prompt.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens decoded after the prompt, one at a time.")] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds of each case, in which all contenders alternate.")] = 15,
    threads: Annotated[int | None, typer.Option(help="Threads of every contender.")] = None,
    with_: Annotated[
        str | None,
        typer.Option(
            "--with", help="Contenders: dense, bf16, compile, int8, onnx, openvino, packed, accelerated; default all."
        ),
    ] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Also time every packed matrix alone.")] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="Real inputs; without, random ones of the kind the model reads.")
    ] = None,
    column: Column = None,
    factory: Annotated[
        str | None, typer.Option(help="package.module:function that builds a plain torch model.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The dense original; by default the artifact expanded.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="JSON file; a page of that name comes beside it. Default: in DIR."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a packed model against the dense one on this machine: ms, memory, energy, per layer and whole."""
    from winnow.compression.reporting import command_line
    from winnow.report.speed.console import bench_table
    from winnow.speed.verb import bench as run
    from winnow.terminal.progress import Bars, console

    with Bars(quiet=as_json) as bars:
        found = run(
            folder, batch=batch, length=length, tokens=tokens, rounds=rounds, threads=threads, contenders=with_, per_layer=per_layer,
            data=data, column=column, factory=factory, reference=reference, out=out, command=command_line(), progress=bars.stage,
        )  # fmt: skip
    if as_json:
        _print(found.model_dump_json())
    else:
        screen = console()
        screen.print(bench_table(found))
        if found.written is not None:
            screen.print()
            screen.print(f"Report: {Path(found.written).with_suffix('.html').resolve()}", soft_wrap=True)
    if found.interrupted:
        print("winnow: stopped before the end; what was measured by then is kept.", file=sys.stderr)
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that compress wrote.")],
    as_json: Json = False,
) -> None:
    """Write report.html again from report.json, and print its summary."""
    from winnow.report.compression.page import read, write

    found = read(folder)
    write(found, folder)
    _finished(found, folder, as_json)


@app.command(no_args_is_help=True)
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that compress wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    to: Annotated[str, typer.Option(help="dense: a folder that loads without winnow.")] = "dense",
    as_json: Json = False,
) -> None:
    """Write a packed folder in another form."""
    from winnow.errors import InputError
    from winnow.formats import export_dense

    if to != "dense":
        raise InputError(f"--to {to!r} is not known: choose dense.")
    written = export_dense(folder, out)
    _print(json.dumps({"folder": str(written)}) if as_json else f"wrote {written}: it loads without winnow.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("winnow-demo"),
    sparsity: Annotated[str, typer.Option(help="Share of zeros.")] = "0.7",
    seed: Annotated[int, typer.Option(help="Seed of training and compression.")] = 0,
    as_json: Json = False,
) -> None:
    """The main job on built-in data: train a small network on scikit-learn's digits, compress it, report."""
    from winnow.terminal.progress import Bars
    from winnow.verbs.demo import run

    with Bars(quiet=as_json) as bars:
        result = run(out, sparsity=sparsity, seed=seed, progress=bars.stage)
    _finished(result.report, out, as_json)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        from winnow.version import __version__

        _print(f"winnow {__version__}")
        raise typer.Exit


def main(argv: list[str] | None = None) -> None:
    """Entry point: every foreseen failure is one sentence on standard error and an exit code."""
    legible_logs()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        code = app(args=argv, prog_name="winnow", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except KeyboardInterrupt:
        _fail("stopped; nothing was lost: the same command goes on where this one was.", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        found = sentence_of(error)
        if found is not None:
            _fail(*found)
        if isinstance(error, WinnowError):
            _fail(str(error), error.exit_code)
        show = getattr(error, "show", None)  # a usage error of the command line: it knows how to say itself
        if show is None:
            raise
        said = io.StringIO()
        show(said)
        print(visible(said.getvalue().rstrip("\n"), keep="\n"), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def _fail(sentence: str, code: int) -> None:
    print(f"winnow: {visible(sentence.strip().rstrip('.'))}.", file=sys.stderr)
    sys.exit(code)


def _finished(report: Any, folder: Path, as_json: bool) -> None:
    from winnow.report.compression.console import summary
    from winnow.terminal.progress import console

    if as_json:
        _print(report.model_dump_json())
        return
    screen = console()
    screen.print(summary(report))
    screen.print()
    screen.print(f"Report: {(folder / 'report.html').resolve()}", soft_wrap=True)


def _show(table: Any, found: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from winnow.terminal.progress import console

    if as_json:
        _print(json.dumps(asdict(found), default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
    else:
        console().print(table)


def _print(text: str) -> None:
    """JSON, or plain lines."""
    print(json_for_terminal(text) if text.startswith(("{", "[")) else visible(text))


def _settings(given: list[str] | None) -> dict[str, str]:
    from winnow.errors import InputError

    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"--set {text!r} is not NAME=VALUE: write, for example, --set steps=300.")
        if name in found:
            raise InputError(f"--set {name} is given twice: give each setting once.")
        found[name] = value
    return found


def _table(path: Path | None) -> dict[str, float] | None:
    from winnow.errors import InputError

    if path is None:
        return None
    from winnow.data.bounds import require_file

    require_file(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): float(v) for k, v in table.items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON object of rates by name ({error}).") from None
