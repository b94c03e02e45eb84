"""What of a model's output is compared: logits where it has them, features where it has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves

from winnow.errors import InputError
from winnow.forward.batch import first_tensor
from winnow.forward.padding import DROP_MASKS, KEEP_MASKS

Kind = Literal["logits", "features"]

# What stands in an output beside its result: other layers, other halves, caches, and a loss made of labels.
_BESIDE = {"loss", "hidden_states", "attentions", "cross_attentions", "past_key_values", "pooler_output", "mems"}


@dataclass(frozen=True)
class Outputs:
    """Values [examples, ..., features], float32 (float64 stays), and which of their rows count.

    ``counts`` is bool [examples, ...], None for all rows. ``parts`` are the widths of tensors that were joined along
    the features, each compared on its own scale; empty for one tensor.
    """

    values: torch.Tensor
    counts: torch.Tensor | None = None
    kind: Kind = "logits"
    parts: tuple[int, ...] = ()

    def rows(self) -> torch.Tensor:
        """The rows that count, [rows, features], examples in order: whole examples, or their positions."""
        if self.counts is None:
            return self.values.reshape(-1, self.values.shape[-1])
        return self.values[self.counts]


def read_output(output: Any, batch: Any) -> Outputs:
    """What is compared of the ``output`` that a model gave for ``batch``.

    ====================================  ==========================================================================
    output                                values
    ====================================  ==========================================================================
    a tensor, ``.logits``, or the only    logits [B, C], [B, T, V]; [B] becomes [B, 1]; [B, C, H, W] becomes
    floating tensor of a tuple or dict    [B, H, W, C] (and so on for volumes)
    ``.start_logits``, ``.end_logits``    logits [B, 2, T], a choice among T positions each
    ``.image_embeds`` and                 features, joined; not the logits between them, which depend on the other
    ``.text_embeds``                      examples of the batch. One of the two where there are no logits.
    ``.last_hidden_state``                features [B, T, H]; pooled outputs and other layers are left alone
    ``.logits`` with ``.pred_boxes``      features: these tensors, flattened per example, joined in their order
    and other ``.pred_*``
    any other tuple, list, dict           features: all floating tensors in their order, nested ones too, flattened
                                          per example and joined
    ====================================  ==========================================================================

    Padded positions do not count: the batch's ``attention_mask`` (torch's key padding masks; the decoder's, where the
    batch has inputs for a decoder) and labels of -100 say which. Tensors [T, B, C] (time first) are turned round.

    Raises:
        InputError: the output holds no floating-point tensor.
    """
    if torch.is_tensor(output):
        found = [output] if _usable(output) else []
        return _logits(_only(found, output), batch)
    named = _named(output)
    tensors = {name: value for name, value in named.items() if _usable(value)}
    towers = [tensors[name] for name in ("image_embeds", "text_embeds") if name in tensors]
    if len(towers) == 2:
        return _joined(towers)
    logits = tensors.get("logits")
    if logits is not None:
        predictions = [value for name, value in tensors.items() if name.startswith("pred_")]
        return _joined([logits, *predictions]) if predictions else _logits(logits, batch)
    if "start_logits" in tensors and "end_logits" in tensors:
        return _span(tensors["start_logits"], tensors["end_logits"], batch)
    if towers:
        return Outputs(_float(towers[0]), None, "features")
    hidden = tensors.get("last_hidden_state")
    if hidden is not None:
        values = _class_last(_batch_first(_float(hidden), batch))
        return Outputs(values, _counts(values, batch), "features")
    own = [
        v
        for n, v in named.items()
        if n not in _BESIDE and not n.startswith(("encoder_", "decoder_hidden", "decoder_att"))
    ]
    found = [leaf for leaf in tree_leaves(own) if _usable(leaf)]
    return _logits(_only(found, output), batch) if len(found) < 2 else _joined(found)


def _logits(tensor: torch.Tensor, batch: Any) -> Outputs:
    values = _float(tensor)
    if values.ndim == 1:
        return Outputs(values[:, None])
    values = _class_last(_batch_first(values, batch))
    return Outputs(values, _counts(values, batch))


def _span(start: torch.Tensor, end: torch.Tensor, batch: Any) -> Outputs:
    values = torch.stack([_float(start), _float(end)], 1)
    counts = _counts(values.transpose(1, 2), batch)
    # A padded position is no choice; its logit must not matter, and stay finite.
    return Outputs(values if counts is None else values.masked_fill(~counts[:, None], -1e4))


def _joined(tensors: Sequence[torch.Tensor]) -> Outputs:
    rows = len(tensors[0])
    if any(len(t) != rows for t in tensors):
        rows = 1  # not one row an example: compared as a whole
    flat = [_float(t).reshape(rows, -1) for t in tensors]
    return Outputs(torch.cat(flat, -1), None, "features", tuple(t.shape[1] for t in flat))


def _float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _usable(value: Any) -> bool:
    return torch.is_tensor(value) and value.is_floating_point() and value.ndim > 0 and value.numel() > 0


def _named(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, (tuple, list)):
        return {str(i): value for i, value in enumerate(output)}
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def _only(found: Sequence[torch.Tensor], output: Any) -> torch.Tensor:
    if not found:
        what = (
            "a tensor without rows of floating-point values" if torch.is_tensor(output) else "no floating-point tensor"
        )
        raise InputError(
            f"the model's output ({type(output).__name__}) holds {what} that could be compared: "
            "have its forward return logits or hidden states, one row an example."
        )
    return found[0]


def _class_last(values: torch.Tensor) -> torch.Tensor:
    return values.movedim(1, -1) if values.ndim > 3 else values


def _batch_first(values: torch.Tensor, batch: Any) -> torch.Tensor:
    first = first_tensor(batch)
    count = None if first is None else len(first)
    return values.transpose(0, 1) if values.ndim == 3 and values.shape[0] != count == values.shape[1] else values


def _counts(values: torch.Tensor, batch: Any) -> torch.Tensor | None:
    """Which positions of [B, T, ...] count, bool [B, T], by the masks of the batch that have this shape."""
    if not isinstance(batch, Mapping) or values.ndim != 3:
        return None
    role = "decoder" if any(name == "tgt" or name.startswith("decoder_") for name in batch) else "main"
    found = None
    for names, padded in ((KEEP_MASKS, False), (DROP_MASKS, True)):
        for name in (n for n, r in names.items() if r == role):
            mask = batch.get(name)
            if found is None and torch.is_tensor(mask) and mask.shape == values.shape[:2]:
                found = (mask == 0) if padded else (mask != 0)
    labels = batch.get("labels")
    if torch.is_tensor(labels) and labels.shape == values.shape[:2] and not labels.is_floating_point():
        found = (labels != -100) if found is None else found & (labels != -100).to(found.device)
    return None if found is None else found.to(values.device)
