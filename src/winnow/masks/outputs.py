"""Which weights make a model's output: found by following the output tensors back to the products they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from winnow.forward.modes import eval_mode

# Autograd nodes that multiply their input by something, and those that put tensors side by side.
_PRODUCT = re.compile(
    r"(Mkldnn|Cudnn|Miopen|Slow|Thnn)?(Addmm|Mm|Bmm|Baddbmm|Addbmm|Mv|Addmv|Dot|Linear|Conv|Trilinear|Rnn|Fused(Lstm|Gru)Cell)"
    r"\w*Backward"
)
_JOIN = re.compile(r"(Cat|Stack)Backward")


class _Enough(BaseException):
    """Ends a run once the model has returned."""


def answer_of(model: nn.Module, run: Callable[[], Any]) -> Any:
    """What the model puts out the first time that ``run`` calls it; what comes after that call is not run.

    None where ``run`` ends without calling it.
    """
    found: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)
        raise _Enough

    handle = model.register_forward_hook(keep)
    try:
        run()
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0] if found else None


def output_weights(model: nn.Module, run: Callable[[], Any]) -> list[str] | None:
    """Names of the parameters that the model's outputs are multiplied with last: its output layers.

    From each floating-point tensor of the answer the graph of autograd is followed back through everything that takes
    one tensor of the data - reshaping, activations, normalizations, softmax, pooling, a bias - to the product with a parameter
    of two dimensions or more. Where two branches meet (a residual stream) the last product of neither is the output,
    unless neither lies behind the other (two heads that are added or put side by side). Of several outputs one that another
    is computed from does not count.

    ``run`` calls the model on an example, in any mode; the model is put in eval mode and its gradients are left alone.
    None where nothing can be followed (the forward runs without gradients, fails with them, or is a function of
    autograd's own); an empty list where the outputs come from no single product.
    """
    try:
        with _followed(model), torch.inference_mode(False), torch.enable_grad():
            answer = answer_of(model, run)
    except Exception:  # a forward that writes into its weights, say: what it does without gradients is its own affair
        return None
    names = {id(p): name for name, p in model.named_parameters()}
    roots = [
        t.grad_fn for t in tree_flatten(_plain(answer))[0] if isinstance(t, torch.Tensor) and t.grad_fn is not None
    ]
    if not roots:
        return None
    search = _Search(names)
    ends: dict[Any, str] = {}
    for root in roots:
        ends |= search.ends(root)
    if search.opaque and not ends:
        return None
    return list(dict.fromkeys(search.last(ends).values()))


def _plain(answer: Any) -> Any:
    """An output as containers that pytree knows: transformers' outputs are dicts of their own class."""
    if isinstance(answer, dict) or hasattr(answer, "items"):
        return {str(k): _plain(v) for k, v in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [_plain(v) for v in answer]
    if hasattr(answer, "__dataclass_fields__"):
        return [_plain(v) for v in vars(answer).values()]
    return answer


class _Search:
    """The products behind an autograd node."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names, self.opaque = names, False
        self._found: dict[Any, dict[Any, str]] = {}
        self._holds: dict[Any, bool] = {}

    def ends(self, root: Any) -> dict[Any, str]:
        """Node -> parameter of the last products behind ``root``. Iterative: graphs are deeper than Python's stack."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self._found:
                stack.pop()
                continue
            weight = self._weight(node)
            if weight is not None:
                self._found[node] = {node: weight}
                continue
            if _own(node):
                self.opaque, self._found[node] = True, {}
                continue
            # Inputs that a product with a parameter lies behind: the others are constants, scales and shifts.
            branches = list(dict.fromkeys(f for f, _ in node.next_functions if f is not None and self._reaches(f)))
            waiting = [b for b in branches if b not in self._found]
            if waiting:
                stack += waiting
                continue
            self._found[node] = self._met(node, [self._found[b] for b in branches])
            stack.pop()
        return self._found[root]

    def _met(self, node: Any, found: list[dict[Any, str]]) -> dict[Any, str]:
        if not found:
            return {}
        joined = {end: name for branch in found for end, name in branch.items()}
        if len(found) == 1:
            return joined
        last = self.last(joined)
        if _JOIN.match(node.name()):
            return last
        # Added or multiplied: a branch that the other one was computed from is a stream that goes on, not an output.
        return joined if len(last) == len(joined) and all(found) else {}

    def last(self, ends: dict[Any, str]) -> dict[Any, str]:
        """Without those that another one lies behind."""
        if len(ends) < 2:
            return ends
        behind: set[Any] = set()
        for end in ends:
            behind |= _ancestors(end) & (ends.keys() - {end})
        return {end: name for end, name in ends.items() if end not in behind}

    def _reaches(self, node: Any) -> bool:
        """Whether a product with a parameter lies at or behind a node."""
        stack = [node]
        while stack:
            here = stack[-1]
            if here in self._holds:
                stack.pop()
                continue
            if self._weight(here) is not None or _own(here):
                self._holds[here] = True
                continue
            after = [f for f, _ in here.next_functions if f is not None]
            waiting = [f for f in after if f not in self._holds]
            if waiting:
                stack += waiting
                continue
            self._holds[here] = any(self._holds[f] for f in after)
            stack.pop()
        return self._holds[node]

    def _weight(self, node: Any) -> str | None:
        """The matrix that a node multiplies by, None for any other node."""
        if not _PRODUCT.match(node.name()):
            return None
        names = (self._parameter(following) for following, _ in node.next_functions)
        return next((name for name in names if name is not None), None)

    def _parameter(self, node: Any) -> str | None:
        """The parameter of two dimensions or more that a node only hands on, in another shape or type."""
        for _ in range(8):
            if node is None:
                return None
            variable = getattr(node, "variable", None)
            if variable is not None:
                name = self.names.get(id(variable))
                return name if name is not None and variable.dim() > 1 else None
            after = [f for f, _ in node.next_functions if f is not None]
            if len(after) != 1:
                return None
            node = after[0]
        return None


def _own(node: Any) -> bool:
    """Whether a node is a function written in Python (a checkpoint, say): what it does inside is not in the graph."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _ancestors(node: Any) -> set[Any]:
    """All nodes behind a node, itself left out."""
    seen: set[Any] = set()
    stack = [f for f, _ in node.next_functions if f is not None]
    while stack:
        here = stack.pop()
        if here not in seen:
            seen.add(here)
            stack += [f for f, _ in here.next_functions if f is not None]
    return seen


@contextmanager
def _followed(model: nn.Module) -> Iterator[None]:
    """Every floating-point parameter takes a gradient, in eval mode, without the fused paths; all put back afterwards."""
    before = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point() and p.is_leaf]
    for p, _ in before:
        p.requires_grad_(True)
    try:
        with eval_mode(model, fastpath=False), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for p, requires_grad in before:
            p.requires_grad_(requires_grad)
