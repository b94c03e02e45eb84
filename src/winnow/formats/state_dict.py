"""State dicts as people have them: what is in a weights file, and in one sentence why it does not fit a model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import FormatError, InputError
from winnow.formats.hf_folder import refuse_pointer
from winnow.masks.blocks import common_path
from winnow.masks.ties import tensors_of, tied

Shapes = Mapping[str, Sequence[int]]
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # what torch.save writes: a zip archive, or (before 1.6) a bare pickle
_NAMED = 3  # keys in a sentence
# Keys that other tools leave in the place of an ordinary weight, and how to get it back.
_FOREIGN = (
    (r"(.*)_(?:orig|mask)$", "the masks of torch.nn.utils.prune: call prune.remove(module, name) on each before saving"),
    (r"(.*)parametrizations\..*", "parametrizations: call torch.nn.utils.parametrize.remove_parametrizations before saving"),
    (r"(.*)_[gvu]$", "torch's weight_norm or spectral_norm: call remove_weight_norm (remove_spectral_norm) before saving"),
    (r"(.*)(?:qweight|qzeros|SCB|weight_scale(?:_inv)?|weight_packed|quant_state.*)$", "weights that are already quantized: give the original"),
    (r"(.*)lora_[AB]\..*", "an adapter: merge it into its base model before saving"),
)  # fmt: skip


def load_state(model: nn.Module, file: Path) -> None:
    """Loads a .safetensors (or weights-only .pt/.pth) state dict strictly. Never unpickles code.

    Raises:
        InputError: the file does not fit: keys, a prefix or nesting, shapes; or it holds other things than tensors.
        FormatError: the file is damaged.
    """
    state = read_state(file)
    refuse_split_ties(model, state, file)
    try:
        model.load_state_dict(state)
    except Exception as error:
        expected = {n: tuple(t.shape) for n, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
        why = misfit(expected, {n: tuple(t.shape) for n, t in state.items()})
        text = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise InputError(f"{file} does not fit the model: {why or text[:300]}.") from None


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file; ``{"state_dict": ...}`` is unwrapped. Raises as :func:`load_state`."""
    try:
        refuse_pointer(file)
        with open(file, "rb") as f:
            start = f.read(9)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): give --weights a .safetensors file.") from None
    if file.suffix == ".safetensors" or start[8:] == b"{":
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except Exception as error:
            raise FormatError(f"{file} is not a whole safetensors file ({error}): copy it again.") from None
    if not start.startswith((_ZIP, _PICKLE)):
        raise InputError(f"{file} is neither a .safetensors file nor one of torch.save: save the model's state_dict().")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of archives that are refused below
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(_not_loaded(file, str(error))) from None
    return _state_in(file, found)


def misfit(expected: Shapes, found: Shapes) -> str | None:
    """Why tensors of the names and shapes ``found`` do not fit a model that has ``expected``; None where they do.

    Not a whole sentence: "its keys begin with ...", "it lacks ... and has ...", "a.weight is [7, 3], [5, 3] in the model".
    """
    missing, extra = [n for n in expected if n not in found], [n for n in found if n not in expected]
    if missing or extra:
        return _prefixed(expected, found) or _foreign(missing, extra) or _keys(missing, extra)
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            others = sum(tuple(found[n]) != tuple(s) for n, s in expected.items()) - 1
            more = f" (and {others} more differ)" if others else ""
            return f"{name} is {list(found[name])} there and {list(shape)} in the model{more}"
    return None


def refuse_split_ties(model: nn.Module, state: Mapping[str, torch.Tensor], where: Path | str) -> None:
    """Raises InputError where two names are one tensor in ``model`` and hold different values in ``state``: whichever
    is loaded last would win."""
    for name, names in tied(tensors_of(model)).items():
        first = next((n for n in names if n in state), name)
        if first != name and name in state and not _equal(state[first], state[name]):
            raise InputError(
                f"{where} does not fit the model: {first} and {name} are one tensor in the model and differ there; "
                "build the model without that tie, or give weights saved from it."
            )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or torch.equal(a, b):
        return a.shape == b.shape
    return a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())


