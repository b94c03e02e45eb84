"""What a ticket cost: steps, passes, training FLOPs and seconds, beside what iterative pruning would have taken."""

from __future__ import annotations

from winnow.measure.flops import TRAINING, Flops, forward_flops
from winnow.records.ticket import Cost, Isp
from winnow.seeding import generator
from winnow.tickets.method import levels
from winnow.tickets.methods.imp import ImpSettings
from winnow.tickets.methods.registry import METHODS
from winnow.tickets.search import Ticket
from winnow.train.task.training import Training

SAMPLES = 4  # mini-batches that FLOPs are counted on where their lengths differ
BUDGET = 0.25  # of the training: later masks leave too small a learning rate for what follows (ISP's rule)


def training_flops(training: Training) -> tuple[Flops, float]:
    """Forward FLOPs of one example of a training, its loss included, and the examples of an average step.

    One example tells where all have one shape; otherwise the first mini-batches of an epoch do, their padding counted.
    """
    examples = training.examples
    order = examples.order(generator(training.seed, "flops"))
    if examples.joined is not None and examples.lengths is None:
        batches = [examples.take(order[0][:1])]
    else:
        batches = [examples.take(index) for index in order[:SAMPLES]]
    found = forward_flops(training.model, batches, training.scope(), forward=training.loss)
    return found, examples.count / examples.parts


def price(ticket: Ticket, total: int, counted: tuple[Flops, float]) -> Cost:
    """The cost of a ticket as reports show it.

    Scoring passes count as steps. The density of a step is that of all prunable weights (``Cost.weighted``), so
    ``sparse_flops`` takes the zeros as spread evenly over the products; ``forward_share`` takes each tensor by itself.

    Args:
        total: T, steps of the training.
        counted: what :func:`training_flops` found.
    """
    (flops, batch), cost, rounds = counted, ticket.cost, imp_rounds(ticket.sparsity)
    densities = {name: mask.nonzeros / mask.numel for name, mask in ticket.masks.items()}
    method = METHODS.get(ticket.method)
    return Cost(
        steps=cost.steps, main=cost.main, look_ahead=cost.look_ahead, extra=cost.extra, seconds=cost.seconds,
        passes=cost.steps / total, imp_rounds=rounds, imp_steps=(rounds + 1) * total,
        dense_flops=cost.steps * batch * flops.training(),
        sparse_flops=batch * TRAINING * (cost.steps * flops.rest + cost.weighted * flops.prunable),
        forward_share=min(flops.sparse(densities) / flops.total, 1.0) if flops.total else 1.0,
        isp=_isp(ticket) if method is not None and method.early_masks and ticket.history else None,
    )  # fmt: skip


def imp_rounds(sparsity: float) -> int:
    """K: rounds of iterative magnitude pruning to a sparsity; each is one training of T steps, and one follows."""
    return len(levels([sparsity], ImpSettings.model_fields["rate"].default)) if sparsity > 0 else 0


def _isp(ticket: Ticket) -> Isp:
    """The sums of Instant Soup Pruning (Jaiswal et al. 2023); its rule is kept where M is at most a quarter of T."""
    last, cost = ticket.history[-1].step, ticket.cost
    share = last / max(cost.main, 1)
    return Isp(
        rounds=len(ticket.history), mask_steps=last, look_ahead=cost.look_ahead, total=cost.steps, share=share,
        kept=share <= BUDGET + 1e-9,
    )  # fmt: skip
