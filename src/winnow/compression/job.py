"""What the user asked for, checked before any work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.budget import Budget, parse_size, parse_sparsity
from winnow.compression.methods import METHODS
from winnow.compression.recovery import LEARNED
from winnow.errors import InputError
from winnow.masks.structure import NM, Structure, Unstructured, parse_structure

VALUES = ("keep", "bf16", "int8", "int4")
SAMPLES, TRAINING_SAMPLES = 128, 1024  # where --samples does not say
LARGEST = 1 << 50  # bytes
# Smallest and largest value of whole numbers: beyond these, counts do not fit into memory or into 64 bits.
RANGES = {
    "samples": (1, 1 << 24), "batch_size": (1, 1 << 20), "length": (2, 1 << 22), "eval_limit": (2, 1 << 40), "seed": (0, (1 << 63) - 1),
}  # fmt: skip
UNITS = {"s": 1, "m": 60, "h": 3600}


def check_range(name: str, value: int | None, least: int, most: int) -> None:
    """Raises InputError, naming the option, for a number outside of ``least`` to ``most``; None is fine."""
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return
    if value < least:
        raise InputError(f"{option} must be at least {least}{' tokens' if name == 'length' else ''}.")
    if value > most:
        raise InputError(f"{option} must be at most {most:,}.")


def check_device(device: str) -> None:
    """Raises InputError for a device that this torch does not know or this machine does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"--device {device!r} cannot be used here ({reason}): choose cpu.") from None


