"""The front matter of a model card, as the hub's own library reads it."""

import sys

import pytest
import yaml

from report_samples import classifier, language_model, minimal
from winnow.report.compression.card import card
from winnow.report.compression.front_matter import parents_front_matter

hub = pytest.importorskip("huggingface_hub")


def test_measured_figures_are_evaluation_results():
    report = language_model()
    data = hub.ModelCard(card(report)).data
    (result,) = data.eval_results
    assert result.metric_type == "perplexity" and data.metrics == ["perplexity"]
    assert result.metric_value == round(report.picked.quality, 4) and result.dataset_name == report.task.evaluation_data
    assert result.task_type == data.pipeline_tag and data.library_name == "transformers"


def test_nothing_measured_gives_no_result_and_a_hub_name_is_the_base_model():
    data = hub.ModelCard(card(minimal())).data
    assert data.eval_results is None and data.tags == ["winnow", "sparsity"]
    report = classifier()
    for name, base in (
        ("org/net-1.5", "org/net-1.5"),
        ("net", "parent/x"),
        ("a/b/c", "parent/x"),
        ("mod:f", "parent/x"),
    ):
        named = report.model_copy(update={"model": report.model.model_copy(update={"name": name})})
        assert hub.ModelCard(card(named, {"base_model": "parent/x"})).data.base_model == base


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no front matter",
        "---\n[\n---\n",
        "---\n- a\n---\n",
        "---\ntags: 3\nlicense: [1]\n---\n",
        "\xff",
        "---\nlicense: &a [*a]\n---\n",
    ],
)
def test_a_parents_card_that_says_nothing_sound_costs_nothing(tmp_path, text, caplog):
    (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    assert parents_front_matter(tmp_path / "README.md") == {} and parents_front_matter(tmp_path / "none") == {}
    assert not caplog.records


def test_without_the_hubs_library_the_card_says_what_it_can(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    about = yaml.safe_load(card(language_model()).split("---\n", 2)[1])
    assert (
        about["tags"] == ["winnow", "sparsity"]
        and about["library_name"] == "transformers"
        and "model-index" not in about
    )
