"""The dense model in other runtimes, where they are installed: ONNX Runtime and OpenVINO, both from one ONNX file a case."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.data.text import Batch
from winnow.forward.model import logits_of
from winnow.measure.latency import Begin, Step
from winnow.records import speed as speed_schema
from winnow.speed.contender import BuildContext, Builder, Contender, Unavailable, bind, require_memory
from winnow.speed.workload import Work

ROUNDED = "rounds weights and activations to int8"
FORMS = {  # form of the graph -> its weights, and what it changes
    "float32": ("float32", "different summation order"),
    "bfloat16": ("bfloat16", "rounds weights and activations to bfloat16"),
    "dynamic": ("int8, per-row scales", ROUNDED),
    "static": ("int8, per-row scales", f"{ROUNDED}, their ranges calibrated"),
}


def onnx_builders(context: BuildContext, requested: Sequence[str], need: int) -> Iterator[tuple[str, Builder]]:
    """(name, builder) of the contenders of ONNX Runtime and OpenVINO."""
    exports = Exports(context.dense, context.scratch)
    for family, runtime, names in (
        ("onnx", OnnxRuntime, {"ONNX Runtime float32": "float32", "ONNX Runtime int8 dynamic": "dynamic", "ONNX Runtime int8 static": "static"}),
        ("openvino", OpenVino, {"OpenVINO float32": "float32", "OpenVINO bfloat16": "bfloat16", "OpenVINO int8": "static"}),
    ):  # fmt: skip
        for name, form in names.items() if family in requested else ():
            yield name, partial(_build, runtime, name, form, context, exports, need)


def _build(
    runtime: type[_Graph], name: str, form: str, context: BuildContext, exports: Exports, need: int
) -> Contender:
    missing = [package for package in runtime.PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise Unavailable(f"not installed: pip install {' '.join(missing)}")
    require_memory(need)
    weights, changes = FORMS[form]
    kind: Any = "quantized" if weights.startswith("int8") else "dense"
    about = speed_schema.Contender(name=name, kind=kind, weights=weights, changes=changes)
    return runtime(about, context, exports, form)


class _Plain(nn.Module):
    """The model with tensors in and one tensor out, as an ONNX graph has them."""

    def __init__(self, model: nn.Module, names: list[str], settings: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.settings = model, names, settings

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        if not self.names:
            return logits_of(self.model(*tensors, **self.settings))
        return logits_of(self.model(**dict(zip(self.names, tensors, strict=True)), **self.settings))


class Exports:
    """One ONNX file for each case and form (float32, dynamic int8, static int8), made when it is first asked for."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._made: dict[tuple[str, str], Path] = {}

    def feeds(self, work: Work) -> list[dict[str, np.ndarray]]:
        return [_feed(self._model, batch, work) for batch in work.inputs]

    def file(self, work: Work, form: str) -> Path:
        key = (work.case.name, form)
        if key not in self._made:
            path = self._folder / f"{len(self._made)}-{form}.onnx"
            with _silence():
                if form == "float32":
                    self._export(work, path)
                else:
                    self._quantize(self.file(work, "float32"), path, form, work)
            self._made[key] = path
        return self._made[key]

    def bytes(self, work: Work, form: str) -> int:
        """Of the graph and of the weights file beside it."""
        path = self.file(work, form)
        return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))

    def _export(self, work: Work, path: Path) -> None:
        args, keywords = bind(self._model, work.inputs[0], _settings(work))
        names = [key for key, value in keywords.items() if isinstance(value, torch.Tensor)]
        settings = {key: value for key, value in keywords.items() if key not in names}
        tensors = tuple(keywords[key] for key in names) if names else args
        given = names or [f"input_{i}" for i in range(len(args))]
        torch.onnx.export(
            _Plain(self._model, names, settings).eval(), tensors, str(path), dynamo=True, input_names=given, output_names=["out"], verbose=False,
        )  # fmt: skip

    def _quantize(self, source: Path, path: Path, form: str, work: Work) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

        if form == "dynamic":
            quantize_dynamic(str(source), str(path), weight_type=QuantType.QInt8, per_channel=True)
            return
        quantize_static(
            str(source), str(path), _Reader(self.feeds(work)), per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8
        )  # fmt: skip


def _Reader(feeds: list[dict[str, np.ndarray]]) -> Any:
    """The calibration data as onnxruntime wants it."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    return Reader()


class _Graph(Contender):
    """A contender that runs an ONNX graph of fixed shapes, one at a time."""

    PACKAGES: tuple[str, ...] = ("onnx", "onnxscript")

    def __init__(self, about: speed_schema.Contender, context: BuildContext, exports: Exports, form: str) -> None:
        super().__init__(about, context.subject.base)
        self._exports, self._form, self._threads = exports, form, context.threads
        self._case = ""
        self._run: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None

    def begin(self, work: Work) -> Begin:
        if work.case.what == "decode":
            raise Unavailable("its graph is exported without a cache of keys and values: decoding is not timed")
        feeds = cycle(self._exports.feeds(work))

        def begin() -> Step:
            assert self._run is not None
            run = self._run
            run(next(feeds))
            return lambda: run(next(feeds))

        return begin

    def prepare(self, work: Work) -> None:
        if self._case != work.case.name:
            self._run = None
            self._run = self._open(self._exports.file(work, self._source()))
            self._case = work.case.name
            self.about.file_bytes = self._exports.bytes(work, self._source())
        super().prepare(work)

    def output(self, work: Work) -> torch.Tensor:
        assert self._run is not None
        return torch.from_numpy(np.array(self._run(self._exports.feeds(work)[0]), dtype=np.float32))

    def close(self) -> None:
        self._run = None

    def _source(self) -> str:
        """The form of the file it reads."""
        return "float32" if self._form == "bfloat16" else self._form

    def _open(self, path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        raise NotImplementedError


class OnnxRuntime(_Graph):
    PACKAGES = ("onnxruntime", *_Graph.PACKAGES)

    def _open(self, path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Its threads spin between calls: they must not take the processor from whoever comes next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(None, feed)[0]


class OpenVino(_Graph):
    PACKAGES = ("openvino", *_Graph.PACKAGES)

    def _open(self, path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
        import openvino

        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if self._form == "bfloat16" else "f32",
        }
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        request = compiled.create_infer_request()
        return lambda feed: request.infer(feed)[0]


def _settings(work: Work) -> dict[str, Any]:
    return {"use_cache": False, "logits_to_keep": 1} if work.case.what == "prefill" else {}


def _feed(model: nn.Module, batch: Batch, work: Work) -> dict[str, np.ndarray]:
    args, keywords = bind(model, batch, _settings(work))
    tensors = {key: value for key, value in keywords.items() if isinstance(value, torch.Tensor)}
    tensors = tensors or {f"input_{i}": value for i, value in enumerate(args)}
    return {key: value.contiguous().numpy() for key, value in tensors.items()}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Exporters print what no user of a bench wants to read; their errors still come through as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
