"""An artifact as a model whose packed layers stay packed: the whole dense weight of none of them ever exists."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from winnow.errors import FormatError, InputError
from winnow.formats.compatibility import require_match, transformers_errors
from winnow.formats.reader import Artifact, unpacked
from winnow.formats.resaved import before_saving, say_dense
from winnow.formats.validation import FLOATS
from winnow.kernels.matrix import PackedMatrix
from winnow.kernels.swap import pack_layer, swap, why_dense

_log = logging.getLogger(__name__)


def packed_transformers(artifact: Artifact, cls: Any, dtype: torch.dtype | None) -> nn.Module:
    """The transformers model of class ``cls`` in an artifact, with packed layers."""
    from transformers import GenerationConfig

    with transformers_errors(artifact):
        config = cls.config_class.from_pretrained(artifact.folder, local_files_only=True)
    for key in ("quantization_config", "transformers_weights"):  # how the folder stores its weights
        vars(config).pop(key, None)
    config.name_or_path = str(artifact.folder)

    def build() -> Any:
        return cls._from_config(config, dtype=dtype or getattr(config, "dtype", None) or torch.float32)

    with transformers_errors(artifact):
        model = _without_values(build, lambda model: _transformers(artifact, model))
        if model.can_generate() and (artifact.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(artifact.folder, local_files_only=True)
    before_saving(model, say_dense)
    return model


def _transformers(artifact: Artifact, model: Any) -> None:
    from winnow.formats.hf_quantizer import planned_dtype

    expected, stored = model.state_dict(), set(artifact.names)
    tied = dict(model.all_tied_weights_keys)
    for target, source in dict(tied).items():
        if target in stored and source in stored:  # parted, as transformers does it where both are there
            del tied[target]
            _assign(model, [target], torch.empty_like(expected[target]))
    there = stored | {n for pair in tied.items() if stored & set(pair) for n in pair}
    different = (
        sorted(stored - expected.keys())
        or sorted(expected.keys() - there)
        or [name for name in artifact.names if artifact.shape(name) != tuple(expected[name].shape)]
    )
    if different:
        raise FormatError(f"{artifact.folder} does not fit {type(model).__name__} ({different[0]}): write it again")
    _fill(model, artifact, {name: planned_dtype(model, name, tensor) for name, tensor in expected.items()}, tied)


def packed_plain(artifact: Artifact, build: Callable[[], nn.Module], dtype: torch.dtype | None) -> nn.Module:
    """The plain torch model that ``build`` makes, with the weights of an artifact and packed layers.

    ``build`` runs with its parameters on the meta device, so that no dense weight is allocated; a model that needs
    their values while it is built, derives others from them, or keeps a parameter elsewhere too, is built once more as
    usual.
    """

    def fill(model: nn.Module) -> None:
        expected = model.state_dict()
        require_match(artifact, model)
        floating = {name for name, tensor in expected.items() if tensor.is_floating_point()}
        _fill(model, artifact, dict.fromkeys(floating, dtype) if dtype else {}, artifact.aliases)

    return _without_values(build, fill)


def _without_values(build: Callable[[], Any], fill: Callable[[Any], None]) -> Any:
    """What ``build`` makes, filled; built with its parameters on the meta device where that can be."""
    try:
        with parameters_on_meta():
            model = build()
        fill(model)
        return model
    except (FormatError, InputError):
        raise
    except Exception as error:
        _log.info("the model is built dense first, because it cannot be built without values: %s", error)
    model = build()
    fill(model)
    return model


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, every parameter that this thread registers in a module goes to the meta device; buffers stay real."""
    mine = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: Any) -> nn.Parameter | None:
        if threading.get_ident() != mine or parameter is None or parameter.is_meta or is_lazy(parameter):
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    handle = torch_module.register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _fill(model: nn.Module, artifact: Artifact, dtypes: dict[str, torch.dtype], tied: dict[str, str]) -> None:
    """Replace every parameter and persistent buffer of ``model`` by what the artifact holds: layers by packed ones
    where that can be, the rest by dense tensors of ``dtypes`` (default: as stored). ``tied``: name -> the one it is.
    """
    shared = _shared(model, tied)
    stored = sorted({*artifact.names} - artifact.aliases.keys())
    outcome: dict[str, str] = {}
    packed_names = set(artifact.packed_names)
    empty = {name: weakref.ref(p) for name, p in model.named_parameters() if p.is_meta}
    strange = [name for name in artifact.names if name not in shared]
    if strange:
        raise InputError(f"{strange[0]} is neither a parameter nor a buffer: load this model without packed=True")
    for name in stored:
        if name not in packed_names:
            tensor = artifact.dense(name)
            if tensor.is_floating_point():
                tensor = tensor.to(dtypes.get(name, tensor.dtype))
            _assign(model, shared[name], tensor)
            continue
        reason = _pack(model, artifact, name, dtypes, shared)
        outcome[name] = reason
        if reason != "packed":
            tensor = unpacked(artifact.prunable(name), artifact.packed(name), dtypes.get(name))
            _assign(model, shared[name], tensor)
    _report(artifact, outcome)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    for path, module in model.named_modules():
        values = module.__dict__.items()
        left += [f"{path}.{key}" for key, value in values if isinstance(value, torch.Tensor) and value.is_meta]
    if any(held() is not None for held in empty.values()):
        gc.collect()  # what is garbage holds nothing
    left += [name for name, held in empty.items() if held() is not None]
    if left:
        raise RuntimeError(f"{left[0]} has no values, or is held elsewhere without them")
    model.winnow_packed = outcome  # type: ignore[assignment]
    model.requires_grad_(False).eval()


