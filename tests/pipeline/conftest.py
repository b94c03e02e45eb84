"""A small model and data that recipes name."""

import pytest
from safetensors.torch import save_file

from small import classifier, write_points


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    save_file(classifier().state_dict(), folder / "weights.safetensors")
    write_points(folder, 240, 160)
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder
