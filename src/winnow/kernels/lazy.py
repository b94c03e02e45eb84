"""The dense weight of a layer that holds none: a tensor that knows its shape and type, and expands when it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from winnow.errors import InputError


class LazyWeight(torch.Tensor):
    """``layer.weight`` of a packed layer: a tensor on the CPU whose values are made by ``expand()`` at every use.

    Its shape, type and device cost nothing to ask for, which models do in every forward. Every operator of torch gets the
    real, dense values, in memory of its own for as long as it runs; so do ``numpy()``, ``tolist()``, copies and pickles.
    What would change the values is refused with InputError: they are not here (views are of a copy). It passes for a parameter, so that it
    can be given to another layer.
    """

    _expand: Callable[[], torch.Tensor]

    @staticmethod
    def __new__(cls, shape: torch.Size, dtype: torch.dtype, expand: Callable[[], torch.Tensor]) -> LazyWeight:
        made: LazyWeight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))
        made._expand = expand
        made._is_param = True  # type: ignore[attr-defined]  # isinstance(weight, nn.Parameter)
        return made

    def dense(self) -> torch.Tensor:
        """The values, as an ordinary tensor of its own."""
        return self._expand()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Nothing of its own; but that there is one keeps torch's fused paths, which read weights, from going round layers.
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                if any(isinstance(tensor, LazyWeight) for tensor in tree_leaves(given)):
                    raise _unchangeable()
        args, kwargs = tree_map_only(LazyWeight, LazyWeight.dense, (args, kwargs))
        return func(*args, **kwargs)

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return self  # not a copy: what is written into it must be refused, not lost

    @data.setter
    def data(self, value: Any) -> None:
        raise _unchangeable()

    def requires_grad_(self, requires_grad: bool = True) -> LazyWeight:
        if requires_grad:
            raise _unchangeable()
        return self

    # What torch does with the memory of a tensor, past every operator: there is none here.

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise _unchangeable()

    __setitem__ = apply_ = map_ = map2_ = _refuse

    def data_ptr(self) -> int:
        raise RuntimeError("a packed weight has no dense memory: read it with dense()")

    const_data_ptr = data_ptr

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.dense().untyped_storage()

    def numpy(self, *, force: bool = False) -> np.ndarray:
        return self.dense().numpy(force=force)

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return self.dense().__array__(dtype)

    def __dlpack__(self, **given: Any) -> Any:
        return self.dense().__dlpack__(**given)

    def tolist(self) -> Any:
        return self.dense().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return nn.Parameter(self.dense(), requires_grad=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter(self.dense(), requires_grad=False).__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LazyWeight({self.dense()!r})"


class WeightOnDemand(nn.Module):
    """A layer without a dense weight of its own: ``weight`` is made where it is used, and packed where it is set.

    ``state_dict()`` holds the ordinary dense ``weight`` and ``bias``; ``load_state_dict`` packs a dense weight again.
    The type of ``weight`` follows ``layer.to(dtype)``, as the bias does.
    """

    _dtype: torch.dtype  # of the dense weight
    _CPU_ONLY: str  # the error of a move to another device, which is added to it

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight: a parameter where there is one, else expanded where it is used."""
        own = self._parameters.get("weight")
        if own is not None:
            return own
        if torch.compiler.is_compiling():
            return self.traced_weight()
        return LazyWeight(self.weight_shape, self._dtype, self.dense)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in every module; ``layer.weight = parameter`` takes over its values, by :meth:`pack`."""
        if name == "weight" and param is not None:
            self.pack(param)
        else:
            super().register_parameter(name, param)

    @property
    def weight_shape(self) -> torch.Size:
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """The dense weight, of the type and shape of :attr:`weight`."""
        raise NotImplementedError

    def pack(self, weight: torch.Tensor) -> None:
        """Take over a dense weight. Raises InputError for another shape, or values that this layer cannot hold."""
        if weight.shape != self.weight_shape:
            raise InputError(f"the weight has shape {list(weight.shape)}, the layer {list(self.weight_shape)}")
        self._take(weight)

    def _take(self, weight: torch.Tensor) -> None:
        """Take over a dense weight of the right shape."""
        raise NotImplementedError

    def traced_weight(self) -> torch.Tensor:
        """The dense weight by operators that a compiler follows."""
        return self.dense()

    def bias_changed(self) -> None:
        """Called when new values have been copied into ``bias``."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        probe = fn(torch.empty(0, dtype=self._dtype))
        if probe.device.type != "cpu":
            raise InputError(f"{self._CPU_ONLY} {probe.device}")
        self._dtype = probe.dtype
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if "weight" not in self._parameters:
            destination[f"{prefix}weight"] = self.dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        key = f"{prefix}weight"
        if key in state_dict:
            try:
                self.pack(state_dict[key])
            except InputError as error:
                errors.append(f"{key}: {error}")
        if "weight" not in self._parameters:
            if key not in state_dict and strict:
                missing.append(key)
            state_dict = {name: tensor for name, tensor in state_dict.items() if name != key}
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self.bias_changed()


def _unchangeable() -> InputError:
    return InputError(
        "the weight of a packed layer cannot be changed in place: use the layer's pack() or load_state_dict(), "
        "or load the model without packed=True"
    )
