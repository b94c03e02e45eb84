"""What ``save_pretrained`` says before it writes a model that winnow opened or changed: such a folder is not what a person may expect."""

from __future__ import annotations

import copy
import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

from winnow.errors import InputError

_CHECK = "_winnow_before_saving"


def before_saving(model: Any, check: Callable[[Any], None]) -> None:
    """Has ``check(model)`` called, which may raise, whenever ``model.save_pretrained`` or ``model.push_to_hub`` is.

    It takes the place of an earlier one, and goes along into copies of the model. Of the model's class nothing changes.
    """
    model.__dict__[_CHECK] = check
    for name in ("save_pretrained", "push_to_hub"):
        model.__dict__[name] = types.MethodType(_checking(getattr(type(model), name)), model)


def _checking(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        check = self.__dict__.pop(_CHECK, None)  # once, though push_to_hub calls save_pretrained in its turn
        if check is None:
            return method(self, *args, **options)
        try:
            check(self)
            return method(self, *args, **options)
        finally:
            self.__dict__[_CHECK] = check

    return checked


def say_dense(model: Any) -> None:
    """Warns that what is written has all its zeros in place, and names what is packed."""
    folder = getattr(model.config, "name_or_path", "") or "the folder it came from"
    warnings.warn(
        f"save_pretrained and push_to_hub write this model dense, zeros and all: to pass it on packed, copy {folder} or run hf upload "
        f"REPO {folder}; a model that was trained since is packed again by winnow compress with --method zeros.",
        stacklevel=3,
    )


def refuse_other_shapes(model: Any) -> None:
    """Raises InputError where the class makes other shapes of the model's configuration, so that no one could load its folder."""
    try:
        with torch.device("meta"):
            fresh = type(model)(copy.deepcopy(model.config)).state_dict()
    except Exception:  # whatever a class of its own makes of it: then there is nothing to compare with
        return
    for name, tensor in model.state_dict().items():
        if name in fresh and torch.is_tensor(tensor) and fresh[name].shape != tensor.shape:
            raise InputError(
                f"{name} is {list(tensor.shape)} in the model and {list(fresh[name].shape)} by its configuration, so that nothing could "
                "load what would be written: take the model as it was before winnow.shrink, and call winnow.shrink on it whenever it is "
                "loaded."
            )
