"""FCPTS and distillation through the front door: exact, harmless to what was given, and true in the report."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import winnow
from families import VOCAB, family
from small import classifier, convnet, images, points, save_llama, sentences, trained
from winnow.compression import setup
from winnow.compression.job import Job
from winnow.compression.setup import set_up
from winnow.errors import InputError
from winnow.fcpts.method import FCPTS
from winnow.fcpts.settings import FcptsSettings
from winnow.train.distil.fit import Distil
from winnow.train.distil.settings import DistilSettings

NUMEL = 8 * 9 + 16 * 8 * 9  # of the convolutional network
QUICK = dict(baselines="none", speed=False)


@pytest.fixture(scope="module")
def cnn():
    return trained(convnet(), *images())


@pytest.fixture(scope="module")
def model():
    return trained(classifier(), *points())


def batches(n=64):
    return [(images(n)[0],)]


def learn(model, sparsity=0.7, seed=0, **options):
    return FCPTS(FcptsSettings(**{"steps": 4, **options}), seed=seed).fit(model, batches(), sparsity=sparsity)


def compressed(model, **options):
    return winnow.compress(model, images(), **{"method": "fcpts", "settings": {"steps": 3}, **QUICK, **options})


def zeros_of(weights):
    return sum(int((w == 0).sum()) for w in weights.values())


# Exactness


@pytest.mark.parametrize("rate", [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99])
def test_every_rate_is_met_to_the_weight(cnn, rate):
    fitted = learn(cnn, rate / 100, steps=2)
    wanted = round(rate / 100 * NUMEL)
    assert zeros_of(fitted.weights) == wanted == sum(int((~k).sum()) for k in fitted.keeps.values())
    assert fitted.record.zeros == wanted and fitted.record.exact_rate == pytest.approx(wanted / NUMEL)
    assert sum(x.rate * x.numel for x in fitted.record.layers) == pytest.approx(wanted)
    for name, keep in fitted.keeps.items():
        assert torch.equal(fitted.weights[name] != 0, keep)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zeros=st.integers(1, NUMEL - 1),
    start=st.sampled_from(["uniform", "erk", "l2", "lamp"]),
    rates=st.floats(0.001, 1.0),
    bridge=st.sampled_from(["histogram", "kde"]),
)
def test_any_count_from_any_start(cnn, zeros, start, rates, bridge):
    options = FcptsSettings(steps=2, start=start, threshold_lr=rates, bridge=bridge)
    assert zeros_of(FCPTS(options).fit(cnn, batches(16), zeros).weights) == zeros


@pytest.mark.parametrize("values", ["keep", "bf16", "int8", "int4"])
def test_the_packed_file_holds_exactly_these_zeros_and_loads_to_the_same_outputs(cnn, tmp_path, values):
    x, y = images(seed=5)
    result = winnow.compress(
        cnn, images(), eval=(x, y), sparsity=0.83, method="fcpts", values=values, settings={"steps": 5}, out=tmp_path / "out", **QUICK
    )  # fmt: skip
    assert sum(layer.zeros for layer in result.layers) == round(0.83 * NUMEL)
    packed = [result.chosen.pruned.packed(layer.name) for layer in result.layers]
    assert sum(int((~p.keep()).sum()) for p in packed) == round(0.83 * NUMEL)
    loaded = winnow.load(tmp_path / "out", factory=convnet)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))
    assert not (tmp_path / "out.work").exists()


# Structures


def test_blocks_and_channels_go_whole(cnn):
    blocks = compressed(cnn, sparsity=0.5, structure="block:4x1")
    assert abs(blocks.report.requested.difference) <= 2
    for layer in blocks.layers:
        kept = (blocks.model.get_parameter(layer.name) != 0).reshape(layer.rows // 4, 4, layer.cols)
        assert torch.equal(kept.any(1), kept.all(1))
    channels = compressed(cnn, sparsity=0.4, structure="channel")
    net = channels.model
    gone = (net.conv1.weight == 0).flatten(1).all(1)
    assert torch.equal(gone, (net.conv2.weight == 0).transpose(0, 1).flatten(1).all(1)) and 0 < gone.sum() < 8
    assert (net.bn1.bias[gone] == 0).all() and (net.bn1.weight[gone] == 0).all()
    unit = 9 + 16 * 9
    assert sum(x.zeros for x in channels.layers) == int(gone.sum()) * unit
    assert abs(channels.report.requested.difference) <= unit
    record = channels.report.allocation
    assert [x.rate for x in record.layers] == [pytest.approx(int(gone.sum()) / 8)]


@pytest.mark.parametrize("method", ["fcpts", "sparsegpt"])
@pytest.mark.parametrize("values", ["keep", "int8"])
def test_layers_take_the_pattern_or_stay_dense(model, tmp_path, method, values):
    result = winnow.compress(
        model, points(), structure="2:4", sparsity=0.25, method=method, allocation="learned", settings={"steps": 3},
        samples=64, values=values, task="none", out=tmp_path / "out", **QUICK,
    )  # fmt: skip
    taken = [x for x in result.layers if x.zeros]
    assert len(taken) == 3 and sum(x.zeros for x in taken) == 1728 and result.report.requested.difference == 0
    for layer in result.layers:
        packed = result.chosen.pruned.packed(layer.name)
        kept = packed.keep().reshape(-1, 4).sum(1)
        assert set(kept.tolist()) == ({2} if layer.zeros else {4})
        assert packed.encoding == ("nm" if layer.zeros else "dense")
    assert {x.rate for x in result.report.allocation.layers} == {0.0, 0.5}
    loaded = winnow.load(tmp_path / "out", factory=classifier)
    x, _ = points(seed=3)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))


# What is trained


def test_training_only_thresholds_leaves_weights_as_they_were(cnn):
    dense = {n: cnn.get_parameter(n).detach().reshape(len(w), -1) for n, w in learn(cnn).weights.items()}
    only = learn(cnn, train="thresholds", threshold_lr=0.1)
    assert all(torch.equal(w, dense[n] * only.keeps[n]) for n, w in only.weights.items())
    assert not any(k.endswith(("weight", "bias")) for k in only.extra)
    assert all(x.drift == 0 for x in only.record.layers)
    norm = learn(cnn, train="thresholds+norm")
    assert all(torch.equal(w, dense[n] * norm.keeps[n]) for n, w in norm.weights.items())
    assert {"bn1.weight", "bn2.bias", "fc.bias"} <= set(norm.extra)
    every = learn(cnn, train="all")
    assert not torch.equal(every.weights["conv2.weight"], dense["conv2.weight"] * every.keeps["conv2.weight"])
    assert all(0 < x.drift < 0.5 for x in every.record.layers)


def test_c_only_thresholds_never_see_the_outputs(cnn):
    """The released code's semantics: with the weights held, thresholds end alike whatever the data."""

    def ends(grad, seed):
        generator = torch.Generator().manual_seed(seed)
        data = [(torch.randn(64, 1, 8, 8, generator=generator),)]
        options = FcptsSettings(steps=6, train="thresholds", threshold_grad=grad, threshold_lr=0.05)
        return [x.threshold for x in FCPTS(options).fit(cnn, data, sparsity=0.7).record.layers]

    assert ends("c_only", 1) == ends("c_only", 2)
    assert ends("rec+c", 1) != ends("rec+c", 2)