@dataclass(frozen=True)
class Job:
    """The arguments of ``winnow.compress``; see there for their meaning."""

    model: str | Path | nn.Module
    data: Any = None
    sparsity: float | str | Sequence[float] | None = None
    bits_per_weight: float | None = None
    size: str | int | None = None
    max_drop: float | None = None
    out: Path | None = None
    eval: Any = None
    task: str = "auto"
    column: str | None = None
    label: str | None = None
    method: str = "auto"
    score: str | None = None
    group: str | None = None
    allocation: str | None = None
    table: dict[str, float] | None = None
    structure: str = "unstructured"
    solver: str | None = None
    values: str = "keep"
    group_size: int = 128
    baselines: str = "all"
    keep: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    samples: int | None = None
    length: int | None = None
    batch_size: int = 8
    eval_limit: int | None = None
    seed: int = 0
    damp: float = 0.01
    sequential: str = "auto"
    recalibrate: bool = True
    ram: str | int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    weights: Path | None = None
    tokenizer: Any = None
    trust_remote_code: bool = False
    speed: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    time: float | str | None = None
    compare_with: str | Path | None = None
    floor: float | None = None
    mean: float | str | Sequence[float] | None = None
    std: float | str | Sequence[float] | None = None

    @property
    def learns(self) -> bool:
        """Whether the split over layers is learned on the data."""
        named = METHODS.get(self.method, {}).get("allocation") if self.allocation is None else self.allocation
        return named == LEARNED

    @property
    def pattern(self) -> Structure:
        return parse_structure(self.structure)

    @property
    def keeps_zeros(self) -> bool:
        """Whether the model's own zeros are the budget."""
        return self.method == "zeros"

    def budgets(self) -> list[Budget]:
        """One budget per requested sparsity, or the single other budget; none for a goal and for the model's own zeros.

        Raises:
            InputError: none or several kinds of budget, or a value out of range.
        """
        given = [k for k in ("sparsity", "bits_per_weight", "size", "max_drop") if getattr(self, k) is not None]
        if self.keeps_zeros:
            if given:
                raise InputError(
                    f"--method zeros takes the zeros that are there: leave out --{given[0].replace('_', '-')}, or choose another --method."
                )
            if not isinstance(self.pattern, Unstructured):
                raise InputError(
                    f"--method zeros packs zeros wherever they are: leave out --structure {self.structure}."
                )
            return []
        if len(given) > 1:
            raise InputError(
                f"{' and '.join('--' + g.replace('_', '-') for g in given)} exclude each other: say one budget."
            )
        if isinstance(self.pattern, NM):
            if given and given != ["sparsity"]:
                raise InputError(
                    f"--structure {self.structure} fixes the sparsity: leave out --{given[0].replace('_', '-')}."
                )
            rate = 1 - self.pattern.n / self.pattern.m
            if self.learns and given:
                rates = self._sparsities()
                if not all(0 < r <= rate + 1e-9 for r in rates):
                    raise InputError(
                        f"--structure {self.structure} takes at most {rate:g} of a layer, and at least one layer: give a --sparsity above 0 and up to {rate:g}."
                    )
                return [Budget.of(sparsity=s) for s in rates]
            if given and [round(s, 6) for s in self._sparsities()] != [round(rate, 6)]:
                raise InputError(
                    f"--structure {self.structure} means a sparsity of {rate:g}: leave out --sparsity, or choose another pattern."
                )
            return [Budget.of(sparsity=rate)]
        if not given:
            raise InputError("say a budget: --sparsity 0.5, --bits-per-weight 3, --size 40MB or --max-drop 1.")
        if given == ["sparsity"]:
            return [Budget.of(sparsity=s) for s in self._sparsities()]
        if given == ["max_drop"]:
            if not (isinstance(self.max_drop, (int, float)) and self.max_drop > 0):
                raise InputError(f"--max-drop {self.max_drop} must be above 0 (points, or per cent of perplexity).")
            return []
        return [Budget.of(bits_per_weight=self.bits_per_weight, size=self.size)]

    def check(self) -> None:
        """Raises InputError for arguments that are wrong whatever the model and data."""
        self.budgets()
        if self.values not in VALUES:
            raise InputError(f"--values {self.values!r} is not known: choose one of {', '.join(VALUES)}.")
        if self.group_size not in (32, 64, 128, 256):
            raise InputError(f"--group-size {self.group_size} is not offered: choose 32, 64, 128 or 256.")
        for name, (least, most) in RANGES.items():
            check_range(name, getattr(self, name), least, most)
        if not 0 < self.damp < math.inf:  # nor is NaN
            raise InputError(
                f"--damp {self.damp:g} must be above 0 and finite: a share of the mean diagonal, such as 0.01."
            )
        if self.device != "cpu":
            check_device(self.device)
        if self.table is not None and self.allocation not in (None, "table", LEARNED):
            raise InputError(f"a table of rates and --allocation {self.allocation} exclude each other.")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InputError(f"--dtype {self.dtype!r} is not known: choose auto, float32 or bfloat16.")
        if self.sequential not in ("auto", "layer", "block"):
            raise InputError(f"--sequential {self.sequential!r} is not known: choose auto, layer or block.")
        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise InputError("--max-drop must be a number of points (per cent, for perplexity), such as 1.")
        if self.floor is not None and not math.isfinite(self.floor):
            raise InputError("--floor must be a number: a value of the metric, such as 80.")
        self.seconds()
        self.pixels("mean"), self.pixels("std")
        self.memory_limit()

    def seconds(self) -> float | None:
        """The time limit of training in seconds. Raises InputError for text that is none, and for 0 and less."""
        if self.time is None:
            return None
        text = str(self.time).strip().lower()
        unit = UNITS.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            seconds = 0.0
        if not (0 < seconds < math.inf):
            raise InputError(f"--time {self.time!r} is no time: write 60s, 2m or 90 (seconds).")
        return seconds

    def pixels(self, name: str) -> tuple[float, ...] | None:
        """``mean`` or ``std`` as numbers, one or one a channel. Raises InputError for text that is none."""
        return pixel_values(name, getattr(self, name))

    def memory_limit(self) -> int | None:
        if self.ram is None:
            return None
        limit = parse_size(self.ram)
        if limit > LARGEST:
            raise InputError(f"--ram {self.ram} is more than any machine has: write it like 2GB.")
        return limit

    def _sparsities(self) -> list[float]:
        given = self.sparsity
        parts: Sequence[Any] = (
            given.split(",") if isinstance(given, str) else list(given) if isinstance(given, Sequence) else [given]
        )
        rates = [parse_sparsity(p) for p in parts]
        if len(set(rates)) != len(rates):
            raise InputError("--sparsity names the same rate twice: give each once.")
        return rates


def pixel_values(name: str, given: float | str | Sequence[float] | None) -> tuple[float, ...] | None:
    """Numbers from "0.485,0.456,0.406", a sequence or one number. Raises InputError for what is none."""
    if given is None:
        return None
    parts: Any = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        values = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        values = ()
    if not values or not all(math.isfinite(v) for v in values):
        raise InputError(
            f"--{name} {given!r} is no list of numbers: write one, or one per channel, as 0.485,0.456,0.406."
        )
    return values
