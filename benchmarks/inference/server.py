"""The serving side of whole_models.py: one model in one process, loaded in one way, timed as asked.

python -m benchmarks.inference.server       # reads requests, a JSON object a line, from whole_models.py
"""

from __future__ import annotations

import gc
import importlib
import time
from collections import Counter
from typing import Any

from benchmarks import turns

POINTS = {
    "llama": [("decode", 1, 32)],
    "minilm": [("encode", b, length) for b in (1, 8) for length in (32, 128, 256)],
    "vit": [("images", b, 32) for b in (1, 8)],
    "mobilenet": [("images", b, 224) for b in (1, 8)],
}


def _expected(model: str) -> dict[str, Any]:
    """What ``accelerate`` is told about the calls to come."""
    import torch

    points = POINTS[model]
    if points[0][0] == "images":
        return {"rows": 1, "example": torch.zeros(1, 3, points[0][2], points[0][2])}
    return {"rows": sorted({1 if do == "decode" else batch * length for do, batch, length in points} | {points[0][2]})}


def _freeze(model: Any) -> None:
    """Every linear layer runs oneDNN's product on weights packed beforehand: what compiling and freezing makes of it.

    The plain product packs float32 weights at every call and is slow on a single row in bfloat16, so that a dense model
    as it is loaded is no fair baseline.
    """
    import torch

    pack, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise.default

    class Frozen(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.packed, self.bias = pack(linear.weight.detach()), linear.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return product(x, self.packed, self.bias, "none", [], "")

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(module, name, Frozen(child))


class Model:
    """The serving side: loads one model in one of the ways, and times what it is asked for."""

    def __init__(self) -> None:
        self._model: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        with torch.inference_mode():
            if request["do"] == "load":
                return self._load(request["model"], request["how"], request["source"])
            times = getattr(self, "_" + request["do"])(request["batch"], request["length"], request["seconds"])
        return times | turns.memory()

    def _load(self, name: str, how: str, source: str) -> dict[str, Any]:
        """``how``: "float32" or "bfloat16" (dense), "frozen" before it (packed for oneDNN), "packed", "accelerated"."""
        import torch
        import transformers

        import winnow
        from winnow.machine.memory import reset_peak

        getattr(transformers, "AutoModelForCausalLM")  # noqa: B009 - lazy modules, imported off the clock
        factory = source if ":" in source else "benchmarks.adapters:mobilenet" if name == "mobilenet" else None
        gc.collect()
        reset_peak()
        before = turns.memory()["rss"]
        began = time.perf_counter()
        if how in ("packed", "accelerated"):
            model = winnow.load(source, factory=factory, packed=True)
            if how == "accelerated":
                model = winnow.accelerate(model, **_expected(name))
        elif factory:
            module, _, function = factory.partition(":")
            model = getattr(importlib.import_module(module), function)().to(getattr(torch, how.split()[-1]))
        else:
            kind = {
                "llama": "AutoModelForCausalLM", "minilm": "AutoModelForSequenceClassification",
                "vit": "AutoModelForImageClassification",
            }[name]  # fmt: skip
            model = getattr(transformers, kind).from_pretrained(source, dtype=getattr(torch, how.split()[-1]))
        self._model = model.eval()
        if how.startswith("frozen"):
            _freeze(model)
        seconds = time.perf_counter() - began
        after = turns.memory()
        decisions = getattr(model, "winnow_dispatch", None)
        runs_on = Counter(line["runs on"] for line in decisions.table()) if decisions is not None else {}
        return {"load": seconds, "added": after["rss"] - before, "added_peak": after["peak"] - before, "on": runs_on}

    def _decode(self, batch: int, length: int, seconds: float) -> dict[str, Any]:
        """``generate`` on a prompt of ``length`` tokens: time to the first token, and between tokens after it."""
        import torch

        class Clock:
            def __init__(self) -> None:
                self.at: list[float] = []

            def put(self, value: Any) -> None:
                self.at.append(time.perf_counter())

            def end(self) -> None:
                pass

        first, between, began = [], [], time.perf_counter()
        ids = torch.arange(1, length + 1).repeat(batch, 1)

        def enough(ids: Any, scores: Any) -> Any:
            late = len(clock.at) > 4 and time.perf_counter() - start > max(seconds, 1.0)  # a slow one stops early
            return torch.full((len(ids),), late)

        while not between or time.perf_counter() - began < seconds:
            clock, start = Clock(), time.perf_counter()
            self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, min_new_tokens=24, do_sample=False,
                streamer=clock, pad_token_id=0, stopping_criteria=[enough],
            )  # fmt: skip
            first.append(clock.at[1] - start)  # the first call of the streamer brings the prompt
            between += [b - a for a, b in zip(clock.at[1:], clock.at[2:])]
        return {"first": first, "seconds": between}

    def _encode(self, batch: int, length: int, seconds: float) -> dict[str, Any]:
        import torch

        ids = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))
        return self._repeat(lambda: self._model(input_ids=ids, attention_mask=torch.ones_like(ids)), seconds)

    def _images(self, batch: int, length: int, seconds: float) -> dict[str, Any]:
        import torch

        dtype = next(p.dtype for p in self._model.parameters() if p.is_floating_point())
        images = torch.randn(batch, 3, length, length, generator=torch.Generator().manual_seed(0)).to(dtype)
        return self._repeat(lambda: self._model(images), seconds)

    def _repeat(self, call: Any, seconds: float) -> dict[str, Any]:
        call()
        times, began = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return {"seconds": times}


if __name__ == "__main__":
    turns.serve(Model().answer)  # threads and waiting policy are in the environment already
