"""Weights files as people have them, and the dense model that another is compared with."""

import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import winnow
from small import points, trained
from winnow.errors import FormatError, InputError, WinnowError
from winnow.formats.state_dict import load_state, misfit, read_state
from winnow.models.reference import open_reference
from winnow.models.source import open_model

PICK = {"sparsity": 0.5, "method": "magnitude", "baselines": "none", "speed": False}
FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))

def seeded():
    torch.manual_seed(5)
    return build()
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    name = f"code_{random.getrandbits(40):x}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def net():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))


def pruned():
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model.state_dict()


def normed():
    model = net()
    parametrizations.weight_norm(model[2])
    return model.state_dict()


def named(prefix, part=lambda n: True):
    return {f"{prefix}{n}" if part(n) else n: t for n, t in net().state_dict().items()}


STATE = net().state_dict()
FILES = {
    "DataParallel": (named("module."), r"begin with 'module\.'.*model\.module\.state_dict\(\)"),
    "compiled": (named("_orig_mod."), r"begin with '_orig_mod\.'.*torch\.compile"),
    "compiled part": ({n.replace("2.", "2._orig_mod."): t for n, t in STATE.items()}, r"'_orig_mod\.'.*torch\.compile"),
    "Lightning": ({"state_dict": named("model.")}, r"begin with 'model\.'"),
    "two levels": (named("net.backbone."), r"begin with 'net\.backbone\.'"),
    "nested": ({"model": STATE, "epoch": 3}, r"under \['model'\]; save that part alone"),
    "nested by name": ({"model_state_dict": STATE, "loss": 0.1}, r"under \['model_state_dict'\]"),
    "nested twice": ({"ema": {"shadow": STATE}}, r"under \['ema'\]\['shadow'\]"),
    "missing": ({n: t for n, t in STATE.items() if n[0] != "2"}, r"lacks 2\.weight, 2\.bias"),
    "more": ({**STATE, "extra.weight": torch.zeros(2)}, r"has extra\.weight, which the model has not"),
    "shape": ({**STATE, "4.weight": torch.zeros(7, 24)}, r"4\.weight is \[7, 24\] there and \[3, 24\] in the model"),
    "masks": (pruned(), r"weight_(mask|orig).*prune\.remove"),
    "weight_norm": (normed(), r"remove_parametrizations"),
    "quantized": (
        {n.replace("2.weight", "2.qweight"): t for n, t in STATE.items()},
        "already quantized: give the original",
    ),
    "module": (net(), r"pickled module.*state_dict"),
    "a list": ([torch.zeros(2)], "holds a list"),
    "a number": ({**STATE, "epoch": 3}, "'epoch', which is no tensor"),
}


@pytest.mark.parametrize("what", FILES)
def test_what_does_not_fit_is_named_with_the_fix(what, tmp_path):
    content, says = FILES[what]
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=says) as caught:
        load_state(net(), tmp_path / "w.pt")
    text = str(caught.value)
    assert "\n" not in text and "\x1b" not in text and text.endswith(".") and len(text) < 400


