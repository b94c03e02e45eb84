"""``winnow env``: complete against pyproject.toml, told by the text as by the JSON, safe to paste."""

import json
import platform
import re
from pathlib import Path

import pytest
import torch

from command import winnow
from winnow.verbs import env as room
from winnow.verbs.env import env, env_text


def names(requirements):
    return {re.match(r"[\w-]+", r)[0].lower() for r in requirements}


def test_every_requirement_and_every_extra_is_told():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {n.lower() for n in room.REQUIRED} == names(project["dependencies"])
    extras = {
        extra: names(wanted)
        for extra, wanted in project["optional-dependencies"].items()
        if extra not in ("dev", "docs")
    }
    assert {extra: set(wanted) for extra, wanted in room.EXTRAS.items()} == extras


def test_text_and_json_tell_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WINNOW_ISA", "portable")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.home() / "elsewhere"))
    text, found = winnow("env"), json.loads(winnow("env", "--json").stdout)
    assert text.returncode == 0 and found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == platform.python_version()
    assert found["variables"]["OMP_NUM_THREADS"] == "1" and "1 in torch" in found["machine"]["threads"]
    assert found["machine"]["timings"].startswith(str(Path("~/elsewhere/winnow/timings.json")))
    for name, value in {**found["versions"], **found["variables"]}.items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(value)}$", text.stdout, re.M) or not value, name
    assert "hf_secret" not in text.stdout + json.dumps(found) and str(Path.home()) + "/" not in text.stdout


def test_what_is_wrong_is_told_and_nothing_fails(monkeypatch):
    monkeypatch.setenv("WINNOW_ISA", "none-such")
    monkeypatch.setattr(room, "_version", lambda name: "" if name == "pyarrow" else "1.0")
    text = env_text(env())
    assert "[data]" in text and "lacks pyarrow: pip install 'winnow-nn[data]'" in text
    kernels = re.search("^native kernels +(.*)$", text, re.M)[1]
    assert "WINNOW_ISA=none-such is not available" in kernels or "slow PyTorch code" in kernels