def _pack(
    model: nn.Module, artifact: Artifact, name: str, dtypes: dict[str, torch.dtype], shared: dict[str, list[str]]
) -> str:
    """Put a packed layer where the parameter ``name`` is; "packed", or why it must be dense."""
    path, _, key = name.rpartition(".")
    if len(shared[name]) > 1:
        return f"tied to {next(other for other in shared[name] if other != name)}"
    reason = why_dense(model, path, key)
    if reason is not None:
        return reason
    packed = artifact.mapped(name)
    try:
        matrix = PackedMatrix.from_packed(packed)
    except InputError as error:
        return str(error)
    layer = model.get_submodule(path)
    if held_elsewhere(layer, key):
        return "the model keeps its weight outside its layer too"
    swap(model, path, pack_layer(layer, matrix, dtypes.get(name, FLOATS[packed.dtype])))
    return "packed"


def _shared(model: nn.Module, tied: dict[str, str]) -> dict[str, list[str]]:
    """Name of each parameter and buffer -> every name of the same tensor."""
    groups: dict[int, list[str]] = {}
    everything = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in everything:
        groups.setdefault(id(tensor), []).append(name)
    of = {name: group for group in groups.values() for name in group}
    for name, source in tied.items():
        if name in of and source in of and of[name] is not of[source]:
            together = of[source] + of[name]
            of.update(dict.fromkeys(together, together))
    return of


def held_elsewhere(owner: nn.Module, key: str) -> bool:
    """Whether anything but ``owner`` refers to its parameter ``key``: a list of weights, a closure, an RNN's own cache.

    Such a reference would go on to see the old tensor when the parameter is replaced. Found by taking the parameter out
    for a moment and looking whether it lives on.
    """
    parameter = owner._parameters[key]
    if parameter is None:
        return False
    shape, dtype, seen = parameter.shape, parameter.dtype, weakref.ref(parameter)
    owner._parameters[key] = None
    del parameter
    if seen() is not None:
        gc.collect()  # what is garbage holds nothing
    alive: Any = seen()
    # What nobody holds was freed with its values, which are about to be replaced.
    freed = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
    owner._parameters[key] = freed if alive is None else alive
    return alive is not None


def _assign(model: nn.Module, names: list[str], tensor: torch.Tensor) -> None:
    """One tensor in place of the parameter or buffer of these names. What has values stays the same object, for others
    that may refer to it."""
    parameter: nn.Parameter | None = None
    for name in names:
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        if key in owner._buffers:
            buffer = owner._buffers[key]
            assert buffer is not None
            buffer.data = tensor
            continue
        own = owner._parameters[key]
        if own is not None and not own.is_meta and parameter is None:
            own.data = tensor
            own.requires_grad_(False)
            parameter = own
        del own
        parameter = parameter if parameter is not None else nn.Parameter(tensor, requires_grad=False)
        owner._parameters[key] = parameter


def _report(artifact: Artifact, outcome: dict[str, str]) -> None:
    dense: dict[str, list[str]] = {}
    for name, reason in outcome.items():
        if reason != "packed":
            dense.setdefault(reason, []).append(name)
    for reason, names in dense.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        _log.info("%s: %s%s dense in memory: %s", artifact.folder, names[0], more, reason)
