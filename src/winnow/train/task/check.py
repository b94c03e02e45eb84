"""Faults of a training that are found before any work: one batch forward, and one evaluation that is the user's own."""

from __future__ import annotations

import math

import numpy as np
import torch

from winnow.errors import InputError
from winnow.forward.model import evaluating
from winnow.masks.prunable import Scope
from winnow.masks.unwrap import require_dense, require_initialised
from winnow.measure.evaluation import Evaluation
from winnow.measure.fits import explaining_errors, require_sound
from winnow.measure.task import Task
from winnow.seeding import seeded
from winnow.train.task.checkpoint import require_tensors
from winnow.train.task.training import Training


def check_training(training: Training) -> Scope:
    """What is prunable, after a look at weights and loss. The model stays as it was.

    Raises:
        InputError: a state dict of more than tensors, weights that are not finite, nothing that may be pruned and
            trained, a loss that is no finite scalar with a gradient, or an evaluation function that returns something
            else, or NaN.
    """
    model = training.model
    require_dense(model)
    require_tensors(model)
    require_initialised(model)
    require_sound(model, (n for n, p in model.named_parameters() if p.is_floating_point()))
    scope = training.scope()
    if not any(model.get_parameter(n).requires_grad for n in scope.prunables):
        raise InputError("every prunable weight of the model is frozen: set requires_grad on what should be trained.")
    batch = training.first_batch()
    # In eval mode, because batch norms must not see this batch; with gradients all the same.
    with (
        evaluating(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        seeded(training.seed, "check"),
        explaining_errors(batch, "training"),
    ):
        loss = training.loss(model, batch)
    if not torch.is_tensor(loss) or loss.numel() != 1:
        shape = list(loss.shape) if torch.is_tensor(loss) else type(loss).__name__
        raise InputError(f"the loss returned {shape}: it must return one number as a tensor.")
    if not bool(torch.isfinite(loss)):
        raise InputError(
            f"the loss is {float(loss.detach())} before the first step: look for NaN in the data and the labels."
        )
    if not loss.requires_grad:
        raise InputError("the loss has no gradient: compute it from the model's output without detach or no_grad.")
    own = training.evaluate
    if own is not None and not isinstance(getattr(own, "__self__", None), Task):
        with evaluating(model), seeded(training.seed, "check"):
            result = own(model)
        if not isinstance(result, Evaluation):
            raise InputError(
                f"eval returned {type(result).__name__}: it must return a winnow.measure.evaluation.Evaluation."
            )
        if math.isnan(result.value) and bool(
            np.isnan(result.per_example.astype(float)).any() or result.details.get("nan_examples")
        ):
            raise InputError("eval finds NaN for the model as it is: look for NaN in the evaluation data.")
    return scope
