"""Does the model take the data at all, and answer with numbers? Found out before any training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from winnow.data.records import Records, map_tensors, tensor_items
from winnow.errors import InputError, WinnowError
from winnow.measure.feed import call, evaluating, logits_of

FEW = 256  # records looked at


@contextmanager
def fitting(batch: Any, what: str) -> Iterator[None]:
    """Turns an error of the model (or loss) about a batch into one sentence that names the batch's shape.

    ``what`` data it is: "training" or "evaluation". The original error stays as the cause; want of memory, and an error
    without a batch to blame, pass as they are.
    """
    try:
        yield
    except (WinnowError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = [
            list(t.shape) for t in tree_leaves(dict(batch) if hasattr(batch, "keys") else batch) if torch.is_tensor(t)
        ]
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200].rstrip(". ")
        raise InputError(
            f"the model cannot take the {what} data, whose first batch is {' and '.join(map(str, shapes)) or 'no tensor'} "
            f"({why}): give data of the shape that it takes, or another model."
        ) from error


def check_held_out(model: nn.Module, records: Records) -> None:
    """Tensors to evaluate on: the model takes them, and puts out no NaN for those that hold NaN or infinity.

    Raises:
        InputError: it does not, or it does.
    """
    if records.kind != "tensors":
        return
    with evaluating(model), fitting(_first(records, [0, 1]), "evaluation"):
        call(model, _first(records, [0, 1]))
    real = [t for t in tensor_items(records.inputs).values() if t.is_floating_point()]
    odd = torch.zeros(len(records), dtype=torch.bool)
    for tensor in real:
        odd |= ~torch.isfinite(tensor).reshape(len(records), -1).all(1).cpu()
    if not odd.any():
        return
    with evaluating(model):
        logits = logits_of(call(model, _first(records, odd.nonzero().reshape(-1)[:FEW].tolist())))
    if not bool(torch.isfinite(logits).all()):  # a model may know what to do with NaN
        raise InputError(
            f"{records.name}: {int(odd.sum()):,} of {len(records):,} records to evaluate on hold NaN or infinity, and so do the "
            "model's answers: remove those records, or fill them in."
        )


def _first(records: Records, numbers: list[int]) -> Any:
    index = torch.tensor([n for n in numbers if n < len(records)])
    return map_tensors(records.inputs, lambda tensor: tensor[index])
