"""What the families of contenders need to build theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from winnow.machine.memory import available_memory
from winnow.records import speed as speed_schema
from winnow.speed.contender import Contender, Unavailable
from winnow.speed.subject import Subject
from winnow.speed.workload import Work

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
