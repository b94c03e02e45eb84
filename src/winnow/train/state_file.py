"""What :meth:`winnow.train.Attached.state_dict` returns, as one safetensors file: no pickle, every byte checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from winnow.errors import FormatError, InputError
from winnow.formats.tensorfile import TensorFile, write_tensors

_KIND = "attached state"
_TENSOR = "tensor"  # {"tensor": key in the file} stands where a tensor was


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes nested dicts and lists of tensors, numbers, text, booleans and None, whole or not at all.

    Raises:
        InputError: another kind of value, or a dict whose keys are not text.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _without_tensors(state, "", tensors)
    write_tensors(Path(path), tensors, {"format_version": 1, "kind": _KIND, "tree": tree})


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what :func:`write_state` wrote; tensors lie on the CPU.

    Raises:
        FormatError: the file is missing, damaged or something else.
    """
    file = TensorFile(Path(path))
    tree = file.about.get("tree")
    if file.about.get("kind") != _KIND or not isinstance(tree, dict):
        raise FormatError(f"{path} holds no state of an attached method: give the file that write_state wrote.")
    return _with_tensors(tree, file)


def require_state(state: Mapping[str, Any], keeps: Mapping[str, torch.Tensor], title: str) -> None:
    """Raises InputError unless this is the state of a method of this title, on tensors with masks of these shapes."""
    masks = state.get("masks")
    if not isinstance(masks, Mapping) or "step" not in state or "method" not in state:
        raise InputError("this is no state of an attached method: give what Attached.state_dict returned.")
    if (of := state.get("of", title)) != title:
        raise of_another_method(of, title)
    if set(masks) != set(keeps):
        raise InputError("the checkpoint holds masks of other tensors: attach with the scope it was made with.")
    for name, bits in masks.items():
        rows, cols = keeps[name].shape
        if tuple(bits.shape) != (rows, (cols + 7) // 8):
            raise InputError(f"the checkpoint's mask of {name} is of another shape: attach to the model it is of.")


def of_another_method(of: str | None, title: str) -> InputError:
    return InputError(
        f"the checkpoint is of another method{f', {of}' if of else ''}, and this is {title}: attach with the method it was made with."
    )


def _without_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if torch.is_tensor(value):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InputError(f"the keys of {path or 'the state'} are not all text: a state file takes text keys only.")
        # A level of its own, so that a dict with the one key "tensor" is not taken for a tensor.
        return {"items": {k: _without_tensors(v, f"{path}/{k}", tensors) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{path} is a {type(value).__name__}: a state file takes tensors, numbers and text only.")


def _with_tensors(value: Any, file: TensorFile) -> Any:
    if isinstance(value, list):
        return [_with_tensors(v, file) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return file.read(value[_TENSOR])
    return {k: _with_tensors(v, file) for k, v in value["items"].items()}
