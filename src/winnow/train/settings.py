"""What can be set about methods that train: checked before any work, stored in the recipe."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from winnow.errors import InputError

Loss = Literal["auto", "kl", "mse", "cosine"]


class DistilSettings(BaseModel):
    """How the weights that stay are fitted to the dense model's outputs on unlabelled data.

    Defaults follow the FCPTS sheet: SGD with momentum 0.9, cosine to zero, batch 64, temperature 4.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(600, ge=1)  # optimizer steps; a time limit replaces them
    batch: int = Field(64, ge=1)  # examples a step
    lr: float = Field(0.01, gt=0)  # of weights, biases and norms; falls to zero as a cosine
    momentum: float = Field(0.9, ge=0, lt=1)
    # Norm of the gradient of weights, biases and norms in a step, at most; 0: no limit. None: 1, and no limit in a model
    # with batch norms, whose gradients are larger and do no harm. Without it transformers now and then end constant.
    clip: float | None = Field(None, ge=0)
    weight_decay: float = Field(0.0, ge=0)  # on weights; none on biases, norms and thresholds
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps in which the rates rise from zero
    loss: Loss = "auto"  # kl for logits, mse for a single value and for features
    temperature: float = Field(4.0, gt=0)  # of KL
    blockwise: float = Field(0.0, ge=0)  # weight of the summed squared error of the blocks' outputs
    train: Literal["norm", "all"] = "all"  # norm: biases and norms only
    precision: Literal["float32", "bfloat16"] = "float32"  # of products in a step; weights and updates stay float32


class FcptsSettings(DistilSettings):
    """How thresholds are learned; FCPTS (Gong et al., AAAI 2024, arXiv 2405.05808)."""

    train: Literal["thresholds", "thresholds+norm", "all"] = "all"  # type: ignore[assignment]
    threshold_lr: float = Field(0.1, gt=0)  # of log t
    # lambda of |rate - target|; None: half the number of groups. A group's pull is lambda N_l / N, so that an average
    # one feels the same in a model of two layers and in one of two hundred. The paper has 1 for any number.
    penalty: float | None = Field(None, gt=0)
    threshold_grad: Literal["rec+c", "c_only"] = "rec+c"  # c_only: what the released code does
    start: Literal["uniform", "erk", "l2", "lamp", "table"] = "uniform"
    ramp: float = Field(
        0.5, ge=0, lt=1
    )  # share of the training over which the target rises; 0: there from the first step
    ramp_from: float = Field(0.85, ge=0, lt=1)  # where it begins, as a share of the wanted rate
    bridge: Literal["histogram", "kde"] = "histogram"
    bins: int = Field(1000, ge=100)  # of the histogram
    bandwidth: float | None = Field(None, gt=0)  # of the KDE, in standard deviations; None: Silverman's rule
    refresh: int = Field(20, ge=1)  # steps between two looks at the distribution of the weights
    seeds: int = Field(1, ge=1)  # learn the allocation this many times, to see how stable it is


class ReconstructSettings(BaseModel):
    """How a layer or block is fitted to what its dense weights put out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(200, ge=1)  # of a layer or block
    batch: int = Field(32, ge=1)  # calibration examples a step
    lr: float = Field(0.1, gt=0)  # Adam, of weights, as a share of the root mean square of those that stay
    bias_lr: float = Field(0.01, gt=0)  # of biases and norms
    stop: float = Field(1e-5, ge=0)  # end where the squared error is below this share of the output's power
    target: Literal["dense", "own"] = "dense"  # outputs of the dense model, or of the dense unit on the pruned prefix's
    correct: bool = True  # put each layer's dense mean and deviation back before and after


S = TypeVar("S", bound=BaseModel)


def read_settings(kind: type[S], given: dict[str, Any], method: str) -> S:
    """Checks settings a user gave (values may be text). Raises InputError naming the setting and what it takes."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise InputError(f"method {method} has no setting {name!r}: choose one of {known}.") from None
        if not name:  # two settings that do not go together
            raise InputError(f"method {method}: {first['msg'].removeprefix('Value error, ')}.") from None
        raise InputError(f"--set {name}={given.get(name)}: {first['msg'].lower()}.") from None
