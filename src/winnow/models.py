"""Where a model comes from: a folder, a Hugging Face name, a factory with weights, or a module in memory."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow import named
from winnow.data.tokens import name_padding
from winnow.errors import InputError
from winnow.links import leaves

MODULE = "a torch.nn.Module"
# Files of a model folder that are neither weights nor written anew: tokenizer, processor, generation settings.
_COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model", "*.tiktoken",
    "preprocessor_config.json", "processor_config.json", "generation_config.json", "chat_template*", "LICENSE*", "NOTICE*",
)  # fmt: skip


@dataclass
class ModelSource:
    """A model that can be opened, streamed and identified.

    ``folder`` is set for Hugging Face folders, ``factory`` ("package.module:function", with optional ``weights``)
    for plain torch models, ``module`` for one that was handed over in memory.
    """

    spec: str
    folder: Path | None = None
    factory: str | None = None
    weights: Path | None = None
    module: nn.Module | None = None
    trust_remote_code: bool = False
    _config: Any = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        return "folder" if self.folder else "factory" if self.factory else "module"

    @property
    def is_artifact(self) -> bool:
        """Whether the folder was written by winnow."""
        if self.folder is None:
            return False
        config = _read_json(self.folder / "config.json")
        return "winnow" in config or (config.get("quantization_config") or {}).get("quant_method") == "winnow"

    @property
    def config(self) -> Any:
        """The transformers configuration of a folder, or of a module that carries one; None for plain torch."""
        if self._config is None and self.folder is not None and "model_type" in _read_json(self.folder / "config.json"):
            self._config = _auto_config(self.folder, self.trust_remote_code)
        if self._config is None and self.module is not None:
            config = getattr(self.module, "config", None)
            self._config = config if hasattr(config, "to_dict") else None
        return self._config

    @property
    def architecture(self) -> str:
        if self.module is not None:
            return type(self.module).__name__
        if self.config is not None:
            return (getattr(self.config, "architectures", None) or ["AutoModel"])[0]
        return (self.factory or self.spec).rsplit(":", 1)[-1]

    def load(self) -> nn.Module:
        """The whole model in memory, in eval mode, in its stored dtype."""
        if self.module is not None:
            return copy.deepcopy(self.module).eval() if self.module.training else self.module  # the user's mode stays
        if self.folder is not None and self.is_artifact:
            from winnow.formats import load

            with quiet_transformers() if self.factory is None else nullcontext():
                return load(self.folder, factory=self.factory).eval()
        if self.folder is not None:
            model = _from_pretrained(self).eval()
            if self.architecture.endswith("ForSequenceClassification"):
                name_padding(model.config, self.tokenizer())
            return model
        model = build(self.factory)
        if self.weights is not None:
            load_state(model, self.weights)
        return model.eval()

    def model_class(self) -> Any:
        """The transformers class that the configuration names."""
        import transformers

        name = self.architecture
        cls = getattr(transformers, name, None)
        if cls is None or name == "AutoModel":
            if self.trust_remote_code:
                return transformers.AutoModel
            raise InputError(
                f"{self.spec}: the architecture {name!r} is not one transformers {transformers.__version__} knows; "
                "install a version that has it, or give the model as package.module:function with --weights."
            )
        return cls

    def skeleton(self) -> nn.Module:
        """The model with its parameters on the meta device and its buffers real (a folder only)."""
        if self.folder is None:
            raise InputError("only a model folder can be streamed: save the model with save_pretrained first.")
        from accelerate import init_empty_weights

        dtype = getattr(self.config, "dtype", None) or torch.float32
        with init_empty_weights(include_buffers=False):
            model = self.model_class()._from_config(self.config, dtype=dtype)
        return model.eval()

    def tokenizer(self) -> Any:
        """The folder's tokenizer; None when it has none."""
        if self.folder is None or not any((self.folder / f).exists() for f in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")):  # fmt: skip
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def image_processing(self) -> dict[str, Any] | None:
        """``preprocessor_config.json`` of the folder, if any."""
        return _read_json(self.folder / "preprocessor_config.json") or None if self.folder else None

    def companions(self) -> list[Path]:
        """Files to carry over unchanged into a compressed folder."""
        if self.folder is None:
            return []
        return [path for path in self._beside() if not leaves(path, self.folder)]

    def left_out(self) -> list[str]:
        """A sentence for each file that :meth:`companions` leaves out: a link that leaves the folder."""
        if self.folder is None:
            return []
        return [
            f"{path.name} is not copied: it is a link to something outside of the model's folder."
            for path in self._beside()
            if leaves(path, self.folder)
        ]

    def _beside(self) -> list[Path]:
        assert self.folder is not None
        return sorted({p for pattern in _COMPANIONS for p in self.folder.glob(pattern) if p.is_file()})

    def weight_files(self) -> list[Path]:
        if self.folder is not None:
            return sorted(self.folder.glob("*.safetensors"))
        return [self.weights] if self.weights else []

    def sha256(self) -> str:
        """A hash of the weights (and the configuration) that names the model, whatever its folder is called."""
        digest = hashlib.sha256()
        if self.module is not None or (self.factory and not self.weights):
            model = self.load()
            for name, tensor in sorted(model.state_dict().items()):
                digest.update(name.encode())
                digest.update(_bytes_of(tensor))
            return digest.hexdigest()
        digest.update((self.factory or "").encode())
        files = self.weight_files()
        if self.folder is not None:
            files = [self.folder / "config.json", *files]
        for path in files:
            with open(path, "rb") as f:
                while chunk := f.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


def open_model(
    spec: str | Path | nn.Module, weights: str | Path | None = None, *, trust_remote_code: bool = False
) -> ModelSource:
    """Opens a model by folder, Hugging Face name, ``package.module:function`` or as a module. Reads no weights yet.

    Raises:
        InputError: the thing does not exist, holds no safetensors, asks to run its own code, or has no known class.
    """
    if isinstance(spec, nn.Module):
        return ModelSource(spec=type(spec).__name__, module=spec)
    text = str(spec)
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, trust_remote_code, text, weights)
    if ":" in text and not path.exists() and named.is_named(text):
        file = Path(weights).expanduser() if weights else None
        build(text, call=False)
        if file is not None and file.is_dir():
            packed = ModelSource(spec=text, folder=file, factory=text)
            if not packed.is_artifact:
                raise InputError(f"{file} is not a folder that winnow wrote: give --weights a .safetensors file.")
            return packed
        if file is not None and not file.is_file():
            raise InputError(f"{file} does not exist: give --weights a .safetensors file.")
        return ModelSource(spec=text, factory=text, weights=file)
    if path.is_file():
        raise InputError(f"{text} is a file: give the model as package.module:function and this file with --weights.")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.replace("/", "").strip("-._ "):
        raise InputError(f"{text} does not exist: give a model folder, a Hugging Face name or package.module:function.")
    return _open_folder(_from_hub(text), trust_remote_code, text, weights)


