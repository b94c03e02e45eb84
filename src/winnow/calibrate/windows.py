"""Statistics of what a convolution multiplies: its windows, in the column order of its weight matrix."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from winnow.inputs import InputStats, update_stacked

# Elements unfolded at once (64 MB in float32).
CHUNK = 1 << 24


def _padded(conv: _ConvNd, x: torch.Tensor) -> torch.Tensor:
    pads = conv._reversed_padding_repeated_twice  # also resolves padding="same"
    if not any(pads):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, pads, mode=mode)


def spread(conv: _ConvTransposeNd, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
    """The input of the ordinary convolution with stride 1 and a flipped kernel that equals a transposed one.

    ``stride`` - 1 zeros stand between the entries of ``x`` [B, C, *size], and dilation * (kernel - 1) - padding around
    them (Dumoulin and Visin 2016, relationship 14).
    """
    dims = len(conv.kernel_size)
    padding = [int(p) for p in conv.padding]
    extra = conv._output_padding(
        x, output_size, list(conv.stride), padding, list(conv.kernel_size), dims, list(conv.dilation)
    )
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], conv.stride)]
    wide = x.new_zeros((*x.shape[:2], *sizes))
    wide[(..., *(slice(None, None, s) for s in conv.stride))] = x  # type: ignore[index]
    pads: list[int] = []
    for k, d, p, more in reversed(list(zip(conv.kernel_size, conv.dilation, padding, extra))):
        around = d * (k - 1) - p
        pads += [around, around + more]
    return F.pad(wide, pads)


def windows(conv: _ConvNd, x: torch.Tensor) -> torch.Tensor:
    """The windows of an already padded (or spread) input [B, C, *size], as a view [B, C, *out, *kernel].

    Those of a transposed convolution run backwards in the kernel's dimensions.
    """
    out, strides, steps = [], [], []
    moves = (1,) * len(conv.kernel_size) if isinstance(conv, _ConvTransposeNd) else conv.stride
    for d, (size, kernel, stride, dilation) in enumerate(zip(x.shape[2:], conv.kernel_size, moves, conv.dilation)):
        out.append((size - dilation * (kernel - 1) - 1) // stride + 1)
        strides.append(x.stride(2 + d) * stride)
        steps.append(x.stride(2 + d) * dilation)
    return x.as_strided(
        (*x.shape[:2], *out, *conv.kernel_size), (x.stride(0), x.stride(1), *strides, *steps), x.storage_offset()
    )


def update_windows(
    stats: list[InputStats], conv: _ConvNd, x: torch.Tensor, output_size: list[int] | None = None
) -> None:
    """Add the windows of ``x`` [B, C, *size] (or [C, *size]) to one statistics a group.

    A row is one output position, the columns are (channel of the group, *kernel), as in the weight's matrix.
    ``output_size`` is what a transposed convolution was called with.
    """
    dims = len(conv.kernel_size)
    x = x.unsqueeze(0) if x.dim() == dims + 1 else x
    x = x if x.dtype == torch.float64 else x.float()
    if isinstance(conv, _ConvTransposeNd):
        view = windows(conv, spread(conv, x, output_size)).flip(tuple(range(2 + dims, 2 + 2 * dims)))
    else:
        view = windows(conv, _padded(conv, x))
    if stats[0].gram is None:
        _sums(stats, conv, view)
        return
    groups, cols = len(stats), stats[0].cols
    positions = torch.Size(view.shape[2 : 2 + dims]).numel()
    batch = max(1, CHUNK // max(1, positions * cols * groups))
    band = max(1, CHUNK // max(1, positions // view.shape[2] * cols * groups)) if batch == 1 else view.shape[2]
    for images in view.split(batch):
        for part in images.split(band, dim=2):  # a very large image goes in bands of output rows
            n = part.shape[0] * torch.Size(part.shape[2 : 2 + dims]).numel()
            part = part.unflatten(1, (groups, -1))  # [B, G, C/G, *out, *kernel]
            order = [1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims)]
            update_stacked(stats, part.permute(order).reshape(groups, n, cols))


def _sums(stats: list[InputStats], conv: _ConvNd, view: torch.Tensor) -> None:
    """Without a Gram matrix nothing need be unfolded: one strided sum for each place in the kernel."""
    dims = len(conv.kernel_size)
    over = [0, *range(2, 2 + dims)]
    groups = len(stats)
    for at in itertools.product(*(range(k) for k in conv.kernel_size)):
        place = view[(..., *at)]  # type: ignore[index]
        column = 0
        for size, index in zip(conv.kernel_size, at):
            column = column * size + index
        sums, squares = place.sum(over).double(), place.square().sum(over).double()
        kernel = torch.Size(conv.kernel_size).numel()
        for g, (s, q) in enumerate(zip(sums.view(groups, -1), squares.view(groups, -1))):
            stats[g].sum[column::kernel] += s
            stats[g].sum_sq[column::kernel] += q
    n = view.shape[0] * torch.Size(view.shape[2 : 2 + dims]).numel()
    for s in stats:
        s.tokens += n