class Uneven(nn.Module):
    """Two branches alike in all but how loudly they are heard."""

    def __init__(self, loud: str = "first") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.second, self.head = (nn.Linear(24, 24, bias=False) for _ in range(3))
        self.gain = {"first": 1.0 if loud == "first" else 0.02, "second": 1.0 if loud == "second" else 0.02}
        with torch.no_grad():
            for layer in (self.first, self.second, self.head):
                layer.weight.copy_(torch.randn(24, 24, generator=generator) / 5)

    def forward(self, x):
        return 3 * self.head(self.gain["first"] * self.first(x) + self.gain["second"] * self.second(x))


@pytest.mark.parametrize("loud", ["first", "second"])
def test_a_uniform_start_ends_with_the_sensitive_layer_spared(loud):
    data = [(torch.randn(256, 24, generator=torch.Generator().manual_seed(0)),)]
    options = FcptsSettings(steps=60, start="uniform", loss="mse")
    record = FCPTS(options).fit(Uneven(loud), data, sparsity=0.6).record
    rate = {x.name.partition(".")[0]: x for x in record.layers}
    quiet = {"first": "second", "second": "first"}[loud]
    assert rate[loud].start_rate == pytest.approx(rate[quiet].start_rate, abs=0.01)
    assert rate[loud].rate < rate[quiet].rate - 0.05
    assert rate[loud].sensitivity > rate[quiet].sensitivity


# Fixed masks


@pytest.mark.parametrize("allocation", ["uniform", "erk", "l2", "lamp", "global"])
def test_distil_keeps_the_mask_of_the_allocation_and_fits_the_rest(model, allocation):
    options = dict(sparsity=0.7, method="distil", allocation=allocation, samples=256, task="none", **QUICK)
    result = winnow.compress(model, points(), settings={"steps": 25, "lr": 0.02}, **options)
    plain = winnow.compress(model, points(), **{**options, "method": "magnitude"})
    mine, theirs = result.model.state_dict(), plain.model.state_dict()
    for layer in result.layers:
        assert torch.equal(mine[layer.name] != 0, theirs[layer.name] != 0)
        assert not torch.equal(mine[layer.name], theirs[layer.name])
    record = result.report.allocation
    assert record.method == "distil" and record.start == allocation and record.steps == 25
    assert sum(record.losses[-5:]) < 0.7 * sum(record.losses[:5])
    for skipped in ("embed.weight", "head.weight"):
        assert torch.equal(mine[skipped], model.state_dict()[skipped])


def test_distil_takes_any_mask(cnn):
    keeps = {"conv2.weight": torch.rand(16, 72, generator=torch.Generator().manual_seed(0)) > 0.5}
    fitted = Distil(DistilSettings(steps=3)).fit(cnn, batches(), keeps)
    assert torch.equal(fitted.weights["conv2.weight"] != 0, keeps["conv2.weight"])
    assert bool(fitted.keeps["conv1.weight"].all()) and fitted.record.zeros == int((~keeps["conv2.weight"]).sum())
    norm = Distil(DistilSettings(steps=3, train="norm")).fit(cnn, batches(), keeps)
    dense = cnn.conv2.weight.detach().reshape(16, 72)
    assert torch.equal(norm.weights["conv2.weight"], dense * keeps["conv2.weight"]) and "fc.bias" in norm.extra


def test_distil_of_coupled_units_leaves_them_removable(cnn):
    net = compressed(cnn, sparsity=0.4, structure="channel", method="distil", settings={"steps": 5}).model
    gone = (net.conv1.weight == 0).flatten(1).all(1)
    assert 0 < gone.sum() < 8 and (net.bn1.bias[gone] == 0).all()


# Allocation learned for another solver


def test_a_learned_allocation_goes_to_any_solver(model):
    common = dict(sparsity=0.6, allocation="learned", settings={"steps": 6}, samples=128, task="none", **QUICK)
    whole = winnow.compress(model, points(), method="fcpts", **common)
    counts = {x.name: x.zeros for x in whole.layers}
    assert len({c for c in counts.values()}) > 1
    for method in ("magnitude", "wanda", "alps"):
        result = winnow.compress(model, points(), method=method, **common)
        assert {x.name: x.zeros for x in result.layers} == counts
        assert result.report.allocation.method == "fcpts"
        if method != "alps":  # the weights that stay are the dense ones
            for name in counts:
                pruned, dense = result.model.get_parameter(name), model.get_parameter(name)
                assert torch.equal(pruned, dense * (pruned != 0))


def test_a_table_is_where_learning_starts(model):
    table = {"*.up.weight": 0.8, "*.down.weight": 0.4}
    options = dict(sparsity=0.6, table=table, settings={"steps": 1}, samples=64, task="none", **QUICK)
    result = winnow.compress(model, points(), method="fcpts", **options)
    record = result.report.allocation
    assert record.start == "table"
    assert all(x.start_rate == pytest.approx(0.8 if "up" in x.name else 0.4, abs=0.002) for x in record.layers)
    fixed = winnow.compress(model, points(), method="distil", **options)
    assert all(abs(x.zeros - (0.8 if "up" in x.name else 0.4) * 1152) <= 2 for x in fixed.layers)


# Kinds of model and of data


@pytest.mark.parametrize("form", ["tensor", "labels", "loader", "npz"])
def test_data_in_any_form(cnn, tmp_path, form):
    import numpy as np

    x, y = images(200)
    data = {
        "tensor": lambda: x,
        "labels": lambda: (x, y),
        "loader": lambda: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, torch.as_tensor(y)), batch_size=32, shuffle=False
        ),
        "npz": lambda: np.savez(tmp_path / "d.npz", x=x.numpy(), y=y) or tmp_path / "d.npz",
    }[form]()
    before = {k: v.clone() for k, v in cnn.state_dict().items()}
    result = winnow.compress(cnn, data=data, sparsity=0.9, method="fcpts", settings={"steps": 3}, task="none", **QUICK)
    assert all(torch.equal(v, before[k]) for k, v in cnn.state_dict().items())
    assert zeros_of({x.name: result.model.get_parameter(x.name) for x in result.layers}) == round(0.9 * NUMEL)
    assert result.chosen.candidate.recipe.samples == 1024
    assert result.report.allocation.step_time.forward > 0


@pytest.mark.hf
@pytest.mark.parametrize("name", ["bert", "roberta", "vit", "gpt2", "t5", "mixtral"])
def test_transformers_of_every_kind(name):
    kind = family(name)
    model = kind.build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fitted = FCPTS(FcptsSettings(steps=2)).fit(model, kind.batches(), sparsity=0.6)
    assert zeros_of(fitted.weights) == round(0.6 * kind.weights)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.isfinite(w).all() for w in fitted.weights.values())


@pytest.mark.hf
def test_a_hugging_face_encoder_end_to_end(tmp_path):
    transformers = pytest.importorskip("transformers")
    bert = family("bert")
    bert.build().save_pretrained(tmp_path / "bert")
    ids = torch.randint(3, VOCAB, (160, 8), generator=torch.Generator().manual_seed(0))
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    winnow.compress(
        str(tmp_path / "bert"), data, sparsity=0.75, method="fcpts", settings={"steps": 3}, out=tmp_path / "out", **QUICK
    )  # fmt: skip
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    scope = winnow.find_scope(loaded)
    assert zeros_of({n: loaded.get_parameter(n) for n in scope.prunables}) == round(0.75 * bert.weights)


@pytest.mark.hf
def test_a_decoder_takes_shorter_batches_of_long_texts(tmp_path):
    pytest.importorskip("transformers")
    folder = save_llama(tmp_path / "llama")
    job = dict(sparsity=0.5, method="fcpts", task="none", samples=40)
    short = set_up(Job(folder, sentences(200), length=16, **job))
    assert short.recipes[0].settings["batch"] == short.recipes[0].batch_size == 64

    tokens, setup.TOKENS = setup.TOKENS, 64
    try:
        long = set_up(Job(folder, sentences(200), length=16, **job))
        asked = set_up(Job(folder, sentences(200), length=16, settings={"batch": "20"}, **job))
    finally:
        setup.TOKENS = tokens
    assert long.recipes[0].settings["batch"] == 4 and "4 texts of 16 tokens" in " ".join(long.notes)
    assert len(long.prepared.batches) == 10
    assert asked.recipes[0].settings["batch"] == 20 and not asked.notes


# Budgets, plan and report


def test_several_rates_and_a_goal(cnn):
    many = compressed(cnn, sparsity=[0.5, 0.8], task="none")
    assert [o.pruned.zeros for o in many.outcomes] == [round(0.5 * NUMEL), round(0.8 * NUMEL)]
    assert many.outcomes[0].record["zeros"] != many.outcomes[1].record["zeros"]
    found = winnow.compress(
        cnn, images(300), max_drop=20, values="int8", method="fcpts", settings={"steps": 3}, **QUICK
    )
    assert found.chosen.comparison.high <= 20


def test_the_plan_knows_what_training_takes(cnn):
    job = dict(sparsity=0.5, method="fcpts", task="none")
    short = set_up(Job(cnn, images(), settings={"steps": 10}, **job)).plan
    long = set_up(Job(cnn, images(), settings={"steps": 10_000}, **job)).plan
    timed = set_up(Job(cnn, images(), time="5m", **job)).plan
    assert long.seconds > 20 * short.seconds and 300 < timed.seconds < 400
    rows = dict(short.ledger.table())
    assert rows["dense copy, gradients, momentum, masked weights"] > 4 * 4 * NUMEL
    # What the layers put out for a batch of 64: conv1 and its norm, conv2 and its norm, fc; float32.
    assert rows["activations of one training batch"] == 4 * 64 * (2 * 8 * 64 + 2 * 16 * 16 + 3)


