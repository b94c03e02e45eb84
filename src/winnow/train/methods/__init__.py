"""Methods of sparse training, one class a file. A new one is its file and a line here; tests/train/test_contract.py finds it."""

from __future__ import annotations

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

METHODS: dict[str, type[SparseMethod]] = {
    "acdc": ACDC,
    "fixed": Fixed,
    "gradual": Gradual,
    "grasp": GraSP,
    "ham": HAM,
    "hyperbolic": Hyperbolic,
    "random": RandomMasks,
    "rigl": RigL,
    "set": SET,
    "sign-in": SignIn,
    "snip": SNIP,
    "sr-ste": SRSTE,
    "synflow": SynFlow,
    "str": STR,
}
