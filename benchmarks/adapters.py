"""Models and data of the data folder that winnow does not open by path: plain torch models, arrays, decoded images.

``winnow compress benchmarks.adapters:resnet20 --data benchmarks.adapters:resnet_train`` works from the repository root;
compression/frontier.py uses the same names. Every ``*_train`` is training data of its model's task, every ``*_test`` its test split.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import runpy
from types import ModuleType

import numpy as np
import torch

from benchmarks.common import DATA, data
from benchmarks.models.char_lstm import CharLSTM
from benchmarks.models.make import get
from benchmarks.models.training import cifar10, shakespeare

CALIBRATION = 2048  # images or windows that calibration draws from
CONTEXT = 128  # characters chargpt sees


def chargpt() -> torch.nn.Module:
    """The character model, weights loaded."""
    return _module("chargpt-shakespeare").load("gpt", str(DATA / "chargpt-shakespeare"))


def char_lstm() -> torch.nn.Module:
    """The LSTM of models/char_lstm.py, trained first where it is not cached."""
    from safetensors.torch import load_file

    folder = get("char-lstm")
    model = CharLSTM(json.loads((folder / "characters.json").read_text()))
    model.load_state_dict(load_file(folder / "char_lstm.safetensors"))
    return model.eval()


def shakespeare_train() -> torch.Tensor:
    """Windows of the first 90% of Tiny Shakespeare, evenly spaced: int64 [2048, 128]."""
    return _shakespeare()[0]


def shakespeare_test() -> torch.Tensor:
    """Non-overlapping windows of the last 10%, which the model was not trained on: int64 [871, 128]."""
    return _shakespeare()[1]


def resnet(name: str) -> torch.nn.Module:
    """A ResNet of the data folder: "resnet20" and "resnet32" as published, "resnet20_jpegft" fine-tuned on the JPEG set."""
    return _module("resnet-cifar10").load(name, str(data("resnet-cifar10")))


def resnet_class() -> type[torch.nn.Module]:
    """The class of these ResNets; its argument is the number of blocks of a stage, 3 for ResNet-20."""
    return _module("resnet-cifar10").CifarResNet


def resnet20() -> torch.nn.Module:
    """ResNet-20 fine-tuned on the JPEG set."""
    return resnet("resnet20_jpegft")


def resnet_train() -> tuple[torch.Tensor, np.ndarray]:
    """JPEG training images as ResNet-20 takes them, float32 [2048, 3, 32, 32], and labels."""
    images, labels = cifar10_train()
    return imagenet_scaled(images), labels


def resnet_test() -> tuple[torch.Tensor, np.ndarray]:
    images, labels = cifar10_test()
    return imagenet_scaled(images), labels


def resnet32() -> torch.nn.Module:
    """ResNet-32 with the published weights, for the original (lossless) images."""
    return resnet("resnet32")


def resnet32_train() -> tuple[torch.Tensor, np.ndarray]:
    """Lossless training images, float32 [2048, 3, 32, 32], evenly spaced over the 4,000, and labels."""
    images, labels, _, _ = _lossless()
    chosen = _even(len(images), CALIBRATION).numpy()
    return imagenet_scaled(images[chosen]), labels[chosen]


def resnet32_test() -> tuple[torch.Tensor, np.ndarray]:
    """All 1,000 lossless test images."""
    _, _, images, labels = _lossless()
    return imagenet_scaled(images), labels


def cifar10_train() -> tuple[np.ndarray, np.ndarray]:
    """JPEG training images, uint8 [2048, 3, 32, 32], evenly spaced over the 50,000, and labels."""
    return _images("train", CALIBRATION)


def cifar10_test() -> tuple[np.ndarray, np.ndarray]:
    """All 10,000 JPEG test images."""
    return _images("test", None)


def mobilenet() -> torch.nn.Module:
    """MobileNetV2 for ImageNet."""
    return _module("mobilenetv2-imagenet").load(str(DATA / "mobilenetv2-imagenet" / "mobilenetv2_100_224.safetensors"))


def mobilenet_train() -> torch.Tensor:
    """CIFAR-10 training images enlarged to 224 pixels: float32 [128, 3, 224, 224]. No ImageNet photographs are at hand."""
    return _enlarged("train", 128)


def mobilenet_test() -> torch.Tensor:
    """CIFAR-10 test images enlarged likewise, [256, 3, 224, 224]: for agreement with the dense model only."""
    return _enlarged("test", 256)


def stsb_train() -> tuple[list[tuple[str, str]], np.ndarray]:
    """STS-Benchmark training pairs and scores, without the few pairs that the test split holds too."""
    pairs, scores = _stsb("train")
    held_out = set(_stsb("test")[0])
    kept = [i for i, pair in enumerate(pairs) if pair not in held_out]
    return [pairs[i] for i in kept], scores[kept]


def stsb_test() -> tuple[list[tuple[str, str]], np.ndarray]:
    """All 1,379 test pairs and scores."""
    return _stsb("test")


def _stsb(split: str) -> tuple[list[tuple[str, str]], np.ndarray]:
    with gzip.open(DATA / "stsb" / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [(first.strip(), second.strip()) for first, second, _ in rows], np.array([float(row[2]) for row in rows])


def _module(folder: str) -> ModuleType:
    """The data folder's own definition of a model."""
    spec = importlib.util.spec_from_file_location(folder.replace("-", "_"), DATA / folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _shakespeare() -> tuple[torch.Tensor, torch.Tensor]:
    ids, _ = shakespeare()
    held_out = int(0.9 * len(ids))
    train, test = (
        part[: len(part) // CONTEXT * CONTEXT].view(-1, CONTEXT) for part in (ids[:held_out], ids[held_out:])
    )
    return train[_even(len(train), CALIBRATION)], test


def _images(split: str, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    images, labels = cifar10(split)
    chosen = _even(len(images), limit or len(images))
    return images[chosen].numpy(), labels[chosen].numpy()


def _lossless() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels; images uint8 [n, 3, 32, 32]."""
    train, train_labels, test, test_labels = runpy.run_path(str(DATA / "cifar10" / "load.py"))["lossless"]()
    planes = (0, 3, 1, 2)
    return train.transpose(planes).copy(), train_labels, test.transpose(planes).copy(), test_labels


def imagenet_scaled(images: np.ndarray) -> torch.Tensor:
    model = _module("resnet-cifar10")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.MEAN, model.STD))
    return (torch.from_numpy(images).float() / 255 - mean) / std


def _enlarged(split: str, count: int) -> torch.Tensor:
    images, _ = _images(split, count)
    pixels = torch.from_numpy(images).float() / 127.5 - 1
    return torch.nn.functional.interpolate(pixels, size=224, mode="bilinear", align_corners=False)


def _even(total: int, count: int) -> torch.Tensor:
    return torch.arange(count) * total // count
