"""Sees the matrix multiplications that read given weights, whatever module or function issues them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from winnow.errors import InputError
from winnow.forward.padding import Padding
from winnow.masks.prunable import Prunable

aten = torch.ops.aten
MULTIPLIES = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv}
REORDERS = {aten.t, aten.transpose, aten.permute, aten.sum, aten.index_add_, aten.index_add}

Found = Callable[[Prunable, range, torch.Tensor, "torch.Tensor | None"], None]


class WatchMultiplications(TorchDispatchMode):
    """While active, calls ``found(prunable, parts, x [n, cols], rows)`` for every product with a watched weight.

    Everything from ``F.linear`` to ``einsum`` ends in one of four operators; a weight operand is recognised by
    its memory, its position says which part (expert, or band of a packed projection) it is, its strides which
    way round it is stored. ``rows`` marks the tokens among the rows of ``x``: tokens gathered for an expert are
    followed through the operations that lead there, so that padding stays out. Recurrent layers end there too:
    all x_t in one product, each h_{t-1} in its own (oneDNN's LSTM, one operator, is opened: h_{t-1} is what it put
    out one step before). A weight of ``strict`` that is multiplied the other way round is an error, of another it is
    not seen.
    """

    def __init__(
        self,
        weights: Mapping[str, tuple[Prunable, torch.Tensor]],
        padding: Padding,
        found: Found,
        strict: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._strict = strict
        self._padding = padding
        self._found = found
        self._weights = [
            (p, w.data_ptr(), w.data_ptr() + w.numel() * w.element_size(), w.element_size())
            for p, w in weights.values()
        ]
        self._rows: dict[tuple[int, int, int], tuple[StorageWeakRef, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in MULTIPLIES:
            self._product(args[-2], args[-1])
        elif func.overloadpacket is aten.mkldnn_rnn_layer:
            self._lstm(args, out[0])
        if self._padding.active:
            self._follow(func.overloadpacket, args, out)
        return out

    def _lstm(self, args: tuple[Any, ...], out: torch.Tensor) -> None:
        """One direction of one layer over a whole sequence: ``args`` begin with x [T, B, in], w_ih, w_hh, two biases, h_0."""
        x, into, across, first, backwards = args[0], args[1], args[2], args[5], bool(args[7])
        first = first.reshape(1, *out.shape[1:])
        before = torch.cat([out[1:], first]) if backwards else torch.cat([first, out[:-1]])
        for weight, seen in ((into, x), (across, before)):
            self._product(seen.reshape(-1, seen.shape[-1]), weight.t())

    def _product(self, a: torch.Tensor, b: torch.Tensor) -> None:
        a = a.unsqueeze(0) if a.dim() == 1 else a
        b = b.unsqueeze(1) if b.dim() == 1 else b
        for p, start, end, size in self._weights:
            if start <= b.data_ptr() < end:
                self._seen(p, (b.data_ptr() - start) // size, b, a)
                return
            if start <= a.data_ptr() < end:  # weight @ x
                self._seen(p, (a.data_ptr() - start) // size, a.transpose(-1, -2), b.transpose(-1, -2))
                return

    def _seen(self, p: Prunable, offset: int, weight: torch.Tensor, x: torch.Tensor) -> None:
        """``weight`` is [in, out] or [n, in, out] here, ``x`` [rows, in] or [n, rows, in]."""
        into, out = weight.shape[-2:]
        flipped = weight.stride(-1) == 1 and weight.stride(-2) != 1
        straight = weight.stride(-2) == 1 and weight.stride(-1) != 1
        if into != p.cols or (flipped if not p.transposed else straight):
            if p.name not in self._strict:
                return
            raise InputError(
                f"{p.name} is multiplied the other way round than its shape suggests: leave it out with "
                f"exclude={[p.name]!r}"
            )
        part = p.numel // p.parts
        if weight.dim() == 2:
            weight, x = weight.unsqueeze(0), x.unsqueeze(0)
        rows = self.rows(x)
        for i in range(weight.shape[0]):
            first, inside = divmod(offset + i * weight.stride(0), part)
            if inside:  # the second half of a fused gate, say: its input was counted with the first
                continue
            keep = None if rows is None else rows.reshape(x.shape[0], -1)[i]
            self._found(p, range(first, first + max(1, into * out // part)), x[i], keep)

    def rows(self, x: torch.Tensor) -> torch.Tensor | None:
        """The tokens among the rows of ``x`` [..., cols], flat; None where all count."""
        if not self._padding.active or x.dim() < 2:
            return None
        known = self.known(x)
        return self._padding.rows(x) if known is None else known

    def known(self, x: torch.Tensor) -> torch.Tensor | None:
        """The same for gathered tokens only, followed here; None for any other activation."""
        entry = self._rows.get(_place(x))
        return None if entry is None or entry[0].expired() else entry[1]

    def _follow(self, op: Any, args: tuple[Any, ...], out: Any) -> None:
        sources = [a for a in args if isinstance(a, torch.Tensor) and a.dim() > 1]
        if not sources or op in REORDERS:
            return
        rows: torch.Tensor | None
        if op is aten.index and len(args[1]) == 1 and args[0].dim() == 2:
            rows = self.rows(args[0])
            rows = None if rows is None else rows[args[1][0]]
        elif op is aten.index_select and args[1] == 0 and args[0].dim() == 2:
            rows = self.rows(args[0])
            rows = None if rows is None else rows[args[2]]
        elif op is aten.repeat and args[0].dim() == 2 and args[1][1] == 1:
            rows = self.rows(args[0])
            rows = None if rows is None else rows.repeat(args[1][0])
        else:
            rows = next((r for r in map(self.known, sources) if r is not None), None)
        if rows is None:
            return
        for result in _each(out):
            if result.dim() > 1 and result.numel() // max(1, result.shape[-1]) == rows.numel():
                self._rows[_place(result)] = (StorageWeakRef(result.untyped_storage()), rows)


def _place(x: torch.Tensor) -> tuple[int, int, int]:
    return x.untyped_storage().data_ptr(), int(x.storage_offset()), x.numel() // max(1, x.shape[-1])


def _each(out: Any) -> Iterable[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return [out]
    return [o for o in out if isinstance(o, torch.Tensor)] if isinstance(out, (tuple, list)) else []
