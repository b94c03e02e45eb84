import os
import tempfile
from pathlib import Path

import pytest
import torch

from fakehub import fake_hub as fake_hub

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, by whatever test that is
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="winnow-tests-")  # timings kept by a test are nobody else's
torch.set_num_threads(int(os.environ.get("WINNOW_TEST_THREADS", "1")))

DATA = Path(os.environ.get("WINNOW_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and data, or a loud skip: users do not have it."""
    if not DATA.is_dir():
        pytest.skip(f"no real models and data at {DATA}: set WINNOW_DATA to a folder that has them")
    return DATA


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
