"""AutoModel.from_pretrained on winnow folders, over families with unlike layouts, ties and names."""

import copy
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

import families
from artifacts import artifact_of, halved, write_artifact
from winnow.errors import FormatError, InputError
from winnow.formats import ArtifactWriter, export_dense, load, read_artifact, save_packed
from winnow.formats.hf import install_hook
from winnow.formats.names import NEEDS_WINNOW
from winnow.masks.structure import NM

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.hf
install_hook()

AUTO = dict.fromkeys(["llama-tied", "llama", "gpt2", "mixtral"], "AutoModelForCausalLM")
AUTO |= {"bert": "AutoModelForSequenceClassification", "t5": "AutoModelForSeq2SeqLM"}
AUTO["vit"] = "AutoModelForImageClassification"
BUILD = {f.name: f.build for f in families.FAMILIES}
BUILD["llama-tied"] = families.hf("LlamaForCausalLM", **families.SMALL, num_key_value_heads=2, tie_word_embeddings=True)


def inputs_of(model):
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}
    ids = torch.arange(3, 23).reshape(2, 10)
    return (
        {"input_ids": ids, "decoder_input_ids": ids[:, :4]} if model.config.model_type == "t5" else {"input_ids": ids}
    )


@torch.no_grad()
def outputs_of(model, **change):
    return model.eval()(**inputs_of(model)).logits


@pytest.fixture
def tied_llama(tmp_path):
    model = BUILD["llama-tied"]()
    return model, artifact_of(tmp_path / "out", model, shard_bytes=20_000)


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("family", AUTO)
@pytest.mark.parametrize("values, structure", [("keep", None), ("int4", NM(2, 4))], ids=["keep", "int4-2:4"])
def test_save_load_same_outputs(tmp_path, family, values, structure):
    model, auto = BUILD[family](), getattr(transformers, AUTO[family])
    packed = halved(model, values, structure)
    folder = write_artifact(tmp_path / "out", model, packed)
    expected = outputs_of(model)
    for again in (auto.from_pretrained(folder), load(folder)):
        assert type(again) is type(model)
        assert same(again.state_dict(), model.state_dict())
        assert torch.equal(outputs_of(again), expected)
        assert again.all_tied_weights_keys == model.all_tied_weights_keys
        for name, target in model.all_tied_weights_keys.items():
            assert again.get_parameter(name) is again.get_parameter(target)
    for name, (_, tensor) in packed.items():
        assert int((again.get_parameter(name) == 0).sum()) >= tensor.zeros > 0


@pytest.mark.parametrize("family", ["llama-tied", "t5", "mixtral"])
def test_saved_again_it_is_a_plain_dense_checkpoint(tmp_path, family):
    model, auto = BUILD[family](), getattr(transformers, AUTO[family])
    folder = artifact_of(tmp_path / "out", model)
    again = auto.from_pretrained(folder)
    with pytest.warns(UserWarning, match="dense, zeros and all") as told:
        again.save_pretrained(tmp_path / "dense")
    assert f"copy {folder} or run hf upload" in str(told[0].message) and told[0].filename == __file__
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    model.save_pretrained(tmp_path / "reference")
    stored, expected = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / place).glob("*.safetensors"))}
        for place in ("dense", "reference")
    )
    assert stored == expected  # byte for byte what transformers writes for the model in memory
    dense = auto.from_pretrained(tmp_path / "dense")
    assert torch.equal(outputs_of(dense), outputs_of(model))


@pytest.mark.parametrize("family", AUTO)
def test_export_dense_needs_no_winnow(tmp_path, family):
    model, auto = BUILD[family](), getattr(transformers, AUTO[family])
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = artifact_of(tmp_path / "out", model, "int8", files={"tokenizer.json": tmp_path / "tokenizer.json"})
    out = export_dense(folder, tmp_path / "dense", shard_bytes=30_000)
    assert (out / "tokenizer.json").exists() and len(list(out.glob("*.safetensors"))) > 1
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert torch.equal(outputs_of(auto.from_pretrained(out)), outputs_of(model))


def test_shards_and_their_size(tied_llama):
    model, folder = tied_llama
    assert len(list(folder.glob("model.winnow-*-of-*.safetensors"))) > 2
    assert torch.equal(outputs_of(load(folder)), outputs_of(model))