def _state_in(file: Path, found: Any) -> dict[str, torch.Tensor]:
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not isinstance(found, dict):
        raise InputError(
            f"{file} does not fit the model: it holds a {type(found).__name__}; save the model's state_dict()."
        )
    other = next(
        (n for n, v in found.items() if not isinstance(v, torch.Tensor) and not str(n).endswith("_extra_state")), None
    )
    if other is None:
        return found
    nested = sorted(_nested(found), key=lambda path: not any("model" in str(key) for key in path))
    if nested:
        where = "".join(f"[{key!r}]" for key in nested[0])
        raise InputError(
            f"{file} does not fit the model: its weights are under {where}; save that part alone: "
            f"torch.save(torch.load({file.name!r}){where}, ...)."
        )
    raise InputError(
        f"{file} does not fit the model: it holds {other!r}, which is no tensor; save the model's state_dict() alone."
    )


def _nested(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where state dicts are inside a checkpoint, at most three dicts down."""
    if not isinstance(found, dict) or len(path) > 3:
        return
    if path and found and all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in found.items()):
        yield path
        return
    for key, value in found.items():
        yield from _nested(value, (*path, key))


def _not_loaded(file: Path, error: str) -> str:
    """One sentence for what torch.load would not load without running code."""
    pickled = re.search(r"GLOBAL ([\w.]+)", error)
    fix = "torch.save(model.state_dict(), ...)"
    if "TorchScript" in error or "constants.pkl" in error:
        return f"{file} does not fit the model: it is a TorchScript archive; save its state_dict: {fix}."
    if pickled:
        kind = "a pickled module" if pickled[1].startswith("torch.nn") or "odule" in pickled[1] else "pickled objects"
        return (
            f"{file} does not fit the model: it holds {kind} ({pickled[1]}), which winnow never unpickles, because that runs "
            f"code; save its state_dict alone: {fix}."
        )
    if "weights_only" in error or "Weights only" in error:
        return f"{file} does not fit the model: it holds pickled objects, which winnow never unpickles; save its state_dict alone: {fix}."
    return f"{file} cannot be read ({error.strip().splitlines()[0][:120] if error.strip() else 'no reason given'}): copy it again, or save the state_dict anew: {fix}."


def _prefixed(expected: Shapes, found: Shapes) -> str | None:
    """The prefix that all keys of one side have and the other lacks, where taking it away helps."""
    for here, there, say in (
        (found, expected, "its keys begin with {!r}, which the model's do not{}"),
        (expected, found, "its keys lack {!r}, with which the model's begin{}"),
    ):
        for key in ("_orig_mod.", "module."):  # torch.compile and DataParallel leave theirs anywhere
            bare = {name.replace(key, "") for name in here}
            if any(key in n for n in here) and not any(key in n for n in there) and bare == set(there):
                return say.format(key, _wrapper(key))
        prefix = _common(here)
        while prefix:
            bare = {name.removeprefix(prefix) for name in here}
            if len(bare & set(there)) > max(len(set(here) & set(there)), len(there) // 2):
                left = sorted(set(there) ^ bare)
                rest = f"; without it {left[0]} would still differ" if left else ""
                return say.format(prefix, _wrapper(prefix) + rest)
            prefix = prefix[: prefix.rstrip(".").rfind(".") + 1]
    return None


def _wrapper(prefix: str) -> str:
    """Who wrote such a prefix, and what to save instead."""
    if prefix == "module.":
        return " (DataParallel): save model.module.state_dict(), or rename the keys"
    if prefix == "_orig_mod.":
        return " (torch.compile): save the state_dict of the model before it was compiled, or rename the keys"
    return ": rename the keys, or give the factory of that part"


def _common(names: Shapes) -> str:
    """The dotted beginning that the most names share: of all of them, or of those with the commonest first part."""
    firsts: dict[str, list[str]] = {}
    for name in names:
        firsts.setdefault(name.partition(".")[0], []).append(name)
    most = max(firsts.values(), key=len, default=[])
    if not most or 2 * len(most) < len(names):
        return ""
    shared = common_path(name.rpartition(".")[0] for name in most)
    return f"{shared}." if shared else ""


def _foreign(missing: Sequence[str], extra: Sequence[str]) -> str | None:
    for pattern, what in _FOREIGN:
        for name in extra:
            match = re.fullmatch(pattern, name)
            if match and any(m.startswith(match[1]) for m in missing):
                return f"it holds {name}, {what}"
    return None


def _keys(missing: Sequence[str], extra: Sequence[str]) -> str:
    parts = []
    if missing:
        parts.append(f"it lacks {_some(missing)}")
    if extra:
        parts.append(f"{'has' if missing else 'it has'} {_some(extra)}, which the model has not")
    return " and ".join(parts)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
