"""Ordinary forward passes that stop at chosen modules and wait there: one thread a batch, only one ever runs."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

# Above this many threads in all, each waiting pass gets one (OpenMP keeps a pool for every thread that asks).
POOL_LIMIT = 64


class _Halt(BaseException):
    """Ends a suspended pass; no model's `except Exception` catches it."""


_here = threading.local()


class SuspendedPass:
    """A model's own forward on one batch, handed from stop to stop by the thread that drives it.

    After :meth:`start` or :meth:`resume` the pass either waits at a stop (``stop`` and ``call`` are set) or
    is ``finished``. Whatever the model does between the stops (masks, rotary tables, position biases, cross
    attention) happens in the pass itself, so the driver needs to know nothing about it.
    """

    def __init__(self, forward: Callable[[], object], threads: int) -> None:
        self.stop: Any = None  # what `stopping_at` was given for the module that was reached
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.finished = False
        self._forward = forward
        self._threads = threads
        self._output: Any = None
        self._error: BaseException | None = None
        self._halted = False
        self._to_driver = threading.Semaphore(0)
        self._to_pass = threading.Semaphore(0)
        context = contextvars.copy_context()
        autocast = [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
        self._thread = threading.Thread(target=context.run, args=(self._run, autocast), daemon=True)

    def start(self) -> None:
        """Run until the first stop. Raises what the model raises."""
        threads = torch.get_num_threads()
        self._thread.start()
        try:
            self._to_driver.acquire()
        finally:
            if threads != self._threads:
                torch.set_num_threads(threads)
        self._reraise()

    def resume(self, output: object) -> None:
        """Return ``output`` from the module the pass waits at, and run until the next stop."""
        self._output, self.call, self.stop = output, ((), {}), None
        del output
        self._to_pass.release()
        self._to_driver.acquire()
        self._reraise()

    def halt(self, timeout: float = 10.0) -> None:
        """End the pass where it is. One that is running ends at its next stop."""
        self._halted = True
        self._to_pass.release()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self.call, self._output = ((), {}), None

    def _reraise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, autocast: list[tuple[str, torch.dtype]]) -> None:
        _here.current = self
        try:
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                for device, dtype in autocast:
                    stack.enter_context(torch.autocast(device, dtype))
                self._forward()
        except _Halt:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.finished, self.stop, self.call = True, None, ((), {})
            self._to_driver.release()

    def _arrive(self, stop: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._halted:
            self.stop, self.call = stop, (args, kwargs)
            del args, kwargs
            self._to_driver.release()
            self._to_pass.acquire()
        if self._halted:
            raise _Halt
        output, self._output = self._output, None
        return output


@contextmanager
def stopping_at(stops: Mapping[nn.Module, Any]) -> Iterator[dict[nn.Module, Callable[..., Any]]]:
    """Make the forwards of these modules stop a :class:`SuspendedPass`; yields their real forwards.

    Called from anywhere else the modules work as before. The patch is an instance attribute, taken away at the end.
    """
    originals: dict[nn.Module, Callable[..., Any]] = {}
    own = {module: module.__dict__.get("forward") for module in stops}
    try:
        for module, stop in stops.items():
            originals[module] = module.forward
            module.forward = _stopping(module.forward, stop)  # type: ignore[method-assign]
        yield originals
    finally:
        for module, forward in own.items():
            if forward is not None:
                module.forward = forward  # type: ignore[method-assign]
            else:
                module.__dict__.pop("forward", None)


def _stopping(forward: Callable[..., Any], stop: Any) -> Callable[..., Any]:
    def stopping(*args: Any, **kwargs: Any) -> Any:
        current = getattr(_here, "current", None)
        return forward(*args, **kwargs) if current is None else current._arrive(stop, args, kwargs)

    return stopping


def pool_size(passes: int) -> int:
    """Threads each of so many waiting passes may use for its own small operations."""
    threads = torch.get_num_threads()
    return threads if passes * threads <= POOL_LIMIT else 1
