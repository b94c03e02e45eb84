"""A small model and data that recipes name."""

import numpy as np
import pytest
from safetensors.torch import save_file

from small import classifier, points


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    save_file(classifier().state_dict(), folder / "weights.safetensors")
    for name, count, seed in (("train", 240, 0), ("test", 160, 5)):
        x, y = points(count, seed=seed)
        np.savez(folder / f"{name}.npz", x=x.numpy(), y=y)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder
