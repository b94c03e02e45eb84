"""Every contender of the kernel benchmark by name, and the process that holds some of them open and times them.

    python -m benchmarks.kernels.contenders torch|runtime     # reads requests, a JSON object a line, from linear.py

A process serves one number of threads, one waiting policy and one instruction cap, all set in its environment before it
starts. It needs numpy and whatever its contenders need: those of the runtimes need no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.layer import TOLERANCE, Copies, Layer, error_of, timed
from benchmarks.turns import serve

Build = Callable[[Layer, int], Copies]


@dataclass(frozen=True)
class Contender:
    """``values``: what is compared with what (int8a, int4a: activations are quantized too); ``role``: dense, sparse (a
    peer), winnow or read; ``capped``: whether the instruction caps of a profile hold for it; ``up_to``: largest batch
    worth waiting for; ``spins``: whether OMP_WAIT_POLICY (or the runtime's own switch) changes anything."""

    name: str
    values: str
    role: str
    home: str  # "torch" (the environment of winnow) | "runtime" (that of ONNX Runtime and OpenVINO)
    build: Build
    capped: str = "yes"  # yes | partly | no
    up_to: int = 1 << 30
    spins: bool = True


def _torch(function: str, *args: Any) -> Build:
    def build(layer: Layer, size: int) -> Copies:
        import torch

        from benchmarks.kernels import from_torch

        given = [getattr(torch, a[1:]) if isinstance(a, str) and a.startswith(".") else a for a in args]
        return getattr(from_torch, function)(layer, size, *given)

    return build


def _runtime(function: str, *args: Any) -> Build:
    def build(layer: Layer, size: int) -> Copies:
        from benchmarks.kernels import from_runtimes

        threads = int(os.environ["OMP_NUM_THREADS"])
        more = (os.environ.get("OMP_WAIT_POLICY") == "ACTIVE",) if function == "onnxruntime" else ()
        return getattr(from_runtimes, function)(layer, size, *args, threads, *more)

    return build


def _winnow(values: str) -> list[Contender]:
    """winnow's ways for one class of values."""
    stored = {"fp32": "float32", "bf16": "bfloat16"}.get(values, values.removesuffix("a"))
    quantized = values.endswith("a")
    # Weights of few bits multiply bfloat16 activations where bfloat16 is fast, as their dense peers do.
    x = ".float32" if values == "fp32" or quantized or os.environ.get("WINNOW_ISA") == "avx2" else ".bfloat16"
    ways = {"packed": 128, "expanded": 1 << 30, "spmm": 1 << 30, "times": 1 << 30}
    if values != "fp32":
        del ways["times"], ways["spmm"]
    if quantized:
        ways["packed"] = 1 << 30  # blocks of int8 have a kernel for many rows
    if values == "int4a":
        del ways["expanded"]
    activations = "int8" if quantized else "keep"
    return [
        Contender(
            f"winnow {way} {values}", values, "winnow", "torch",
            _torch("packed", stored, way, ".float32" if way == "times" else x, activations), up_to=up_to,
        )
        for way, up_to in ways.items()
    ]  # fmt: skip


CONTENDERS = [
    Contender("read memory", "", "read", "torch", _torch("read"), spins=False),
    Contender("torch eager fp32", "fp32", "dense", "torch", _torch("dense", ".float32")),
    Contender("torch frozen fp32", "fp32", "dense", "torch", _torch("frozen", ".float32")),
    Contender("torch frozen MKL fp32", "fp32", "dense", "torch", _torch("frozen_mkl")),
    Contender("torch.compile fp32", "fp32", "dense", "torch", _torch("compiled", ".float32")),
    Contender("onnxruntime fp32", "fp32", "dense", "runtime", _runtime("onnxruntime", "fp32"), "no"),
    Contender("openvino fp32", "fp32", "dense", "runtime", _runtime("openvino", "fp32", "f32"), "partly", spins=False),
    Contender("MKL CSR", "fp32", "sparse", "torch", _torch("csr")),
    Contender("torch eager bf16", "bf16", "dense", "torch", _torch("dense", ".bfloat16")),
    Contender("torch frozen bf16", "bf16", "dense", "torch", _torch("frozen", ".bfloat16")),
    Contender("torch.compile bf16", "bf16", "dense", "torch", _torch("compiled", ".bfloat16")),
    Contender("openvino bf16", "bf16", "dense", "runtime", _runtime("openvino", "bf16", "bf16"), "partly", spins=False),
    Contender("torch int8pack", "int8", "dense", "torch", _torch("int8pack", ".bfloat16"), up_to=16),
    Contender("openvino int8", "int8", "dense", "runtime", _runtime("openvino", "int8", "f32"), "partly", spins=False),
    Contender(
        "openvino int8 bf16", "int8", "dense", "runtime", _runtime("openvino", "int8", "bf16"), "partly", spins=False
    ),
    Contender("torch dynamic int8", "int8a", "dense", "torch", _torch("dynamic_int8", "x86"), "no"),
    Contender("torch dynamic int8 oneDNN", "int8a", "dense", "torch", _torch("dynamic_int8", "onednn")),
    Contender("onnxruntime int8", "int8a", "dense", "runtime", _runtime("onnxruntime", "int8a"), "no"),
    Contender(
        "openvino W8A8", "int8a", "dense", "runtime", _runtime("openvino", "int8a", "f32"), "partly", spins=False
    ),
    # What OpenVINO does about zeros: weights with more of them than the rate are stored without, on AMX only.
    Contender(
        "openvino W8A8 sparse", "int8a", "sparse", "runtime", _runtime("openvino_sparse", 0.5), "partly", spins=False
    ),
    Contender("torch int4pack", "int4", "dense", "torch", _torch("int4pack", ".bfloat16"), up_to=16),
    Contender("onnxruntime int4", "int4", "dense", "runtime", _runtime("onnxruntime", "int4"), "no"),
    Contender("openvino int4", "int4", "dense", "runtime", _runtime("openvino", "int4", "f32"), "partly", spins=False),
    Contender(
        "openvino int4 bf16", "int4", "dense", "runtime", _runtime("openvino", "int4", "bf16"), "partly", spins=False
    ),
    Contender("onnxruntime int4, int8 x", "int4a", "dense", "runtime", _runtime("onnxruntime", "int4a"), "no"),
    *[c for values in ("fp32", "bf16", "int8", "int8a", "int4", "int4a") for c in _winnow(values)],
]
BY_NAME = {contender.name: contender for contender in CONTENDERS}


class Server:
    """Opens, times and closes contenders as asked. A handle is whatever name the asker gives."""

    def __init__(self) -> None:
        self._open: dict[str, Copies] = {}
        self._use: dict[str, tuple[int, Callable[[int], Any]]] = {}
        self._at: dict[str, int] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        do, handle = request["do"], request.get("handle", "")
        if do == "open":
            return self._opened(handle, request["name"], Layer(**request["layer"]), int(request["size"]))
        if do == "time":
            return self._timed(handle, int(request["batch"]), float(request["seconds"]))
        if do == "close":
            for held in (self._open, self._use, self._at):
                held.pop(handle, None)
            return {}
        raise ValueError(f"unknown request {do!r}")

    def _opened(self, handle: str, name: str, layer: Layer, size: int) -> dict[str, Any]:
        contender = BY_NAME[name]
        copies = contender.build(layer, size)
        error = 0.0 if contender.role == "read" else error_of(copies, layer)
        if error > TOLERANCE.get(contender.values, 0.0):
            raise ValueError(f"wrong result: relative error {error:.3g}")
        self._open[handle], self._at[handle] = copies, 0
        return {"bytes": copies.bytes, "copies": copies.count, "error": error, "isa": _isa(contender)}

    def _timed(self, handle: str, batch: int, seconds: float) -> dict[str, Any]:
        copies = self._open[handle]
        new = self._use.get(handle, (None,))[0] != batch
        if new:
            self._use[handle] = batch, copies.use(batch)
        call = self._use[handle][1]
        # One call over all copies warms itself up: most of it runs after the first layers.
        took = timed(call, copies.per_call, self._at[handle], seconds, warm=new or copies.per_call == 1)
        self._at[handle] += int(took.pop("calls"))
        return took


def _isa(contender: Contender) -> str | None:
    """The instruction path of winnow's kernels; "reference" where they are missing."""
    if contender.role != "winnow":
        return None
    from winnow.kernels import native

    return native.isa()


def main() -> None:
    if sys.argv[1] == "torch":
        import torch

        torch.set_grad_enabled(False)
    serve(Server().answer)


if __name__ == "__main__":
    main()
