"""Files beside the weights: what is read of a folder that winnow wrote is what was written, or a change that was accepted."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
import torch

from artifacts import artifact_of
from sealing import Folder
from small import Classifier, classifier, word_tokenizer
from winnow.disk.regular import open_regular, read_regular
from winnow.errors import FormatError, InputError
from winnow.formats import export_dense, load, read_artifact
from winnow.formats.reader import check_listed
from winnow.models.source import open_model


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        id2label={0: "no", 1: "yes"}, max_position_embeddings=16,
    )  # fmt: skip
    tokenizer = word_tokenizer(["[PAD]", "[UNK]", "good", "bad", "film"], unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "t")
    model = transformers.BertForSequenceClassification(config).eval()
    (tmp_path / "t" / "preprocessor_config.json").write_text('{"size": 8}')
    return artifact_of(
        tmp_path / "out", model, files={p.name: p for p in (tmp_path / "t").iterdir()}, shard_bytes=1 << 20
    )


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.hf
@pytest.mark.parametrize("packed", ["dense", "packed", "from_pretrained", "auto"])
@pytest.mark.parametrize("old, new", [('"gelu"', '"relu"'), ('"no"', '"never"'), ("1e-12", "1e-2")])
def test_a_changed_configuration(folder, old, new, packed):
    transformers = pytest.importorskip("transformers")
    ways = {
        "dense": lambda: load(folder),
        "packed": lambda: load(folder, packed=True),
        "from_pretrained": lambda: transformers.BertForSequenceClassification.from_pretrained(folder),
        "auto": lambda: transformers.AutoModel.from_pretrained(folder),
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"hidden_act": "gelu", "layer_norm_eps": 1e-12, **config}))
    check = json.loads((folder / "manifest.json").read_text())
    check["files"]["config.json"] = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(check))
    ways[packed]()
    change(folder / "config.json", old, new)
    with pytest.raises(FormatError, match=r"config.json was changed.*if the change is yours, delete manifest.json"):
        ways[packed]()
    (folder / "manifest.json").unlink()
    model = ways[packed]()  # the change is accepted, and is what is loaded
    if new == '"never"':
        assert model.config.id2label[0] == "never"


@pytest.mark.hf
def test_a_changed_tokenizer(folder, tmp_path):
    source = open_model(folder)
    assert source.tokenizer()("good film")["input_ids"] == [2, 4] and source.image_processing() == {"size": 8}
    change(folder / "tokenizer.json", '"good": 2' if '"good": 2' in (folder / "tokenizer.json").read_text() else '"good":2', '"good":3')  # fmt: skip
    with pytest.raises(FormatError, match=r"tokenizer.json was changed after it was written"):
        source.tokenizer()
    with pytest.raises(FormatError, match=r"tokenizer.json was changed"):
        export_dense(folder, tmp_path / "dense")
    change(folder / "preprocessor_config.json", "8", "9")
    with pytest.raises(FormatError, match=r"preprocessor_config.json was changed"):
        source.image_processing()
    load(folder)  # the model itself does not read them
    (folder / "manifest.json").unlink()
    assert source.image_processing() == {"size": 9} and source.tokenizer() is not None
    export_dense(folder, tmp_path / "dense")


@pytest.mark.hf
def test_files_that_were_added_or_removed_are_nobodys_business(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "preprocessor_config.json").unlink()
    check_listed(folder)
    load(folder)
    with pytest.raises(FormatError, match=r"preprocessor_config.json is missing"):
        read_artifact(folder).verify()


@pytest.mark.hf
def test_a_reason_survives_transformers(folder):
    """What is wrong with a packed tensor is said, not that some conversion had an issue."""
    transformers = pytest.importorskip("transformers")
    shard = next(folder.glob("*.safetensors"))
    edited = Folder(folder, random.Random(0))
    header, about, values = edited.opened(shard)
    name = sorted(about["packed"])[0]
    about["packed"][name]["zeros"] += 1
    edited.seal(shard, header, about, values)
    for make in (load, transformers.BertForSequenceClassification.from_pretrained):
        with pytest.raises(FormatError, match="count of zeros"):
            make(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["config.json", "model.winnow.safetensors"])
@pytest.mark.parametrize("verb", ["inspect", "export"])
def test_a_pipe_in_the_place_of_a_file(tmp_path, name, verb):
    folder = artifact_of(tmp_path / "out", classifier())
    (folder / name).unlink()
    os.mkfifo(folder / name)
    more = ["--out", "dense"] if verb == "export" else []
    done = subprocess.run(
        [sys.executable, "-m", "winnow", verb, str(folder), *more], capture_output=True, text=True, timeout=120, cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "is a pipe" in " ".join(done.stderr.split())


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(FormatError, match="larger"):
        read_regular(tmp_path / "file", 4)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, why in {"folder": "a folder", "nothing": "is missing", "loop": "cannot be read", "zero": "a device", "a\0b": "no name"}.items():  # fmt: skip
        with pytest.raises(FormatError, match=why):
            open_regular(tmp_path / name)


def test_a_configuration_that_nests_without_end(tmp_path):
    folder = artifact_of(tmp_path / "out", classifier())
    (folder / "manifest.json").unlink()
    for text in ("[" * 100_000, '{"winnow": ' * 50_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(FormatError, match="not valid JSON"):
            read_artifact(folder)
        with pytest.raises(InputError, match="JSON"):
            open_model(folder)
        with pytest.raises(FormatError):
            load(folder, factory=Classifier)