def test_record_floor_and_comparison_are_in_the_report(cnn, tmp_path):
    job = dict(eval=images(90, seed=3), method="fcpts", **QUICK)
    earlier = winnow.compress(cnn, images(), sparsity=0.6, settings={"steps": 3}, out=tmp_path / "a", **job)
    assert earlier.report.allocation.comparison is None
    winnow.compress(
        cnn, images(), sparsity=0.97, settings={"steps": 4, "seeds": 2, "loss": "mse"}, compare_with=tmp_path / "a", floor=100, out=tmp_path / "b", **job
    )  # fmt: skip
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    record = report["allocation"]
    assert record["comparison"]["against"] == "a" and record["comparison"]["matched"] == 2
    assert record["zeros"] == round(0.97 * NUMEL) and record["total_parameters"] == sum(
        p.numel() for p in cnn.parameters()
    )
    assert record["settings"]["loss"] == "mse" and record["settings"]["steps"] == 4 and len(record["losses"]) == 4
    assert record["stability"]["seeds"] == 2 and all(len(x["rates"]) == 2 for x in record["layers"])
    assert all(x["rates"][0] == x["rate"] and x["sensitivity"] is not None for x in record["layers"])
    assert report["verdict"]["tone"] == "bad" and "floor" in report["verdict"]["sentence"]
    said = " ".join(record["warnings"])
    assert "floor" in said and "prunable weights" in said and "calibration examples" in said
    fine = winnow.compress(cnn, images(), sparsity=0.5, floor=1, **{**job, "method": "lamp"})
    assert "floor" not in fine.report.verdict.sentence
    poor = winnow.compress(cnn, images(), sparsity=0.95, floor=100, **{**job, "method": "lamp"})
    assert poor.report.verdict.tone == "bad" and any("floor" in n for n in poor.report.notes)


def test_settings_are_in_the_recipe_and_not_in_the_baselines(cnn):
    result = winnow.compress(
        cnn, images(), eval=images(60, seed=3), sparsity=0.5, method="distil", settings={"steps": "3", "lr": "0.02"}, baselines="rtn", speed=False
    )  # fmt: skip
    recipes = {o.name: o.candidate.recipe for o in result.outcomes}
    assert recipes["s50"].settings["lr"] == 0.02 and recipes["s50"].settings["momentum"] == 0.9
    assert recipes["int8-rtn"].settings == {} and not recipes["int8-rtn"].fitting.trains


def test_no_zeros_means_no_training(cnn):
    result = winnow.compress(cnn, images(), sparsity=0.0, method="fcpts", task="none", **QUICK)
    assert result.report.allocation is None
    assert all(torch.equal(result.model.get_parameter(x.name), cnn.get_parameter(x.name)) for x in result.layers)


