"""Probing a module whose layers are cut: each layer's output is replayed, so only the code between them acts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from winnow.coupled.call import ERRORS, Call, noise, probing_mode, tensors_in
from winnow.coupled.site import Site, norm_axis, norm_features, reached, same, site_of, spread

Rows = dict[str, torch.Tensor]  # layer -> bool over its output features
Cols = dict[str, torch.Tensor]  # layer -> bool over its input features
Replace = Callable[[str, int, torch.Tensor], torch.Tensor]  # (layer, call number, output) -> output
# (layer or norm, call number, input of a layer or output of a norm, feature axis) -> the norm's output if changed;
# the module's own outputs come with path "" and no axis
See = Callable[[str, int, torch.Tensor, "int | None"], "torch.Tensor | None"]
STRONG = 30.0  # noise that wakes a dead ReLU, in standard deviations


@dataclass
class Seen:
    """Which features a probe reached: input features of layers, output features of norms, the module's output."""

    cols: Cols = field(default_factory=dict)
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    out: bool = False


@dataclass
class _Graph:
    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    leaves: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    outs: list[torch.Tensor] = field(default_factory=list)


class CutProbe:
    """Answers which output feature of which layer reaches which input feature of which layer, in one module.

    ``producers`` and ``consumers`` map the paths of the layers that were called to their numbers of
    features. Costs one pass through the code between the layers per question; no layer is multiplied out.
    """

    def __init__(self, root: nn.Module, call: Call) -> None:
        self.root, self.call = root, call
        found = {path: site_of(m) for path, m in root.named_modules() if path or site_of(m) is None}
        self.sites = {path: site for path, site in found.items() if site is not None}
        self.norm_modules = {
            path: m for path, m in root.named_modules() if path not in self.sites and norm_features(m) is not None
        }
        self.recorded: dict[str, list[torch.Tensor]] = {}
        self.base: dict[tuple[str, int], torch.Tensor] = {}

        def record(path: str, n: int, out: torch.Tensor) -> torch.Tensor:
            self.recorded.setdefault(path, []).append(out.clone())
            return out

        def baseline(path: str, n: int, value: torch.Tensor, axis: int | None) -> None:
            if bool((nan := value.isnan()).any()):
                self.base[path, n] = nan

        with torch.no_grad():
            self._run(record, baseline)
        self.sites = {path: site for path, site in self.sites.items() if path in self.recorded}
        self.producers = {path: site.outputs for path, site in self.sites.items()}
        self.consumers = {path: site.inputs for path, site in self.sites.items() if not site.through}
        self._graphs = [self._graph(False)]
        heard = self.escaping()
        for consumer, features in self.consumers.items():
            for path, mask in self.sources(consumer, torch.ones(features, dtype=torch.bool)).items():
                heard[path] |= mask
        # A feature that answers no gradient at all is dead at the recorded values, or read by nothing.
        if not all(bool(mask.all()) for mask in heard.values()):
            # Where noise is senseless to the module (routing, say) it may fail: NaN will find the silent rows.
            with suppress(*ERRORS):
                self._graphs.append(self._graph(True))

    def escaping(self) -> Rows:
        """Output features that reach the module's output without passing another layer."""
        found = {path: torch.zeros(n, dtype=torch.bool) for path, n in self.producers.items()}
        generator = torch.Generator().manual_seed(0)
        for graph in self._graphs:
            self._backward(graph, graph.outs, [noise(t, generator) for t in graph.outs], found)
        return found

    def sources(self, consumer: str, mask: torch.Tensor) -> Rows:
        """Output features on which the masked input features [F] of a layer depend (by gradient)."""
        found = {path: torch.zeros(n, dtype=torch.bool) for path, n in self.producers.items()}
        axis = self.sites[consumer].axis
        generator = torch.Generator().manual_seed(1)
        for graph in self._graphs:
            inputs = graph.inputs.get(consumer, [])
            seeds = [noise(x, generator) * spread(mask, x, axis) for x in inputs]
            self._backward(graph, inputs, seeds, found)
        return found

    def reach(self, rows: Rows) -> Seen:
        """What NaN in the given output features reaches: every dependence, whatever the values are."""
        seen = Seen(cols={p: torch.zeros(s.inputs, dtype=torch.bool) for p, s in self.sites.items()})

        def replace(path: str, n: int, out: torch.Tensor) -> torch.Tensor:
            if path not in rows or not bool(rows[path].any()):
                return out
            return out.masked_fill(spread(rows[path], out, self.sites[path].axis), float("nan"))

        def see(path: str, n: int, value: torch.Tensor, axis: int | None) -> None:
            hit = value.isnan()
            if (path, n) in self.base:
                base = self.base[path, n]
                hit = hit & ~base if base.shape == hit.shape else torch.ones_like(hit)
            if axis is None:
                seen.out |= bool(hit.any())
                return
            store = seen.cols if path in self.sites else seen.norms
            flag = reached(hit, axis)
            store[path] = store[path] | flag if path in store else flag

        with torch.no_grad():
            self._run(replace, see)
        return seen

    def steady(self, rows: Rows, vary: Rows, norms: Rows) -> Cols:
        """Input features of layers that stop changing when ``rows`` give zero.

        Two runs are compared in which the hidden input and the layers in ``vary`` are noise, weak and strong.
        Features of ``norms`` that become constant count as zero too: these entries go with the rows.
        """
        constant: dict[str, torch.Tensor] = {}
        for _ in range(2):  # first to find such norms, then with their features at zero
            first, second = (self._noisy(rows, vary, constant, scale) for scale in (1.0, STRONG))
            found = {
                path: torch.stack([same(a, b) for a, b in zip(values, second[path])]).all(0)
                for path, values in first.items()
                if len(values) == len(second.get(path, ()))
            }
            constant = {path: flag & norms[path] for path, flag in found.items() if path in norms}
        return {path: flag for path, flag in found.items() if path in self.consumers}

    def _noisy(self, rows: Rows, vary: Rows, constant: Rows, scale: float) -> dict[str, list[torch.Tensor]]:
        generator = torch.Generator().manual_seed(int(scale))
        values: dict[str, list[torch.Tensor]] = {}

        def replace(path: str, n: int, out: torch.Tensor) -> torch.Tensor:
            if path in vary and not self.sites[path].through:
                out = noise(out, generator) * (scale * out.float().std(correction=0).clamp_min(1e-3)).to(out.dtype)
            return out.masked_fill(spread(rows[path], out, self.sites[path].axis), 0) if path in rows else out

        def see(path: str, n: int, value: torch.Tensor, axis: int | None) -> torch.Tensor | None:
            if axis is None:
                return None
            if path in constant:
                value = value.masked_fill(spread(constant[path], value, axis), 0)
            values.setdefault(path, []).append(value.movedim(axis, -1).clone())
            return value if path in constant else None

        with torch.no_grad():
            self._run(replace, see, self.call.fresh().shifted(generator, scale))
        return values

    def _backward(self, graph: _Graph, outs: list[torch.Tensor], seeds: list[torch.Tensor], found: Rows) -> None:
        live = [(t, s) for t, s in zip(outs, seeds) if t.requires_grad]
        if not live:
            return
        paths = [path for path, leaves in graph.leaves.items() for _ in leaves]
        leaves = [leaf for group in graph.leaves.values() for leaf in group]
        grads = torch.autograd.grad(
            [t for t, _ in live], leaves, [s for _, s in live], retain_graph=True, allow_unused=True
        )
        for path, grad in zip(paths, grads):
            if grad is not None:
                found[path] |= reached(grad.abs() > 0, self.sites[path].axis)

    def _graph(self, noisy: bool) -> _Graph:
        graph, generator = _Graph(), torch.Generator().manual_seed(2)

        def replace(path: str, n: int, out: torch.Tensor) -> torch.Tensor:
            if noisy:
                # Sizes from 0.1 to 100: somewhere each feature is alive, whatever the bias or the clamp after it.
                size = 10 ** (3 * torch.rand(out.shape, generator=generator) - 1).to(out.device, out.dtype)
                out = noise(out, generator) * size + (out if self.sites[path].through else 0)
            leaf = torch.zeros_like(out, requires_grad=True)
            graph.leaves.setdefault(path, []).append(leaf)
            return out + leaf

        def see(path: str, n: int, value: torch.Tensor, axis: int | None) -> None:
            if axis is None:
                graph.outs.append(value)
            elif path in self.consumers:
                graph.inputs.setdefault(path, []).append(value.clone())

        # Code that runs without gradients may overwrite what the backward pass needs: keep copies.
        with torch.enable_grad(), saved_tensors_hooks(torch.clone, lambda saved: saved):
            self._run(replace, see)
        return graph

    def _run(self, replace: Replace, see: See, call: Call | None = None) -> None:
        """One pass: ``replace(path, call number, output)`` for each layer, ``see`` for all that is observed."""
        call = call or self.call.fresh()
        with probing_mode(self.root), self._hooked(replace, see):
            out = self.root(*call.args, **call.kwargs)
        for n, tensor in enumerate(tensors_in(out)):
            see("", n, tensor, None)

    def _replay(self, path: str, n: int, x: torch.Tensor) -> torch.Tensor | None:
        """The recorded output of a cut layer, zeros where its input has another shape; None: multiply it out."""
        site = self.sites[path]
        if site.through or path not in self.recorded:
            return None
        outs = self.recorded[path]
        if n < len(outs) and (site.axis != -1 or outs[n].shape[:-1] == x.shape[:-1]):
            return outs[n].clone()
        return outs[0].new_zeros(*x.shape[:-1], site.outputs)

    @contextmanager
    def _hooked(self, replace: Replace, see: See) -> Iterator[None]:
        counts: dict[str, int] = {}

        def cut(path: str, site: Site, original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
                x = args[0] if args else next(iter(kwargs.values()))
                n = counts[path] = counts.get(path, -1) + 1
                see(path, n, x, site.axis)
                out = self._replay(path, n, x)
                return replace(path, n, original(*args, **kwargs) if out is None else out)

            return forward

        def watch(path: str, axis: Callable[[torch.Tensor], int | None]) -> Callable[..., Any]:
            def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> torch.Tensor | None:
                if not isinstance(out, torch.Tensor) or (where := axis(out)) is None:
                    return None
                n = counts[path] = counts.get(path, -1) + 1
                return see(path, n, out, where)

            return hook

        own = {path: site.module.__dict__.get("forward") for path, site in self.sites.items()}
        hooks = [m.register_forward_hook(watch(p, norm_axis(m))) for p, m in self.norm_modules.items()]
        try:
            for path, site in self.sites.items():
                site.module.forward = cut(path, site, site.module.forward)  # type: ignore[method-assign]
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for path, site in self.sites.items():
                del site.module.forward
                if own[path] is not None:
                    site.module.forward = own[path]  # type: ignore[method-assign,assignment]
