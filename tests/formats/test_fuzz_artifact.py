"""Damaged and hostile folders, many of them: each is refused in one sentence or is exactly the model it says, however it is loaded.

A mutant is made from a sound folder by one seeded change: bytes flipped or cut off, headers and descriptions edited with every
checksum made right again, values edited so, config.json edited, files renamed, swapped, doubled, linked, or replaced by pipes and
folders. Nothing may wait, take memory for what a header claims, or raise anything but winnow's own errors.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from artifacts import artifact_of, outputs, pack_half, write_artifact
from sealing import Folder, b2
from winnow.errors import WinnowError
from winnow.formats import load
from winnow.masks.prunable import Prunable
from winnow.masks.structure import NM, BlockShape, Unstructured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes, links and limits of memory as Linux has them")

HOSTILE = [
    None, [], {}, "", "x", "float32", "../x", "\x1b[31m", "a\0b", "\ud800", -1, 0, 1, 3, 1.5, 1e300, True, False, 1 << 31, 1 << 40, 1 << 62,
    1 << 64, 10**400, float("nan"), [1], [0, 0], [1 << 60], [1 << 40, 1 << 40], [2, 4], ["float32"], {"a": 1}, [[[[]]]], [1] * 100,
]  # fmt: skip
SECONDS = 60  # for one mutant: far more than it takes, far less than for ever
MEMORY = 6 << 30  # bytes of addresses beside those in use


class Net(nn.Module):
    """One layer for each form a packed matrix can have, a tie, buffers, and an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 24), nn.Linear(24, 16), nn.Linear(16, 16)
        self.conv, self.norm = nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.d, self.e = nn.Linear(16, 8), nn.Linear(16, 8)
        self.e.weight = self.d.weight
        self.plain = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(self.b(self.a(x).relu()).relu())
        x = self.norm(self.conv(x[:, None])).mean(1)
        return self.plain(self.d(x) + self.e(x))


FORMS = {"a": ("keep", Unstructured()), "b": ("int4", NM(2, 4)), "c": ("int8", BlockShape(1, 4)), "d": ("int8", Unstructured()), "conv": ("keep", Unstructured())}  # fmt: skip
X = torch.linspace(-1, 1, 60).reshape(5, 12)


@torch.no_grad()
def plain_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    model, packed = Net().eval(), {}
    for path, (values, structure) in FORMS.items():
        weight = model.get_submodule(path).weight
        p = Prunable(f"{path}.weight", path, "conv" if path == "conv" else "linear", tuple(weight.shape))
        packed[p.name] = (p, pack_half(p, weight, values, structure, group=8))
    return write_artifact(folder, model, packed, 1500, recipe={"sparsity": 0.5})


# --- mutants ----------------------------------------------------------------------------------------------------------


def edit(draw: random.Random, tree: object) -> None:
    """One change anywhere in a tree of JSON: a hostile value, an entry gone, one doubled under another name."""
    places = []

    def walk(node: object) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(tree)
    node, key = draw.choice(places)
    what = draw.random()
    if what < 0.7:
        node[key] = draw.choice(HOSTILE)
    elif what < 0.8 and isinstance(node[key], int):
        node[key] += draw.choice([-8, -1, 1, 8])
    elif what < 0.9:
        del node[key]
    elif isinstance(node, dict):
        node[draw.choice(["x", "a.weight", "a.weight.winnow_mask", *map(str, node)])] = node[key]


def flip(f: Folder) -> None:
    path = f.any_file()
    data = bytearray(path.read_bytes())
    for _ in range(f.draw.choice([1, 1, 3])):
        data[f.draw.randrange(len(data))] ^= 1 << f.draw.randrange(8)
    path.write_bytes(data)


def cut(f: Folder) -> None:
    path = f.any_file()
    data = path.read_bytes()
    path.write_bytes(
        data[: f.draw.randrange(len(data))] if f.draw.random() < 0.8 else data + bytes(f.draw.randrange(1, 99))
    )


def header(f: Folder) -> None:
    shard = f.shard()
    head, about, values = f.opened(shard)
    tree = {"head": {k: e for k, e in head.items() if k != "__metadata__"}, "about": about}
    for _ in range(f.draw.choice([1, 1, 2])):
        packed = about.get("packed")
        edit(f.draw, f.draw.choice([tree["head"], about, packed if isinstance(packed, dict) and packed else about]))
    f.seal(shard, dict(tree["head"]), about, values, small=f.draw.random() < 0.9)


