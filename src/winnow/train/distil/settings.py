"""What can be set about methods that train: checked before any work, stored in the recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
