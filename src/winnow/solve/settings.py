"""Settings of reconstruction."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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
