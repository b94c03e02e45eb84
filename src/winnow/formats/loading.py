"""From an artifact back to a model, or to a folder that needs no winnow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from winnow import importing
from winnow.disk.files import copy_file, write_text
from winnow.disk.links import refuse_links
from winnow.disk.ownership import MARK
from winnow.errors import FormatError, InputError, WinnowError
from winnow.formats.artifact import as_json
from winnow.formats.output import OutputFolder
from winnow.formats.reader import Artifact, check_listed, read_artifact
from winnow.formats.shards import SHARD_BYTES, ShardWriter
from winnow.formats.state_dict import misfit
from winnow.masks.ties import tensors_of, tied

Factory = Callable[[], torch.nn.Module]


def load(
    folder: Path | str,
    factory: Factory | str | None = None,
    dtype: torch.dtype | None = None,
    packed: bool = False,
) -> torch.nn.Module:
    """The model of an artifact, every checksum, shape and zero count verified; its weights dense in memory, or packed.

    Parameters
    ----------
    folder: an artifact of ``winnow compress``.
    factory: for a plain torch model, the function (or ``package.module:function``) that builds it. The name that the
        folder itself records is never run, because that would be running code a file asks for.
    dtype: of the floating-point weights; default: the ones the model had.
    packed: leave packed what is packed: linear layers and convolutions become :mod:`winnow.kernels.modules`, their
        weights pages of the file, and no dense copy is ever made. For inference on the CPU. ``dtype`` then is that of
        everything else. ``model.winnow_packed`` says of every packed tensor whether it stayed packed, or why not; the
        folder's files must stay whole while the model is used.

    Raises FormatError for a damaged folder or one that does not fit the model, InputError where ``factory`` is missing
    or the architecture is unknown. The model is in evaluation mode.
    """
    artifact = read_artifact(folder)
    if artifact.is_transformers and factory is not None:
        raise InputError(f"{folder} is a transformers model and needs no factory: leave it out")
    if packed:
        from winnow.kernels.load import packed_plain, packed_transformers

        if artifact.is_transformers:
            return packed_transformers(artifact, architecture(artifact), dtype)
        return packed_plain(artifact, lambda: _build(artifact, factory), dtype)
    if artifact.is_transformers:
        return _load_transformers(artifact, dtype)
    return _load_plain(artifact, _build(artifact, factory), dtype)


def export_dense(folder: Path | str, out: Path | str, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write the model of an artifact to ``out`` as ordinary dense safetensors that need no winnow.

    One tensor after the other, so that a model larger than memory can be exported. For transformers the result is a
    normal model folder, tokenizer and other files included; its tensors have the names of the model's state dict.
    An earlier export in ``out`` is replaced. Raises InputError where ``out`` holds anything else, or is in ``folder``, or a
    file beside the weights is a link that leaves the folder.
    """
    artifact = read_artifact(folder)
    if artifact.is_transformers:
        refuse_links(artifact.other_files, artifact.folder)
    check_listed(artifact.folder, [path.name for path in artifact.other_files], artifact.manifest)
    output = OutputFolder(out, "export", [folder])
    try:
        shards = ShardWriter(output.path, shard_bytes, described=False)
        for name, tensor in artifact.state_dict():
            shards.add({name: tensor}, {})
        shards.close()
        if artifact.is_transformers:
            config = {key: value for key, value in artifact.config.items() if key != "quantization_config"}
            write_text(output.path / "config.json", as_json(config))
            for path in artifact.other_files:
                if path.name != MARK:
                    copy_file(path, output.path / path.name)
        return output.publish()
    except BaseException:
        output.discard()
        raise


def architecture(artifact: Artifact) -> Any:
    """The transformers class that an artifact names. Raises InputError for one that does not exist, or that would run
    code of the folder."""
    try:
        import transformers
    except ImportError:
        raise InputError(f"{artifact.folder} is a transformers model: pip install 'winnow[hf]'") from None

    from winnow.formats.hf import install_hook

    install_hook()
    if "auto_map" in artifact.config:
        raise InputError(f"{artifact.folder} asks to run code of its own, which winnow never does: load it yourself")
    named = artifact.config.get("architectures") or [None]
    if not isinstance(named, list) or not isinstance(named[0], str | None):
        raise FormatError(f"{artifact.folder}/config.json names no architecture but {named!r}: copy the folder again")
    name = named[0]
    cls = getattr(transformers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise InputError(f"transformers {transformers.__version__} knows no architecture {name!r}: update it")
    return cls


@contextmanager
def transformers_errors(artifact: Artifact) -> Iterator[None]:
    """Whatever transformers raises over a folder whose checksums are right: a configuration that it cannot make a model of."""
    try:
        yield
    except (WinnowError, MemoryError):
        raise
    except Exception as error:
        import transformers

        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FormatError(
            f"transformers {transformers.__version__} cannot make the model of {artifact.folder} ({first[:200]}): copy the "
            "folder again, or install the version of transformers that wrote it"
        ) from error


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
    must_fit(artifact, model)
    own = {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}
    for name, tensor in artifact.state_dict():
        # .data keeps the Parameter object, and with it any tie or optimizer that holds it.
        own[name].data = tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype)
    return model.eval()


def must_fit(artifact: Artifact, model: torch.nn.Module) -> None:
    """Raises FormatError unless a plain model's state dict has the names and shapes of the artifact, and no tie of its
    own between tensors that differ there."""
    tensors = tensors_of(model)
    why = misfit(
        {name: tuple(t.shape) if name in tensors else () for name, t in model.state_dict().items()},
        {name: artifact.shape(name) for name in artifact.names},
    )
    if why is not None:
        raise FormatError(f"{artifact.folder} does not fit the factory's model: {why}; pass the right factory")
    for name, names in tied(tensors).items():
        if name == names[0]:
            stored = list(dict.fromkeys(artifact.aliases.get(n, n) for n in names))
            if any(not torch.equal(artifact.tensor(stored[0]), artifact.tensor(other)) for other in stored[1:]):
                raise FormatError(
                    f"{artifact.folder} does not fit the factory's model: {' and '.join(stored[:2])} differ there and are one "
                    "tensor in the model; pass the right factory"
                )
