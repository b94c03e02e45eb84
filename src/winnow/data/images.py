"""Images: folders and arrays in, normalised float batches out. No torchvision."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from winnow.data.records import Records
from winnow.errors import InputError

PIXELS = 89_478_485  # of one image: a quarter of a GiB as RGB, where Pillow begins to warn
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SPLITS = {"train", "training", "test", "val", "valid", "validation", "dev"}


class ImageFiles(Sequence[np.ndarray]):
    """Image files, decoded to uint8 RGB [H, W, 3] when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return decode(self.paths[index])

    def subset(self, indices: Iterable[int]) -> ImageFiles:
        return ImageFiles([self.paths[i] for i in indices])


def decode(source: Any) -> np.ndarray:
    """A file (or an opened PIL image) as uint8 RGB [H, W, 3]."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the same bound is an error below
            image = source if isinstance(source, Image.Image) else Image.open(source)
        width, height = image.size
        if width * height > PIXELS:
            raise InputError(
                f"{source} has {width} x {height} pixels, and {PIXELS:,} are read at most: make it smaller or remove it."
            )
        return np.asarray(image.convert("RGB"))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # each of Pillow's formats has its own ways to fail
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{source} is not a readable image ({said}): remove it or fetch it again.") from None


def read_folder(folder: Path, split: str | None = None) -> Records:
    """A folder of images: subfolders are classes (in sorted order), a flat folder has no labels.

    ``split`` names a subfolder such as "test" that holds the classes.
    """
    if split is not None and (folder / split).is_dir():
        folder = folder / split
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and any(_images(p)))
    if not classes:
        files = list(_images(folder))
        if not files:
            raise InputError(f"{folder} holds no images ({', '.join(SUFFIXES)}): give the folder that does.")
        return Records("images", ImageFiles(files), name=str(folder))
    parts = [p.name for p in classes if p.name.lower() in _SPLITS]
    if parts and len(parts) == len(classes):
        raise InputError(f"{folder} holds the splits {', '.join(parts)}: give the folder of one of them.")
    found = [(file, number) for number, path in enumerate(classes) for file in _images(path)]
    labels = np.asarray([number for _, number in found], dtype=np.int64)
    names = tuple(path.name for path in classes)
    return Records("images", ImageFiles([file for file, _ in found]), labels, names, name=str(folder))


def _images(folder: Path) -> Iterable[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())


def as_pixels(array: np.ndarray) -> np.ndarray | None:
    """A uint8 array as images [n, H, W] or [n, H, W, C]; None when it is not shaped like images."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        return None
    if array.ndim == 4 and array.shape[-1] not in (1, 3, 4):
        if array.shape[1] not in (1, 3, 4):
            return None
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return array


@dataclass(frozen=True)
class ImageTransform:
    """uint8 images to float32 [n, C, H, W]: resize, centre crop, rescale, normalise, in that order.

    The steps and their defaults are those of transformers' image processors, as ``preprocessor_config.json`` tells.
    """

    size: tuple[int, int] | None = None  # height, width
    shortest: int | None = None  # edge length, aspect ratio kept
    crop: tuple[int, int] | None = None  # height, width
    rescale: float | None = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resample: int = 2  # PIL's bilinear

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        arrays = [self._shaped(np.asarray(image)) for image in images]
        if len({array.shape for array in arrays}) > 1:
            raise InputError(
                "the images have different sizes: give a model folder with preprocessor_config.json, or resize them to one size."
            )
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(torch.float32)
        if self.rescale is not None:
            pixels = pixels * self.rescale
        if self.mean is not None and self.std is not None:
            if pixels.shape[1] == 1 and len(self.mean) > 1:
                pixels = pixels.expand(-1, len(self.mean), -1, -1)
            mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (self.mean, self.std))
            pixels = (pixels - mean) / std
        return pixels.contiguous()

    def _shaped(self, image: np.ndarray) -> np.ndarray:
        image = image[..., None] if image.ndim == 2 else image
        height, width = image.shape[:2]
        target = self.size
        if self.shortest is not None:
            short = min(height, width)
            target = (int(height * self.shortest / short), int(width * self.shortest / short))
        if target is not None and target != (height, width):
            image = _resize(image, target, self.resample)
        if self.crop is not None and self.crop != image.shape[:2]:
            image = _centre_crop(image, self.crop)
        return np.ascontiguousarray(image)


def _resize(image: np.ndarray, target: tuple[int, int], resample: int) -> np.ndarray:
    from PIL import Image

    gray = image.shape[2] == 1
    resized = Image.fromarray(image[..., 0] if gray else image).resize((target[1], target[0]), resample=resample)
    array = np.asarray(resized)
    return array[..., None] if gray else array


