"""What the weights files of a folder are called.

Dense weights have the names that transformers looks for. Packed ones have names of their own: whoever does not know winnow finds no
weights and says so, where it would take packed tensors for missing ones and start with random weights.
"""

from __future__ import annotations

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PACKED_WEIGHTS, PACKED_INDEX = "model.winnow.safetensors", "model.winnow.safetensors.index.json"
# The file's name as config.json gives it to a transformers without winnow, which refuses it with these words; with winnow
# the quantizer puts the real name in its place.
NEEDS_WINNOW = f"{PACKED_WEIGHTS} is packed, run pip install winnow-nn and import winnow before loading it"


def shard_name(number: int, count: int, *, packed: bool) -> str:
    """Name of the ``number``-th (from 1) of ``count`` weights files."""
    stem = (PACKED_WEIGHTS if packed else WEIGHTS).removesuffix(".safetensors")
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"
