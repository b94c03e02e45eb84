"""Statistics of what a convolution multiplies: its windows, in the column order of its weight matrix."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch.nn.modules.conv import _ConvNd

from winnow.calibrate.statistics import InputStats, update_stacked

# Elements unfolded at once (64 MB in float32).
CHUNK = 1 << 24


def _padded(conv: _ConvNd, x: torch.Tensor) -> torch.Tensor:
    pads = conv._reversed_padding_repeated_twice  # also resolves padding="same"
    if not any(pads):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, pads, mode=mode)


def windows(conv: _ConvNd, x: torch.Tensor) -> torch.Tensor:
    """The windows of an already padded input [B, C, *size], as a view [B, C, *out, *kernel]."""
    out, strides, steps = [], [], []
    for d, (size, kernel, stride, dilation) in enumerate(
        zip(x.shape[2:], conv.kernel_size, conv.stride, conv.dilation)
    ):
        out.append((size - dilation * (kernel - 1) - 1) // stride + 1)
        strides.append(x.stride(2 + d) * stride)
        steps.append(x.stride(2 + d) * dilation)
    return x.as_strided(
        (*x.shape[:2], *out, *conv.kernel_size), (x.stride(0), x.stride(1), *strides, *steps), x.storage_offset()
    )


def update_windows(stats: list[InputStats], conv: _ConvNd, x: torch.Tensor) -> None:
    """Add the windows of ``x`` [B, C, *size] (or [C, *size]) to one statistics a group.

    A row is one output position, the columns are (channel of the group, *kernel), as weight.reshape(rows, cols).
    """
    dims = len(conv.kernel_size)
    x = x.unsqueeze(0) if x.dim() == dims + 1 else x
    x = _padded(conv, x if x.dtype == torch.float64 else x.float())
    if stats[0].gram is None:
        _sums(stats, conv, windows(conv, x))
        return
    groups, cols = len(stats), stats[0].cols
    view = windows(conv, x)
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
