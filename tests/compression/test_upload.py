"""``--push-to-hub``, with the Hub in place of the network only: what huggingface_hub would send, and how it fails."""

import httpx
import pytest
from safetensors.torch import save_file

import winnow
from small import classifier, points, trained
from winnow.cli import main
from winnow.errors import InputError, WinnowError

HUB = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.hf

QUICK = dict(sparsity=0.5, method="magnitude", baselines="none", speed=False)


def test_the_folder_is_uploaded_whole(fake_hub, tmp_path):
    result = winnow.compress(trained(classifier(), *points()), out=tmp_path / "out", push_to_hub="me/small", **QUICK)
    assert result.url == "https://huggingface.co/me/small" and fake_hub.repo == "me/small"
    names = {path.name for path in result.folder.iterdir()} - {".winnow.json"}  # which says whose a local folder is
    assert fake_hub.files.keys() == names and "model.winnow.safetensors" in names
    assert all(fake_hub.files[name] == (result.folder / name).read_bytes() for name in names)


def refused(request):
    return httpx.Response(401, json={"error": "Invalid username or password."})


def cut_off(request):
    if request.url.path.endswith("/commit/main"):
        raise httpx.ConnectError("[Errno -3] Temporary failure in name resolution")


@pytest.mark.parametrize("failure, words", [(refused, "401"), (cut_off, "name resolution")], ids=["token", "offline"])
def test_a_failed_upload_costs_nothing(fake_hub, tmp_path, failure, words):
    fake_hub.fail, out = failure, tmp_path / "out"
    with pytest.raises(WinnowError, match=words) as told:
        winnow.compress(trained(classifier(), *points()), out=out, push_to_hub="me/small", **QUICK)
    assert "\n" not in str(told.value) and f"hf upload me/small {out}" in str(told.value)
    assert not isinstance(told.value, InputError) and not fake_hub.files
    assert not winnow.load(out, factory=classifier).training and not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("options, words", [
    (dict(push_to_hub="me/small"), "out=DIR"),
    (dict(push_to_hub="a/b/c", out="out"), "user/name"),
    (dict(push_to_hub="me/small", out="out", token=None), "hf auth login"),
])  # fmt: skip
def test_what_would_stop_an_upload_is_said_before_the_work(fake_hub, monkeypatch, tmp_path, options, words):
    monkeypatch.chdir(tmp_path)
    if "token" in options:
        monkeypatch.setattr(HUB, "get_token", lambda: options.pop("token", None))
        options = {k: v for k, v in options.items() if k != "token"}
    with pytest.raises(InputError, match=words):
        winnow.compress(classifier(), **options, **QUICK)
    assert not list(tmp_path.iterdir())


def test_the_command_line_names_the_address(fake_hub, tmp_path, capsys):
    save_file(trained(classifier(), *points()).state_dict(), tmp_path / "weights.safetensors")
    given = ["small:classifier", "--weights", tmp_path / "weights.safetensors", "--out", tmp_path / "out", "--no-speed"]
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, ["compress", *given, "--sparsity", "50%", "--push-to-hub", "me/small"])))
    assert ended.value.code in (0, None) and "Uploaded: https://huggingface.co/me/small" in capsys.readouterr().out