def values(f: Folder) -> None:
    shard = f.shard()
    head, about, data = f.opened(shard)
    key = f.draw.choice([k for k in head if k != "__metadata__"])
    begin, end = head[key]["data_offsets"]
    if begin < end:
        width = f.draw.randrange(1, 1 + end - begin)
        at = begin + f.draw.randrange(1 + end - begin - width)
        data[at : at + width] = f.draw.choice([b"\xff", b"\x00", b"\x7f", b"\x7c\x00", b"\x80\x7f"]) * width
        del data[end + len(data) - max(e["data_offsets"][1] for k, e in head.items() if k != "__metadata__") :]
        data = data[: max(e["data_offsets"][1] for k, e in head.items() if k != "__metadata__")]
    f.seal(shard, head, about, data)


def config(f: Folder) -> None:
    path = f.path / "config.json"
    tree = json.loads(path.read_text())
    edit(f.draw, tree if f.draw.random() < 0.5 else tree.get("winnow") or tree["quantization_config"])
    path.write_text(json.dumps(tree))
    if f.draw.random() < 0.7:
        (f.path / "manifest.json").unlink()


def manifest(f: Folder) -> None:
    path = f.draw.choice([p for p in f.path.glob("*.json") if p.name != "config.json"])
    tree = json.loads(path.read_text())
    edit(f.draw, tree)
    path.write_text(json.dumps(tree))
    if path.name.endswith(".index.json") and f.draw.random() < 0.7:
        config = json.loads((f.path / "config.json").read_text())
        (config.get("winnow") or config["quantization_config"])["checksum"] = b2(path.read_bytes())
        (f.path / "config.json").write_text(json.dumps(config))
        f.relist()


def nonsense(f: Folder) -> None:
    """Text that no JSON reader likes."""
    path, draw = f.draw.choice([f.path / "config.json", f.path / "manifest.json", f.shard()]), f.draw
    deep, twice = [b"[" * 100_000, b'{"a":' * 50_000], b'{"winnow": {}, "winnow": {}}'
    text = draw.choice([*deep, b"1" * 5000, b"nan", b"\xff\xfe", b"", b"[]", twice])
    if path.suffix == ".safetensors":
        text = draw.choice([len(text), 1 << 40, (1 << 64) - 1, 0]).to_bytes(8, "little") + text
    path.write_bytes(text)


ACCIDENTS = ["gone", "renamed", "doubled", "swapped", "pipe", "folder", "socket", "loop", "zero", "away", "link"]
ACCIDENTS += ["dangling"]


def files(f: Folder) -> None:
    draw, path = f.draw, f.draw.choice([f.shard(), f.shard(), f.any_file()])
    other = f.shard()
    what = draw.choice(ACCIDENTS)
    kept = path.read_bytes()
    if what == "doubled":
        name = draw.choice(["model.safetensors", "model.winnow.safetensors", "model.winnow-9.safetensors"])
        return (f.path / name).write_bytes(kept) and None
    if what == "swapped" and other != path:
        path.write_bytes(other.read_bytes())
        return other.write_bytes(kept) and None
    path.unlink()
    if what == "renamed":
        (f.path / "other.safetensors").write_bytes(kept)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(path.parent)  # the name of a socket is short
            try:
                server.bind(path.name)
            finally:
                os.chdir(here)
    elif what in ("loop", "zero", "dangling"):
        path.symlink_to({"loop": path.name, "zero": "/dev/zero", "dangling": "nowhere"}[what])
    elif what in ("link", "away"):
        target = f.path.parent / f"{f.path.name}-{path.name}"
        target.write_bytes(kept if what == "link" else kept[:-1])
        path.symlink_to(target)
    return None


MUTATIONS = (flip, cut, header, header, header, values, config, config, manifest, nonsense, files, files)
ANOTHER_MODEL = (header, values, config)  # with every checksum right, this may be a sound model, but another one


# --- the property -----------------------------------------------------------------------------------------------------


def loaded(ways: dict) -> dict:
    """way -> outputs, of the ways that did not refuse the folder with an error of winnow's own."""
    found = {}
    for way, make in ways.items():
        try:
            found[way] = make()
        except WinnowError as error:
            assert str(error) and "\n" not in str(error)
    return found


