"""winnow: smaller, faster neural networks by removing weights - with the proof, and a way back.

The distribution is named winnow-nn (``winnow_nn`` looks for that name here before it imports the package). Importing it costs no
more than importing torch: everything else is imported where it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from winnow.formats.hf import install_hook, when_imported
from winnow.version import __version__

_HOME = {
    "compress": "winnow.compression.verb",
    "find_ticket": "winnow.tickets.verb",
    "bench": "winnow.speed.verb",
    "evaluate": "winnow.verbs.evaluate",
    "inspect": "winnow.verbs.inspect",
    "load": "winnow.kernels.load",
    "accelerate": "winnow.kernels.dispatch",
    "shrink": "winnow.shrinking",
    "export_dense": "winnow.exports.verb",
    "find_scope": "winnow.masks.scope",
    "Budget": "winnow.budget",
    "Mask": "winnow.masks.mask",
    "MaskSet": "winnow.masks.mask",
    "WinnowError": "winnow.errors",
    "InputError": "winnow.errors",
    "FormatError": "winnow.errors",
    "GateError": "winnow.errors",
}
_PACKAGES = ("tickets", "train")  # winnow.train.attach and the like need no import of their own
__all__ = ["__version__", *_HOME, *_PACKAGES]

if TYPE_CHECKING:
    from winnow import tickets as tickets
    from winnow import train as train
    from winnow.budget import Budget as Budget
    from winnow.compression.verb import compress as compress
    from winnow.errors import FormatError as FormatError
    from winnow.errors import GateError as GateError
    from winnow.errors import InputError as InputError
    from winnow.errors import WinnowError as WinnowError
    from winnow.exports.verb import export_dense as export_dense
    from winnow.kernels.dispatch import accelerate as accelerate
    from winnow.kernels.load import load as load
    from winnow.masks.mask import Mask as Mask
    from winnow.masks.mask import MaskSet as MaskSet
    from winnow.masks.scope import find_scope as find_scope
    from winnow.shrinking import shrink as shrink
    from winnow.speed.verb import bench as bench
    from winnow.tickets.verb import find_ticket as find_ticket
    from winnow.verbs.evaluate import evaluate as evaluate
    from winnow.verbs.inspect import inspect as inspect


def _notify() -> None:
    from winnow.train.notice import enlist

    enlist()


install_hook()  # AutoModel.from_pretrained reads packed folders from here on; transformers is not imported for it
when_imported("transformers.trainer", _notify)  # a plain Trainer warns before it fills the zeros of a sparse model


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PACKAGES:
        return import_module(f"winnow.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'winnow' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
