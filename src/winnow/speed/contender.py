"""One way to run the model: how it begins a case, what one call of it is, and what it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.data.records import map_tensors
from winnow.data.text import Batch
from winnow.forward.model import forward_parameters, logits_of
from winnow.machine.memory import available_memory
from winnow.measure.latency import Begin, Step
from winnow.records import speed as speed_schema
from winnow.speed.subject import Subject
from winnow.speed.workload import Work

COMPARED = 4  # tokens whose logits are compared in decoding


class Unavailable(Exception):
    """This contender cannot run here, or cannot do this work; the message says why, and what to install."""


class Contender(ABC):
    """A way to run the model, and what is said about it.

    ``base`` names the float32 model whose outputs it should reproduce: "artifact" or "reference".
    """

    def __init__(self, about: speed_schema.Contender, base: str = "artifact") -> None:
        self.about = about
        self.base = base

    @property
    def name(self) -> str:
        return self.about.name

    @abstractmethod
    def begin(self, work: Work) -> Begin:
        """What brings it to the start of a case. Raises Unavailable where it cannot do such work."""

    @abstractmethod
    def output(self, work: Work) -> torch.Tensor:
        """What it computes for the first inputs of a case, float32."""

    def prepare(self, work: Work) -> None:
        """Once per case, untimed: compile, export, warm up."""
        step = self.begin(work)()
        step()

    @abstractmethod
    def close(self) -> None:
        """Lets its memory go."""


class TorchContender(Contender):
    """A module in memory. ``settings`` surround every first call of a case (compiler options)."""

    def __init__(
        self,
        about: speed_schema.Contender,
        model: nn.Module,
        base: str = "artifact",
        *,
        run: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(about, base)
        self.model: nn.Module | None = model
        self.decisions: dict[str, dict[int, str]] = {}  # layer -> rows of x -> kernel, of an accelerated model
        # Not "run or model": a compiled model's truth value asks for its length.
        self._run: Callable[..., Any] = model if run is None else run
        floats = (t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
        self._dtype = next(floats, torch.float32)

    def begin(self, work: Work) -> Begin:
        if work.case.what == "decode":
            return lambda: self._decoding(work)
        calls = cycle([self._bound(batch, work) for batch in work.inputs])

        def begin() -> Step:
            next(calls)()  # what ran before it used the caches
            return lambda: next(calls)()

        return begin

    @torch.inference_mode()
    def output(self, work: Work) -> torch.Tensor:
        if work.case.what == "decode":
            step = self._decoding(work)
            assert work.tokens is not None
            found = [logits_of(step()).float() for _ in range(min(COMPARED, work.tokens.shape[1]))]
            return torch.cat(found, dim=1)
        return logits_of(self._bound(work.inputs[0], work)()).float().clone()

    def close(self) -> None:
        self.model = None
        self._run = _gone

    def _bound(self, batch: Batch, work: Work) -> Callable[[], Any]:
        """One forward with its arguments looked up once: what is timed is the model."""
        settings: dict[str, Any] = {}
        if work.case.what == "prefill":
            settings = {"use_cache": True, "logits_to_keep": 1}
        args, keywords = bind(self.model, cast(batch, self._dtype), settings)
        run = self._run
        return lambda: run(*args, **keywords)

    def _decoding(self, work: Work) -> Callable[[], Any]:
        """Runs the prompt; each call of the result feeds one more token through the cache."""
        assert work.tokens is not None
        if not {"past_key_values", "use_cache"} <= forward_parameters(self.model).keys():  # type: ignore[arg-type]
            raise Unavailable("its forward keeps no cache of keys and values: decoding token by token is not timed")
        out = self._run(**work.inputs[0], use_cache=True)  # type: ignore[arg-type]
        state = out.past_key_values
        tokens = cycle(work.tokens.split(1, dim=1))
        run = self._run

        def step() -> Any:
            return run(input_ids=next(tokens), past_key_values=state, use_cache=True)

        return step


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The floating-point tensors of a batch in another type."""
    return map_tensors(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)


def bind(model: Any, batch: Batch, settings: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward; what it does not take is left out, as ``forward.model.call`` does."""
    names = forward_parameters(model)
    kept = {key: value for key, value in settings.items() if key in names}
    if not isinstance(batch, dict):
        return tuple(batch), kept
    fitting = {key: tensor for key, tensor in batch.items() if key in names}
    if not fitting:
        return (next(iter(batch.values())),), kept
    return (), {**fitting, **kept}


def difference(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value of ``truth``; NaN where either holds one."""
    if found.shape != reference.shape:
        return float("nan")
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    return float((found - reference).abs().max()) / max(scale, 1e-30) if reference.numel() else 0.0


def _gone(*_: Any, **__: Any) -> Any:
    raise Unavailable("it was closed")


HALF = torch.bfloat16


@dataclass
class BuildContext:
    """What the families need to build their contenders: the subject, where files may go, and one dense model to copy."""

    subject: Subject
    scratch: Path
    threads: int
    bf16: bool
    names: Sequence[str]
    dense: nn.Module  # float32, what dense contenders are copies of
    work: Sequence[Work]
    progress: Callable[[int, int, str], None] | None = None  # of the dispatcher's own measuring

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of x that linear layers will mostly see."""
        seen = {w.case.batch * (w.case.length or 1) if w.tokens is None else w.case.batch for w in self.work}
        return tuple(sorted(seen))

    @property
    def dtypes(self) -> list[torch.dtype]:
        return [torch.float32, HALF] if self.bf16 else [torch.float32]

    def about(self, name: str, dtype: torch.dtype, changes: str | None, **more: object) -> speed_schema.Contender:
        """The description of a dense contender."""
        return speed_schema.Contender(name=name, kind="dense", weights=dtype_name(dtype), changes=changes, **more)  # type: ignore[arg-type]


Builder = Callable[[], Contender]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def require_memory(need: int) -> None:
    """Raises Unavailable where so many bytes are not free."""
    free = available_memory()
    if need > 0.8 * free:
        raise Unavailable(f"needs about {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
