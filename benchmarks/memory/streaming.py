"""Peak memory of pruning a model of 1 B parameters under a memory limit, beside that of loading it dense.

    python -m benchmarks.memory.streaming [--params 1b] [--ram 1.5GB] [--samples 64 --length 256]

``winnow compress --method wanda --sparsity 0.5 --ram ...`` on the random Llama of models/make.py (bf16), in a
process of its own. Beside it, each in a process too: imports alone (torch and transformers take their part of any
limit), ``AutoModelForCausalLM.from_pretrained``, and that followed by a forward of 8 tokens, since a loaded checkpoint
is a mapped file whose weights are not resident before they are used. Each figure is the kernel's VmHWM of the whole
process, mapped files included. The text is noise to a random model, so quality is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import common


def child(what: str, folder: str) -> None:
    import transformers

    import winnow

    if what != "imports":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)
    if what == "run":  # loaded weights are mapped files: only use makes them resident
        import torch

        with torch.inference_mode():
            model(input_ids=torch.arange(8)[None])
    if what == "imports":  # the lazy classes too, as a load would
        print(transformers.AutoModelForCausalLM.__name__, winnow.compress.__name__, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", choices=["300m", "1b"], default="1b", help="size of the random Llama")
    parser.add_argument("--ram", default="1.5GB", help="memory limit given to winnow (default 1.5GB)")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--samples", type=int, default=64, help="calibration sequences (default 64)")
    parser.add_argument("--length", type=int, default=256, help="tokens of each (default 256)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = common.arguments(parser)
    if args.child:
        child(*args.child)
        return
    figures = {"about": common.heading(("accelerate",), args.threads)}
    from benchmarks.models.make import get  # imports torch, which the children do for themselves

    folder = get("random-llama", params=args.params)
    stored = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    peaks = {}
    for what, title in (("imports", "imports only"), ("loaded", "dense, loaded"), ("run", "dense, run once")):
        peaks[what], seconds = common.peak_of(
            ["benchmarks.memory.streaming", "--threads", str(args.threads), "--child", what, str(folder)]
        )
        print(f"{title:16} peak {common.megabytes(peaks[what])}, {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        out = Path(scratch) / "out"
        peaks["winnow"], seconds = common.peak_of([
            "winnow", "compress", str(folder), "--data", str(common.data("corpus", "train-0.txt.gz")), "--out", str(out),
            "--sparsity", "0.5", "--method", args.method, "--ram", args.ram, "--task", "none", "--baselines", "none",
            "--samples", str(args.samples), "--length", str(args.length), "--batch-size", str(args.batch_size),
        ])  # fmt: skip
        report = json.loads((out / "report.json").read_text())
        written = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    limit = report["memory"]["limit_bytes"]
    print(
        f"{'winnow':16} peak {common.megabytes(peaks['winnow'])}, {seconds:.0f} s, limit {common.megabytes(limit)}: {'kept' if peaks['winnow'] <= limit else 'EXCEEDED'}"
    )
    print(
        f"zeros {report['requested']['zeros_reached']:,} of {report['model']['prunable']:,} prunable weights; file {common.megabytes(stored)} -> {common.megabytes(written)}"
    )
    ratio = peaks["winnow"] / peaks["run"]
    print(f"ratio of the peaks, winnow / dense, run once: {ratio:.3f}")
    figures |= {
        "peak_bytes": peaks, "limit_bytes": limit, "ratio": ratio, "seconds": seconds, "dense_file": stored, "file": written,
        "zeros": report["requested"]["zeros_reached"], "prunable": report["model"]["prunable"],
    }  # fmt: skip
    common.finish(figures, args.json)


if __name__ == "__main__":
    main()
