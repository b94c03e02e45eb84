"""Whether an artifact fits a model, and what transformers says where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from winnow.errors import FormatError, InputError, WinnowError
from winnow.formats.reader import Artifact
from winnow.formats.state_dict import misfit
from winnow.masks.ties import tensors_of, tied


def architecture(artifact: Artifact) -> Any:
    """The transformers class that an artifact names. Raises InputError for one that does not exist, or that would run
    code of the folder."""
    try:
        import transformers
    except ImportError:
        raise InputError(f"{artifact.folder} is a transformers model: pip install 'winnow-nn[hf]'") from None

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


def require_match(artifact: Artifact, model: torch.nn.Module) -> None:
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