def _centre_crop(image: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    short = [max(0, want - have) for want, have in zip(crop, image.shape[:2])]
    if any(short):
        image = np.pad(image, [((s + 1) // 2, s - (s + 1) // 2) for s in short] + [(0, 0)])
    top, left = ((have - want) // 2 for want, have in zip(crop, image.shape[:2]))
    return image[top : top + crop[0], left : left + crop[1]]


def image_transform(processor: Any) -> Callable[[Any], torch.Tensor]:
    """What turns uint8 images into model input.

    ``processor`` is None (only rescaled to [0, 1]), a transformers image processor (or one that holds it), its settings
    as a dict, a ``preprocessor_config.json`` or its folder, or a function of a uint8 tensor [n, C, H, W].
    """
    if processor is None or isinstance(processor, ImageTransform):
        return processor or ImageTransform()
    processor = getattr(processor, "image_processor", processor)
    if isinstance(processor, (str, Path)):
        path = Path(processor)
        path = path / "preprocessor_config.json" if path.is_dir() else path
        try:
            processor = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as image settings ({error}): give the model's own file.") from None
    if isinstance(processor, dict):
        return _from_settings(processor)
    if hasattr(processor, "image_mean") and hasattr(processor, "to_dict"):
        return _from_settings(processor.to_dict())
    if callable(processor):
        as_bytes = ImageTransform(rescale=None)
        return lambda images: processor(as_bytes(images).to(torch.uint8))
    raise InputError(
        f"a {type(processor).__name__} cannot prepare images: give a function or preprocessor_config.json."
    )


def with_normalisation(
    processor: Any, records: Records | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Callable[[Any], torch.Tensor]:
    """What ``processor`` does to images, with the mean and deviation of its pixels (of values between 0 and 1) replaced.

    Raises:
        InputError: one without the other, values that are not of that range, another number of them than of channels, or
            records that are no images.
    """
    if records is None or records.kind != "images":
        raise InputError("--mean and --std are for images given as bytes: leave them out for other data.")
    if mean is None or std is None:
        raise InputError("--mean and --std go together: give both, one number or one per channel.")
    mean, std = tuple(float(v) for v in mean), tuple(float(v) for v in std)
    if not all(-1 <= v <= 1 for v in mean) or not all(0 < v <= 1 for v in std):
        raise InputError(
            f"--mean {_listed(mean)} --std {_listed(std)} are not of pixels between 0 and 1 (a deviation is above 0): divide "
            "values of 0 to 255 by 255."
        )
    first = np.asarray(records.inputs[0])
    channels = 1 if first.ndim == 2 else first.shape[-1]
    for values in (mean, std):
        if len(values) not in (1, channels) and channels != 1:
            raise InputError(
                f"{_listed(values)} are {len(values)} values and the images have {channels} channels: give one, or one each."
            )
    transform = image_transform(processor)
    if not isinstance(transform, ImageTransform):
        raise InputError("a function prepares the images: leave out --mean and --std, and normalise in it.")
    return replace(transform, mean=mean, std=std, rescale=transform.rescale or 1 / 255)


def describe_preprocessing(processor: Any, records: Records) -> str:
    """One sentence for the plan and the report: what becomes of an image's bytes before the model sees them."""
    transform = image_transform(processor)
    if not isinstance(transform, ImageTransform):
        return f"the images of {records.name} are fed as the function given prepares them."
    scale = "as bytes of 0 to 255" if transform.rescale is None else "as values of 0 to 1"
    if transform.rescale is not None and abs(transform.rescale - 1 / 255) > 1e-9:
        scale = f"as bytes times {transform.rescale:.4g}"
    if transform.mean is None or transform.std is None:
        return (
            f"the images of {records.name} are fed {scale}, without mean and deviation: if the model was trained on normalised "
            "images, give its --mean and --std (or its preprocessor_config.json)."
        )
    return f"the images of {records.name} are fed {scale}, less mean {_listed(transform.mean)}, over {_listed(transform.std)}."


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _from_settings(settings: dict[str, Any]) -> ImageTransform:
    size = settings.get("size") if settings.get("do_resize", True) else None
    crop = settings.get("crop_size") if settings.get("do_center_crop", False) else None
    normalise = settings.get("do_normalize", settings.get("image_mean") is not None)
    rescale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else None
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    return ImageTransform(
        size=None if shortest else _pair(size),
        shortest=shortest,
        crop=_pair(crop),
        rescale=rescale,
        mean=_floats(settings.get("image_mean")) if normalise else None,
        std=_floats(settings.get("image_std")) if normalise else None,
        resample=int(settings.get("resample", 2)),
    )


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict):
        if "height" not in size or "width" not in size:
            raise InputError(f"the image size {size} is not known here: give height and width, or shortest_edge.")
        return int(size["height"]), int(size["width"])
    return int(size[0]), int(size[-1])


def _floats(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    return tuple(float(v) for v in (values if isinstance(values, (list, tuple)) else [values]))
