"""The folder: what goes in comes out, nothing half-written is seen, nothing damaged is believed."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from artifacts import pack_half, write_artifact
from sealing import b2
from winnow.errors import FormatError, InputError, WinnowError
from winnow.formats import (
    ArtifactWriter,
    export_dense,
    is_artifact,
    load,
    load_packed,
    pack,
    read_artifact,
    save_packed,
)
from winnow.formats.tensorfile import TensorFile, write_tensors
from winnow.masks.prunable import Prunable
from winnow.masks.structure import NM, BlockShape, Unstructured


class Net(torch.nn.Module):
    """Convolution, batch norm with its integer buffer, a transposed weight, tied ends, an unnamed 0-d parameter."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(12, 8)
        self.conv = torch.nn.Conv1d(8, 16, 3, padding=1, groups=2)
        self.norm = torch.nn.BatchNorm1d(16)
        self.fc = torch.nn.Linear(16, 8)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.tensor([1, 2, 3]), persistent=False)
        self.head = torch.nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        hidden = self.norm(self.conv(self.embed(ids).transpose(1, 2)))
        return self.head(torch.relu(self.fc(hidden.transpose(1, 2)))) * self.scale


def factory():
    return Net()


def pruned_net(values="float32"):
    model = Net()
    model(torch.randint(0, 12, (4, 9)))  # moves the running statistics
    model.eval()
    packed = {}
    for name, kind, structure in (("conv.weight", "conv", Unstructured()), ("fc.weight", "linear", NM(2, 4))):
        weight = model.get_parameter(name).data
        module, _, _ = name.rpartition(".")
        prunable = Prunable(name, module, kind, tuple(weight.shape), parts=2 if kind == "conv" else 1)
        packed[name] = (prunable, pack_half(prunable, weight, values, structure))
    return model, packed


@pytest.fixture
def artifact(tmp_path):
    return write_artifact(
        tmp_path / "out", *pruned_net(), recipe={"sparsity": 0.5}, manifest={"seed": 3}, factory="nowhere:f"
    )


def snapshot(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def state_of(folder):
    return {name: tensor.clone() for name, tensor in read_artifact(folder).state_dict()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# --- what goes in comes out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["float32", "int8"])
@pytest.mark.parametrize("shard_bytes", [1 << 20, 300, 1])
def test_save_load_same_outputs(tmp_path, values, shard_bytes):
    model, packed = pruned_net(values)
    folder = write_artifact(tmp_path / "out", model, packed, shard_bytes)
    ids = torch.randint(0, 12, (3, 9))
    again = load(folder, factory=factory)
    assert torch.equal(again(ids), model(ids))
    assert again.head.weight is again.embed.weight  # tied before, tied after
    assert again.norm.num_batches_tracked == 1 and not again.training
    assert same(again.state_dict(), model.state_dict())
    assert same(state_of(folder), dict(model.state_dict()))


def test_load_dtype_and_recorded_dtype(tmp_path):
    model, packed = pruned_net()
    folder = write_artifact(tmp_path / "a", model, packed)
    again = load(folder, factory=factory, dtype=torch.bfloat16)
    assert again.fc.weight.dtype == torch.bfloat16 and again.norm.num_batches_tracked.dtype == torch.int64
    half = {
        name: (prunable, pack(*_half(packed_tensor), dtype=torch.float32))
        for name, (prunable, packed_tensor) in packed.items()
    }
    artifact = read_artifact(write_artifact(tmp_path / "b", model, half))
    assert artifact.packed("fc.weight").values == "bfloat16"
    assert artifact.tensor("fc.weight").dtype == torch.float32
    assert torch.equal(artifact.tensor("fc.weight"), model.fc.weight.bfloat16().float())


def _half(packed_tensor):
    return packed_tensor.unpack(torch.bfloat16), packed_tensor.keep(), Unstructured()


def test_contents_and_sizes(artifact):
    opened = read_artifact(artifact)
    assert opened.recipe == {"sparsity": 0.5} and opened.manifest["seed"] == 3 and opened.factory == "nowhere:f"
    assert opened.packed_names == ["conv.weight", "fc.weight"]
    assert set(opened.names) == set(Net().state_dict())
    assert opened.prunable("conv.weight").parts == 2 and opened.shape("conv.weight") == (16, 4, 3)
    assert opened.packed("fc.weight").zeros == 64 and opened.packed("fc.weight").encoding == "nm"
    assert torch.equal(opened.dense("scale"), torch.tensor(1.5))
    sizes = opened.bytes
    assert sum(sizes.values()) == sum(path.stat().st_size for path in artifact.iterdir())
    assert sizes["values"] == 4 * (96 + 64) and sizes["masks"] == 16 * 2 + 8 * 2
    assert sizes["dense"] == 4 * (96 + 16 + 16 * 4 + 8 + 1) + 8
    opened.verify()
    with pytest.raises(InputError, match="no such tensor"):
        opened.dense("fc.weight")


def test_other_readers_open_the_shards(artifact):
    tensors = load_file(artifact / "model.winnow.safetensors")
    assert tensors["fc.weight.winnow_mask"].shape == (8, 2)
    assert torch.equal(tensors["norm.running_mean"], read_artifact(artifact).dense("norm.running_mean"))
    with safe_open(artifact / "model.winnow.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and json.loads(metadata["winnow"])["format_version"] == 3


def test_two_runs_give_the_same_bytes(tmp_path):
    torch.manual_seed(1)
    first = write_artifact(tmp_path / "a", *pruned_net(), 300, recipe={"b": 1, "a": 2})
    torch.manual_seed(1)
    second = write_artifact(tmp_path / "b", *pruned_net(), 300, recipe={"b": 1, "a": 2})
    assert snapshot(first) == snapshot(second)


def test_manifest_names_every_file(artifact):
    import hashlib

    files = json.loads((artifact / "manifest.json").read_text())["files"]
    assert files.keys() == {path.name for path in artifact.iterdir()} - {"manifest.json", ".winnow.json"}
    for name, digest in files.items():
        assert hashlib.sha256((artifact / name).read_bytes()).hexdigest() == digest


def test_every_kind_of_type_survives(tmp_path):
    tensors = {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool, torch.int16)
    }
    tensors |= {"empty": torch.empty(0, 4), "scalar": torch.tensor(7), "strided": torch.arange(12.0).reshape(3, 4).t()}
    save_packed(tmp_path / "unit", {}, tensors)
    assert same(load_packed(tmp_path / "unit")[1], tensors)
    assert same(load_file(tmp_path / "unit"), {key: value.contiguous() for key, value in tensors.items()})


# --- streaming --------------------------------------------------------------------------------------------------------


def test_shards_appear_while_writing(tmp_path):
    with ArtifactWriter(tmp_path / "out", shard_bytes=4000) as writer:
        for index in range(10):
            writer.add_dense(f"t{index}", torch.full((500,), float(index)))
            on_disk = [
                path for path in (tmp_path / "out.work" / "out.partial").iterdir() if path.name.startswith("shard")
            ]
            assert len(on_disk) == (index + 1) // 2
        assert not (tmp_path / "out").exists()
        folder = writer.finish(None)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == [f"model.winnow-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    index = json.loads((folder / "model.winnow.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 20000 and index["weight_map"]["t9"] == names[-1]


@pytest.mark.parametrize("shard_bytes", [1 << 20, 400])
def test_adopted_units_equal_a_model_in_memory(tmp_path, shard_bytes):
    model, packed = pruned_net()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}
    with ArtifactWriter(tmp_path / "streamed", shard_bytes) as writer:
        writer.add_dense("embed.weight", state.pop("embed.weight"))
        for name, (prunable, tensor) in packed.items():
            state.pop(name)
            bias = name.replace("weight", "bias")
            save_packed(tmp_path / "unit.safetensors", {name: (prunable, tensor)}, {bias: state.pop(bias)})
            writer.adopt(tmp_path / "unit.safetensors")
        for name, tensor in state.items():
            writer.add_dense(name, tensor)
        writer.add_alias("head.weight", "embed.weight")
        folder = writer.finish(None)
    assert (tmp_path / "unit.safetensors").exists()  # a resumed run may need it again
    assert len(list(folder.glob("*.safetensors"))) == (1 if shard_bytes > 400 else 4)
    assert same(state_of(folder), state_of(write_artifact(tmp_path / "whole", model, packed)))


def test_adopt_refuses_a_damaged_unit(tmp_path):
    _, packed = pruned_net()
    unit = tmp_path / "unit.safetensors"
    save_packed(unit, packed)
    flip(unit, unit.stat().st_size - 3, 1)
    for shard_bytes in (1 << 20, 100):
        with ArtifactWriter(tmp_path / "out", shard_bytes) as writer, pytest.raises(FormatError):
            writer.adopt(unit)
    assert [path.name for path in tmp_path.iterdir()] == ["unit.safetensors"]


def test_units_come_back(tmp_path):
    _, packed = pruned_net("int8")
    save_packed(tmp_path / "unit", packed, {"x": torch.arange(3)})
    again, dense = load_packed(tmp_path / "unit")
    assert dense["x"].tolist() == [0, 1, 2]
    for name, (prunable, tensor) in packed.items():
        assert again[name][0] == prunable and again[name][1].meta() == tensor.meta()
        assert torch.equal(again[name][1].unpack(), tensor.unpack())


def test_names_must_not_clash(tmp_path):
    _, packed = pruned_net()
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add_packed(*packed["fc.weight"])
        for name in ("fc.weight", "fc.weight.winnow_mask", "fc.weight.winnow_scales"):
            with pytest.raises(InputError):
                writer.add_dense(name, torch.zeros(1))
        with pytest.raises(InputError, match="is 8 x 16"):
            writer.add_packed(packed["fc.weight"][0], pack(torch.zeros(4, 4), None, Unstructured()))


def test_no_shard_exceeds_its_size(tmp_path):
    with ArtifactWriter(tmp_path / "out", shard_bytes=5000) as writer:
        for index in range(7):
            writer.add_dense(f"t{index}", torch.zeros(500))
        writer.add_dense("large", torch.zeros(5000))
        folder = writer.finish(None)
    sizes = [sum(t.numel() * 4 for t in load_file(path).values()) for path in folder.glob("*.safetensors")]
    assert sorted(sizes) == [2000, 4000, 4000, 4000, 20000]


def test_an_alias_needs_its_target(tmp_path):
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add_alias("b", "a")
        with pytest.raises(InputError, match="aliases"):
            writer.finish(None)


def test_no_packed_tensor_is_lost(tmp_path):
    model, _ = pruned_net()
    for name in ("head.weight", "no.such"):  # tied to embed.weight; not in the model
        prunable = Prunable(name, name.partition(".")[0], "linear", (12, 8))
        packed = {name: (prunable, pack(torch.zeros(12, 8), None, Unstructured()))}
        with ArtifactWriter(tmp_path / "out") as writer, pytest.raises(InputError, match=name):
            writer.add_model(model, packed)


# --- nothing half-written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_writer_leaves_what_was_there(tmp_path, artifact, error):
    before = snapshot(artifact)
    with pytest.raises(error), ArtifactWriter(artifact, shard_bytes=1) as writer:
        writer.add_dense("a", torch.zeros(3))
        raise error
    assert snapshot(artifact) == before and os.listdir(tmp_path) == ["out"]


def test_an_artifact_is_replaced_whole(tmp_path, artifact):
    assert (artifact / "recipe.yaml").exists()
    model, packed = pruned_net("int8")
    write_artifact(artifact, model, packed)
    assert os.listdir(tmp_path) == ["out"] and not (artifact / "recipe.yaml").exists()
    assert same(state_of(artifact), dict(model.state_dict()))


def test_a_crash_between_the_two_renames_is_undone(tmp_path, artifact):
    before = snapshot(artifact)
    artifact.rename(tmp_path / ".out.winnow-old")
    with ArtifactWriter(artifact):
        assert snapshot(artifact) == before
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_cleared(tmp_path):
    writer = ArtifactWriter(tmp_path / "out", shard_bytes=1)
    writer.add_dense("a", torch.zeros(3))  # killed here: no abort
    write_artifact(tmp_path / "out", *pruned_net())
    assert os.listdir(tmp_path) == ["out"] and "a" not in read_artifact(tmp_path / "out").names


@pytest.mark.parametrize("where", ["out", "out.work", ".out.winnow-old"])
def test_folders_of_others_are_never_touched(tmp_path, where):
    other = tmp_path / where
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    (other / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"something else|not winnow's"):
        ArtifactWriter(tmp_path / "out")
    assert (other / "thesis.tex").read_text() == "precious" and os.listdir(tmp_path) == [where]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(InputError, match="is a file"):
        ArtifactWriter(tmp_path / "out")


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    assert is_artifact(write_artifact(tmp_path / "out", *pruned_net()))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_keeps_the_earlier_file(tmp_path):
    unit = tmp_path / "unit.safetensors"
    save_packed(unit, {}, {"x": torch.zeros(3)})
    before = unit.read_bytes()
    (tmp_path / f"unit.safetensors.{os.getpid()}.tmp").symlink_to(
        "/dev/full"
    )  # every write fails with the kernel's own ENOSPC
    with pytest.raises(WinnowError, match="disk is full") as caught:
        save_packed(unit, {}, {"x": torch.ones(3)})
    assert caught.value.exit_code == 1
    assert unit.read_bytes() == before and os.listdir(tmp_path) == ["unit.safetensors"]


def test_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WinnowError, match="disk is full"), ArtifactWriter(tmp_path / "out", 1) as writer:
        monkeypatch.setattr(os, "fsync", full)
        writer.add_dense("a", torch.zeros(3))
    assert os.listdir(tmp_path) == []


def test_read_only_folder(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WinnowError, match="no permission"):
        ArtifactWriter(tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_for_real(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WinnowError, match="no permission"):
            ArtifactWriter(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


def test_copied_files_do_not_overwrite(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    folder = write_artifact(tmp_path / "a", *pruned_net(), files={"tokenizer.json": tmp_path / "tokenizer.json"})
    assert (folder / "tokenizer.json").read_text() == "{}"
    with pytest.raises(InputError, match="overwrite"):
        write_artifact(tmp_path / "b", *pruned_net(), files={"config.json": tmp_path / "config.json"})
    assert not (tmp_path / "b").exists()


# --- nothing damaged is believed --------------------------------------------------------------------------------------


def flip(path, byte, bit):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def believed(folder):
    """The state read from a folder, None where it was refused with a clear error."""
    try:
        return state_of(folder)
    except FormatError as error:
        message = str(error)
        assert message and "\n" not in message
        return None
    except InputError:
        assert not is_artifact(folder)  # config.json no longer says that it is one
        return None


@pytest.mark.parametrize("name", ["model.winnow.safetensors", "config.json", "manifest.json"])
def test_flipped_bits_never_give_a_wrong_model(artifact, name):
    truth = state_of(artifact)
    path, rng = artifact / name, random.Random(0)
    whole = path.read_bytes()
    refused = 0
    for _ in range(400):
        path.write_bytes(whole)
        flip(path, rng.randrange(len(whole)), rng.randrange(8))
        state = believed(artifact)
        assert state is None or same(state, truth)
        refused += state is None
    assert refused > (390 if name != "manifest.json" else 100)  # what else a manifest says is not the model's business


def test_flipped_values_are_refused_without_manifest(artifact):
    (artifact / "manifest.json").unlink()
    file = TensorFile(artifact / "model.winnow.safetensors")
    start = file.path.stat().st_size - sum(file.nbytes(key) for key in file.keys)
    whole, rng = file.path.read_bytes(), random.Random(1)
    for _ in range(100):
        file.path.write_bytes(whole)
        flip(file.path, rng.randrange(start, len(whole)), rng.randrange(8))
        assert believed(artifact) is None
        with pytest.raises(FormatError):
            read_artifact(artifact).verify()


def test_truncated_files_are_refused(artifact):
    for name in ("model.winnow.safetensors", "config.json"):
        path, rng = artifact / name, random.Random(2)
        whole = path.read_bytes()
        for length in {0, 1, 7, 8, 9, len(whole) - 1, *(rng.randrange(len(whole) - 1) for _ in range(60))}:
            path.write_bytes(whole[:length])
            assert believed(artifact) is None
        path.write_bytes(whole + b"\n" if name.endswith(".safetensors") else whole)
        assert (believed(artifact) is None) == name.endswith(".safetensors")
        path.write_bytes(whole)


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_header(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def reseal(header, change):
    """A header whose own checksums are right again after ``change``: an attacker can compute them too."""
    import hashlib

    about = json.loads(header["__metadata__"]["winnow"])
    change(header, about)
    for key, entry in header.items():
        if key != "__metadata__" and key in about["checksums"]:
            about["checksums"][key][:2] = [entry["dtype"], entry["shape"]]
    text = json.dumps(about)
    header["__metadata__"]["winnow"] = text
    header["__metadata__"]["winnow_blake2b"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return header


def _set(key, field, value):
    return lambda header, about: header[key].__setitem__(field, value)


HOSTILE = {
    "overlap": _set("b", "data_offsets", [0, 12]),
    "gap": _set("b", "data_offsets", [16, 28]),
    "beyond the file": _set("b", "data_offsets", [12, 1 << 50]),
    "negative": _set("b", "data_offsets", [-12, 0]),
    "backwards": _set("b", "data_offsets", [24, 12]),
    "no offsets": _set("b", "data_offsets", None),
    "text offsets": _set("b", "data_offsets", ["12", "24"]),
    "unknown dtype": _set("b", "dtype", "PICKLE"),
    "dtype is no text": _set("b", "dtype", ["F32"]),
    "terabytes": _set("b", "shape", [1 << 40, 1 << 40]),
    "shape wraps 64 bits": _set("b", "shape", [1 << 62, 4, 3]),
    "negative shape": _set("b", "shape", [-1, -3]),
    "huge number": _set("b", "shape", [10**400]),
    "wrong type of size": _set("b", "shape", [3.0]),
    "other dtype of the same size": lambda header, about: (
        header["b"].update(dtype="I32"),
        about["checksums"]["b"].__setitem__(2, "0" * 32),
    ),
    "entry is no object": lambda header, about: header.update(extra=3),
    "one tensor more": lambda header, about: header.update(c={"dtype": "F32", "shape": [0], "data_offsets": [24, 24]}),
    "unknown version": lambda header, about: about.update(format_version=4),
    "no shared checksum": lambda header, about: about["checksums"].pop("b"),
    "a shared checksum that is no text": lambda header, about: (about["checksums"].pop("b"), about.update(small=3)),
    "a shared checksum in version 1": lambda header, about: (
        about["checksums"].pop("b"),
        about.update(small="0" * 32, format_version=1),
    ),
    "version is no number": lambda header, about: about.update(format_version=False),
    "no version": lambda header, about: about.pop("format_version"),
    "no packed": lambda header, about: about.pop("packed"),
    "packed of nothing": lambda header, about: about.update(packed={"w": {}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(tmp_path, name):
    path = tmp_path / "unit"
    save_packed(path, {}, {"a": torch.zeros(3), "b": torch.ones(3)})
    header, data = header_of(path)
    try:
        put_header(path, reseal(header, HOSTILE[name]), data)
    except TypeError:  # an entry that is no object cannot be resealed: it is written as it is
        put_header(path, header, data)
    with pytest.raises(FormatError):
        load_packed(path)


def test_overlapping_tensors_of_a_full_length_file_are_refused(tmp_path):
    path = tmp_path / "unit"
    save_packed(path, {}, {"a": torch.zeros(3), "b": torch.ones(3)})
    header, data = header_of(path)

    def share(header, about):
        header["c"] = dict(header["b"])
        about["checksums"]["c"] = list(about["checksums"]["b"])

    put_header(path, reseal(header, share), data)
    with pytest.raises(FormatError, match="overlap"):
        load_packed(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 8 + b"{}",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"\xff\xfe\x00\x01",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        (17).to_bytes(8, "little") + b'{"a": 1, "a": 2} ',
    ],
    ids=range(8),
)
def test_nonsense_headers_are_refused(tmp_path, raw):
    (tmp_path / "unit").write_bytes(raw)
    with pytest.raises(FormatError):
        load_packed(tmp_path / "unit")


def test_hostile_descriptions_in_a_sealed_file(tmp_path):
    _, packed = pruned_net()
    save_packed(tmp_path / "good", packed)
    for change in (
        {"rows": 1 << 40, "cols": 1 << 40},
        {"zeros": 0},
        {"encoding": "bitmask"},
        {"pattern": [1 << 40, 1 << 41]},
        {"stored": None},
        {"stored": {}},
        {"name": "other"},
        {"kind": "experts"},
        {"kind": ["linear"]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": []},
        {"shape": "ab"},
        {"module": 3},
        {"dtype": ["float32"]},
        {"values": {"float32": 1}},
        {"structure": None},
        {"encoding": None},
        {"run": "rm"},
        {"stored": {"name": "fc.weight", "module": "fc", "kind": "linear", "shape": [1 << 40, 1 << 40]}},
        {"stored": {"name": "fc.weight", "module": "fc", "kind": "linear", "shape": []}},
        {"stored": {"name": "fc.weight", "module": "fc", "kind": "experts", "shape": [8, 16]}},
        {"stored": {"name": "other", "module": "fc", "kind": "linear", "shape": [8, 16]}},
        {"stored": {"name": "fc.weight", "module": "fc", "kind": "linear", "shape": [8, 16], "run": "rm"}},
    ):
        header, data = header_of(tmp_path / "good")

        def alter(header, about, change=change):
            about["packed"]["fc.weight"].update(change)

        put_header(tmp_path / "bad", reseal(header, alter), data)
        with pytest.raises(FormatError):
            load_packed(tmp_path / "bad")


def test_missing_and_foreign_shards(tmp_path):
    folder = write_artifact(tmp_path / "a", *pruned_net(), 300)
    other = write_artifact(tmp_path / "b", *pruned_net(), 300)
    shard = sorted(folder.glob("model.winnow-*"))[1]
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(FormatError, match="is missing"):
        read_artifact(folder)
    shutil.copy(other / shard.name, shard)  # sound in itself, but of another model
    assert believed(folder) is None
    shard.write_bytes(whole)
    assert believed(folder) is not None


def test_unknown_version(artifact):
    config = json.loads((artifact / "config.json").read_text())
    config["winnow"]["format_version"] = 7
    (artifact / "config.json").write_text(json.dumps(config))
    (artifact / "manifest.json").unlink()
    with pytest.raises(FormatError, match=r"format version 7 .* install"):
        read_artifact(artifact)


def test_a_changed_configuration_is_noticed(artifact):
    path = artifact / "config.json"
    path.write_text(path.read_text().replace("nowhere:f", "nowhere:g"))
    with pytest.raises(FormatError, match="changed after it was written"):
        read_artifact(artifact)
    (artifact / "manifest.json").unlink()
    assert read_artifact(artifact).factory == "nowhere:g"


def test_shard_names_cannot_leave_the_folder(artifact):
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "manifest.json").unlink()
    for name in ("../model.winnow.safetensors", "model.safetensors", "/dev/zero", None, ["x"]):
        (artifact / "config.json").write_text(json.dumps({"winnow": {**config["winnow"], "weights": name}}))
        with pytest.raises(FormatError, match="as its weights"):
            read_artifact(artifact)
    index = artifact / "model.winnow.safetensors.index.json"
    for name in ("../model.winnow.safetensors", "/dev/zero", "model.bin", "a\n.safetensors"):
        index.write_text(json.dumps({"metadata": {"winnow": {"files": {name: "0"}}}}))
        told = {**config["winnow"], "weights": index.name, "checksum": b2(index.read_bytes())}
        (artifact / "config.json").write_text(json.dumps({"winnow": told}))
        with pytest.raises(FormatError, match="as a shard"):
            read_artifact(artifact)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "3", '{"metadata": 3}', '{"metadata": {"winnow": {"files": {}}}}', "{", '{"a": 1, "a": 2}']
)
def test_an_index_that_says_nothing_is_refused_in_a_sentence(tmp_path, text):
    folder = write_artifact(tmp_path / "a", *pruned_net(), 300)
    (folder / "manifest.json").unlink()
    index = folder / "model.winnow.safetensors.index.json"
    whole = index.read_text()
    index.write_text(whole.replace("total_size", "total_sizes"))
    with pytest.raises(FormatError, match="not the index that"):
        read_artifact(folder)
    config = json.loads((folder / "config.json").read_text())
    index.write_text(text)
    config["winnow"]["checksum"] = b2(index.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"does not name the shards|not valid JSON"):
        read_artifact(folder)
    index.unlink()
    with pytest.raises(FormatError, match="is missing"):
        read_artifact(folder)


@pytest.mark.parametrize("make", ["nothing", "empty", "dense", "garbage"])
def test_other_folders_are_no_artifacts(tmp_path, make):
    folder = tmp_path / "x"
    if make != "nothing":
        folder.mkdir()
    if make == "dense":
        (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    elif make == "garbage":
        (folder / "config.json").write_text("{")
    assert not is_artifact(folder)
    with pytest.raises(FormatError if make == "garbage" else InputError):
        read_artifact(folder)


def test_foreign_safetensors_are_named_as_such(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.zeros(2)})
    assert load_file(tmp_path / "x")["a"].tolist() == [0, 0]
    with pytest.raises(FormatError, match="not written by winnow"):
        load_packed(tmp_path / "x")


# --- factories and export ---------------------------------------------------------------------------------------------


def test_the_recorded_factory_is_never_run(tmp_path, monkeypatch):
    (tmp_path / "evil_factory.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = write_artifact(tmp_path / "out", *pruned_net(), factory="evil_factory:build")
    with pytest.raises(InputError, match="pass factory='evil_factory:build'"):
        load(folder)


def test_factory_by_name(tmp_path, monkeypatch):
    model, packed = pruned_net()
    (tmp_path / "my_nets.py").write_text("import torch\ndef small():\n    return torch.nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = write_artifact(tmp_path / "out", model, packed)
    with pytest.raises(FormatError, match="pass the right factory"):
        load(folder, factory="my_nets:small")
    for bad in ("my_nets:none", "no_such_module:f", "my_nets", ":f", ""):
        with pytest.raises(InputError, match=r"cannot be (imported|found)"):
            load(folder, factory=bad)
    with pytest.raises(InputError, match="must return"):
        load(folder, factory=lambda: 3)
    assert torch.equal(load(folder, factory=f"{__name__}:factory").fc.weight, model.fc.weight)


def test_a_factory_of_another_shape_is_refused(tmp_path):
    def other():
        net = Net()
        net.fc = torch.nn.Linear(16, 8 * 2)
        return net

    with pytest.raises(FormatError, match=r"fc.weight is \[8, 16\]"):
        load(write_artifact(tmp_path / "out", *pruned_net()), factory=other)


@pytest.mark.parametrize("shard_bytes", [1 << 20, 300])
def test_export_dense_needs_no_winnow(tmp_path, shard_bytes):
    model, packed = pruned_net("int8")
    out = export_dense(write_artifact(tmp_path / "out", model, packed), tmp_path / "dense", shard_bytes)
    state = {}
    for path in out.glob("*.safetensors"):
        assert b"winnow" not in path.read_bytes()
        state |= load_file(path)
    again = Net()
    again.load_state_dict(state)
    assert same(again.state_dict(), model.state_dict())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert export_dense(tmp_path / "out", out, shard_bytes) == out  # its own earlier export is replaced
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(InputError, match="something else"):  # and no other kind of output
        export_dense(tmp_path / "out", write_artifact(tmp_path / "other", model, packed))


def test_blocks_and_experts_keep_their_layout(tmp_path):
    weight = torch.randn(3, 8, 4)
    prunable = Prunable("experts.up", "experts", "experts", (3, 8, 4), transposed=True, parts=3)
    matrix = prunable.matrix(weight)
    keep = (torch.rand(6, 4) < 0.5).repeat_interleave(2, 0).repeat_interleave(2, 1)
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.add_packed(prunable, pack(torch.where(keep, matrix, 0.0), keep, BlockShape(2, 2)))
        folder = writer.finish(None)
    assert torch.equal(read_artifact(folder).tensor("experts.up"), prunable.restore(torch.where(keep, matrix, 0.0)))
