"""Training with masks: the hook for your own loop, and the loop that fits what stays to the dense model."""

from typing import TYPE_CHECKING, Any

from winnow.train.adapters import Merged, merge
from winnow.train.attach import attach
from winnow.train.attached import Attached
from winnow.train.method import SparseMethod
from winnow.train.methods.acdc import ACDC
from winnow.train.methods.dynamic import SET, RigL
from winnow.train.methods.fixed import Fixed
from winnow.train.methods.gradual import Gradual
from winnow.train.methods.ham import HAM
from winnow.train.methods.hyperbolic import Hyperbolic
from winnow.train.methods.random_masks import RandomMasks
from winnow.train.methods.saliency_masks import SNIP, GraSP, SynFlow
from winnow.train.methods.sign_in import SignIn
from winnow.train.methods.soft_threshold import STR
from winnow.train.methods.sr_ste import SRSTE
from winnow.train.signs import Signs
from winnow.train.state_file import read_state, write_state

if TYPE_CHECKING:
    from winnow.train.hf import WinnowCallback
    from winnow.train.lightning import LightningCallback

__all__ = [
    "ACDC",
    "HAM",
    "SET",
    "SNIP",
    "SRSTE",
    "STR",
    "Attached",
    "Fixed",
    "GraSP",
    "Gradual",
    "Hyperbolic",
    "LightningCallback",
    "Merged",
    "RandomMasks",
    "RigL",
    "SignIn",
    "Signs",
    "SparseMethod",
    "SynFlow",
    "WinnowCallback",
    "attach",
    "merge",
    "read_state",
    "write_state",
]


def __getattr__(name: str) -> Any:
    """The names that need transformers or Lightning."""
    if name == "WinnowCallback":
        from winnow.train.hf import WinnowCallback

        return WinnowCallback
    if name == "LightningCallback":
        from winnow.train.lightning import LightningCallback

        return LightningCallback
    raise AttributeError(f"module 'winnow.train' has no attribute {name!r}")
