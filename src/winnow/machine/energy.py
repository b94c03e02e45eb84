"""Energy of a piece of work, from a meter where there is one, as an estimate that says so where there is none.

Two packages can read meters: zeus (RAPL and NVML; it measures or it refuses) and codecarbon (RAPL, NVML, powermetrics; without
a meter it multiplies the processor's rated power by its load). Neither is needed; without both nothing is said.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

INSTALL = "not measured: pip install codecarbon (or zeus) to read a meter, or to have it estimated"
SECONDS = 2.0  # a window at least: meters tick slowly
METERS = {  # codecarbon's names of ways that read one
    "intel_rapl": "RAPL",
    "windows_emi": "Windows energy meter",
    "intel_power_gadget": "Intel Power Gadget",
    "apple_powermetrics": "powermetrics",
}


@dataclass(frozen=True)
class Energy:
    """Joules of one call, and how they were come by. ``joules`` covers processor packages and GPUs, not memory."""

    joules: float
    kind: Literal["measured", "estimated"]
    method: str


class Meter(Protocol):
    """Joules used between two calls."""

    kind: Literal["measured", "estimated"]
    method: str

    def start(self) -> None: ...
    def stop(self) -> float: ...
    def close(self) -> None: ...


class Zeus:
    """RAPL and NVML through zeus; the constructor fails where there is neither."""

    kind: Literal["measured", "estimated"] = "measured"

    def __init__(self) -> None:
        import torch
        from zeus.monitor import ZeusMonitor

        gpus: list[int] | None = None if torch.cuda.is_available() else []
        self._monitor = ZeusMonitor(gpu_indices=gpus)
        self.start()
        counters = self._joules()
        if not counters:
            raise RuntimeError("zeus found no meter")
        self.method = f"zeus, {' and '.join(counters)}"

    def _joules(self) -> dict[str, float]:
        window = self._monitor.end_window("winnow")
        parts = {"RAPL": window.cpu_energy, "NVML": window.gpu_energy}
        return {name: float(sum(part.values())) for name, part in parts.items() if part}

    def start(self) -> None:
        self._monitor.begin_window("winnow", sync_execution=False)

    def stop(self) -> float:
        return sum(self._joules().values())

    def close(self) -> None:
        """Nothing is held open."""


class CodeCarbon:
    """codecarbon without its network and files; its constant for memory modules is left out."""

    kind: Literal["measured", "estimated"]

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        log = logging.getLogger("codecarbon")
        before, log.disabled = log.disabled, True
        try:
            self._tracker: Any = OfflineEmissionsTracker(
                country_iso_code="USA",  # for grams of CO2, which are not used
                save_to_file=False,
                log_level="critical",
                tracking_mode="process",
                measure_power_secs=1,
                allow_multiple_runs=True,
            )
            self.start()
            self.stop()
        finally:
            log.disabled = before
        parts = {type(part).__name__: getattr(part, "_mode", None) for part in self._tracker._hardware}
        mode = str(parts.get("CPU") or ("apple_powermetrics" if "AppleSiliconChip" in parts else ""))
        self.kind = "measured" if mode in METERS else "estimated"
        self.method = f"codecarbon, {METERS.get(mode) or 'processor load times rated power'}" + (
            " and NVML" if "GPU" in parts else ""
        )

    def start(self) -> None:
        self._tracker.start_task("winnow")

    def stop(self) -> float:
        found = self._tracker.stop_task("winnow")
        return 3.6e6 * (found.cpu_energy + found.gpu_energy)

    def close(self) -> None:
        self._tracker.stop()


def open_meter() -> tuple[Meter | None, str]:
    """A meter, or None, with one line that says what it is or what to install."""
    problems = []
    makers: dict[str, Callable[[], Meter]] = {"zeus": Zeus, "codecarbon": CodeCarbon}
    for package, maker in makers.items():
        if importlib.util.find_spec(package) is None:
            continue
        try:
            meter = maker()
        except Exception as error:  # either package raises whatever its driver raised
            problems.append(f"{package}: {(str(error).splitlines() or [type(error).__name__])[0][:120]}")
        else:
            return meter, f"{meter.kind} ({meter.method})"
    return None, f"not measured: {'; '.join(problems)}" if problems else INSTALL


def energy_of(
    call: Callable[[], object],
    meter: Meter,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy | None:
    """Joules of one ``call``, averaged over as many as fit into ``seconds``; None where the meter did not move."""
    calls = 0
    meter.start()
    end = clock() + seconds
    while calls == 0 or clock() < end:
        call()
        calls += 1
    joules = meter.stop()
    return Energy(joules / calls, meter.kind, meter.method) if joules > 0 else None
