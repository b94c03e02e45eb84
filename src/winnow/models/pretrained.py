"""Loading with transformers: exactly what ``from_pretrained(folder, dtype="auto")`` gives, errors in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import InputError
from winnow.formats.companions import DATA, WEIGHTS
from winnow.formats.hf_folder import read_json
from winnow.formats.state_dict import misfit


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers' own between ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def auto_config(folder: Path, trust_remote_code: bool) -> Any:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise InputError("Hugging Face folders need transformers: pip install 'winnow-nn[hf]'.") from None
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # a field of another type, say: whatever its class thinks of it
        kind = read_json(folder / "config.json").get("model_type")
        raise InputError(
            f"{folder}: transformers cannot read the configuration of model_type {kind!r}; install a version that knows it "
            f"({str(error).splitlines()[0][:120]})."
        ) from None


def from_pretrained(folder: Path, cls: Any, config: Any, *, quantized: bool, trust_remote_code: bool) -> nn.Module:
    """The model of class ``cls`` in a folder, complete. ``quantized``: its weights, dequantized whatever kernels are at hand.

    Raises:
        InputError: it cannot be loaded, lacks tensors, or holds them in other shapes than its configuration says.
    """
    options = {}
    if quantized:
        config = copy.deepcopy(config)
        about = config.quantization_config
        about = about if isinstance(about, dict) else about.to_dict()
        options["config"] = config
        config.quantization_config = {**about, "dequantize": True}
    try:
        with quiet_transformers(), _without_report():
            model, info = cls.from_pretrained(
                folder, dtype="auto", trust_remote_code=trust_remote_code, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{folder} cannot be loaded: {first[:200]}") from error
    _must_be_whole(folder, cls.__name__, info)
    return model


def empty_model(cls: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """A model with its parameters on the meta device and its buffers real, of the types and tied as
    ``from_pretrained(dtype="auto")`` makes it."""
    from accelerate import init_empty_weights

    from winnow.formats.hf_quantizer import planned_dtype

    with init_empty_weights(include_buffers=False):
        model = cls._from_config(config, dtype=dtype)
    model.tie_weights(recompute_mapping=False)  # making parameters empty has given tied ones one each
    for name, parameter in model.named_parameters():
        if (planned := planned_dtype(model, name, parameter)) != parameter.dtype:
            parameter.data = torch.empty_like(parameter, dtype=planned)
    return model.eval()


def from_hub(name: str) -> Path:
    """The folder of a Hugging Face model, fetched by name. Raises InputError where it cannot be."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name} is not a local folder, and fetching it by name needs: pip install 'winnow-nn[hf]'."
        ) from None
    try:
        others = (*(end for end in WEIGHTS if end != ".safetensors"), *DATA, ".zip", ".gz", ".tar", ".mp4")
        return Path(snapshot_download(name, ignore_patterns=[*(f"*{end}" for end in others), "onnx/*", "openvino/*"]))
    except Exception as error:
        raise InputError(
            f"{name} is neither a local folder nor a Hugging Face model that could be fetched ({type(error).__name__}): check the name or the connection."
        ) from None


def _must_be_whole(folder: Path, name: str, info: dict[str, Any]) -> None:
    """Raises InputError where transformers filled in random values for what the folder lacks or holds in other shapes."""
    missing, wrong = sorted(info.get("missing_keys", ())), sorted(info.get("mismatched_keys", ()))
    if wrong:
        key, there, here = wrong[0]
        raise InputError(
            f"{folder} does not fit its config.json: {key} is {list(there)} in the weights and {list(here)} in {name}; "
            "restore the config.json of these weights."
        )
    if missing:
        extra = sorted(info.get("unexpected_keys", ()))
        why = misfit(dict.fromkeys([*missing], ()), dict.fromkeys(extra, ())) if extra else None
        what = f"{why}." if why is not None else "use a complete checkpoint."
        raise InputError(f"{folder} lacks {len(missing)} tensors of {name} (first: {missing[0]}): {what}")


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers prints tables of missing and mismatched keys, of which winnow says one sentence."""
    from transformers.utils import logging

    shown = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(shown)


def first_dtype(file: Path) -> torch.dtype:
    """The type of the first floating-point tensor of a file, which is what ``dtype="auto"`` takes where no config says it."""
    from safetensors import safe_open

    with safe_open(file, "pt") as f:
        for name in f.keys():  # noqa: SIM118 - safe_open is not a mapping
            empty = f.get_slice(name)[:0] if f.get_slice(name).get_shape() else f.get_tensor(name)
            if empty.is_floating_point() and empty.element_size() > 1:
                return empty.dtype
    return torch.float32
