"""The built-in digits model: accurate, the same for the same seed, and back from its files unchanged."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from winnow import demo_data
from winnow.errors import InputError


@pytest.fixture(scope="module")
def trained():
    return demo_data.train_digits(seed=0)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, data: demo_data.Images) -> float:
    images, labels = data
    return float(np.mean(model(torch.from_numpy(images)).argmax(1).numpy() == labels))


def test_held_out_accuracy(trained):
    model, records = trained
    assert not model.training
    assert accuracy(model, records["test"]) > 0.95
    assert accuracy(model, records["calibration"]) > 0.95


def test_untrained_model_guesses(trained):
    assert accuracy(demo_data.digits_vit(), trained[1]["test"]) < 0.5


def test_same_seed_same_model_and_no_trace_in_the_global_random_state(trained, monkeypatch):
    # One pass is enough to meet every random draw; with all eight this test would only take longer.
    monkeypatch.setattr(demo_data, "EPOCHS", 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = demo_data.train_digits(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    calls = []
    second, _ = demo_data.train_digits(seed=1, progress=lambda done, total: calls.append((done, total)))
    other, _ = demo_data.train_digits(seed=2)
    assert calls == [(1, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_are_disjoint_and_whole(seed):
    records = demo_data.digits(seed)
    assert {name: len(labels) for name, (_, labels) in records.items()} == demo_data.SIZES
    seen = []
    for images, labels in records.values():
        assert images.shape == (len(labels), 1, 8, 8) and images.dtype == np.float32
        assert labels.dtype == np.int64 and set(labels) == set(range(10))
        assert images.min() == 0 and images.max() == 1
        seen += [hashlib.sha256(image.tobytes()).digest() for image in images]
    assert len(set(seen)) == len(seen), "the same image is in two splits, or twice in one"
    # Together they are scikit-learn's set, each image with its own label.
    whole = load_digits()
    got = {
        (np.round(i * 16).astype(int).tobytes(), int(y)) for images, ys in records.values() for i, y in zip(images, ys)
    }
    assert got == {(i.astype(int).tobytes(), int(y)) for i, y in zip(whole.images, whole.target)}


def test_seed_changes_the_split():
    assert not np.array_equal(demo_data.digits(0)["test"][0], demo_data.digits(1)["test"][0])


def test_saved_files_give_the_same_model_and_data(trained, tmp_path):
    model, records = trained
    files = demo_data.save_digits(tmp_path / "new" / "demo", trained)
    assert sorted(p.name for p in files.weights.parent.iterdir()) == sorted(p.name for p in files), (
        "nothing else is left"
    )

    again = importlib.import_module("winnow.demo_data").digits_vit()
    again.load_state_dict(load_file(files.weights))
    again.eval()
    images = torch.from_numpy(records["test"][0])
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))

    for part in ("train", "calibration", "test"):
        with np.load(getattr(files, part)) as arrays:
            assert set(arrays.files) == {"images", "labels"}
            np.testing.assert_array_equal(arrays["images"], records[part][0])
            np.testing.assert_array_equal(arrays["labels"], records[part][1])


def test_saving_twice_replaces(trained, tmp_path):
    first = demo_data.save_digits(tmp_path, trained)
    before = {path.name: path.read_bytes() for path in first}
    first.weights.write_bytes(b"damaged")
    second = demo_data.save_digits(tmp_path, trained)
    assert {path.name: path.read_bytes() for path in second} == before


def test_folder_that_is_a_file_is_one_sentence(trained, tmp_path):
    occupied = Path(tmp_path / "file")
    occupied.write_text("mine")
    with pytest.raises(InputError, match="name one that can be written"):
        demo_data.save_digits(occupied, trained)
    assert occupied.read_text() == "mine"


def test_compressible_size():
    model = demo_data.digits_vit()
    in_blocks = sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2)
    assert in_blocks == 3 * 12 * 96 * 96  # four D x D and two D x 4D matrices a block
    assert in_blocks > 0.95 * sum(p.numel() for p in model.parameters())
