"""winnow against llm-compressor on one model: seconds, perplexity, zeros; with --memory, peaks instead.

    python -m benchmarks.peers.llmcompressor [--runs 5] [--seeds 3] [--eval-limit N]
    python -m benchmarks.peers.llmcompressor --memory          # random Llama of 317 M parameters

Needs an environment with llm-compressor beside winnow (benchmarks/README.md). Both sides prune the same model object
(reference-lm, float32), block by block, on the very same batches of token ids, with damping 0.01, in one process with
pinned threads, alternating. Model and batches are loaded before any clock starts.

winnow's seconds: statistics, masks and solved weights of every block, packing them in memory, and writing them back.
llm-compressor's seconds are two: of the ``oneshot`` call (no saving, a ready DataLoader), and of its calibration alone,
which leaves out its set-up and the tracing of the model. Perplexity is that of the corpus' test text.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.winnow_side import Winnow, calibration

SPARSITY = 0.5
THEIRS = {"sparsegpt": "SparseGPTModifier", "wanda": "WandaPruningModifier"}
OURS = {
    "sparsegpt": "sparsegpt",
    "wanda": "wanda",
    "sparsegpt+lsq": "sparsegpt",
    "alps": "sparsegpt",
}  # method -> compared with


class LLMCompressor:
    """``llmcompressor.oneshot`` on copies of one model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from llmcompressor.core import LifecycleCallbacks
        from loguru import logger

        logger.disable("llmcompressor")
        self.dense, self.tokenizer, self.model = model, tokenizer, model
        self.marks: dict[str, float] = {}
        for event in ("calibration_start", "calibration_end"):
            setattr(LifecycleCallbacks, event, self._marked(event, getattr(LifecycleCallbacks, event)))

    def _marked(self, event: str, call: Any) -> Any:
        def marked(**kwargs: Any) -> Any:
            if event == "calibration_start":
                self.marks[event] = time.perf_counter()
            result = call(**kwargs)
            if event == "calibration_end":
                self.marks[event] = time.perf_counter()
            return result

        return staticmethod(marked)

    def prune(self, method: str, batches: list[Any], model: Any = None) -> tuple[float, float]:
        """Seconds of the whole call and of calibration alone; the pruned model is in ``model``."""
        import llmcompressor.modifiers.pruning as modifiers
        from llmcompressor import oneshot
        from torch.utils.data import DataLoader

        options = dict(sparsity=SPARSITY, targets=["Linear"], ignore=["re:.*lm_head"])
        if method == "sparsegpt":
            options["dampening_frac"] = 0.01
        recipe = getattr(modifiers, THEIRS[method])(**options)
        loader = DataLoader(batches, batch_size=None)  # the batches as they are
        self.model = copy.deepcopy(self.dense) if model is None else model
        started = time.perf_counter()
        oneshot(
            model=self.model,
            tokenizer=self.tokenizer,
            dataset=loader,
            recipe=recipe,
            num_calibration_samples=len(batches),
        )
        return time.perf_counter() - started, self.marks["calibration_end"] - self.marks["calibration_start"]


