"""Data of any form: opened, split without overlap, and turned into calibration batches."""

from winnow.data.open import open_data
from winnow.data.records import Records
from winnow.data.split import disjoint, overlap, passages, split_disjoint
from winnow.data.text import calibration_batches, lm_segments

__all__ = [
    "Records",
    "calibration_batches",
    "disjoint",
    "lm_segments",
    "open_data",
    "overlap",
    "passages",
    "split_disjoint",
]