def test_files_that_hold_no_state_dict(tmp_path):
    for content, says in (
        (b"hello", "neither a .safetensors file nor one of torch.save"),
        (b"", "neither a .safetensors file nor one of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(WinnowError, match=says):
            load_state(net(), tmp_path / "x.pt")
    torch.save(STATE, tmp_path / "w.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:900])
    with pytest.raises(InputError, match=r"cannot be read.*copy it again"):
        load_state(net(), tmp_path / "half.pt")
    save_file(STATE, tmp_path / "w.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:900])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        load_state(net(), tmp_path / "half.safetensors")
    torch.jit.trace(net(), torch.zeros(1, 12)).save(str(tmp_path / "script.pt"))
    with pytest.raises(InputError, match=r"TorchScript|state_dict"):
        load_state(net(), tmp_path / "script.pt")
    (tmp_path / "other.bin").write_bytes((tmp_path / "w.safetensors").read_bytes())  # whatever its name is
    assert read_state(tmp_path / "other.bin").keys() == STATE.keys()


def test_what_fits_is_loaded(tmp_path):
    for content in (STATE, {"state_dict": STATE, "epoch": 1}):
        torch.save(content, tmp_path / "w.pt")
        model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
        load_state(model, tmp_path / "w.pt")
        assert all(torch.equal(t, STATE[n]) for n, t in model.state_dict().items())


def test_misfit_is_silent_only_where_all_fits():
    shapes = {n: tuple(t.shape) for n, t in STATE.items()}
    assert misfit(shapes, dict(reversed(shapes.items()))) is None
    rng = random.Random(0)
    for _ in range(200):
        found = dict(shapes)
        for name in rng.sample(list(found), rng.randint(1, 3)):
            change = rng.randint(0, 2)
            shape = found.pop(name)
            if change:
                found[f"{name}x" if change == 1 else name] = (*shape, 1)
        assert misfit(shapes, found)


def test_load_with_another_factory_says_the_same(tmp_path):
    out = winnow.compress(net(), **PICK).save(tmp_path / "out")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = net()

    for packed in (False, True):
        with pytest.raises(FormatError, match=r"lack 'model\.'.*pass the right factory"):
            winnow.load(out, factory=Wrapped, packed=packed)
        with pytest.raises(FormatError, match=r"\[24, 12\] there and \[30, 12\] in the model"):
            winnow.load(out, factory=lambda: nn.Sequential(nn.Linear(12, 30), *net()[1:]), packed=packed)


def test_a_factory_without_weights_is_one_model(code, tmp_path):
    """It draws its weights the same way every time, so that a hash names them; and is told from one that brings some."""
    source = open_model(f"{code}:build")
    state = torch.get_rng_state()
    assert source.sha256() == open_model(f"{code}:build").sha256() == open_model(source.load()).sha256()
    assert torch.equal(torch.get_rng_state(), state)
    assert source.random() and not open_model(f"{code}:seeded").random()
    result = winnow.compress(f"{code}:build", **PICK)
    assert any("given without --weights" in note for note in result._setup.notes)
    assert not winnow.compress(f"{code}:seeded", **PICK)._setup.notes[:-1]


def test_the_reference_is_the_dense_model(code, tmp_path):
    x, y = points(200)
    model = trained(net(), x, y)
    dense = 100 * float((model(x).argmax(-1).numpy() == y).mean())
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    factory, weights = f"{code}:seeded", tmp_path / "dense.safetensors"
    packed = tmp_path / "out"
    winnow.compress(factory, weights=weights, out=packed, **PICK)
    for given in (weights, packed):
        with pytest.raises(InputError, match=r"comes without weights.*the file of its weights"):
            winnow.evaluate(factory, (x, y), weights=given, reference=factory)
        for reference in (weights, str(weights), model):
            found = winnow.evaluate(factory, (x, y), weights=given, reference=reference)
            assert found.reference_value == pytest.approx(dense)
    again = winnow.evaluate(factory, (x, y), weights=weights, reference=packed)
    assert again.reference_value == pytest.approx(winnow.evaluate(factory, (x, y), weights=packed).value)
    with pytest.raises(InputError, match="comes without weights"):
        winnow.evaluate(model, (x, y), reference=factory)
    with pytest.raises(InputError, match="comes without weights"):
        open_reference(open_model(f"{code}:build"), f"{code}:build")


def test_a_reference_that_a_packed_model_was_made_of_needs_no_weights(code, tmp_path):
    for name in ("seeded", "build"):
        winnow.compress(f"{code}:{name}", out=tmp_path / name, **PICK)
        packed = open_model(f"{code}:{name}", tmp_path / name)
        assert open_reference(packed, f"{code}:{name}").random() is (name == "build")
    with pytest.raises(InputError, match="comes without weights"):
        open_reference(packed, f"{code}:seeded")
