"""What travels with a model: everything in its folder but weights, into every folder made from it, and what the card keeps."""

import json
import os

import pytest
import yaml

import winnow
from families import FAMILIES
from winnow.errors import InputError
from winnow.formats import companions as room
from winnow.formats.companions import companions, is_weights
from winnow.formats.reader import read_artifact

TRAVELS = {
    "LICENSE": "own", "NOTICE.txt": "own", "chat_template.jinja": "{{ x }}", "generation_config.json": "{}", "preprocessor_config.json": "{}",
    "modeling_own.py": "x = 1", "labels.csv": "a,b", "config_sentence_transformers.json": "{}", "1_Pooling/config.json": '{"p": 1}',
    "2_Dense/config.json": "{}", "2_Dense/model.safetensors": "8", "assets/deep/er/words.txt": "w",
    "modules.json": json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]),
}  # fmt: skip
STAYS = {
    "pytorch_model.bin": "w", "tf_model.h5": "w", "flax_model.msgpack": "w", "model.onnx": "w", "model.onnx_data": "w", "m.Q4.gguf": "w",
    "openvino_model.bin": "w", "openvino_model.xml": "w", "other.safetensors": "w", "pytorch_model.bin.index.json": "w", "training_args.bin": "w",
    "onnx/model.onnx": "w", "onnx/config.json": "{}", "checkpoint-5/model.safetensors": "w", "checkpoint-5/config.json": "{}",
    ".git/HEAD": "h", ".env": "TOKEN=1", "assets/.cache": "h", "runs/events": "e", "train.jsonl": "{}", "data.txt": "texts",
    "report.json": "{}", "recipe.yaml": "x: 1", "manifest.json": "{}", "trainer_state.json": "{}",
}  # fmt: skip
PARENT = "---\nlicense: mit\nlanguage: en\nbase_model: org/first\npipeline_tag: feature-extraction\ntags:\n- bert\n- winnow\nmodel-index: 3\n---\n# Hi\n"


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_everything_but_weights_travels(tmp_path):
    fill(tmp_path, TRAVELS | STAYS)
    found = companions(tmp_path, [tmp_path / "data.txt", None, object()])
    assert found.files == {name: tmp_path / name for name in TRAVELS}
    for name in (
        "onnx/",
        "checkpoint-5/",
        "train.jsonl",
    ):  # what a person may look for there is told, a weights file is not
        assert sum(told.startswith(f"{name} is not copied") for told in found.left_out) == 1
    assert len(found.left_out) == 3


def test_the_huge_stays_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "LARGEST", 1000)
    monkeypatch.setattr(room, "MOST", 5)
    fill(tmp_path, {"a.txt": "x" * 1001, "b.txt": "x" * 1000, "many/0": "", "big/1": "x" * 999, "big/2": "x" * 2})
    fill(tmp_path, {f"many/{i}": "" for i in range(6)})
    found = companions(tmp_path)
    assert list(found.files) == ["b.txt"]
    assert [told.split()[0] for told in found.left_out] == ["a.txt", "big/", "many/"] and "6 files" in found.left_out[2]


def test_links_and_what_is_no_file_stay(tmp_path):
    folder = tmp_path / "model"
    fill(folder, {"own.txt": "own", "sub/own.txt": "own"})
    fill(tmp_path, {"secret": "s", "far/secret": "s"})
    (folder / "in.txt").symlink_to("own.txt")
    (folder / "sub" / "in.txt").symlink_to("../own.txt")
    (folder / "out.txt").symlink_to("../secret")
    (folder / "sub" / "out.txt").symlink_to("../../secret")
    (folder / "far").symlink_to("../far")
    (folder / "sub" / "far").symlink_to("../../far")
    (folder / "gone").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    found = companions(folder)
    assert set(found.files) == {"own.txt", "in.txt", "sub/own.txt", "sub/in.txt"}
    assert [told.split()[0] for told in found.left_out] == ["far", "out.txt", "sub/out.txt"]


@pytest.mark.parametrize("modules", ["", "[", "3", "[3]", '[{"path": 3}]', '{"path": "x"}', "[" * 100_000])
def test_garbled_modules_name_nothing(tmp_path, modules):
    fill(tmp_path, {"modules.json": modules, "2_Dense/model.safetensors": "8"})
    assert set(companions(tmp_path).files) == {"modules.json"}


