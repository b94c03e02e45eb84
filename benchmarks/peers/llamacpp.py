"""Decoding: llama.cpp's Q8_0 and Q4_0 beside winnow's packed weights, the same random Llama, tokens a second.

    python -m benchmarks.peers.llamacpp --peer ../venv-llama/bin/python
    python -m benchmarks.peers.llamacpp --peer ... --contenders "llama.cpp Q8_0,packed int8 50%"

The peer's Python (--peer, or $WINNOW_LLAMACPP_PYTHON) needs llama-cpp-python and gguf; README.md says how to build it.
The GGUF files are written from the weights of ``random-llama-300m`` once, beside it in the cache of the benchmarks.
Every contender is a process of its own; they take turns. Prompt of 32 tokens, greedy, key-value cache in 16 bits on
llama.cpp's side, in the model's type on ours; llama.cpp is timed around ``llama_decode``, ours around each token that
``generate`` yields, so transformers' own share of a token is counted against us.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common, turns

QUANTIZED = ("Q8_0", "Q4_0")
OURS = [
    "dense bfloat16",
    "dense frozen bfloat16",
    *(f"packed {v} {s}%" for v in ("bf16", "int8", "int4") for s in (50, 70, 90)),
]


def write_gguf(folder: Path, file: Path, kind: str) -> None:
    """The model of a Hugging Face folder as GGUF: matrices in ``kind``, norms in float32, no vocabulary."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    types = gguf.GGMLQuantizationType
    writer.add_file_type({"Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}[kind])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for shard in sorted(folder.glob("*.safetensors")):
        for name, array in bfloat16_tensors(shard):
            for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
                if part in name:  # llama.cpp rotates neighbouring pairs, transformers halves
                    array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            target = names.get_name(name, try_suffixes=(".weight",))
            if array.ndim == 1:
                writer.add_tensor(target, array)
            else:
                kept = getattr(types, kind)
                writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(array), kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(file)


def bfloat16_tensors(file: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """(name, float32 array) of a safetensors file in bfloat16; no torch needed."""
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        start = stream.tell()
        for name, entry in header.items():
            if name != "__metadata__":
                stream.seek(start + entry["data_offsets"][0])
                halves = np.fromfile(stream, "<u2", (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2)
                yield name, (halves.astype("<u4") << 16).view("<f4").reshape(entry["shape"])


class LlamaCpp:
    """The serving side of llama.cpp: answers what inference/server.py answers."""

    def __init__(self) -> None:
        self._model: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "write":
            write_gguf(Path(request["folder"]), Path(request["file"]), request["kind"])
            return {}
        if request["do"] == "load":
            import llama_cpp

            before, began = turns.memory()["rss"], time.perf_counter()
            threads = int(os.environ["OMP_NUM_THREADS"])
            self._model = llama_cpp.Llama(
                request["source"],
                n_ctx=256,
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
                logits_all=False,
            )
            seconds, after = time.perf_counter() - began, turns.memory()
            return {"load": seconds, "added": after["rss"] - before, "added_peak": after["peak"] - before}
        return self._decode(request["length"], request["seconds"])

    def _decode(self, length: int, seconds: float) -> dict[str, Any]:
        first, between, began = [], [], time.perf_counter()
        while not between or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            self._model.reset()
            self._model.eval(list(range(1, length + 1)))
            token = self._best()
            first.append(time.perf_counter() - start)
            for _ in range(23):
                start = time.perf_counter()
                self._model.eval([token])
                token = self._best()
                between.append(time.perf_counter() - start)
        return {"first": first, "seconds": between, **turns.memory()}

    def _best(self) -> int:
        import llama_cpp

        logits = llama_cpp.llama_get_logits(self._model.ctx)
        return int(np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),)).argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"llama.cpp {kind}" for kind in QUANTIZED] + OURS
    parser.add_argument("--peer", default=os.environ.get("WINNOW_LLAMACPP_PYTHON"), metavar="PYTHON",
                        help="Python with llama-cpp-python and gguf (default $WINNOW_LLAMACPP_PYTHON)")  # fmt: skip
    parser.add_argument(
        "--contenders",
        type=common.listed(str),
        default=every,
        help="of " + ", ".join(every).replace("%", "%%"),
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="of one contender in one round")
    parser.add_argument("--length", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--policy", choices=["PASSIVE", "ACTIVE"], default="PASSIVE", help="OMP_WAIT_POLICY of all")
    args = common.arguments(parser)
    if not args.peer:
        parser.error("name a Python that has llama-cpp-python: --peer, or WINNOW_LLAMACPP_PYTHON")
    facts = common.heading(threads=args.threads)
    figures = measure(args)
    table(figures, args.threads)
    common.finish({"facts": facts, "figures": figures}, args.json)


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Opens all contenders and times them in rounds."""
    from benchmarks.inference import whole_models
    from benchmarks.models.make import get

    folder = get("random-llama", params="300m")
    processes: dict[str, turns.Turn] = {}
    figures: dict[str, dict[str, Any]] = {}
    try:
        for name in args.contenders:
            if name.startswith("llama.cpp"):
                kind = name.split()[-1]
                file = common.CACHE / "speed" / f"random-llama-300m-{kind}.gguf"
                command, asked = common.script("peers.llamacpp", "--serve", python=args.peer), {"source": str(file)}
                if not file.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    _write(command, folder, file, kind)
            else:
                how, *rest = name.split()
                command = common.script("inference.server")
                source = folder
                if how == "packed":
                    source = whole_models.artifact("llama", float(rest[1].rstrip("%")) / 100, rest[0])
                asked = {"model": "llama", "how": how if how == "packed" else " ".join(rest), "source": str(source)}
            processes[name] = turns.Turn(command, args.threads, args.policy)
            figures[name] = processes[name].ask(do="load", **asked)
            if "failed" in figures[name]:
                print(f"{name} failed: {figures.pop(name)['failed']}", file=sys.stderr)
                processes.pop(name).end()
            elif name.startswith("llama.cpp"):
                figures[name]["file"] = file.stat().st_size
            else:
                figures[name]["file"] = sum(f.stat().st_size for f in Path(asked["source"]).glob("*.safetensors"))
        for one in figures.values():
            one.update(rounds=[], firsts=[], load_average=[])
        for i in range(-1, args.rounds):  # the round before the first is a warm-up
            for name in list(processes)[:: 1 if i % 2 == 0 else -1]:
                seconds = args.seconds if i >= 0 else 0
                asked = processes[name].ask(do="decode", batch=1, length=args.length, seconds=seconds)
                if "failed" in asked:
                    print(f"{name} failed: {asked['failed']}", file=sys.stderr)
                    processes.pop(name).end()
                    figures.pop(name)
                elif i >= 0:
                    figures[name]["rounds"].append(statistics.median(asked["seconds"]))
                    figures[name]["firsts"].append(statistics.median(asked["first"]))
                    figures[name]["load_average"].append(os.getloadavg()[0])
    finally:
        for process in processes.values():
            process.end()
    return figures


def _write(command: list[str], folder: Path, file: Path, kind: str) -> None:
    writer = turns.Turn(command, 1)
    answer = writer.ask(do="write", folder=str(folder), file=str(file), kind=kind)
    writer.end()
    if "failed" in answer:
        raise RuntimeError(f"{file.name} could not be written: {answer['failed']}")


def table(figures: dict[str, dict[str, Any]], threads: int) -> None:
    """Markdown, fastest first."""
    print("| contender | threads | tokens/s | ms per token (range) | prompt ms | file MB | load s | memory added MB |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, f in sorted(figures.items(), key=lambda pair: statistics.median(pair[1]["rounds"])):
        each = statistics.median(f["rounds"])
        print(
            f"| {name} | {threads} | {1 / each:.1f} | {each * 1e3:.2f} ({min(f['rounds']) * 1e3:.2f} to "
            f"{max(f['rounds']) * 1e3:.2f}) | {statistics.median(f['firsts']) * 1e3:.1f} | {f['file'] / 1e6:.0f} | "
            f"{f['load']:.2f} | {f['added'] / 1e6:.0f} |"
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        turns.serve(LlamaCpp().answer)
    else:
        main()
