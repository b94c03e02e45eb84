"""What a weight is worth where an optimizer knows the size of its gradients: between magnitude and Fisher information."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from winnow.errors import InputError
from winnow.train.attach import Attached

SQUARES = ("exp_avg_sq", "square_avg", "sum")  # Adam and its kin, RMSprop, Adagrad


def scores(
    attached: Attached, optimizer: torch.optim.Optimizer, power: float, *, spent: bool = False
) -> Mapping[str, torch.Tensor]:
    """|w| v^(power / 2) of every prunable weight, matrices [rows, cols] by name; v is the optimizer's mean square of gradients.

    Squared it ranks the same: w^2 v is twice the loss that Optimal Brain Damage expects from removing w (LeCun et al. 1989,
    equation 5), with the diagonal of the empirical Fisher information in the Hessian's place. A power of 1 is that, 1/2
    the curvature that Adam divides its steps by, 0 the magnitude, which needs no optimizer and gives the weights
    themselves, signs included.

    Args:
        spent: the optimizer takes no step after this: its own memory is written over.

    Raises:
        InputError: the optimizer keeps no squares of gradients, or none of a weight, as one that is frozen.
    """
    if not power:
        return attached.matrices()
    found = {}
    for name, weight in attached.weights.items():
        state = optimizer.state.get(weight, {})
        squares = next((state[key] for key in SQUARES if torch.is_tensor(state.get(key))), None)
        if squares is None or squares.shape != weight.shape:
            raise InputError(
                f"curvature needs the squared gradients of {name} and {type(optimizer).__name__} has none: set curvature to "
                "0, train with AdamW, Adam, RMSprop or Adagrad, and freeze no prunable weight."
            )
        score = (squares if spent else squares.clone()).pow_(power / 2).mul_(weight.detach().abs())
        found[name] = attached.scope.prunables[name].matrix(score)
    return found
