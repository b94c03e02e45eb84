"""The contract: what compress promises about its model holds for every family, from a module, a folder, and streamed."""

import os

import numpy as np
import pytest
import torch

import winnow
from families import FAMILIES, TORCH, hf
from small import classifier, convnet, images, points, save_llama, sentences, trained, write_lines
from winnow.errors import InputError
from winnow.forward.batch import call
from winnow.masks.ties import tensors_of

pytest.importorskip("transformers")
pytestmark = pytest.mark.hf

BY_NAME = {f.name: f for f in FAMILIES}
QUICK = ["llama", "gpt2", "bert", "mixtral", "t5", "cnn", "encoder"]
PACKED = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # packed kernels sum in an order of their own
PICK = {"method": "wanda", "task": "none", "baselines": "none", "speed": False, "recalibrate": False}


def outputs(model, batch):
    with torch.inference_mode():
        found = call(model, batch)
    if torch.is_tensor(found):
        return found
    return next(found[k] for k in ("logits", "logits_per_image", "last_hidden_state") if k in found)


def ways(names):
    found = []
    for family in FAMILIES:
        sources = ["module"] if family.name in TORCH else ["module", "folder", "streamed"]
        slow = () if family.name in names else (pytest.mark.slow,)
        found += [pytest.param(family, source, id=f"{family.name}-{source}", marks=slow) for source in sources]
    return found


def check_contract(dense, build, result, folder, batch, tolerance):
    """``dense``: the model given, by other means than winnow's. ``result`` was written to ``folder``."""
    plain = not hasattr(dense, "config")
    loaded = {"load": winnow.load(folder, factory=build if plain else None)}
    if not plain:
        loaded["from_pretrained"] = type(dense).from_pretrained(folder, dtype="auto").eval()
    packed = winnow.load(folder, factory=build if plain else None, packed=True)
    if not result._setup.host.streamed:
        loaded["result.model"] = result.model
    given, zeros = tensors_of(dense), {x.name: x.zeros for x in result.layers}
    want = outputs(loaded["load"], batch)
    assert torch.isfinite(want).all()
    for how, model in loaded.items():
        assert torch.equal(outputs(model, batch), want), how
        tensors = tensors_of(model)
        assert tensors.keys() == given.keys(), how
        pruned = {id(tensors[name]) for name in zeros}
        assert sum(int((tensors[n] == 0).sum()) for n in zeros) >= sum(zeros.values()) > 0, how
        for name, tensor in tensors.items():
            assert tensor.dtype == given[name].dtype, (how, name)
            if id(tensor) in pruned:
                stay = tensor != 0
                assert torch.equal(tensor[stay], given[name][stay]), (how, name)  # the mask alone: nothing is refitted
            else:
                assert torch.equal(tensor, given[name]), (how, name)
        for name, count in zeros.items():
            assert int((tensors[name] == 0).sum()) >= count, (how, name)
    assert (outputs(packed, batch).float() - want.float()).abs().max() <= tolerance * max(1, want.abs().max())


@pytest.mark.parametrize(("family", "source"), ways(QUICK))
def test_every_way_of_loading_gives_the_model_of_the_result(family, source, tmp_path):
    model, batch = family.build(), family.batches()[0]
    given = model
    if source != "module":
        model.save_pretrained(tmp_path / "dense")
        given = tmp_path / "dense"
        model = type(model).from_pretrained(given, dtype="auto").eval()
    try:
        result = winnow.compress(
            given, batch, sparsity=0.5, out=tmp_path / "out", ram="20GB" if source == "streamed" else None, **PICK
        )
    except InputError as error:
        # Experts stored one by one become other tensors while they are loaded: only whole models can do that.
        assert source == "streamed" and "leave out ram" in str(error), error
        return
    check_contract(model, family.build, result, tmp_path / "out", batch, PACKED[torch.float32])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize("ram", [None, "20GB"])
def test_half_folders_keep_their_types(name, stored, ram, tmp_path):
    family = BY_NAME[name]
    family.build().to(stored).save_pretrained(tmp_path / "dense")
    model = type(family.build()).from_pretrained(tmp_path / "dense", dtype="auto").eval()
    batch = family.batches()[0]
    result = winnow.compress(tmp_path / "dense", batch, sparsity=0.5, ram=ram, out=tmp_path / "out", **PICK)
    check_contract(model, family.build, result, tmp_path / "out", batch, PACKED[stored])


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_rounded_values_are_the_same_everywhere(values, tmp_path):
    family = BY_NAME["llama"]
    family.build().save_pretrained(tmp_path / "dense")
    batch = family.batches()[0]
    result = winnow.compress(tmp_path / "dense", batch, sparsity=0.5, values=values, out=tmp_path / "out", **PICK)
    loaded = winnow.load(tmp_path / "out")
    assert torch.equal(outputs(result.model, batch), outputs(loaded, batch))
    state = loaded.state_dict()
    for layer in result.layers:
        assert int((state[layer.name] == 0).sum()) >= layer.zeros > 0


