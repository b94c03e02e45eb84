"""Whether a shrunk model computes what the given one computes: both are run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from winnow.coupled.call import ERRORS, crop_example, forward, probing_mode, tensors_in
from winnow.errors import InputError
from winnow.masks.unwrap import working_copy
from winnow.shrinking.rebuild import apply

SMALL = 1 << 27  # weights of a model that is checked in float64
# Largest difference, relative to the largest output: float64 runs keep float32 islands (norms, softmax, rotary tables).
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}


class Check:
    """Runs the given model once and every smaller one on the same input."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        """Raises InputError when the model cannot run on the example."""
        self.model, self.example = model, crop_example(example)
        try:
            self.outputs = self._run(model)
        except ERRORS:
            self.example = example
            try:
                self.outputs = self._run(model)
            except ERRORS as error:
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                raise InputError(
                    f"the model cannot be run on the example: give what its forward takes ({why})"
                ) from error
        if sum(p.numel() for p in model.parameters()) <= SMALL:
            with suppress(*ERRORS):
                self._to_double()
        self.dtype = next((t.dtype for t in self.outputs), torch.float32)

    def _to_double(self) -> None:
        double, example = working_copy(self.model).double(), _double(self.example)
        with probing_mode(double), torch.no_grad():
            outputs = tensors_in(forward(double, example))
        self.model, self.example, self.outputs = double, example, outputs

    def _run(self, model: nn.Module) -> list[torch.Tensor]:
        with probing_mode(model), torch.no_grad():
            return tensors_in(forward(model, self.example))

    def reason(self, plan: Mapping[str, Any]) -> str:
        """Why the model that a plan makes is not the given one; empty where it is."""
        try:
            outputs = self._run(apply(self.model, plan))
        except ERRORS as error:  # InputError is a ValueError
            return f"without them the model does not run ({type(error).__name__}: {error})".splitlines()[0]
        if [t.shape for t in outputs] != [t.shape for t in self.outputs]:
            return "without them the model's outputs have another shape"
        for new, old in zip(outputs, self.outputs):
            if not torch.equal(new.isnan(), old.isnan()):
                return "without them the model puts out NaN elsewhere"
            new, old = (t.double().nan_to_num(0.0) for t in (new, old))
            worst = float((new - old).abs().max()) if old.numel() else 0.0
            scale = float(old.abs().max()) if old.numel() else 0.0
            if worst > TOLERANCE.get(self.dtype, 1e-4) * scale:
                return f"without them the model's outputs differ (by {worst:.2g} of {scale:.2g})"
        return ""


def _double(example: Any) -> Any:
    if isinstance(example, Mapping):
        return {k: _double(v) for k, v in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(map(_double, example))
    return example.double() if isinstance(example, torch.Tensor) and example.is_floating_point() else example
