"""The native kernels: which are there, which one runs, and torch's own threads handed over to them.

Without the extension (no compiler when winnow was installed) everything runs on :mod:`winnow.kernels.reference`, and one
warning says so.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from winnow.errors import InputError

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


@lru_cache(maxsize=1)
def load_extension() -> Any:
    """The extension module, None where it was not built."""
    try:
        from winnow.kernels import _native  # type: ignore[attr-defined]
    except ImportError as error:
        warnings.warn(
            f"winnow runs packed weights on slow PyTorch code, because its native kernels are missing ({error}): "
            "install a C++ compiler and CMake, then pip install --force-reinstall --no-deps winnow-nn",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    _share_threads(_native)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_alone)
    return _native


def _alone() -> None:
    """In a forked child: one thread for torch, as its own DataLoader does in its workers.

    A fork copies no threads, and an OpenMP loop waits for ever for those that the parent had. The kernels start threads
    of their own in a child (``native/threads.cpp``); the products that torch computes beside them must not ask for any.
    """
    torch.set_num_threads(1)


def _share_threads(extension: Any) -> None:
    """Run the kernels on the OpenMP threads that torch has already: a second pool would fight with them."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    except OSError:  # not Linux: the kernels have a pool of their own
        return
    # torch's wheels bring their own copy; it is the one whose threads torch's operators use.
    for path in sorted(paths, key=lambda path: "torch" not in path):
        try:
            entry = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        extension.use_openmp(ctypes.cast(entry, ctypes.c_void_p).value)
        return


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Inside, torch runs on ``count`` threads (None: as many as before); gives how many these are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def available() -> bool:
    """Whether the native kernels are there."""
    return load_extension() is not None


def build() -> str:
    """Which build of the extension this is: timings of another one say nothing about it. Empty without the extension."""
    if not available():
        return ""
    file = os.stat(load_extension().__file__)
    return f"{file.st_size}-{file.st_mtime_ns}"


def isas() -> list[str]:
    """Instruction paths this build has and this processor runs, slowest first; empty without the extension."""
    extension = load_extension()
    return list(extension.isas()) if extension is not None else []


def isa() -> str:
    """The instruction path in use: the best one, or the one that the environment variable WINNOW_ISA names.

    Raises InputError where WINNOW_ISA names one that this processor or build has not.
    """
    return kernels().name if available() else "reference"


def kernels() -> Any:
    """The table of native functions in use. Raises InputError for an unknown WINNOW_ISA."""
    return _kernels(os.environ.get("WINNOW_ISA"))


@lru_cache(maxsize=8)
def _kernels(requested: str | None) -> Any:
    usable = isas()
    if requested is None:
        requested = usable[-1]
    elif requested not in usable:
        raise InputError(f"WINNOW_ISA={requested} is not available here: use one of {', '.join(usable)}")
    return load_extension().kernels(requested)


def fill_starts(view: Any, starts: torch.Tensor) -> bool:
    """Fill ``starts`` (int32 holding uint32, [rows + 1]); False where index and values do not agree."""
    return load_extension().starts(view, starts.data_ptr())


def linear(
    view: Any, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, int8_activations: bool = False
) -> None:
    """y [batch, rows] = x [batch, cols] W^T (+ bias); x and y of one type, rows of x contiguous, bias float32."""
    load_extension().linear(*_product(view, x, bias, y), int8_activations, torch.get_num_threads())


def linear_many(view: Any, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """What :func:`linear` computes, by the feature-major kernels with float32 sums: for many rows of x."""
    load_extension().linear_many(*_product(view, x, bias, y), torch.get_num_threads())


def _product(view: Any, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> tuple[Any, ...]:
    return kernels(), view, *_place(x), TYPES[x.dtype], x.shape[0], _address(bias), *_place(y)


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a matrix begins, and how far its rows are apart."""
    return tensor.data_ptr(), tensor.stride(0)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def expand(view: Any, start: int, stop: int, out: torch.Tensor) -> None:
    """Rows [start, stop) dense into ``out`` [stop - start, cols]; int8 means the integer codes."""
    load_extension().expand(kernels(), view, start, stop, *_place(out), TYPES[out.dtype], torch.get_num_threads())


def times(view: Any, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """y [rows, n] = W x [cols, n] (+ bias of each row), float32, rows of x and y contiguous."""
    load_extension().times(kernels(), view, *_place(x), x.shape[1], _address(bias), *_place(y), torch.get_num_threads())


def convolve(
    view: Any, x: torch.Tensor, bias: torch.Tensor | None, geometry: Iterable[tuple[int, int]], y: torch.Tensor
) -> None:
    """y [N, rows, H', W'] = the convolution of x [N, C, H, W] with the filters in the rows of the matrix (+ bias).

    Float32, contiguous, one group; ``geometry``: kernel, stride, padding, dilation, each (height, width).
    """
    sizes = [*x.shape, *y.shape[2:], *(size for pair in geometry for size in pair)]
    load_extension().convolve(
        kernels(), view, x.data_ptr(), sizes, _address(bias), y.data_ptr(), torch.get_num_threads()
    )
