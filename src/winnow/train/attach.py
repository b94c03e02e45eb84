"""One hook for training under masks: your model, your optimizer, your loop - the zeros stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from winnow.masks.prunable import Scope
from winnow.masks.unwrap import require_unmasked, unwrap
from winnow.train.attached import Attached, live
from winnow.train.method import SparseMethod, pruned_by
from winnow.train.shards import group_of
from winnow.train.targets import Optimizers, plain_optimizers, scope_of


def attach(
    model: nn.Module,
    optimizer: Optimizers,
    method: SparseMethod,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    scope: Scope | None = None,
    state: Mapping[str, Any] | None = None,
    steps: int | None = None,
) -> Attached:
    """Keeps masks on a model while it is trained, in any training loop.

    From here to :meth:`Attached.detach`, masked weights are zero in every forward, and so are their gradients as soon as
    they are accumulated (before a clip norm is computed) and the optimizer's moments of them: momentum and weight decay
    move nothing. Parameters stay plain parameters, also where a method trains factors in their places
    (:class:`winnow.train.factors.Factors`), so checkpoints, ``state_dict`` and MultiheadAttention (which reads
    ``out_proj.weight`` directly and passes by hooks of that module) see the masked weights.

    An infinite or NaN gradient of a masked weight, as loss scaling brings them, becomes zero too. Moments are tensors of
    the weight's own shape in the optimizer's state: Adafactor's row and column means are left alone, and so are 8-bit
    codes. The weights themselves are masked after every step in any case, also under optimizers that mix entries (Muon).
    Gradients that the loop writes itself (``torch.autograd.grad``) are masked when the step that reads them begins, weights
    that it writes itself (``load_state_dict``) at the next step or :meth:`Attached.enforce`. A copy of the model, pickled
    or deep-copied, is a plain model with its zeros. An average of the weights (``torch.optim.swa_utils.AveragedModel``) is zero
    where masks stay; where they have moved, ``attached.masks.apply`` makes it so.

    In several processes attach in each, to the wrapped model; that all have the same masks, method and step is checked.
    Under DistributedDataParallel local gradients are masked before they are averaged. Under
    ``torch.distributed.fsdp.fully_shard`` attach when the model is sharded and the optimizer made: masks are whole in every
    process, weights and factors are masked where they lie, and :meth:`Attached.matrices`, dense gradients and
    :meth:`Attached.state_dict` are gathered, so that every process has to ask for them. FullyShardedDataParallel (the
    first FSDP), tensor parallelism and DeepSpeed are not supported.

    Args:
        optimizer: what trains the prunable weights. Of several (Muon for the matrices, AdamW for the rest) give all, the
            one that steps last at the end: its steps are counted. Wrappers of accelerate are looked through.
        method: :class:`winnow.train.Fixed` masks, :class:`winnow.train.Gradual` ones, or your own :class:`SparseMethod`.
        include: names or patterns of tensors that are prunable as well, as for :func:`winnow.compress`.
        exclude: of tensors that are not.
        scope: what is prunable, in place of the two.
        state: an :meth:`Attached.state_dict` to go on from, after model and optimizer were loaded: the method is restored
            and not started.
        steps: optimizer steps of the whole training, from its first: what methods take their ``end`` or ``every`` from where
            you name none. Give the same when you resume.

    Raises:
        InputError: nothing is prunable, the optimizer trains none of it, the weights hold NaN or infinity, model and
            optimizer are attached already, or a method needs ``steps``.
    """
    given, model = model, unwrap(model)
    require_unmasked(model)
    if scope is None:
        include = [*include, *pruned_by(method, model)]
    scope = scope_of(model, include, exclude, scope)
    return Attached(model, plain_optimizers(optimizer), method, scope, state, steps, together=group_of(given, model))


def is_attached(model: nn.Module) -> bool:
    """Whether masks are on a model now."""
    return any(attached.model is unwrap(model) for attached in live)