@pytest.mark.parametrize("shard_bytes", [1 << 20, 20_000], ids=["one", "shards"])
def test_by_name_from_the_cache_of_the_hub(tmp_path, shard_bytes):
    """Where only what was asked for lies, and every file is a link."""
    model = BUILD["llama-tied"]()
    folder = artifact_of(tmp_path / "out", model, shard_bytes=shard_bytes)
    cached = tmp_path / "hub" / "models--me--small"
    for place in ("blobs", "snapshots/1", "refs"):
        (cached / place).mkdir(parents=True)
    (cached / "refs" / "main").write_text("1")
    for path in folder.glob("*.*"):
        if path.name not in ("manifest.json", ".winnow.json"):
            shutil.copy(path, cached / "blobs" / path.name)
            (cached / "snapshots" / "1" / path.name).symlink_to(f"../../blobs/{path.name}")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        "me/small", cache_dir=tmp_path / "hub", local_files_only=True
    )
    assert same(again.state_dict(), model.state_dict())
    with pytest.warns(UserWarning, match="copy me/small"):
        again.save_pretrained(tmp_path / "dense")


def test_dtype_is_honoured(tmp_path):
    model = BUILD["llama"]().to(torch.bfloat16)
    folder = artifact_of(tmp_path / "out", model)
    model.save_pretrained(tmp_path / "dense")  # loaded again, for .to() above rounded the rotary table too
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(outputs_of(again), outputs_of(model))
    wide = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert same(wide.state_dict(), {k: v.float() for k, v in model.state_dict().items()})
    assert same(load(folder, dtype=torch.float32).state_dict(), wide.state_dict())


def test_a_configuration_without_dtype_is_completed(tmp_path):
    model = BUILD["llama"]()
    packed = halved(model.to(torch.bfloat16), "int8")
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in ("dtype", "torch_dtype")}
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add_model(model, packed)
        folder = writer.finish(config)
    assert {p.dtype for p in transformers.AutoModelForCausalLM.from_pretrained(folder).parameters()} == {torch.bfloat16}


def test_modules_kept_in_float32_stay_so(tmp_path):
    model = BUILD["t5"]()  # T5 keeps its "wo" weights in float32 where half precision is asked for
    model.save_pretrained(tmp_path / "dense")
    dense = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "dense", dtype=torch.float16)
    again = load(artifact_of(tmp_path / "out", model), dtype=torch.float16)
    assert {n: p.dtype for n, p in again.named_parameters()} == {n: p.dtype for n, p in dense.named_parameters()}
    assert {p.dtype for p in again.parameters()} == {torch.float16, torch.float32}


def test_base_model_and_new_head(tied_llama, tmp_path):
    model, folder = tied_llama
    base = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert same(base.state_dict(), {k: v.bfloat16() for k, v in model.model.state_dict().items()})
    other = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    assert same(other.model.state_dict(), model.model.state_dict())
    bert_base = transformers.BertModel(transformers.BertConfig(**families.SMALL))
    headed = transformers.AutoModelForSequenceClassification.from_pretrained(artifact_of(tmp_path / "b", bert_base))
    assert same(headed.bert.state_dict(), bert_base.state_dict())


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(tied_llama, device_map):
    pytest.importorskip("accelerate")
    model, folder = tied_llama
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
    assert torch.equal(outputs_of(again), outputs_of(model))


