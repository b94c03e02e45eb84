"""Loading the model in a process of its own: seconds, and the most memory above the imports."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from winnow.speed.subject import Subject
    from winnow.speed.workload import Work

PATIENCE = 600  # seconds
FILE = "inputs.safetensors"
# Without the current folder in front, where a torch.py would be run in place of torch: it is in the path, last.
_CHILD = f"import sys; sys.path[:] = filter(None, sys.path); from {__name__} import main; main(sys.argv[1])"


def measure_fresh(subject: Subject, name: str, work: Work, threads: int, scratch: Path) -> dict[str, Any]:
    """``seconds`` to load, ``load`` and ``run``: bytes at the peak of loading and of the first call, above the imports.

    Empty where the model is in memory only, so that no other process could load it.
    """
    from safetensors.torch import save_file

    way, dtype = name.split()
    dense = way == "dense" and subject.reference is not None
    source = subject.reference if dense and subject.reference is not None else subject.source
    if source.module is not None:
        return {}
    batch = work.inputs[0]
    named = batch if isinstance(batch, dict) else {str(i): tensor for i, tensor in enumerate(batch)}
    save_file({key: tensor.contiguous() for key, tensor in named.items()}, scratch / FILE)
    request = {
        "folder": str(source.folder) if source.folder is not None else None,
        "factory": source.factory,
        "weights": str(source.weights) if source.weights is not None else None,
        "inputs": str(scratch / FILE),
        "positional": not isinstance(batch, dict),
        "way": way,
        "dtype": dtype,
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(request)], capture_output=True, text=True, timeout=PATIENCE, env=_environment()
    )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"loading {name} in a process of its own failed: {last[:160]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _environment() -> dict[str, str]:
    """The child finds what this process could import, a factory in the current folder included."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HF_HUB_OFFLINE": "1"}


def child(request: dict[str, Any]) -> dict[str, Any]:
    """What the other process does: import, note the memory, load, call once."""
    from safetensors.torch import load_file

    from winnow.forward.model import call
    from winnow.machine.memory import peak_rss, reset_peak, resident
    from winnow.models.source import open_model
    from winnow.speed.subject import Subject, open_subject

    torch.set_num_threads(request["threads"])
    dtype = getattr(torch, request["dtype"])
    if request["weights"] is not None:
        subject = Subject(open_model(request["factory"], request["weights"]), None, None)
    else:
        subject = open_subject(
            request["folder"] or request["factory"], factory=request["factory"] if request["folder"] else None
        )
    warm(subject)
    inputs: Any = load_file(request["inputs"])
    inputs = {key: t.to(dtype) if t.is_floating_point() else t for key, t in inputs.items()}
    if request["positional"]:
        inputs = tuple(inputs[str(i)] for i in range(len(inputs)))
    gc.collect()
    reset_peak()
    before, start = resident(), time.perf_counter()
    model = subject.dense("artifact", dtype) if request["way"] == "dense" else subject.packed(dtype)
    seconds, load = time.perf_counter() - start, peak_rss() - before
    with torch.inference_mode():
        call(model, inputs)
    return {"seconds": seconds, "load": max(load, 0), "run": max(peak_rss() - before, 0)}


def warm(subject: Subject) -> None:
    """Imports what loading will need, so that imports count as imports."""
    from winnow.kernels import native

    native.available()
    import winnow.kernels.load
    import winnow.kernels.matrix  # noqa: F401

    if subject.source.folder is not None and subject.source.factory is None:
        subject.source.model_class()


def main(request: str) -> None:
    """Entry point of the other process: JSON in, JSON out."""
    print(json.dumps(child(json.loads(request))))