def _open_folder(path: Path, trust_remote_code: bool, spec: str, weights: str | Path | None) -> ModelSource:
    if weights is not None:
        raise InputError("--weights goes with package.module:function; a folder brings its own weights.")
    config = _read_json(path / "config.json")
    source = ModelSource(spec=spec, folder=path, trust_remote_code=trust_remote_code)
    if source.is_artifact:
        if "winnow" in config:
            factory = config["winnow"].get("factory") or "package.module:function"
            raise InputError(
                f"{path} holds a plain torch model, which needs its own code: give {factory} as MODEL and this folder with --weights."
            )
        return source
    if not config:
        raise InputError(f"{path} has no config.json: give a folder written by save_pretrained.")
    if "auto_map" in config and not trust_remote_code:
        raise InputError(f"{path} asks to run code of its own: add --trust-remote-code if you have read and trust it.")
    if not source.weight_files():
        raise InputError(
            f"{path} holds no .safetensors file: save the model again with save_pretrained(..., safe_serialization=True)."
        )
    if "model_type" not in config:
        raise InputError(
            f"{path}/config.json names no model_type: give the model as package.module:function with --weights."
        )
    return source


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name} is not a local folder, and fetching it by name needs: pip install 'winnow[hf]'."
        ) from None
    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise InputError(
            f"{name} is neither a local folder nor a Hugging Face model that could be fetched ({type(error).__name__}): check the name or the connection."
        ) from None


def _auto_config(folder: Path, trust_remote_code: bool) -> Any:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise InputError("Hugging Face folders need transformers: pip install 'winnow[hf]'.") from None
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError) as error:
        kind = _read_json(folder / "config.json").get("model_type")
        raise InputError(
            f"{folder}: transformers cannot read the configuration of model_type {kind!r}; install a version that knows it "
            f"({str(error).splitlines()[0][:120]})."
        ) from None


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


def _from_pretrained(source: ModelSource) -> nn.Module:
    cls = source.model_class()
    try:
        with quiet_transformers():
            model, info = cls.from_pretrained(
                source.folder, dtype="auto", trust_remote_code=source.trust_remote_code, output_loading_info=True
            )
    except Exception as error:
        raise InputError(f"{source.folder} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise InputError(
            f"{source.folder} lacks {len(missing)} tensors of {cls.__name__} (first: {missing[0]}): use a complete checkpoint."
        )
    return model


def build(factory: str | None, call: bool = True) -> Any:
    """Calls (or only finds) ``package.module:function``; see :mod:`winnow.named`."""
    if not call:
        return named.find(factory or "", MODULE)
    model = named.call(factory or "", MODULE)
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory} returned {type(model).__name__}: it must return a torch.nn.Module.")
    return model


def load_state(model: nn.Module, file: Path) -> None:
    """Loads a .safetensors (or weights-only .pt/.pth) state dict strictly. Never unpickles code."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state) if isinstance(state, dict) else state
        model.load_state_dict(state)
    except Exception as error:
        raise InputError(f"{file} does not fit the model: {str(error).splitlines()[0][:200]}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): restore the file.") from None
    return data if isinstance(data, dict) else {}


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
