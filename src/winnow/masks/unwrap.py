"""A module as it is handed over in memory: what the wrappers stand around, with the weights that its forward uses.

Every verb opens a module here, so that all of them see the same model under the same names.
"""

from __future__ import annotations

import copy
import copyreg
import gc
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod

from winnow.errors import InputError

# Classes that only stand around a module, which they keep as ``module``: by name, for not all are installed everywhere.
_WRAPPERS = {
    "DataParallel", "DistributedDataParallel", "AveragedModel", "DeepSpeedEngine", "ModelEma", "ModelEmaV2", "ModelEmaV3",
}  # fmt: skip
_FOREIGN = ("torch", "deepspeed", "timm", "apex", "fairscale")  # packages that such wrappers come from
_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}
# Packages whose layers hold codes in place of weights.
_CODED = (
    "torch.ao.nn",
    "torch.nn.quantized",
    "bitsandbytes",
    "auto_gptq",
    "gptqmodel",
    "awq",
    "quanto",
    "optimum.quanto",
    "hqq",
)
_ATOMIC = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, weakref.ref, str, bytes,
    int, float, complex, type(None), torch.dtype, torch.device,
)  # fmt: skip


def unwrap(model: nn.Module) -> nn.Module:
    """The module that torch.compile, the parallel wrappers and weight averages stand around.

    Names are those of its own state dict.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and any(_is(c, _WRAPPERS) for c in type(model).__mro__):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_module(model: nn.Module) -> nn.Module:
    """The model that a verb works on: unwrapped, and masks of ``torch.nn.utils.prune`` taken over as zeros.

    The given module stays as it is. Where something had to be changed (a mask, a compiled part), this is another tree
    of modules that shares all other tensors with it.

    Raises:
        InputError: it cannot be worked on in this form: TorchScript, sharded or sparse parameters, adapters beside the
            weights.
    """
    model = unwrap(model)
    _require_plain(model)
    compiled = [path for path, m in model.named_modules() if isinstance(getattr(m, "_orig_mod", None), nn.Module)]
    if not compiled and next(pruning_masks(model), None) is None:
        return model
    twin = working_copy(model, share=[*model.parameters(), *model.buffers()])
    for path in compiled:
        above, _, key = path.rpartition(".")
        owner = twin.get_submodule(above)
        owner._modules[key] = unwrap(owner._modules[key])  # type: ignore[arg-type]
    for _, module, hook_id, hook in list(pruning_masks(twin)):
        _bake_mask(module, hook_id, hook)
    return twin


def pruning_masks(model: nn.Module) -> Iterator[tuple[str, nn.Module, int, BasePruningMethod]]:
    """(path of the weight, module, id of the hook, hook) of every mask that torch.nn.utils.prune has attached."""
    for path, module in model.named_modules():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, BasePruningMethod):
                yield f"{path}.{hook._tensor_name}" if path else hook._tensor_name, module, key, hook


def require_unmasked(model: nn.Module) -> None:
    """Raises InputError for a model with masks of torch.nn.utils.prune, where it must be worked on in place."""
    for name, *_ in pruning_masks(model):
        path, _, key = name.rpartition(".")
        raise InputError(
            f"{name} carries a pruning mask: make it permanent with torch.nn.utils.prune.remove({path or 'model'}, {key!r}) first."
        )


def require_dense(model: nn.Module) -> None:
    """Raises InputError where layers are packed or quantized: they have no dense weight that could be pruned."""
    for path, module in model.named_modules():
        home = type(module).__module__
        if home.startswith("winnow.kernels"):
            raise InputError(
                f"{path or 'the model'} is packed already ({type(module).__name__}): give the dense model, or load it without packed=True."
            )
        if home.startswith(_CODED) and (".quantized" in home or not home.startswith("torch.")):
            raise InputError(
                f"{path or 'the model'} is quantized already ({type(module).__name__}): give the dense model it was made of."
            )
    for name, p in model.named_parameters():
        if type(p).__module__.startswith(("torchao", "optimum.quanto", "bitsandbytes")):
            raise InputError(f"{name} is quantized already ({type(p).__name__}): give the dense model it was made of.")


def require_initialised(model: nn.Module) -> None:
    """Raises InputError for lazy modules that have seen no data yet: they have no weights."""
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(p):
            raise InputError(f"{name} is not initialised: call the model once on your data, and train it, first.")


def working_copy(model: nn.Module, share: Iterable[torch.Tensor] = ()) -> nn.Module:
    """A copy of a module tree that runs and can be changed; tensors in ``share`` are the same in both.

    What ``copy.deepcopy`` refuses is treated so that the copy works: tensors with a history (a weight that weight_norm
    has computed, an output kept for later) are copied without it, and what cannot be copied at all (a lock, an open
    file) is the same object in both.

    Raises:
        InputError: no copy can be made even so.
    """
    tensors = {id(t): t for t in share}
    try:
        return copy.deepcopy(model, dict(tensors))
    except Exception:  # whatever the attributes of a module's own raise
        pass
    memo: dict[int, Any] = {**tensors, **_uncopyable(model, tensors)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"this model cannot be copied ({first}): remove what copy.deepcopy cannot copy.") from error


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose tensors have shapes and types, and no values."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty: torch.Tensor = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


def _uncopyable(model: nn.Module, known: dict[int, torch.Tensor]) -> dict[int, Any]:
    """What stands in the copy for the objects below ``model`` that cannot be copied as they are, by their id."""
    found: dict[int, Any] = {}
    seen: set[int] = set(known)
    stack: list[Any] = [model]
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, _ATOMIC):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.grad_fn is not None:
                copied = value.detach().clone()
                found[id(value)] = copied.requires_grad_(value.requires_grad and not value.is_inference())
        elif _copies(value):
            stack.extend(gc.get_referents(value))
        else:
            found[id(value)] = value
    return found


def _copies(value: Any) -> bool:
    """Whether copy.deepcopy has a way to copy this object, whatever it holds."""
    cls = type(value)
    if cls in copy._deepcopy_dispatch or hasattr(cls, "__deepcopy__"):  # type: ignore[attr-defined]
        return True
    try:
        reduce = copyreg.dispatch_table.get(cls)
        return bool(reduce(value) if reduce is not None else value.__reduce_ex__(4))
    except Exception:  # TypeError: cannot pickle '_thread.lock' object, and what others raise
        return False


def _bake_mask(module: nn.Module, hook_id: int, hook: BasePruningMethod) -> None:
    """What ``prune.remove`` makes, with a parameter of its own and in the place of the old one."""
    name = hook._tensor_name
    dense = module._parameters[f"{name}_orig"]
    assert dense is not None
    with torch.no_grad():
        weight = nn.Parameter(hook.apply_mask(module).detach().clone(), requires_grad=dense.requires_grad)
    del module._forward_pre_hooks[hook_id], module._buffers[f"{name}_mask"]
    getattr(module, "_forward_pre_hooks_with_kwargs", {}).pop(hook_id, None)
    module.__dict__.pop(name, None)
    kept = {name if key == f"{name}_orig" else key: p for key, p in module._parameters.items()}
    module._parameters.clear()
    module._parameters.update(kept)
    setattr(module, name, weight)  # recurrent layers note their flat weights here


def _require_plain(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is compiled by TorchScript, whose layers cannot be changed: give the Python module it was made of."
        )
    for path, module in model.named_modules():
        of = f"{path} of the model" if path else "the model"
        if any(_is(c, _SHARDED) for c in type(module).__mro__):
            raise InputError(
                f"{of} is sharded ({type(module).__name__}): gather its state dict into a plain model first."
            )
        if type(module).__module__.partition(".")[0] == "peft":
            raise InputError(
                "the model carries adapters of peft beside its weights: give winnow.train.merge(model), which is one model."
            )
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if type(p).__name__ == "DTensor" or type(getattr(p, "data", None)).__name__ == "DTensor":
            raise InputError(f"{name} is cut up over processes (DTensor): gather the model's state dict first.")
        if not is_lazy(p) and p.layout != torch.strided and p.layout != torch._mkldnn:  # type: ignore[attr-defined]
            layout = str(p.layout).removeprefix("torch.")
            raise InputError(f"{name} is stored as {layout}: put {name}.to_dense() in its place first.")


def _is(cls: type, names: set[str]) -> bool:
    return cls.__name__ in names and cls.__module__.partition(".")[0] in _FOREIGN
