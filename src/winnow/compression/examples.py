"""Classes and examples whose answers changed, as rows of a report."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch

from winnow.data.records import first_tensor
from winnow.measure.compare import changed_examples, class_changes
from winnow.measure.evaluation import Evaluation
from winnow.measure.task import Task
from winnow.records.compression import ChangedExample, ClassQuality

EXAMPLES = 8  # changed answers shown


def class_rows(task: Task | None, before: Evaluation | None, after: Evaluation | None) -> list[ClassQuality]:
    """Accuracy by class; none where there are no classes, or nothing was measured."""
    if before is None or after is None or task is None or task.metric != "accuracy":
        return []
    rows = class_changes(before, after)
    return [ClassQuality(name=r["name"], n=r["n"], dense=100 * r["before"], pruned=100 * r["after"]) for r in rows]


def changed_rows(task: Task | None, before: Evaluation | None, after: Evaluation | None) -> list[ChangedExample]:
    """The first ``EXAMPLES`` answers that changed; none where nothing was measured."""
    if before is None or after is None or task is None:
        return []
    return [
        ChangedExample(
            input=r["input"] or f"example {r['index']}",
            truth=r["truth"],
            dense=r["dense"],
            pruned=r["pruned"],
            image=_image_of(task, r["index"]) if r["input"] is None else None,
        )
        for r in changed_examples(task, before, after, k=EXAMPLES)
    ]


def _image_of(task: Task, index: int) -> str | None:
    """A changed image as a data URI of at most 96 pixels a side; None for inputs that are not images."""
    records = getattr(task, "records", None)
    if records is None or records.kind not in ("images", "tensors"):
        return None
    pixels = records.inputs[index] if records.kind == "images" else first_tensor(records.inputs)[index]
    if isinstance(pixels, torch.Tensor) and pixels.is_floating_point():
        pixels = pixels.float()  # numpy does not know bfloat16
    array = np.asarray(pixels)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3)) or max(array.shape[:2]) > 1024:
        return None
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = ((array - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    from PIL import Image as Picture

    buffer = io.BytesIO()
    picture = Picture.fromarray(array.squeeze())
    picture.thumbnail((96, 96))
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