def zeros(model: Any, names: Any) -> float:
    """Share of zeros, counted."""
    weights = [model.get_parameter(name) for name in names]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from winnow.data import open_data
    from winnow.measure.language import LanguageModelTask

    folder = args.model or common.data("reference-lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    task = LanguageModelTask(
        open_data(common.data("corpus", "test.txt.gz")), tokenizer, length=256, limit=args.eval_limit
    )
    data = [calibration(folder, args.samples, args.length, args.batch_size, seed) for seed in range(args.seeds)]
    winnow, other = Winnow(dense, args.dtype), LLMCompressor(dense, tokenizer)
    print(f"{sum(b['input_ids'].numel() for b in data[0]):,} calibration tokens; {task.describe()}", file=sys.stderr)
    inner: dict[str, list[float]] = {method: [] for method in THEIRS}

    def theirs(method: str) -> float:
        call, alone = other.prune(method, data[0])
        inner[method].append(alone)
        return call

    ours_run = {method: against for method, against in OURS.items() if method in (args.methods or OURS)}
    theirs_run = sorted(set(ours_run.values()))
    contenders = {f"winnow {m}": lambda m=m: winnow.seconds(m, SPARSITY, data[0]) for m in ours_run}
    contenders |= {f"llm-compressor {m}": lambda m=m: theirs(m) for m in theirs_run}
    for contender in contenders.values():
        contender()  # first calls import, allocate and compile
    inner |= {method: [] for method in THEIRS}
    seconds = common.alternate(contenders, args.runs)
    perplexity: dict[str, list[float]] = {name: [] for name in contenders}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    for batches in data:
        for method in ours_run:
            winnow.prepare(method, SPARSITY, batches)()
            _look(f"winnow {method}", winnow.model, winnow, task, perplexity, shares)
        for method in theirs_run:
            other.prune(method, batches)
            _look(f"llm-compressor {method}", other.model, winnow, task, perplexity, shares)
    print(
        f"dense perplexity {(base := task.evaluate(dense).value):.3f}; 50% sparsity; means over {args.seeds} calibration seeds\n"
    )
    print(
        "| winnow | against | seconds | theirs, call | ratio | theirs, calibration | ratio | perplexity | theirs | ratio | sparsity | theirs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for method, against in ours_run.items():
        ours, them = f"winnow {method}", f"llm-compressor {against}"
        row = dict(
            method=method, against=against, seconds=statistics.median(seconds[ours]), call=statistics.median(seconds[them]),
            call_ratio=common.ratio(seconds[them], seconds[ours]), calibration=statistics.median(inner[against]),
            calibration_ratio=common.ratio(inner[against], seconds[ours]), perplexity=statistics.mean(perplexity[ours]),
            their_perplexity=statistics.mean(perplexity[them]),
            perplexity_ratio=statistics.mean(perplexity[ours]) / statistics.mean(perplexity[them]),
            zeros=statistics.mean(shares[ours]), their_zeros=statistics.mean(shares[them]),
        )  # fmt: skip
        rows.append(row)
        print(
            f"| {method} | {against} | {row['seconds']:.2f} | {row['call']:.2f} | {row['call_ratio']:.2f}× | {row['calibration']:.2f} | "
            f"{row['calibration_ratio']:.2f}× | {row['perplexity']:.3f} | {row['their_perplexity']:.3f} | {row['perplexity_ratio']:.4f} | "
            f"{row['zeros']:.6f} | {row['their_zeros']:.6f} |"
        )
    return dict(
        rows=rows,
        seconds=seconds,
        calibration_seconds=inner,
        perplexity=perplexity,
        zeros=shares,
        dense_perplexity=base,
    )


def _look(name: str, model: Any, winnow: Winnow, task: Any, perplexity: dict, shares: dict) -> None:
    perplexity[name].append(task.evaluate(model).value)
    shares[name].append(zeros(model, winnow.scope.prunables))
    print(f"  {name}: perplexity {perplexity[name][-1]:.3f}, zeros {shares[name][-1]:.6f}", file=sys.stderr, flush=True)


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Each side in processes of its own: bytes before calibration, and how far above that the peak rose."""
    from benchmarks.models.make import get

    folder = args.model or get("random-llama", params="300m")
    found: dict[str, dict[str, Any]] = {}
    print(
        "| method | winnow above start | llm-compressor above start | ratio | resident at start | sparsity | theirs |"
    )
    print("|---|---|---|---|---|---|---|")
    for method in args.methods or ("wanda", "sparsegpt"):
        for side in ("winnow", "llm-compressor"):
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "figures.json"
                own = common.script("peers.llmcompressor", "--child", side, method, str(folder), str(file))
                same = [
                    f"--{n.replace('_', '-')}={getattr(args, n)}"
                    for n in ("dtype", "threads", "samples", "length", "batch_size")
                ]
                subprocess.run([*own, *same], check=True)
                found[f"{side} {method}"] = json.loads(file.read_text())
        ours, theirs = found[f"winnow {method}"], found[f"llm-compressor {method}"]
        print(
            f"| {method} | {common.megabytes(ours['added'])} | {common.megabytes(theirs['added'])} | {ours['added'] / theirs['added']:.3f} | "
            f"{common.megabytes(ours['before'])}, {common.megabytes(theirs['before'])} | {ours['zeros']:.6f} | {theirs['zeros']:.6f} |", flush=True,
        )  # fmt: skip
    return found


def child(args: argparse.Namespace) -> None:
    """One side's memory. winnow stores finished blocks on disk, as ``winnow compress`` does."""
    side, method, folder, file = args.child
    batches = calibration(folder, args.samples, args.length, args.batch_size, seed=0)
    winnow = Winnow(folder, args.dtype)  # both load the model this way
    names, model = list(winnow.scope.prunables), winnow.model
    for parameter in model.parameters():  # a loaded weight is a mapped file, resident only once it is touched
        parameter.data = parameter.data.clone()
    if side == "winnow":
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
            before, added = common.added_peak(winnow.prepare(method, SPARSITY, batches, Path(scratch)))
    else:
        from transformers import AutoTokenizer

        other = LLMCompressor(model, AutoTokenizer.from_pretrained(folder))
        import llmcompressor.modifiers.pruning  # noqa: F401  imports are not counted

        before, added = common.added_peak(lambda: other.prune(method, batches, model))
    Path(file).write_text(json.dumps(dict(before=before, added=added, zeros=zeros(model, names))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder (default: reference-lm; with --memory the random Llama)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each contender (default 5)")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds for perplexity (default 3)")
    parser.add_argument("--samples", type=int, default=64, help="calibration sequences (default 64)")
    parser.add_argument("--length", type=int, default=256, help="tokens of each (default 256)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per batch, the same for both")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of model and arithmetic (default float32; with --memory bfloat16)",
    )
    parser.add_argument("--eval-limit", type=int, help="at most so many test segments (default all)")
    parser.add_argument("--memory", action="store_true", help="measure peaks of memory instead")
    parser.add_argument(
        "--methods",
        type=common.listed(str),
        help="of winnow's, e.g. wanda,sparsegpt (default all; with --memory these two)",
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = common.arguments(parser)
    os.environ["TQDM_DISABLE"] = "1"
    args.dtype = args.dtype or ("bfloat16" if args.memory else "float32")
    if args.child:
        child(args)
        return
    if unknown := set(args.methods or ()) - set(THEIRS if args.memory else OURS):
        parser.error(
            f"unknown method {', '.join(sorted(unknown))}: choose of {', '.join(THEIRS if args.memory else OURS)}"
        )
    figures = {"about": common.heading(("llmcompressor", "compressed-tensors"), args.threads)}
    figures |= memory(args) if args.memory else compare(args)
    common.finish(figures, args.json)


if __name__ == "__main__":
    main()
