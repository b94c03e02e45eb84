"""Which inputs of a layer stay the same when everything alive before them is noise."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from winnow.coupled.call import ERRORS, forward, noise, probing_mode
from winnow.coupled.site import Site, site_of, spread
from winnow.masks.prunable import Prunable

# Seed and size of the noise: weak, and strong enough to wake what clamps and thresholds hide, with the other sign so
# that what one run leaves below a ReLU's zero the next lifts above it.
RUNS = ((0, 1.0), (0, -30.0), (1, 1.0), (1, -30.0))


@dataclass
class InputRange:
    """Smallest and largest value of each input feature of a layer, over all positions and runs."""

    low: torch.Tensor
    high: torch.Tensor
    extent: int  # fewest pixels along a side of the map; 0 where features have no place

    @property
    def features(self) -> int:
        return len(self.low)

    def value(self, feature: int) -> float | None:
        """The constant an input feature always has, None where it moves."""
        low, high = float(self.low[feature]), float(self.high[feature])
        # Attention sums probabilities to one only up to rounding.
        rounding = 16 * max(torch.finfo(self.low.dtype).eps, torch.finfo(torch.float32).eps)
        return (low + high) / 2 if high - low <= rounding * max(abs(low), abs(high)) else None


def input_ranges(
    model: nn.Module, example: Any, prunables: Mapping[str, Prunable], live: Mapping[str, torch.Tensor]
) -> dict[str, InputRange]:
    """Range of every input feature of the layers in ``prunables``, by module path.

    The model runs four times. Output features with a non-zero row (``live``, bool [R] by prunable) are replaced by noise,
    weak and strong, as are floating-point inputs; those without keep their bias. What does not move then cannot
    depend on the input. Grouped convolutions compute what they compute: noise enters them from before. Layers
    that are not called are left out; nothing is found where the model's code cannot bear noise.
    """
    sites: dict[str, tuple[Site, torch.Tensor]] = {}
    for name, p in prunables.items():
        site = site_of(model.get_submodule(p.module))
        if site is not None:
            sites[p.module] = (site, live[name])
    found: dict[str, InputRange] = {}
    with suppress(*ERRORS):
        for seed, scale in RUNS:
            _run(model, example, sites, torch.Generator().manual_seed(seed), scale, found)
        return found
    return {}


def _run(
    model: nn.Module,
    example: Any,
    sites: Mapping[str, tuple[Site, torch.Tensor]],
    generator: torch.Generator,
    scale: float,
    found: dict[str, InputRange],
) -> None:
    def see(path: str, axis: int, x: torch.Tensor) -> None:
        extent = min(x.shape[axis + 1 :]) if axis < -1 else 0
        x = x.detach().movedim(axis, -1).flatten(0, -2)
        if not len(x):
            return
        low, high = x.amin(0).cpu(), x.amax(0).cpu()  # NaN stays NaN, which is never constant
        if path in found:
            low, high = torch.minimum(low, found[path].low), torch.maximum(high, found[path].high)
            extent = min(extent, found[path].extent)
        found[path] = InputRange(low, high, extent)

    def hook(path: str, site: Site, live: torch.Tensor) -> Any:
        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> torch.Tensor:
            see(path, site.axis, args[0] if args else next(iter(kwargs.values())))
            if site.through:
                return out
            return torch.where(spread(live, out, site.axis), noise(out, generator) * scale, out)

        return after

    def shake(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1:
            return noise(value, generator) * scale
        return value

    if isinstance(example, Mapping):
        example = {k: shake(v) for k, v in example.items()}
    else:
        example = tuple(map(shake, example)) if isinstance(example, (tuple, list)) else shake(example)
    hooks = [
        site.module.register_forward_hook(hook(path, site, live), with_kwargs=True)
        for path, (site, live) in sites.items()
    ]
    try:
        with probing_mode(model), torch.no_grad():
            forward(model, example)
    finally:
        for handle in hooks:
            handle.remove()
