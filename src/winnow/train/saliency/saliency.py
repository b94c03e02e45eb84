"""Scores of weights before training, from the loss on a few labelled mini-batches: SNIP and GraSP."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from winnow.errors import InputError
from winnow.seeding import generator, seeded
from winnow.train.examples import Examples, Part
from winnow.train.norms import batch_statistics
from winnow.train.saliency.subject import Subject

PER_CLASS = 10  # examples of every class at least
LARGEST = 512  # examples of a part at most: a second derivative holds all their activations
FEW = 100  # examples in which classes need not come twice
LOOK, LOOK_AT_MOST = 2, 8  # times as many examples as are needed are looked through for their classes


def snip(run: Subject, batches: int = 1) -> dict[str, torch.Tensor]:
    """|w dL/dw| for every prunable weight, matrices [rows, cols] by name; low scores go first.

    It is |dL/dc| for a factor c = 1 in front of each weight (Lee et al. 2019, arXiv 1810.02340, equation 5; their
    normalisation does not change the order). L is the mean loss over ``batches`` mini-batches, without dropout and with
    batch norms in eval mode. Costs one step a mini-batch, counted in ``run.cost``.

    Beside the authors' code (namhoonlee/snip-public): it too takes one mini-batch of the training's size and the
    inference mode. That size is 100 there and whatever the training has here; on ResNet-20 at 90% the ticket did not gain
    from 250 examples in place of 32.
    """
    drawn = mini_batches(run.training.examples, run.training.seed, batches)
    with _scoring(run) as weights:
        gradients = _mean_gradients(run, weights, drawn)
        found = {n: (weights[n].detach() * gradients[n]).abs() for n in weights}
        spend(run, batches)
    return {n: run.scope.prunables[n].matrix(s) for n, s in found.items()}


def grasp(run: Subject, batches: int = 8, temperature: float = 200.0) -> dict[str, torch.Tensor]:
    """w * (H g) for every prunable weight, matrices [rows, cols] by name; low scores go first.

    Without w the squared norm of the gradient changes by about -2 w (H g): weights with the largest -w (H g) hold the
    gradient flow back and go first (Wang et al. 2020, arXiv 2002.07376, equation 8). g and H are of the mean loss over
    prunable weights, the logits divided by ``temperature`` (200 in the paper; 1 leaves them, as a regression needs), on
    the examples of :func:`winnow.train.saliency.saliency.every_class`: ``batches`` mini-batches of them, and 10 of every
    class at least, in two halves. Batch norms normalize by the half, and their running statistics stay. Attention runs
    unfused, which alone has second derivatives. Costs three steps a mini-batch: one for g, two for H g (and one forward
    pass on the first half, which finds the logits).

    Beside the authors' code (alecwangcq/GraSP, pruner/GraSP.py): 10 to 25 examples of every class in two halves and train
    mode, too. There a half holds half of the classes, since examples are sorted by class before they are divided; here
    both hold all. There linear layers are drawn anew before the scoring, which a pretrained model is not; dropout, which
    their networks lack, stays off.

    Raises:
        InputError: no logits that a temperature could cool.
    """
    examples = run.training.examples
    drawn = every_class(examples, run.training.seed, batches)
    with (
        _scoring(run) as weights, batch_statistics(run.model), sdpa_kernel(SDPBackend.MATH), _divided_logits(run, temperature, drawn)
    ):  # fmt: skip
        gradients = _mean_gradients(run, weights, drawn)
        products = {n: torch.zeros_like(w) for n, w in weights.items()}
        for loss in _losses(run, drawn):
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
            along = sum((s * gradients[n]).sum() for n, s in zip(weights, slopes))
            if torch.is_tensor(along) and along.requires_grad:  # not where the loss is linear in every weight
                for n, h in zip(weights, torch.autograd.grad(along, list(weights.values()), materialize_grads=True)):
                    products[n] += h / len(drawn)
        found = {n: weights[n].detach() * products[n] for n in weights}
        spend(run, grasp_steps(examples, drawn))
    return {n: run.scope.prunables[n].matrix(s) for n, s in found.items()}


def grasp_steps(examples: Examples, drawn: list[torch.Tensor]) -> int:
    """What :func:`grasp` costs on these examples, in steps of the training."""
    return math.ceil(3 * steps_of(examples, drawn) - 1e-9)


def spend(run: Subject, steps: int) -> None:
    """Counts scoring passes as steps at the density of the moment."""
    run.cost.extra += steps
    run.cost.weighted += steps * run.density


@contextmanager
def _scoring(run: Subject) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The prunable weights, with gradients even where the training freezes them; the time goes to ``run.cost``."""
    started = time.perf_counter()
    weights = dict(run.attached.weights)
    frozen = [w for w in weights.values() if not w.requires_grad]
    for w in frozen:
        w.requires_grad_(True)
    try:
        yield weights
    finally:
        for w in frozen:
            w.requires_grad_(False)
        run.cost.seconds += time.perf_counter() - started