def accuracy(model, x, labels):
    found = outputs(model, x).argmax(-1).numpy()
    return 100 * float(np.mean(found == np.asarray(labels)))


@pytest.mark.parametrize("how", [{"sparsity": "0.9,0.5"}, {"max_drop": 20.0}], ids=["rates", "goal"])
@pytest.mark.parametrize("kind", ["blocks", "convolutions"])
def test_the_dense_row_is_the_dense_model(kind, how):
    """Many candidates are tried in the same memory; none of them may stand in for the dense model."""
    make, data = (classifier, points) if kind == "blocks" else (convnet, images)
    x, y = data(300)
    model = trained(make(), x, y)
    held, labels = data(200, seed=5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    result = winnow.compress(model, (x, y), eval=(held, labels), method="magnitude", speed=False, **how)
    row = next(c for c in result.report.candidates if c.kind == "dense")
    if "max_drop" not in how:  # a goal keeps a part of eval for its choice
        assert row.quality == pytest.approx(accuracy(model, held, labels), abs=1e-6)
        chosen = next(c for c in result.report.candidates if c.name == result.report.chosen)
        assert chosen.quality == pytest.approx(accuracy(result.model, held, labels), abs=1e-6)
    task = result._setup.prepared.task  # the same examples, put to the user's own model
    assert row.quality == pytest.approx(task.scale * task.reference(model).evaluation.value, abs=1e-9)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_dense_row_of_a_folder_is_what_eval_measures(tmp_path):
    """The same figure from a model that has never seen a candidate, loaded whole or streamed."""
    folder = save_llama(tmp_path / "model", tied=True, shards=True)
    text = write_lines(tmp_path / "eval.txt", sentences(60, seed=1))
    train = write_lines(tmp_path / "train.txt", sentences(60, seed=2))
    want = winnow.evaluate(folder, str(text), length=32)
    for ram in (None, "20GB"):
        result = winnow.compress(
            folder, str(train), eval=str(text), sparsity="0.8,0.4", method="magnitude", length=32, samples=8, ram=ram, dtype="float32",
            include=("lm_head.weight",), baselines="rtn", speed=False, out=tmp_path / f"out-{ram}",
        )  # fmt: skip
        row = next(c for c in result.report.candidates if c.kind == "dense")
        assert row.quality == pytest.approx(want.value, rel=1e-6)
        pruned = next(c for c in result.report.candidates if "80" in c.name)
        written = next(p for p in (tmp_path / f"out-{ram}").iterdir() if "80" in p.name)
        assert winnow.evaluate(written, str(text), length=32).value == pytest.approx(pruned.quality, rel=1e-5)


def test_a_dense_model_that_changed_is_not_measured(tmp_path):
    """What neither restoring nor a copy brings back - a table that a forward writes to - stops the run."""
    from winnow.compression.hosts import Loaded, Streamed
    from winnow.errors import WinnowError
    from winnow.masks.scope import find_scope
    from winnow.models.modules import identity_of_weights
    from winnow.models.source import open_model

    host = Loaded(open_model(classifier()))
    scope = find_scope(host.model)
    host.begin(scope)
    given = identity_of_weights(host.model)
    with torch.no_grad():
        for name in scope.prunables:
            host.model.get_parameter(name).zero_()
    with host.dense(scope) as model:  # whatever a candidate left behind
        assert identity_of_weights(model) == given
    with torch.no_grad():
        host.model.head.weight[0, 0] += 1e-6
    with pytest.raises(WinnowError, match="fault of winnow"), host.dense(scope) as model:
        host.identity.check(model, "the dense model")
    hf("LlamaForCausalLM", vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
       num_attention_heads=4)().save_pretrained(tmp_path / "m")  # fmt: skip
    streamed = Streamed(open_model(tmp_path / "m"))
    scope = find_scope(streamed.model)
    streamed.begin(scope)
    weights = tmp_path / "m" / "model.safetensors"
    os.utime(weights, (0, 0))
    with pytest.raises(WinnowError, match="changed while it was in use"), streamed.dense(scope):
        pass