def same(a: list[torch.Tensor], b: list[torch.Tensor], tolerance: float) -> bool:
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b)):
        return False
    if any(
        not bool((y.abs() < 1e15).all()) for y in (*a, *b)
    ):  # sums of altered values overflow in any order they like
        return all(not bool((y.abs() < 1e12).all()) for y in (*a, *b))
    return all(bool(((x - y).abs() <= tolerance * y.abs().max().clamp(min=1e-6)).all()) for x, y in zip(a, b))


def plain_ways(folder: Path) -> dict:
    return {
        "dense": lambda: outputs(load(folder, factory=Net), {"x": X}),
        "packed": lambda: outputs(load(folder, factory=Net, packed=True), {"x": X}),
    }


def hf_ways(folder: Path) -> dict:
    import transformers

    batch = {"input_ids": torch.arange(3, 11)[None]}

    def pretrained() -> list[torch.Tensor]:
        try:
            model, told = transformers.LlamaForCausalLM.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            found = outputs(model, batch)
        except WinnowError:
            raise
        except Exception as error:  # its own, over files that are its own: a configuration, an index, a missing shard
            raise WinnowError(type(error).__name__) from error
        method = json.loads((folder / "config.json").read_text()).get("quantization_config", {}).get("quant_method")
        assert method == "winnow" or not told["missing_keys"]  # no reader of ours was asked: then nothing may load
        return found

    return {
        "dense": lambda: outputs(load(folder), batch),
        "packed": lambda: outputs(load(folder, packed=True), batch),
        "from_pretrained": pretrained,
    }


@pytest.fixture
def limits():
    """Memory and time for each mutant; time starts again with every call of the fixture's value."""
    import resource

    def late(*_: object) -> None:
        raise AssertionError(f"a mutant took more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield lambda: signal.alarm(SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(sound: Path, ways, tmp_path: Path, seeds: range, restart) -> dict[str, int]:
    right = {way: make() for way, make in ways(sound).items()}
    for way, found in right.items():
        assert same(found, right["dense"], 1e-4), way
    seen = {"refused": 0, "right": 0, "another": 0}
    for seed in seeds:
        restart()
        draw = random.Random(seed)
        mutate = draw.choice(MUTATIONS)
        folder = tmp_path / f"m{seed}"
        shutil.copytree(sound, folder)
        mutate(Folder(folder, draw))
        where = f"seed {seed}, {mutate.__name__}"
        try:
            found = loaded(ways(folder))
        except BaseException as error:
            error.add_note(where)
            raise
        if not found:
            seen["refused"] += 1
        elif all(same(out, right["dense"], 1e-4) for out in found.values()):
            seen["right"] += 1
        else:
            assert mutate in ANOTHER_MODEL, where
            first = next(iter(found.values()))
            assert all(same(out, first, 1e-3) for out in found.values()), where
            seen["another"] += 1
        if mutate is values:  # all ways see the same values: they take them, or none does
            assert len(found) in (0, len(right)), where
        shutil.rmtree(folder)
    return seen


def test_damaged_folders_of_plain_models(tmp_path, limits):
    seen = fuzz(plain_folder(tmp_path / "sound"), plain_ways, tmp_path, range(150), limits)
    assert min(seen.values()) > 0, seen


@pytest.mark.hf
def test_damaged_folders_of_transformers(tmp_path, limits):
    seen = fuzz(llama_folder(tmp_path / "sound"), hf_ways, tmp_path, range(30), limits)
    assert seen["refused"] > 0 and seen["right"] > 0, seen


@pytest.mark.slow
@pytest.mark.hf
def test_two_thousand_damaged_folders(tmp_path, limits):
    plain = fuzz(plain_folder(tmp_path / "plain"), plain_ways, tmp_path, range(1000, 2600), limits)
    pretrained = fuzz(llama_folder(tmp_path / "llama"), hf_ways, tmp_path, range(3000, 3400), limits)
    assert sum(plain.values()) + sum(pretrained.values()) == 2000
    assert min(plain.values()) > 5 and pretrained["refused"] > 50, (plain, pretrained)


def llama_folder(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    settings = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    return artifact_of(folder, transformers.LlamaForCausalLM(settings).eval(), "int8", BlockShape(1, 4))