def _losses(run: Subject, drawn: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The loss on each part of the examples, with the same random numbers whenever it is asked for."""
    for number, index in enumerate(drawn):
        with seeded(run.training.seed, "scores", number):
            loss = run.training.loss(run.model, run.training.examples.take(index))
        if not torch.is_tensor(loss) or loss.numel() != 1:
            raise InputError(
                "masks are scored on a loss that is one number: return the mean over the batch, as a tensor."
            )
        yield loss


def _mean_gradients(
    run: Subject, weights: dict[str, torch.nn.Parameter], drawn: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    total = {n: torch.zeros_like(w) for n, w in weights.items()}
    for loss in _losses(run, drawn):
        for n, g in zip(weights, torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)):
            total[n] += g / len(drawn)
    return total


@contextmanager
def _divided_logits(run: Subject, temperature: float, drawn: Sequence[torch.Tensor]) -> Iterator[None]:
    """Divides the logits: the model's own output where the loss is made of it, else what its output layer puts out.

    The two differ where something comes between them, as CLIP's normalization does, which undoes any factor. Which one
    the loss is made of, a forward pass on the first part of ``drawn`` tells.
    """
    if temperature == 1.0:
        yield
        return
    heads = {s.name.rpartition(".")[0] for s in run.scope.skipped if s.reason == "output head"}
    outputs = _outputs(run, drawn[:1])
    if outputs and all(_is_logits(o) for o in outputs):
        heads = {""}
    elif not heads:
        raise InputError(
            "GraSP finds no logits to divide by its temperature: let the model return them, or set temperature to 1."
        )

    def cool(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if torch.is_tensor(output):
            return output / temperature
        if isinstance(output, dict) and "logits" in output:
            output["logits"] = output["logits"] / temperature  # transformers' outputs set the attribute with it
        else:
            output.logits = output.logits / temperature
        return output

    with ExitStack() as stack:
        for name in heads:
            stack.callback(run.model.get_submodule(name).register_forward_hook(cool).remove)
        yield


@torch.no_grad()
def _outputs(run: Subject, drawn: Sequence[torch.Tensor]) -> list[Any]:
    """What the model returns to the loss on these examples, call by call."""
    found: list[Any] = []
    handle = run.model.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        for _ in _losses(run, drawn):
            pass
    finally:
        handle.remove()
    return found


def _is_logits(output: Any) -> bool:
    """Whether a model's output is logits that a loss outside the model reads: no loss, and no probabilities, of which
    a factor makes something else (of a log-softmax, only another step size)."""
    if not torch.is_tensor(output):
        get = output.get if isinstance(output, dict) else lambda key: getattr(output, key, None)
        if get("loss") is not None:
            return False
        output = get("logits")
    if not torch.is_tensor(output) or not output.ndim:
        return False
    if bool(((output >= 0) & (output <= 1)).all()) and bool(output.any()):  # all zero is what a new head may give
        return False
    sums = [output.exp().sum(d) for d in (1, -1) if output.ndim > 1 and output.shape[d] > 1]
    return not any(torch.allclose(s, torch.ones_like(s), atol=1e-3) for s in sums)


def mini_batches(examples: Examples, seed: int, count: int) -> list[torch.Tensor]:
    """The first so many mini-batches of the scoring's own epochs, each an index for ``examples.take``."""
    found: list[torch.Tensor] = []
    for epoch in range(-(-count // examples.parts)):
        found += examples.order(generator(seed, "scores", epoch))
    return found[:count]


def every_class(examples: Examples, seed: int, batches: int) -> list[torch.Tensor]:
    """Two halves of a set with as many examples of every class, each an index for ``examples.take``.

    There are ``batches`` times the size of a mini-batch in all, and never fewer than ``PER_CLASS`` of a class as far as
    the data has them (rare classes are made up for by others). Classes are looked for in a part of the data, which a
    class of 1/C of it is not missed in. Without class numbers (real-valued targets, running text) they are drawn as
    they come. Both halves hold all classes; halves of more than ``LARGEST`` examples are divided again. Batches that are
    drawn whole stay whole: so many of them, and more until they hold ``PER_CLASS`` of every class seen.
    """
    drawn = torch.cat(examples.order(generator(seed, "scores", 0)))
    if examples.drawn_whole:
        return _whole_batches(examples, drawn, batches)
    count = batches * examples.size
    labels = _labels(examples, drawn, count)
    chosen = drawn[:count] if labels is None else drawn[_balanced(labels, count)]
    parts = 2 * -(-len(chosen) // (2 * LARGEST))
    return list(chosen.tensor_split(min(parts, max(len(chosen) // 2, 1))))  # a batch norm needs two examples


def steps_of(examples: Examples, drawn: list[torch.Tensor]) -> float:
    """How many mini-batches of the training these examples are."""
    return len(drawn) if examples.drawn_whole else sum(map(len, drawn)) / examples.size


def class_numbers(batch: Any, rows: int) -> torch.Tensor | None:
    """The one tensor [rows] of whole numbers in a batch; None where there is none, or more than one."""
    leaves = [t for t in tree_leaves(batch) if torch.is_tensor(t) and t.shape == (rows,)]
    found = [t for t in leaves if not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool]
    return found[0] if len(found) == 1 else None


def _whole_batches(examples: Examples, drawn: torch.Tensor, batches: int) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    counts: Counter[int] = Counter()
    for index in drawn.split(1):
        classes = bool(counts) and 2 * len(counts) <= counts.total()
        few = classes and min(counts.values()) < PER_CLASS and len(found) < LOOK_AT_MOST * batches
        if len(found) >= batches and not few:
            break
        labels = class_numbers(examples.take(index), examples.rows(index))
        counts.update([] if labels is None else labels.tolist())
        found.append(index)
    return found


def _labels(examples: Examples, drawn: torch.Tensor, count: int) -> torch.Tensor | None:
    """Class numbers of the first of ``drawn``, int64, until all classes have been seen often enough; None without."""
    found: list[torch.Tensor] = []
    counts: Counter[int] = Counter()
    seen = 0
    for index in drawn.split(examples.size):
        labels = _labels_of(examples, index)
        if labels is None:
            return None
        found.append(labels.detach().cpu().long())
        counts.update(found[-1].tolist())
        seen += len(index)
        if seen >= max(LOOK * count, FEW) and 2 * len(counts) > seen:
            return None  # numbers that hardly ever come twice are no classes
        total = max(count, PER_CLASS * len(counts))
        if seen >= LOOK * total and (min(counts.values()) >= PER_CLASS or seen >= LOOK_AT_MOST * total):
            break
    return torch.cat(found)


def _labels_of(examples: Examples, index: torch.Tensor) -> torch.Tensor | None:
    whole = examples
    while isinstance(whole, Part):
        whole = whole.whole
    known = getattr(getattr(whole, "fetch", None), "labels", None)  # images need not be decoded for it
    if torch.is_tensor(known):
        return None if known.is_floating_point() or known.ndim != 1 else known[index]
    return class_numbers(examples.take(index), len(index))


def _balanced(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Places in ``labels``, rising: equally many of every class, and the first of the others up to ``count``."""
    classes = labels.unique()
    quota = max(count // len(classes), PER_CLASS)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for number in classes:
        chosen[(labels == number).nonzero().squeeze(1)[:quota]] = True
    missing = count - int(chosen.sum())
    if missing > 0:
        chosen[(~chosen).nonzero().squeeze(1)[:missing]] = True
    return chosen.nonzero().squeeze(1)