def test_the_command_line_passes_settings_on(tmp_path, capsys):
    import numpy as np
    from safetensors.torch import save_file

    from winnow.cli import main

    x, y = points()
    save_file(classifier().state_dict(), tmp_path / "weights.safetensors")
    np.savez(tmp_path / "train.npz", x=x.numpy(), y=y)

    def run(*more):
        with pytest.raises(SystemExit) as stopped:
            main(["compress", "small:classifier", "--weights", str(tmp_path / "weights.safetensors"), "--data", str(tmp_path / "train.npz"),
                  "--sparsity", "0.8", "--method", "fcpts", "--baselines", "none", "--no-speed", "--json", "--out", str(tmp_path / "out"), *more])  # fmt: skip
        said = capsys.readouterr()
        return stopped.value.code, said.out, said.err

    code, out, err = run("--set", "steps=3", "--set", "loss = mse", "--set", "threshold_lr=0.1", "--floor", "25")
    assert code in (0, None), err
    report = json.loads(out)
    assert report["allocation"]["settings"]["loss"] == "mse" and report["allocation"]["steps"] == 3
    for wrong in (["--set", "steps"], ["--set", "=3"], ["--set", "steps=3", "--set", "steps=4"], ["--time", "1x"]):
        code, _, err = run(*wrong)
        assert code == 2 and err.count("\n") == 1 and err.startswith("winnow: --")
    code, out, _ = run("--time", "90", "--dry-run", "--overwrite")
    assert code in (0, None) and json.loads(out)["seconds"] > 90


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(settings={"colour": 1}), "no setting 'colour'"),
        (dict(settings={"lr": "fast"}), 'settings "lr" must be a valid number'),
        (dict(settings={"lr": -1}), "greater than 0"),
        (dict(settings={"train": "norm"}), 'settings "train" \'norm\' is not known'),
        (dict(method="distil", settings={"penalty": 3}), "no setting 'penalty'"),
        (dict(method="wanda", settings={"steps": 3}), "no settings"),
        (dict(method="lamp", time="60s"), "time is for methods that train"),
        (dict(time="60s", settings={"steps": 3}), "mutually exclusive"),
        (dict(time="soon"), "time 'soon'"),
        (dict(time=-3), "is no time"),
        (dict(time="nan"), "is no time"),
        (dict(data=None), "give data"),
        (dict(samples=0), "samples must be at least 1"),
        (dict(ram="2GB"), "method reconstruct"),
        (dict(device="cuda"), "device 'cuda'"),
        (dict(dtype="bfloat16"), "float32"),
        (dict(score="wanda"), "compare magnitudes"),
        (dict(group="row"), "compare magnitudes"),
        (dict(solver="sparsegpt+distil"), "only solver"),
        (dict(settings={"start": "table"}), "give table=FILE"),
        (dict(settings={"start": "erk"}, table={"*": 0.5}), "mutually exclusive"),
        (dict(table={"*": 0.2}), "table"),
        (dict(structure="2:4", sparsity=0.6), "up to 0.5"),
        (dict(structure="2:4", sparsity=0.0), "above 0"),
        (dict(structure="2:4", sparsity=None, size="3kB"), "leave out size"),
        (dict(structure="head", sparsity=0.5), "head"),
        (dict(floor=float("nan")), "floor must be"),
        (dict(compare_with="/nowhere/at/all"), "/nowhere/at/all"),
        (dict(method="lamp", compare_with="/nowhere"), "compare_with"),
        (dict(settings={"lr": 1e30, "steps": 30}), 'settings={"lr"'),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_that_names_the_fix(cnn, tmp_path, options, words):
    options = {"data": images(), "sparsity": 0.5, "method": "fcpts", "task": "none", **QUICK, **options}
    if options["sparsity"] is None:
        del options["sparsity"]
    with pytest.raises(InputError) as error:
        winnow.compress(cnn, out=tmp_path / "out", **options)
    message = str(error.value)
    assert words in message and "\n" not in message
    assert not (tmp_path / "out").exists()


class Spoiled(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = classifier(), how

    def forward(self, x):
        if self.how == "argmax":
            return self.net(x).argmax(-1)
        if self.how == "detached":
            return self.net(x).detach()
        if self.how == "nan":
            return self.net(x) * float("nan")
        hidden = torch.relu(self.net(x))
        return hidden.add_(1)  # relu needs what it put out


@pytest.mark.parametrize(
    ("how", "words"),
    [("argmax", "return logits"), ("detached", "gradient"), ("nan", "NaN"), ("inplace", "cannot be trained")],
)
def test_a_model_that_cannot_be_trained_is_told_so(how, words):
    with pytest.raises(InputError, match=words):
        winnow.compress(Spoiled(how), points()[0], sparsity=0.5, method="distil", task="none", **QUICK)


def test_the_class_says_what_it_needs(cnn):
    with pytest.raises(InputError, match="one budget"):
        FCPTS().fit(cnn, batches())
    with pytest.raises(InputError, match="one budget"):
        FCPTS().fit(cnn, batches(), 30, sparsity=0.5)
    with pytest.raises(InputError, match="share"):
        FCPTS().fit(cnn, batches(), sparsity=1.5)
    with pytest.raises(InputError, match="no calibration data"):
        FCPTS().fit(cnn, [], sparsity=0.5)
    with pytest.raises(InputError, match="float32"):
        FCPTS().fit(convnet().bfloat16(), batches(), sparsity=0.5)


def test_the_same_seed_learns_the_same(cnn):
    one, two, other = learn(cnn, seed=1), learn(cnn, seed=1), learn(cnn, seed=2)
    assert all(torch.equal(w, two.weights[n]) for n, w in one.weights.items())
    assert one.record.losses == two.record.losses
    assert learn(cnn).extra.keys() == one.extra.keys() and other.record.zeros == one.record.zeros
