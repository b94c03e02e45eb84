"""A finished folder on the Hugging Face Hub (``--push-to-hub``)."""

from __future__ import annotations

from pathlib import Path

from winnow.disk.ownership import MARK
from winnow.errors import InputError, WinnowError


def check_upload(repo: str) -> None:
    """Looks, before hours of work, at what needs no connection: the package, the name, and whether anybody is logged in.

    Raises:
        InputError: one of them would stop the upload.
    """
    try:
        from huggingface_hub import get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise InputError("--push-to-hub needs pip install 'winnow-nn[hf]'.", option="push_to_hub") from None
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise InputError(
            f"--push-to-hub {repo!r} is no name of a repository: write it as user/name.", option="push_to_hub"
        ) from None
    if get_token() is None:
        raise InputError(
            "--push-to-hub needs a token that may write: run hf auth login, or set HF_TOKEN.", option="push_to_hub"
        )


def upload(folder: Path, repo: str) -> str:
    """Uploads a folder, whole, to a model repository, which is made where there is none, and returns its address.

    Raises:
        WinnowError: it could not be uploaded; the folder is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Upload by winnow", ignore_patterns=[MARK]
        )
    except Exception as error:  # httpx's, the Hub's, and those of a machine that is offline
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise WinnowError(
            f"{folder} is complete, but was not uploaded to {repo} ({first[:200].rstrip('.')}): mend that, then run hf upload {repo} {folder}"
        ) from error
    return str(made)