def test_the_loaded_model_trains(tied_llama):
    _, folder = tied_llama
    model = load(folder).train()
    model(**inputs_of(model), labels=inputs_of(model)["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_streamed_equals_in_memory(tmp_path):
    model = BUILD["llama-tied"]()
    packed = halved(model, "int8")
    whole = write_artifact(tmp_path / "whole", model, packed)
    with ArtifactWriter(tmp_path / "streamed", 20_000) as writer:
        state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        for block in ("model.layers.0.", "model.layers.1."):
            mine = {k: state.pop(k) for k in list(state) if k.startswith(block)}
            save_packed(
                tmp_path / f"{block}unit",
                {k: packed[k] for k in mine if k in packed},
                {k: v for k, v in mine.items() if k not in packed},
            )
            writer.adopt(tmp_path / f"{block}unit")
        for name, tensor in state.items():
            writer.add_dense(name, tensor)
        streamed = writer.finish({**model.config.to_diff_dict(), "architectures": [type(model).__name__]})
    assert same(load(streamed).state_dict(), load(whole).state_dict())
    assert same(dict(read_artifact(streamed).state_dict()), dict(read_artifact(whole).state_dict()))


@pytest.mark.shared_data
@pytest.mark.parametrize("name, values", [("minilm-l6", "keep"), ("minilm-l6", "int8"), ("reference-lm", "int4")])
def test_real_models(tmp_path, shared_data, name, values):
    config = json.loads((shared_data / name / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    model = cls.from_pretrained(shared_data / name)
    packed = halved(model, values)
    folder = write_artifact(tmp_path / "out", model, packed)
    again = load(folder)
    assert same(again.state_dict(), model.state_dict())
    ids = torch.arange(5, 105).reshape(4, 25)
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids)[0], model.eval()(input_ids=ids)[0])
    sizes = read_artifact(folder).bytes
    weights = sum(tensor.numel for _, tensor in packed.values())
    bits = {"keep": 32, "int8": 8, "int4": 4}[values]
    assert 8 * (sizes["values"] + sizes["masks"]) <= 1.02 * weights * (0.5 * bits + 1)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_flipped_bits_never_give_a_wrong_model(tied_llama):
    model, folder = tied_llama
    (folder / "manifest.json").unlink()  # as from a hub cache, where only weights and configuration are fetched
    truth, rng = model.state_dict(), random.Random(0)
    shards = sorted(folder.glob("*.safetensors"))
    refused = 0
    for _ in range(30):
        path = rng.choice(shards)
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert same(transformers.LlamaForCausalLM.from_pretrained(folder).state_dict(), truth)
        except FormatError as error:
            assert "\n" not in str(error)
            refused += 1
        path.write_bytes(whole)
    assert refused == 30
    for length in (0, 7, 200, path.stat().st_size - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="damaged"):
            transformers.LlamaForCausalLM.from_pretrained(folder)


def edit(folder, change):
    (folder / "manifest.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda c: c["quantization_config"].update(format_version=9), "format version 9"),
        (lambda c: c["quantization_config"].pop("format_version"), "format version None"),
        (lambda c: c["quantization_config"].pop("weights"), "names None as its weights"),
        (lambda c: c["quantization_config"].update(weights="../x.safetensors"), "as its weights"),
        (lambda c: c["quantization_config"].update(checksum="0" * 32), "not the index"),
        (lambda c: c["quantization_config"].update(tensors={}), "does not describe"),
        (lambda c: c.update(intermediate_size=96), "in the model"),
        (lambda c: c.update(hidden_size=64), "in the model"),
        (lambda c: c.update(vocab_size=63), "in the model"),
    ],
    ids=range(9),
)
def test_a_configuration_that_does_not_belong_is_refused(tied_llama, change, match):
    _, folder = tied_llama
    edit(folder, change)
    with pytest.raises(FormatError, match=match):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(FormatError):
        load(folder)


def test_swapped_shard_is_refused(tied_llama, tmp_path):
    _, folder = tied_llama
    other_model = BUILD["llama-tied"]().requires_grad_(False)
    for parameter in other_model.parameters():
        parameter.mul_(2)
    other = artifact_of(tmp_path / "other", other_model, shard_bytes=20_000)
    name = sorted(path.name for path in folder.glob("*.safetensors"))[1]
    shutil.copy(other / name, folder / name)
    with pytest.raises(FormatError, match="not the shard"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_missing_and_unexpected_tensors_are_refused_by_load(tied_llama):
    _, folder = tied_llama
    edit(folder, lambda c: c.update(num_hidden_layers=3))
    with pytest.raises(FormatError, match="does not fit"):
        load(folder)
    edit(folder, lambda c: c.update(num_hidden_layers=1))
    with pytest.raises(FormatError, match="does not fit"):
        load(folder)


def test_code_of_the_folder_is_never_run(tied_llama):
    _, folder = tied_llama
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit(folder, lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil.Model"}))
    with pytest.raises(InputError, match="code of its own"):
        load(folder)


@pytest.mark.parametrize("architectures", [["NoSuchModel"], ["__version__"], ["AutoModel"], [], None])
def test_unknown_architecture(tied_llama, architectures):
    _, folder = tied_llama
    edit(folder, lambda c: c.update(architectures=architectures))
    with pytest.raises(InputError, match="knows no architecture"):
        load(folder)


def test_a_factory_is_not_for_transformers(tied_llama):
    with pytest.raises(InputError, match="needs no factory"):
        load(tied_llama[1], factory=lambda: None)


def test_aliases_are_for_plain_models(tmp_path):
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add_dense("a", torch.zeros(2))
        writer.add_alias("b", "a")
        with pytest.raises(InputError, match="plain torch"):
            writer.finish({"model_type": "llama"})


# --- import order -----------------------------------------------------------------------------------------------------

ORDERS = {
    "winnow first": "HOOK; import transformers",
    "transformers first": "import transformers; HOOK",
    "model class before winnow": "from transformers import LlamaForCausalLM; HOOK; import transformers",
    "hook twice": "HOOK; HOOK; import transformers; HOOK",
}


@pytest.mark.parametrize("order", ORDERS)
def test_import_order(tied_llama, order):
    _, folder = tied_llama
    hook = "import winnow; from winnow.formats.hf import install_hook; install_hook()"
    lines = [hook if part.strip() == "HOOK" else part.strip() for part in ORDERS[order].split(";")]
    if lines[0] == hook:
        lines.insert(1, "import sys; assert not any(m.split('.')[0] == 'transformers' for m in sys.modules)")
    check = f"""
    model = transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})
    assert (model.model.layers[0].mlp.up_proj.weight == 0).float().mean() == 0.5
    print("loaded")
    """
    run = run_python("\n".join(lines) + textwrap.dedent(check))
    assert run.returncode == 0 and run.stdout.strip() == "loaded", run.stderr


STOCK = """
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline
for folder in FOLDERS:
    for way in WAYS:
        try:
            eval(way)
        except Exception as error:
            print(type(error).__name__, "before loading it" in str(error))
        else:
            print("loaded by", way)
"""
WAYS = [
    "AutoModelForCausalLM.from_pretrained(folder)",
    "AutoModel.from_pretrained(folder, dtype='auto', use_safetensors=True)",
    "AutoModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))",
    "pipeline('text-generation', model=folder, tokenizer='none')",
]


def test_without_winnow_a_folder_is_refused_in_a_sentence(tmp_path):
    folders = [tmp_path / "one", tmp_path / "shards"]
    for folder, shard_bytes in zip(folders, (1 << 20, 20_000)):
        artifact_of(folder, BUILD["llama-tied"](), shard_bytes=shard_bytes)
        # A transformers that does not know the field finds no weights under any name of its own.
        shutil.copytree(folder, tmp_path / f"{folder.name} as before")
        edit(tmp_path / f"{folder.name} as before", lambda c: c.pop("transformers_weights"))
    folders += [tmp_path / f"{folder.name} as before" for folder in folders]
    run = run_python(f"FOLDERS, WAYS = {[str(f) for f in folders]!r}, {WAYS!r}\n{STOCK}")
    assert run.returncode == 0, run.stderr
    said = [line.split() for line in run.stdout.splitlines()]
    assert [line[-1] for line in said] == ["True"] * 2 * len(WAYS) + ["False"] * 2 * len(WAYS)
    assert all(line[0] in ("ValueError", "OSError") for line in said)


def test_the_page_on_packed_folders_quotes_the_refusal():
    page = (Path(__file__).parents[2] / "docs" / "guide" / "packed-folders.md").read_text()
    assert NEEDS_WINNOW in " ".join(page.split())


def test_the_quantizer_can_be_imported_by_itself():
    run = run_python(
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        "import winnow.formats.hf_quantizer\nfrom transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known\n"
        "print('winnow' in known)"
    )
    assert run.returncode == 0 and run.stdout.strip() == "True", run.stderr


@pytest.mark.parametrize("packed", [False, True])
def test_a_copy_of_a_loaded_model_saves_itself(tied_llama, tmp_path, packed):
    _, folder = tied_llama
    model = load(folder, packed=packed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.fill_(3)
    for made in (other, pickle.loads(pickle.dumps(other)) if not packed else other):
        with warnings.catch_warnings(record=True):
            made.save_pretrained(tmp_path / "dense")
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
        assert torch.equal(again.model.norm.weight, torch.full_like(again.model.norm.weight, 3))
        shutil.rmtree(tmp_path / "dense")
    assert not torch.equal(model.model.norm.weight, other.model.norm.weight)


def test_push_to_hub_says_that_it_is_dense(tied_llama, fake_hub):
    model = load(tied_llama[1])
    with pytest.warns(UserWarning, match="save_pretrained and push_to_hub write this model dense") as told:
        model.push_to_hub("me/dense")
    assert len([w for w in told if "dense, zeros and all" in str(w.message)]) == 1
    assert fake_hub.repo == "me/dense" and {"config.json", "model.safetensors"} <= fake_hub.files.keys()
    config = json.loads(fake_hub.files["config.json"])
    assert not config.keys() & {"quantization_config", "transformers_weights"}


def test_hook_module_imports_only_the_standard_library():
    code = """
    import importlib.util, sys, types
    for name, path in (("winnow", None), ("winnow.formats", None)):  # without the packages' own __init__
        sys.modules[name] = types.ModuleType(name)
    found = importlib.util.spec_from_file_location("winnow.formats.hf", PATH)
    module = importlib.util.module_from_spec(found)
    before = set(sys.modules)
    found.loader.exec_module(module)
    module.install_hook()
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert new <= set(sys.stdlib_module_names), new
    """
    import winnow.formats.hf as hf

    run = run_python(f"PATH = {hf.__file__!r}\n" + textwrap.dedent(code))
    assert run.returncode == 0, run.stderr


def test_an_old_transformers_gets_a_warning_not_an_error(tmp_path):
    package = tmp_path / "transformers" / "quantizers"
    package.mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").write_text("from .quantizers import auto\n")
    (package / "__init__.py").write_text("")
    (package / "auto.py").write_text("value = 7\n")
    code = f"""
    import sys, warnings
    sys.path.insert(0, {str(tmp_path)!r})
    from winnow.formats.hf import install_hook
    install_hook()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import transformers.quantizers.auto as auto
    assert auto.value == 7
    assert any("winnow-nn[hf]" in str(w.message) for w in caught)
    """
    run = run_python(textwrap.dedent(code))
    assert run.returncode == 0, run.stderr


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
