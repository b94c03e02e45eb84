"""Settings of FCPTS."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from winnow.train.distil.settings import DistilSettings


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
