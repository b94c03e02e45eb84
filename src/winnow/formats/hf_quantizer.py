"""How transformers reads a winnow folder. Imported only once transformers is (see ``formats/hf.py``).

The folder is verified before the first weight is allocated. Then each group of ``<name>.winnow_*`` tensors becomes one
dense weight as transformers' loader reaches it, so that beside the model only the packed tensors are in memory. What
comes out is an ordinary model: ``save_pretrained`` writes an ordinary dense checkpoint, and says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    HfQuantizer,
    QuantizationConfigMixin,
    register_quantization_config,
    register_quantizer,
)

from winnow.errors import FormatError
from winnow.formats.packed import PackedTensor
from winnow.formats.packed_file import SUFFIXES, prunable_of, read_packed, split_keys, stored_key
from winnow.formats.reader import check_listed, match_header, shard_digests, unpacked, weights_name
from winnow.formats.resaved import before_saving, say_dense
from winnow.formats.tensorfile import TensorFile

_PATTERNS = {rf"\.winnow_{suffix}$": suffix for suffix in SUFFIXES}


class WinnowConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a winnow folder."""

    def __init__(self, **described: Any) -> None:
        self.__dict__.update(described)
        self.quant_method: Any = "winnow"
        self.dequantize = True  # transformers then drops this configuration once the weights are loaded

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "dequantize"}


class WinnowQuantizer(HfQuantizer):
    """Turns the packed tensors of a winnow folder into dense weights while transformers loads it."""

    requires_calibration = True  # winnow folders are written by winnow compress, never on the fly

    def __init__(self, quantization_config: WinnowConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._unpack = _Unpack()
        self._dtypes: dict[str, torch.dtype] = {}

    def update_tp_plan(self, config: Any) -> Any:
        """Where transformers lets a quantizer change the configuration before it looks for files: the name of this folder's."""
        name = weights_name(self.quantization_config.to_dict(), getattr(config, "name_or_path", "") or "config.json")
        if name is not None:
            config.transformers_weights = name
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        described = self.quantization_config.to_dict()
        if not checkpoint_files:
            raise FormatError("packed weights are read from their folder: leave out state_dict and give its path")
        where = str(Path(checkpoint_files[0]).parent)
        shards = shard_digests(described, Path(where))
        check_listed(Path(where), ["config.json"])
        files = {Path(path).name: Path(path) for path in checkpoint_files}
        if shards.keys() != files.keys():
            raise FormatError(f"{where} lacks {min(set(shards) ^ files.keys())}: copy the whole folder again")
        expected = model.state_dict()
        self._dtypes = {name: planned_dtype(model, name, tensor) for name, tensor in expected.items()}
        stored: set[str] = set()
        for name in shards:
            file = TensorFile(files[name])
            match_header(file, shards[name])
            packed, dense = split_keys(file)
            file.verify(but={stored_key(key, suffix) for key in packed for suffix in SUFFIXES})
            if "tensors" in described and any(described["tensors"].get(key) != about for key, about in packed.items()):
                raise FormatError(f"{where}/config.json does not describe {name}: copy the whole folder again")
            stored |= packed.keys() | set(dense)
            for key, about in packed.items():
                # Whatever could be wrong with it: transformers keeps no reason of what is raised while it converts.
                with torch.device("cpu"):  # transformers builds its models on the meta device
                    read_packed(file, key, about).check()
                target = _target(key, expected, model.base_model_prefix)
                if target is not None:
                    prunable = prunable_of(key, about)
                    _same_shape(where, key, prunable.shape, expected[target])
                    self._unpack.targets[target] = (prunable, about, self._dtypes[target])
            for key in dense:
                target = _target(key, expected, model.base_model_prefix)
                if target is not None:
                    _same_shape(where, key, file.shape(key), expected[target])
        if type(model).__name__ in (getattr(model.config, "architectures", None) or ()):  # the very one that was stored
            tied = (model.all_tied_weights_keys or {}).keys()
            different = stored ^ (expected.keys() - tied)
            if different - tied:
                raise FormatError(
                    f"{where} does not fit {type(model).__name__} ({min(different)}): copy the whole folder again"
                )

    def update_weight_conversions(self, weight_conversions: list) -> list:
        """Only winnow's own: the names in the folder are already those of the model's state dict."""
        return [WeightConverter(list(_PATTERNS), "", operations=[self._unpack], force_cpu=True)]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        vars(model.config).pop("transformers_weights", None)  # the model is an ordinary one from here on
        # Without this record save_pretrained uses the model's default mapping, as for a model made in memory.
        model.__dict__.pop("_weight_conversions", None)
        # Where only the prefix of a name was changed, transformers leaves the type of the file.
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if self._dtypes.get(name, tensor.dtype) != tensor.dtype and tensor.is_floating_point():
                tensor.data = tensor.data.to(self._dtypes[name])
        model.winnow_zeros = {name: about["zeros"] for name, (_, about, _) in self._unpack.targets.items()}
        before_saving(model, say_dense)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class _Unpack(ConversionOps):
    """One packed tensor -> one dense weight."""

    def __init__(self) -> None:
        self.targets: dict[str, tuple] = {}

    def __deepcopy__(self, memo: dict) -> _Unpack:
        return self  # transformers copies the operation for every tensor; the table is shared and only read

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        name = kwargs["full_layer_name"]
        prunable, about, dtype = self.targets[name]
        parts = {_PATTERNS[pattern]: tensors[0].cpu() for pattern, tensors in input_dict.items()}
        return {name: unpacked(prunable, PackedTensor.from_tensors(about, parts), dtype)}


def _target(name: str, expected: dict[str, torch.Tensor], prefix: str) -> str | None:
    """The model's own name of a stored tensor: a head may have been added to, or taken from, the base model."""
    candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((candidate for candidate in candidates if candidate in expected), None)


def planned_dtype(model: Any, name: str, tensor: torch.Tensor) -> torch.dtype:
    """The type transformers gives a weight: the one of the skeleton, except where the class keeps float32."""
    kept = list(model._keep_in_fp32_modules_strict or ()) if tensor.dtype in (torch.float16, torch.bfloat16) else []
    if tensor.dtype == torch.float16:
        kept += list(model._keep_in_fp32_modules or ())
    return torch.float32 if any(re.search(pattern.replace("*", ".*"), name) for pattern in kept) else tensor.dtype


def _same_shape(where: str, name: str, shape: tuple[int, ...], tensor: torch.Tensor) -> None:
    if tuple(shape) != tuple(tensor.shape):
        raise FormatError(
            f"{name} is {list(shape)} in {where} and {list(tensor.shape)} in the model: "
            "its config.json does not belong to these weights"
        )


if "winnow" not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config("winnow")(WinnowConfig)
    register_quantizer("winnow")(WinnowQuantizer)
