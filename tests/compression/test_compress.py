"""The verb end to end on models the tests make: exact, harmless to what was given, and true in its report."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import winnow
from small import classifier, convnet, images, points, trained
from winnow.compression.methods import METHODS
from winnow.errors import InputError
from winnow.solve.batchnorm import recalibrate as recalibrate_norms


@pytest.fixture(scope="module")
def model():
    return trained(classifier(), *points())


def zeros_of(model, result):
    return {x.name: int((model.get_parameter(x.name) == 0).sum()) for x in result.layers}


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"zeros"}))  # which takes no budget: test_method_zeros.py
def test_every_method_is_exact_and_leaves_the_given_model_alone(model, method):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = winnow.compress(model, points(), sparsity=0.55, method=method, baselines="none", samples=64)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    counts = zeros_of(result.model, result)
    assert sum(counts.values()) == round(0.55 * 6 * 24 * 48)
    assert counts == {x.name: x.zeros for x in result.layers}
    assert not any(n.startswith(("embed", "head")) for n in counts)
    fitted = METHODS[method]["solver"] in ("distil", "reconstruct")  # which move biases and norms too
    for skipped in ("embed.weight", "head.weight", *(() if fitted else ("blocks.0.norm.weight",))):
        assert torch.equal(result.model.state_dict()[skipped], before[skipped])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sparsity=st.floats(0, 0.97),
    allocation=st.sampled_from(["uniform", "erk", "lamp", "global"]),
    group=st.sampled_from(["layer", "row"]),
)
def test_any_rate_is_met_to_the_weight(model, sparsity, allocation, group):
    result = winnow.compress(
        model, None, sparsity=sparsity, method="magnitude", allocation=allocation, group=group, baselines="none"
    )
    assert sum(zeros_of(result.model, result).values()) == min(round(sparsity * 6912), 6911)


def test_n_of_m_holds_in_every_group(model):
    result = winnow.compress(model, points(), structure="2:4", method="sparsegpt", baselines="none", samples=64)
    for layer in result.layers:
        groups = (result.model.get_parameter(layer.name) != 0).reshape(-1, 4).sum(1)
        assert torch.equal(groups, torch.full_like(groups, 2))


def test_blocks_go_whole(model):
    result = winnow.compress(model, None, structure="block:1x4", sparsity=0.5, method="magnitude", baselines="none")
    for layer in result.layers:
        kept = (result.model.get_parameter(layer.name) != 0).reshape(layer.rows, -1, 4).sum(2)
        assert set(kept.flatten().tolist()) <= {0, 4}


def test_neurons_go_whole_and_their_mean_moves_into_the_bias(model):
    x, y = points()
    result = winnow.compress(model, (x, y), structure="neuron", sparsity=0.3, baselines="none", samples=64, seed=0)
    pruned = result.model
    assert abs(result.report.requested.difference) <= 24 + 24  # one unit: a row of up and a column of down
    gone = 0
    for i in range(3):
        rows = (pruned.blocks[i].up.weight == 0).all(1)
        cols = (pruned.blocks[i].down.weight == 0).all(0)
        assert torch.equal(rows, cols)
        assert (pruned.blocks[i].up.bias[rows] == 0).all()
        gone += int(rows.sum())
        if rows.any():
            assert not torch.equal(pruned.blocks[i].down.bias, model.blocks[i].down.bias)
    assert gone * 48 == sum(x.zeros for x in result.layers)


def test_saved_folder_loads_to_the_same_outputs(model, tmp_path):
    x, y = points(seed=5)
    result = winnow.compress(
        model, points(), eval=(x, y), sparsity=0.6, values="int8", baselines="none", samples=64, out=tmp_path / "out"
    )
    loaded = winnow.load(tmp_path / "out", factory=classifier)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))
    assert not (tmp_path / "out.work").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_report_numbers_are_those_of_the_model(model, tmp_path):
    x, y = points(seed=5)
    result = winnow.compress(
        model, points(), eval=(x, y), sparsity=0.6, values="int8", samples=64, out=tmp_path / "out"
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    by_name = {c["name"]: c for c in report["candidates"]}
    assert {c["kind"] for c in report["candidates"]} == {"dense", "pruned", "quantized", "pruned+quantized"}
    with torch.no_grad():
        dense, pruned = model(x).argmax(1), result.model(x).argmax(1)
    truth = torch.as_tensor(y)
    assert by_name["dense"]["quality"] == pytest.approx(100 * (dense == truth).float().mean().item())
    assert by_name["s60-int8"]["quality"] == pytest.approx(100 * (pruned == truth).float().mean().item())
    assert by_name["s60-int8"]["agreement"] == pytest.approx((dense == pruned).float().mean().item())
    assert report["requested"]["difference"] == 0
    weights = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    assert report["sizes"]["file"] == weights
    # Density x 8 bits + 1 for the mask, a 16-bit scale per row; padding of short rows is all that may come on top.
    expected = 0.4 * 8 + 1 + 16 * (3 * 48 + 3 * 24) / 6912
    assert by_name["s60-int8"]["bits_per_weight"] == pytest.approx(expected, rel=0.02)


def test_several_rates_are_written_side_by_side(model, tmp_path):
    options = {"eval": points(seed=5), "baselines": "rtn", "keep": ("int8-rtn",), "samples": 64}
    result = winnow.compress(model, points(), sparsity=[0.5, 0.8], out=tmp_path / "out", **options)
    written = {".winnow.json", "int8-rtn", "report.html", "report.json", "s50", "s80"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == written
    for name, zeros in (("s50", 3456), ("s80", 5530), ("int8-rtn", 0)):
        loaded = winnow.load(tmp_path / "out" / name, factory=classifier)
        found = sum(int((loaded.get_parameter(x.name) == 0).sum()) for x in result.layers)
        assert found == zeros or (name == "int8-rtn" and found < 100)


def test_bits_and_bytes_budgets_are_kept(model, tmp_path):
    result = winnow.compress(
        model, None, bits_per_weight=9.0, method="magnitude", baselines="none", out=tmp_path / "bits"
    )
    assert result.chosen.pruned.bits_per_weight <= 9.0
    fewer = winnow.compress(
        model, None, sparsity=(result.chosen.pruned.zeros - 64) / 6912, method="magnitude", baselines="none"
    )
    assert fewer.chosen.pruned.bits_per_weight > 9.0
    winnow.compress(model, None, size="30kB", method="magnitude", baselines="none", out=tmp_path / "size")
    written = sum(f.stat().st_size for f in (tmp_path / "size").glob("*.safetensors"))
    assert 20_000 < written <= 30_000


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = torch.nn.GRU(12, 16, batch_first=True), torch.nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.rnn(x[:, None])[0][:, -1])


def test_the_method_for_those_who_name_none():
    """By the kind of the layers, the pattern and whether there is data; the reason names what decided."""
    from winnow.compression.methods import ALPS_WIDTH

    def chosen(model, data, **options):
        result = winnow.compress(model, data, **{"sparsity": 0.5, "task": "none", "speed": False, **options})
        report = result.report
        (reason,) = [n for n in (*report.notes, *report.remarks) if n.startswith("method ")]
        assert (reason in report.notes) == (data is None)  # then there is something to do about it
        return result.outcomes[0].candidate.recipe.method, reason

    x, y = images()
    assert chosen(convnet(), (x, y))[0] == "alps-lamp" and "convolutions" in chosen(convnet(), (x, y))[1]
    assert chosen(convnet(), None)[0] == "lamp" and "--data" in chosen(convnet(), None)[1]
    assert chosen(convnet(), (x, y), structure="1:2", sparsity=None, exclude=("conv1",))[0] == "alps"
    assert chosen(convnet(), (x, y), structure="channel")[0] == "magnitude"
    features = points()[0]
    assert chosen(classifier(), features)[0] == "alps" and chosen(classifier(), None)[0] == "magnitude"
    recurrent = chosen(Recurrent(), features, include=("rnn.weight_*",))
    assert recurrent[0] == "alps-lamp" and "recurrent" in recurrent[1]
    wide = torch.nn.Sequential(torch.nn.Linear(ALPS_WIDTH + 8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    assert chosen(wide, torch.randn(40, ALPS_WIDTH + 8))[0] == "sparsegpt+lsq"


def test_batch_norms_are_recalibrated(tmp_path):
    x, y = images()
    net = trained(convnet(), x, y)
    on = winnow.compress(net, (x, y), sparsity=0.5, baselines="none", eval=images(seed=3))
    off = winnow.compress(net, (x, y), sparsity=0.5, baselines="none", eval=images(seed=3), recalibrate=False)
    assert on.report.candidates[-1].method == "alps-lamp"
    assert torch.equal(off.model.bn2.running_mean, net.bn2.running_mean)
    # On all the data the new mean is nearer to what the pruned second convolution really puts out.
    pruned = on.model
    with torch.no_grad():
        hidden = torch.relu(pruned.bn1(pruned.conv1(x)))
        truth = pruned.conv2(torch.nn.functional.max_pool2d(hidden, 2)).mean((0, 2, 3))
    assert (pruned.bn2.running_mean - truth).norm() < 0.5 * (net.bn2.running_mean - truth).norm()
    assert int(pruned.bn1.num_batches_tracked) > 0


def test_batch_norms_that_alone_cost_the_quality_are_the_next_step():
    """Calibration data of another kind spoils every row of the table: less sparsity would not mend that."""
    x, y = images()
    net = trained(convnet(), x, y)
    options = dict(sparsity=0.3, method="magnitude", baselines="rtn", eval=images(seed=3), speed=False)
    assert "--no-recalibrate" in winnow.compress(net, (5 * x + 3, y), **options).report.next_step
    assert "--no-recalibrate" not in winnow.compress(net, (x, y), **options).report.next_step


def test_every_row_but_the_dense_one_gets_its_batch_norms_anew():
    """Pruned, rounded, both, by GPTQ or by the nearest value: each with the statistics of its own weights, or none."""
    x, y = images()
    net = trained(convnet(), x, y)
    for recalibrate in (True, False):
        made = winnow.compress(
            net, (x, y), sparsity=0.5, method="magnitude", eval=images(seed=3), recalibrate=recalibrate, speed=False
        )
        assert {o.candidate.kind for o in made.outcomes} == {"pruned", "pruned+quantized", "quantized"}
        assert {"int8-rtn", "int4-g32-gptq", "s50-int4-g128"} < {o.name for o in made.outcomes}
        host, scope = made._setup.host, made._setup.scope
        for o in made.outcomes:
            with o.pruned.in_place(host, scope) as model:
                norms = {n: b.clone() for n, b in model.named_buffers()}
                own = recalibrate_norms(model, made._setup.prepared.batches)
            for name, value in own.items():
                assert torch.equal(norms[name], value if recalibrate else net.state_dict()[name]), (o.name, name)
        noted = [n for n in made.report.remarks if n.startswith("batch norms of every row")]
        assert len(noted) == recalibrate and all("accuracy" in n for n in noted)
        with host.dense(scope) as model:
            assert all(torch.equal(b, net.state_dict()[n]) for n, b in model.named_buffers())


def test_same_seed_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        winnow.compress(
            model, points(), sparsity=0.5, method="sparsegpt", baselines="none", samples=64, out=tmp_path / name
        )
    assert (tmp_path / "a" / "model.winnow.safetensors").read_bytes() == (
        tmp_path / "b" / "model.winnow.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(), "set a budget"),
        (dict(sparsity=1.0), "sparsity"),
        (dict(sparsity=1.2), "sparsity"),
        (dict(sparsity="fifty"), "sparsity"),
        (dict(sparsity=0.5, size="1MB"), "mutually exclusive"),
        (dict(sparsity=0.5, values="int7"), "values"),
        (dict(sparsity=0.5, method="magic"), "method 'magic' is not known: choose one of auto,"),
        (dict(sparsity=0.5, method="wnada"), "method 'wnada' is not known (did you mean wanda?)"),
        (dict(sparsity=0.5, method="wanda"), "calibration data"),
        (dict(structure="3:5", sparsity=0.4, method="magnitude"), "3:5"),
        (dict(structure="2:4", sparsity=0.6), "means a sparsity of 0.5"),
        (dict(sparsity=0.5, include=("nothing*",)), "matches no"),
        (dict(size="1kB", method="magnitude"), "cannot be met"),
        (dict(sparsity=0.5, ram="20GB2"), "20GB2"),
        (dict(sparsity=0.5, colour="red"), "no option 'colour'"),
        (dict(sparsity=0.5, valuess="int8"), "no option 'valuess' (did you mean values?)"),
        (dict(sparsity=0.5, include=("blokcs",)), "matches no parameter or module of this model (did you mean blocks?)"),
        (dict(sparsity=0.5, baselines="some", data=True), "baselines"),
        (dict(sparsity=0.5, keep=("s99",), data=True), "keep 's99'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_that_names_the_fix(model, options, words, tmp_path):
    options = dict(options)
    data = points() if options.pop("data", False) else None
    with pytest.raises(InputError) as error:
        winnow.compress(model, data, out=tmp_path / "out", **options)
    message = str(error.value)
    assert words in message and "\n" not in message
    assert not words.startswith("--") or error.value.option == words.split()[0][2:]
    assert not (tmp_path / "out").exists()


def test_nan_weights_and_overlap_are_refused(model, tmp_path):
    x, y = points()
    with pytest.raises(InputError, match="share"):
        winnow.compress(model, (x, y), eval=(x[:50], y[:50]), sparsity=0.5)
    broken = classifier()
    with torch.no_grad():
        broken.blocks[1].up.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"blocks\.1\.up\.weight holds NaN"):
        winnow.compress(broken, (x, y), sparsity=0.5)
    x[:, 2] = float("inf")
    with pytest.raises(InputError, match="NaN or infinite"):
        winnow.compress(model, (x, y), sparsity=0.5, method="sparsegpt", task="none")


def test_folder_that_holds_something_else_is_left_alone(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something"):
        winnow.compress(model, None, sparsity=0.5, method="magnitude", out=out)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_rerun_replaces_the_result_and_keeps_nothing_else(model, tmp_path):
    for rate in (0.5, 0.7):
        winnow.compress(
            model, None, sparsity=rate, method="magnitude", baselines="none", out=tmp_path / "out", overwrite=True
        )
    loaded = winnow.load(tmp_path / "out", factory=classifier)
    assert sum(int((b.up.weight == 0).sum() + (b.down.weight == 0).sum()) for b in loaded.blocks) == round(0.7 * 6912)


def test_model_card_says_where_it_comes_from_and_how_to_load(model, tmp_path):
    result = winnow.compress(model, points(), eval=points(seed=5), sparsity=0.6, baselines="none", samples=64)
    result.save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\ntags:\n- winnow")
    assert "| zeros among prunable weights |  | 60% |" in card.replace("\u00a0", " ")
    assert "winnow.load(" in card and "original model is unchanged" in card
