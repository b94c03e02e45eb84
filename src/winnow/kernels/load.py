"""From an artifact back to a model, or to a folder that needs no winnow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from winnow import importing
from winnow.errors import FormatError, InputError
from winnow.formats.compatibility import architecture, require_match, transformers_errors
from winnow.formats.reader import Artifact, read_artifact

Factory = Callable[[], torch.nn.Module]


def load(
    folder: Path | str,
    factory: Factory | str | None = None,
    dtype: torch.dtype | None = None,
    packed: bool = False,
) -> torch.nn.Module:
    """The model of an artifact, every checksum, shape and zero count verified; its weights dense in memory, or packed.

    Args:
        folder: an artifact of ``winnow compress``.
        factory: for a plain torch model, the function (or ``package.module:function``) that builds it. The name that the
            folder itself records is never run, because that would be running code a file asks for.
        dtype: of the floating-point weights; default: the ones the model had.
        packed: leave packed what is packed: linear layers and convolutions become :mod:`winnow.kernels.modules`, their
            weights pages of the file, and no dense copy is ever made. For inference on the CPU. ``dtype`` then is that of
            everything else. ``model.winnow_packed`` says of every packed tensor whether it stayed packed, or why not; the
            folder's files must stay whole while the model is used.

    Dense in memory it can be trained: ``model.winnow_zeros`` holds the number of zeros by tensor, which
    :class:`winnow.train.WinnowCallback` keeps, and :func:`winnow.train.merge` when adapters of peft are merged. Adapters can be
    trained on packed linear layers too, and are then merged into the dense model.

    Raises FormatError for a damaged folder or one that does not fit the model, InputError where ``factory`` is missing
    or the architecture is unknown. The model is in evaluation mode.
    """
    artifact = read_artifact(folder)
    if artifact.is_transformers and factory is not None:
        raise InputError(f"{folder} is a transformers model and needs no factory: leave it out")
    if packed:
        from winnow.kernels.load_packed import packed_plain, packed_transformers

        if artifact.is_transformers:
            return packed_transformers(artifact, architecture(artifact), dtype)
        return packed_plain(artifact, lambda: _build(artifact, factory), dtype)
    if artifact.is_transformers:
        return _load_transformers(artifact, dtype)
    return _load_plain(artifact, _build(artifact, factory), dtype)


def _load_transformers(artifact: Artifact, dtype: torch.dtype | None) -> torch.nn.Module:
    cls = architecture(artifact)
    with transformers_errors(artifact):
        model, info = cls.from_pretrained(
            artifact.folder, dtype=dtype or "auto", output_loading_info=True, local_files_only=True
        )
    missing = set(info["missing_keys"]) - set(model.all_tied_weights_keys)
    problems = sorted([*missing, *info["unexpected_keys"], *(str(key) for key in info["mismatched_keys"])])
    if problems:
        raise FormatError(f"{artifact.folder} does not fit {cls.__name__} ({problems[0]}): write it again")
    return model


def _build(artifact: Artifact, factory: Factory | str | None) -> torch.nn.Module:
    if factory is None:
        recorded = repr(artifact.factory) if artifact.factory else "'package.module:function'"
        raise InputError(f"{artifact.folder} is a plain torch model: pass factory={recorded} to say what builds it")
    if isinstance(factory, str):
        if not importing.is_named(factory):
            raise InputError(f"the factory {factory!r} cannot be imported: give package.module:function")
        model: Any = importing.call(factory, "a torch.nn.Module")
    else:
        model = factory() if callable(factory) else factory
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"the factory gave a {type(model).__name__}: it must return a torch.nn.Module")
    return model


@torch.no_grad()
def _load_plain(artifact: Artifact, model: torch.nn.Module, dtype: torch.dtype | None) -> torch.nn.Module:
    require_match(artifact, model)
    own = {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}
    for name, tensor in artifact.state_dict():
        # .data keeps the Parameter object, and with it any tie or optimizer that holds it.
        own[name].data = tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype)
    model.winnow_zeros = {name: about["zeros"] for name, about in artifact.descriptions.items()}  # type: ignore[assignment]
    return model.eval()
