"""Where a model comes from: a folder, a Hugging Face name, a factory with weights, or a module in memory."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from winnow import importing
from winnow.data.tokens import set_pad_token_id
from winnow.errors import InputError
from winnow.formats.companions import Companions, companions
from winnow.formats.hf_folder import (
    check_folder,
    model_files,
    quantization,
    read_json,
    refuse_other_kinds,
    refuse_quantized,
)
from winnow.formats.reader import check_listed, description_of
from winnow.formats.state_dict import load_state
from winnow.forward.model import forward_parameters
from winnow.masks.ties import share_as
from winnow.masks.unwrap import plain_module, require_initialised, working_copy
from winnow.models.modules import build, identity_of_weights
from winnow.models.pretrained import (
    auto_config,
    empty_model,
    first_dtype,
    from_hub,
    from_pretrained,
    quiet_transformers,
)


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
    original: ModelSource | None = None  # what this folder was made of, where its vocabulary was cut
    _config: Any = field(default=None, repr=False)
    _hashed: tuple[Any, str] | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        return "folder" if self.folder else "factory" if self.factory else "module"

    @property
    def origin(self) -> ModelSource:
        """The model as the user has it."""
        return self.original or self

    @property
    def is_artifact(self) -> bool:
        """Whether the folder was written by winnow."""
        return description_of(self._stored_config) is not None

    @property
    def _stored_config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json") if self.folder is not None else {}

    @property
    def config(self) -> Any:
        """The transformers configuration of a folder, or of a module that carries one; None for plain torch."""
        if self._config is None and self.folder is not None and "model_type" in self._stored_config:
            self._config = auto_config(self.folder, self.trust_remote_code)
        if self._config is None and self.module is not None:
            config = getattr(self.module, "config", None)
            self._config = config if hasattr(config, "to_dict") else None
        return self._config

    @property
    def quantized(self) -> str | None:
        """The method by which a folder's weights are quantized (they are loaded dequantized); None for plain weights."""
        return quantization(self._stored_config)

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
            require_initialised(self.module)
            if not self.module.training:
                return self.module
            return share_as(self.module, working_copy(self.module)).eval()  # the user's mode stays
        if self.folder is not None and self.is_artifact:
            from winnow.formats import load

            with quiet_transformers() if self.factory is None else nullcontext():
                return load(self.folder, factory=self.factory).eval()
        if self.folder is not None:
            model = from_pretrained(
                self.folder, self.model_class(), self.config, quantized=self.quantized is not None,
                trust_remote_code=self.trust_remote_code,
            ).eval()  # fmt: skip
            if self.architecture.endswith("ForSequenceClassification"):
                set_pad_token_id(model.config, self.tokenizer())
            return model
        model = build(self.factory)
        if self.weights is not None:
            load_state(model, self.weights)
        require_initialised(model)
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

    def arguments(self) -> dict[str, inspect.Parameter]:
        """What the forward of the model takes, by name; empty where nothing says so."""
        model: Any = self.module
        if model is None:
            model = self.model_class() if self.folder is not None and self.config is not None else build(self.factory)
        return {name: parameter for name, parameter in forward_parameters(model).items() if name != "self"}

    def skeleton(self) -> nn.Module:
        """The model with its parameters on the meta device (a folder only): see :func:`winnow.models.pretrained.empty_model`."""
        if self.folder is None:
            raise InputError("only a model folder can be streamed: save the model with save_pretrained first.")
        dtype = getattr(self.config, "dtype", None) or first_dtype(self.weight_files()[0])
        return empty_model(self.model_class(), self.config, dtype)

    def tokenizer(self) -> Any:
        """The folder's tokenizer; None when it has none."""
        if self.folder is None or not any((self.folder / f).exists() for f in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")):  # fmt: skip
            return None
        from transformers import AutoTokenizer

        self._check_listed("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model", "chat_template*")  # fmt: skip
        return AutoTokenizer.from_pretrained(self.folder)

    def image_processing(self) -> dict[str, Any] | None:
        """``preprocessor_config.json`` of the folder, if any."""
        self._check_listed("preprocessor_config.json")
        return read_json(self.folder / "preprocessor_config.json") or None if self.folder else None

    def _check_listed(self, *patterns: str) -> None:
        """Of a folder that winnow wrote: whether files about to be read are the ones that were written."""
        if self.folder is not None and self.is_artifact:
            check_listed(self.folder, sorted({path.name for p in patterns for path in self.folder.glob(p)}))

    def companions(self, but: Iterable[Any] = ()) -> Companions:
        """Files to carry over unchanged into a folder made from this one, and what is left out, but for the files ``but``."""
        return Companions() if self.folder is None else companions(self.folder, but)

    def weight_files(self) -> list[Path]:
        """The files that hold the model's weights, and no others; none for a module or a factory without weights."""
        if self.folder is not None:
            return model_files(self.folder)
        return [self.weights] if self.weights else []

    def random(self) -> bool:
        """Whether the weights are random ones: a factory without ``weights`` that builds others under another seed."""
        if self.factory is None or self.folder is not None or self.weights is not None:
            return False
        return self.sha256() != identity_of_weights(build(self.factory, seed=1))

    def untrained(self) -> str | None:
        """A sentence where the weights are random ones; None where they are not."""
        if not self.random():
            return None
        return (
            f"{self.factory} was given without --weights and builds random ones: these are figures of a model that was never "
            "trained; name its state dict with --weights FILE."
        )

    def sha256(self) -> str:
        """A hash of the weights (and the configuration) that names the model, whatever its folder is called.

        Files are hashed once, and again only when one of them changes; a factory builds the same at every call.
        """
        if self.module is not None:
            return identity_of_weights(self.module)
        files = self.weight_files()
        if not files:
            self._hashed = self._hashed or (None, identity_of_weights(self.load()))
            return self._hashed[1]
        if self.folder is not None:
            files = [self.folder / "config.json", *files]
        stamp = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        if self._hashed is None or self._hashed[0] != stamp:
            digest = hashlib.sha256((self.factory or "").encode())
            for path in files:
                with open(path, "rb") as f:
                    while chunk := f.read(1 << 22):
                        digest.update(chunk)
            self._hashed = stamp, digest.hexdigest()
        return self._hashed[1]


def open_model(
    spec: str | Path | nn.Module, weights: str | Path | None = None, *, trust_remote_code: bool = False
) -> ModelSource:
    """Opens a model by folder, Hugging Face name, ``package.module:function`` or as a module. Reads no weights yet.

    Raises:
        InputError: the thing does not exist, holds no safetensors, asks to run its own code, or has no known class.
    """
    if isinstance(spec, nn.Module):
        given = plain_module(spec)
        return ModelSource(spec=type(given).__name__, module=given)
    text = str(spec)
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, trust_remote_code, text, weights)
    if ":" in text and not path.exists() and importing.is_named(text):
        file = Path(weights).expanduser() if weights else None
        build(text, call=False)
        if file is not None and file.is_dir():
            packed = ModelSource(spec=text, folder=file, factory=text)
            if not packed.is_artifact:
                raise InputError(
                    f"{file} is not a folder that winnow wrote: give --weights a .safetensors file.", option="weights"
                )
            return packed
        if file is not None and not file.is_file():
            raise InputError(f"{file} does not exist: give --weights a .safetensors file.", option="weights")
        return ModelSource(spec=text, factory=text, weights=file)
    if path.suffix in (".gguf", ".onnx") and path.is_file():
        raise InputError(f"{text} is an export for another runtime: give the PyTorch model that it was made of.")
    if path.is_file():
        raise InputError(f"{text} is a file: give the model as package.module:function and this file with --weights.")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.replace("/", "").strip("-._ "):
        raise InputError(f"{text} does not exist: give a model folder, a Hugging Face name or package.module:function.")
    return _open_folder(from_hub(text), trust_remote_code, text, weights)


def _open_folder(path: Path, trust_remote_code: bool, spec: str, weights: str | Path | None) -> ModelSource:
    if weights is not None:
        raise InputError(
            "--weights goes with package.module:function; a folder brings its own weights.", option="weights"
        )
    refuse_other_kinds(path)
    config = read_json(path / "config.json")
    source = ModelSource(spec=spec, folder=path, trust_remote_code=trust_remote_code)
    if source.is_artifact:
        if "winnow" in config:
            factory = config["winnow"].get("factory") or "package.module:function"
            raise InputError(
                f"{path} holds a plain torch model, which needs its own code: give {factory} as MODEL and this folder with --weights, or in a bench --factory {factory}."
            )
        return source
    if not config:
        raise InputError(f"{path}/config.json says nothing: give a folder written by save_pretrained.")
    if "auto_map" in config and not trust_remote_code:
        raise InputError(f"{path} asks to run code of its own: add --trust-remote-code if you have read and trust it.")
    if (method := source.quantized) is not None:
        refuse_quantized(spec, method)
    check_folder(path)
    if "model_type" not in config:
        raise InputError(
            f"{path}/config.json names no model_type: give the model as package.module:function with --weights."
        )
    return source
