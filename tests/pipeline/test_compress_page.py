"""The report and the model card at the end of a recipe: what dense means there, and words that a recipe understands."""

import html
import json
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

import winnow
from small import classifier
from winnow import words
from winnow.compression.verdict import change
from winnow.measure.compare import Comparison
from winnow.pipeline.publish import publish
from winnow.pipeline.verb import run_recipe
from winnow.records import compression as schema
from winnow.report.compression import card, tables
from winnow.report.compression.page import read

HEAD = "name: clouds\nmodel: small:classifier\nweights: weights.safetensors\ndata: train.npz\neval: test.npz\nstages:\n"
TRAIN = "  - train: {steps: 12, lr: 5e-3}\n"
TICKET = "  - ticket: {method: magnitude, sparsity: 0.9, steps: 3, lr: 5e-3%s}\n"
COMPRESS = "  - compress: {baselines: none, speed: false, samples: 32}\n"


@pytest.fixture(scope="module")
def folder(folder):
    save_file({n: t.half() for n, t in classifier().state_dict().items()}, folder / "weights.safetensors")
    return folder


def ran(folder, monkeypatch, out, stages, **options):
    monkeypatch.chdir(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(HEAD + stages)
    done = run_recipe(recipe, out, **options)
    return done, read(out), (Path(out) / "README.md").read_text(encoding="utf-8")


def screen(out):
    """The words of the page."""
    text = re.sub(r"<style.*?</style>|<[^>]+>", " ", (Path(out) / "report.html").read_text(), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(text).replace("\u00a0", " "))


def test_the_page_compares_with_the_dense_training(folder, tmp_path, monkeypatch):
    out = tmp_path / "a ö b"
    stages = TRAIN + "  - eval\n" + TICKET % ", start: model" + COMPRESS + "  - eval\n"
    done, report, readme = ran(folder, monkeypatch, out, stages, keep_work=True)
    last = done.stages[-1].figures
    dense, packed = last["against_value"], last["value"]
    assert dense - packed > 5, "the sample must lose something"
    work = tmp_path / "a ö b.work"
    trained = next(work.glob("train-*/clouds/model.safetensors"))
    found = next(work.glob("ticket-*/clouds/model.safetensors"))
    evaluations = [winnow.evaluate("small:classifier", "test.npz", weights=w) for w in (trained, found, out)]
    assert [round(e.value, 4) for e in evaluations] == [round(v, 4) for v in (dense, packed, packed)]
    assert [(c.name, c.kind) for c in report.candidates[:2]] == [("dense", "dense"), ("ticket", "ticket")]
    assert report.dense.quality == pytest.approx(dense) and report.dense.sparsity == 0
    assert report.ticket.sparsity == pytest.approx(0.9, abs=1e-3)
    for c in (report.picked, report.ticket):
        assert (c.drop, c.drop_low, c.drop_high) == pytest.approx(
            tuple(last["drop"][k] for k in ("drop", "low", "high"))
        )
    lost = f"{dense:.2f}% to {packed:.2f}% (−{dense - packed:.2f} points"
    assert f"against the dense model accuracy {lost}" in report.verdict.sentence.replace("\u00a0", " ")
    assert report.verdict.tone == "bad"
    assert "| | dense | the ticket, before packing | this model |" in readme
    assert f"| accuracy | {dense:.2f}% | {packed:.2f}% | {packed:.2f}%" in readme
    assert f"| against dense |  |  | −{dense - packed:.1f} points" in readme
    said = screen(out)
    assert f"−{dense - packed:.1f} points {dense:.2f}% → {packed:.2f}%" in said  # the tile
    assert sum(c.n * (c.dense - c.pruned) for c in report.classes) / 160 == pytest.approx(dense - packed)
    assert report.changed and any(e.dense == e.truth != e.pruned for e in report.changed)

    # the words of a recipe, and of this folder
    assert "--set ticket.sparsity=0.7" in report.next_step and "`--sparsity`" not in report.next_step
    assert "winnow export 'a ö b' --out 'a ö b-dense'" in report.undo  # by name: the report is given away
    assert str(tmp_path) not in report.model_dump_json() + readme
    assert ".work" not in report.model_dump_json() + readme + (out / "report.html").read_text()
    assert report.requested.budget == "90% sparsity, of the ticket stage" and "named by you" not in readme
    stored = (folder / "weights.safetensors").stat().st_size
    assert (
        stored < 0.6 * report.sizes.dense_file
        and f"take {words.size(stored)} on disk" in readme
        and f"{words.size(stored)} on disk" in said
    )


def test_a_dense_model_that_nobody_measured(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    _, report, readme = ran(folder, monkeypatch, out, TICKET % "" + COMPRESS)
    assert report.dense is None and report.ticket.drop is None and report.yardstick is report.ticket
    assert "the dense model was not measured" in report.verdict.sentence and report.verdict.tone != "good"
    assert "| | the ticket, before packing | this model |" in readme and "| | dense" not in readme
    assert "The dense model was not measured" in readme.partition("## Notes")[2]
    said = screen(out)
    assert "Accuracy, dense not measured" in said and "Before packing" in said and "against the ticket" in said
    assert "-0.00" not in said + readme and "−0.00" not in said + readme


def test_a_model_that_was_measured_before_the_ticket_is_the_dense_one(folder, tmp_path, monkeypatch):
    stages = "  - eval\n" + TICKET % "" + COMPRESS
    done, report, _ = ran(folder, monkeypatch, tmp_path / "out", stages)
    assert report.dense.quality == pytest.approx(done.stages[0].figures["value"])
    assert "“Dense” is the model given" in report.notes[0]


def test_a_ticket_that_is_measured_is_not_dense(folder, tmp_path, monkeypatch):
    _, report, _ = ran(folder, monkeypatch, tmp_path / "out", TICKET % "" + "  - eval\n" + COMPRESS + "  - eval\n")
    assert report.dense is None and report.ticket is not None


def test_compress_after_training_is_compared_with_it(folder, tmp_path, monkeypatch):
    stages = TRAIN + COMPRESS.replace("{", "{method: magnitude, sparsity: 0.3, ")
    done, report, readme = ran(folder, monkeypatch, tmp_path / "out", stages)
    assert report.ticket is None and report.dense.quality == pytest.approx(done.stages[0].figures["value"])
    assert "| | dense | this model |" in readme and "“Dense” is the model of stage 1 (train)" in readme


def test_a_ticket_that_nothing_was_measured_of():
    """The file alone is reported, and the model it was packed from is still no dense one."""
    from winnow.pipeline.stages.compress_page import _name_ticket

    report = schema.Report(
        title="m: 50% sparsity", verdict=schema.Verdict(sentence="s"), model=schema.ModelInfo(name="m"),
        candidates=[schema.Candidate(name="s50", kind="pruned", sparsity=0.5, file_bytes=60, chosen=True)],
        sizes=schema.Sizes(dense_file=100, file=60),
    )  # fmt: skip
    assert "| | dense | this model |" in card.card(report)
    _name_ticket(report, 0.5)
    assert report.dense is None and report.ticket.sparsity == 0.5 and report.ticket.file_bytes == 100
    assert "| | the ticket, before packing | this model |" in card.card(report)


def test_the_better_candidate_is_made_by_what_the_page_says(folder, tmp_path, monkeypatch):
    """Following the advice gives the model that was advised."""
    stages = TRAIN + TICKET % ", start: model" + COMPRESS.replace("baselines: none", "baselines: all, values: int8")
    out = tmp_path / "out"
    _, report, _ = ran(folder, monkeypatch, out, stages, keep_work=True)
    assert "--keep" not in report.next_step
    sets = re.findall(r"--set (\S+?)(?=[` ])", report.next_step)
    assert "--overwrite` to the command" in report.next_step
    assert sets and "The dense model was not measured" not in report.verdict.sentence
    assert "Against the dense model: accuracy" in report.verdict.sentence
    named = report.verdict.sentence
    again = ran(folder, monkeypatch, out, stages, keep_work=True, overwrite=True, sets=sets)[1]
    assert (
        again.picked.values == sets[0].partition("=")[2]
        and f"has {words.size(again.picked.file_bytes)} instead of" in named
    )


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("values", ["int8", "int4"])
def test_plain_quantization_is_said_in_a_recipes_words(folder, tmp_path, monkeypatch, method, values):
    from winnow.pipeline.stages.compress import Compress
    from winnow.pipeline.stages.compress_page import _take

    group = 32 if values == "int4" else None
    plain = schema.Candidate(name="plain", kind="quantized", values=values, group_size=group, method=method)
    step = _take(plain, Compress())
    sets = re.findall(r"--set (\S+?)(?=[` ])", step)
    assert ("compress.group_size=32" in sets) == (values == "int4")
    _, report, _ = ran(folder, monkeypatch, tmp_path / "out", TRAIN + COMPRESS, sets=sets)
    assert (report.picked.kind, report.picked.values, report.picked.sparsity) == ("quantized", values, 0)
    for own in (dict(size="1 MB"), dict(max_drop=1.0), dict(bits_per_weight=4.0), dict(structure="2:4")):
        assert _take(plain, Compress(**own)) == ""


def packed_ticket(baseline, **picked):
    """A report as compress leaves it of a ticket of 1,000 bytes: 89.0% before packing, no more than the packed one loses."""
    values = dict(name="s90", kind="pruned", file_bytes=200, quality=88.9, drop=0.1, drop_low=-0.1, drop_high=0.3)
    return schema.Report(
        title="t", verdict=schema.Verdict(sentence="As compress said."), model=schema.ModelInfo(name="m"),
        task=schema.TaskInfo(metric="accuracy", unit="%", n=500), sizes=schema.Sizes(dense_file=1000, file=200),
        baseline=baseline,
        candidates=[
            schema.Candidate(name="dense", kind="dense", file_bytes=1000, quality=89.0, drop=0.0),
            schema.Candidate(chosen=True, **values | picked),
            schema.Candidate(name="int4-g32-rtn", kind="quantized", file_bytes=300, quality=88.0, drop=1.0),
        ],
    )  # fmt: skip


def test_a_packed_tickets_verdict_names_the_plain_quantization_of_the_ticket():
    from winnow.pipeline.stages.compress import Compress
    from winnow.pipeline.stages.compress_page import judge_recipe
    from winnow.pipeline.stages.ticket import Ticket

    ticket = Ticket(sparsity=0.9, steps=10)
    plain = dict(name="int4-g32-rtn", label="int4 g32 RTN", file_bytes=300, quality=88.0, n=500)
    worse = schema.Baseline(drop=-0.9, drop_low=-1.5, drop_high=-0.3, chosen_is="better", **plain)
    found = judge_recipe(packed_ticket(worse), Compress(), ticket, "out", None)
    first, _, rest = found.sentence.partition(". ")
    assert "the nearest plain quantization of the ticket, int4 g32 RTN, has 300 bytes (1.50× larger)" in first
    assert first.endswith("accuracy 88.00%, worse by 0.90 points (95% interval 0.30 to 1.50)")
    assert found.tone == "mixed" and rest == "It depends on what the ticket itself lost."

    better = schema.Baseline(drop=0.5, drop_low=0.2, drop_high=0.8, chosen_is="worse", **plain)
    found = judge_recipe(packed_ticket(better), Compress(), ticket, "out", None)
    assert found.tone == "mixed" and "what counts more, a file 1.50× smaller or the accuracy of int4" in found.sentence
    found = judge_recipe(packed_ticket(schema.Baseline(missing="plain quantization was not measured (baselines: none)")), Compress(), ticket, "out", None)  # fmt: skip
    assert "; plain quantization was not measured (baselines: none)." in found.sentence
    # What compress said of a dense model stands as it was.
    found = judge_recipe(packed_ticket(better), Compress(), None, "out", None)
    assert found.sentence == "As compress said."


def test_a_change_that_rounds_to_nothing_has_no_sign():
    assert change(Comparison(0.001, -1.0, 0.004, False, 9, "")) == "0.00 points, 95% interval 0.00 to +1.00"
    assert change(Comparison(0.5, 0.0, 1.0, False, 9, "")) == "−0.50 points, 95% interval −1.00 to 0.00"
    assert [words.signed(v) for v in (-0.0, 0.0, -0.004, 0.006, -1.0)] == ["0.00", "0.00", "0.00", "+0.01", "−1.00"]


@pytest.mark.parametrize("other", [33_839, 500, 0])
def test_shares_of_the_weights_file_are_of_one_whole(other):
    """``other`` counts the header and, in a real folder, the files beside the weights."""
    parts = {"packed_values": 14_915, "masks": 12_048, "scales": 1_020, "dense_tensors": 14_984, "other": other}
    sizes = schema.Sizes(dense_file=80_520, file=43_467, **parts)
    report = schema.Report(
        title="t", verdict=schema.Verdict(sentence="s"), model=schema.ModelInfo(name="m"), sizes=sizes
    )
    stack, table = tables.sizes(report)
    assert sum(float(row.cells[1][0].strip("%< ")) for row in table.rows) == pytest.approx(100, abs=0.3)
    (before, _), (_, parts) = stack.bars
    assert sum(share for *_, share in parts) == pytest.approx(100 * 43_467 / 80_520, abs=0.1)
    assert bool(tables.beside(sizes)) == (other > 500)
    assert "before packing" not in (card.card(report) + before).lower()


def test_without_a_report_nothing_of_one_is_written(tmp_path):
    made, out = tmp_path / "made", tmp_path / "ö"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"x")
    publish(made, out, "model: m\n", {"model": {"spec": "m"}}, keep=True)
    assert {p.name for p in out.iterdir()} == {".winnow.json", "model.safetensors", "run.json", "run.yaml"}
    assert json.loads((out / "run.json").read_text())["model"] == {"spec": "m"}
