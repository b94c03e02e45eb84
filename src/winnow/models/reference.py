"""The dense model that another is compared with: it has to be what it is called."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from winnow.errors import InputError
from winnow.formats.hf_folder import read_json
from winnow.models.source import ModelSource, open_model


def open_reference(
    source: ModelSource, reference: str | Path | nn.Module, *, trust_remote_code: bool = False
) -> ModelSource:
    """Opens what ``source`` is compared with: a model as everywhere, or, of a plain torch model, the dense weights alone
    (a file, or a folder that winnow wrote), which go into the same code.

    Raises:
        InputError: there is no such model; or ``package.module:function`` alone, of which nothing says that what its code
            starts from are the dense weights. They are where a packed ``source`` was made of exactly these.
    """
    if isinstance(reference, nn.Module):
        return open_model(reference)
    path = Path(reference).expanduser()
    if source.factory is not None and (
        path.is_file() or (path.is_dir() and "winnow" in read_json(path / "config.json"))
    ):
        return open_model(source.factory, path)
    found = open_model(reference, trust_remote_code=trust_remote_code)
    if found.factory is None or found.weights is not None:
        return found
    artifact = source.folder if source.is_artifact else None
    parent = read_json(artifact / "manifest.json").get("parent") if artifact is not None else None
    if isinstance(parent, dict) and parent.get("sha256") == found.sha256():
        return found
    given = source.weights is not None or source.folder is not None or source.module is not None
    if given or found.random():
        raise InputError(
            f"the reference {found.spec} comes without weights, so that what its code starts from would be measured, not the "
            f"dense model: give {'the file of its weights' if source.factory else 'a folder, or a module with its weights,'} as reference."
        )
    return found