def test_pickled_weights_of_a_module_are_told(tmp_path):
    fill(
        tmp_path,
        {"modules.json": '[{"path": "2_Dense"}]', "2_Dense/pytorch_model.bin": "p", "2_Dense/config.json": "{}"},
    )
    found = companions(tmp_path)
    assert (
        set(found.files) == {"modules.json", "2_Dense/config.json"} and "which writes safetensors" in found.left_out[0]
    )


def test_names_of_weights():
    assert (
        is_weights("Model.SafeTensors") and is_weights("model.safetensors.index.json") and is_weights("rust_model.ot")
    )
    assert not is_weights("config.json") and not is_weights("spiece.model") and not is_weights("tokenizer.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("companions")
    next(f for f in FAMILIES if f.name == "bert").build().save_pretrained(folder / "model")
    fill(folder / "model", TRAVELS | {"README.md": PARENT, "onnx/model.onnx": "w"})
    settings = dict(sparsity=0.5, method="magnitude", task="none", baselines="none", speed=False)
    result = winnow.compress(str(folder / "model"), None, out=folder / "packed", **settings)
    assert any(note.startswith("onnx/ is not copied") for note in result.report.notes)
    winnow.export_dense(folder / "packed", folder / "dense")
    winnow.compress(str(folder / "packed"), None, out=folder / "again", **{**settings, "sparsity": 0.7})
    return folder


@pytest.mark.hf
@pytest.mark.parametrize("name", ["packed", "dense", "again"])
def test_companions_are_in_every_folder(made, name):
    for file, text in TRAVELS.items():
        if file != "generation_config.json" or name == "packed":
            assert (made / name / file).read_text() == text, file
    assert (made / name / "README.parent.md").read_text() == PARENT
    assert not {n for n in names(made / name) if n.startswith("onnx")}


@pytest.mark.hf
def test_the_card_keeps_what_the_parents_says(made):
    for name in ("packed", "again", "dense"):
        _, front, text = (made / name / "README.md").read_text().split("---\n", 2)
        about = yaml.safe_load(front)
        assert (
            about["tags"] == ["winnow", "sparsity", "bert"] and about["license"] == "mit" and about["language"] == "en"
        )
        assert about["base_model"] == "org/first" and about["pipeline_tag"] == "feature-extraction"
        assert about["library_name"] == "sentence-transformers" and "model-index" not in about  # nothing was measured
        assert "SentenceTransformer" in text and "(README.parent.md)" in text
        assert ("import winnow" in text) == (name != "dense") and ("written dense" in text) == (name == "dense")


@pytest.mark.hf
def test_the_manifest_speaks_of_files_in_folders_too(made, tmp_path):
    artifact = read_artifact(made / "packed")
    assert artifact.manifest["files"].keys() >= TRAVELS.keys()
    artifact.verify()
    options = dict(sparsity=0.5, method="magnitude", task="none", baselines="none", speed=False, out=tmp_path / "o")
    winnow.compress(str(made / "model"), None, **options)
    (tmp_path / "o" / ".winnow.json").unlink()  # the manifest accounts for the files, and the folder is still winnow's
    winnow.compress(str(made / "model"), None, overwrite=True, **options)
    (tmp_path / "o" / "1_Pooling" / "config.json").write_text("changed")
    with pytest.raises(Exception, match=r"1_Pooling/config\.json was changed"):
        winnow.export_dense(tmp_path / "o", tmp_path / "e")
    with pytest.raises(InputError, match="holds something else"):
        winnow.compress(str(made / "model"), None, overwrite=True, **options)


def test_a_model_fetched_by_name_brings_its_companions(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.utils import filter_repo_objects

    from winnow.models.pretrained import from_hub

    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: asked.update(options) or str(tmp_path))
    assert from_hub("org/name") == tmp_path
    listed = {
        *TRAVELS,
        *STAYS,
        "README.md",
        "tokenizer.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "config.json",
    }
    fetched = set(filter_repo_objects(listed, **asked))
    assert fetched >= {
        *TRAVELS,
        "README.md",
        "tokenizer.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "config.json",
    }
    others = {
        "pytorch_model.bin",
        "tf_model.h5",
        "model.onnx",
        "m.Q4.gguf",
        "onnx/model.onnx",
        "onnx/config.json",
        "train.jsonl",
    }
    assert not fetched & others and others <= listed
