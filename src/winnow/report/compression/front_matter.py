"""What a hub reads of a model card: origin, licence, task, tags and figures, kept from the parent's card where it has them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from winnow.disk.regular import read_regular
from winnow.records.compression import Report
from winnow.words import amount

_KEPT = (
    "base_model",
    "datasets",
    "language",
    "library_name",
    "license",
    "license_name",
    "license_link",
    "pipeline_tag",
)
_LARGEST = 1 << 22
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)  # as the Hugging Face hub names models
_TASKS = {
    "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering", "ForMaskedLM": "fill-mask", "ForCausalLM": "text-generation", "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification", "ForAudioClassification": "audio-classification", "CLIPModel": "zero-shot-image-classification",
}  # fmt: skip
# Names of metrics in Hugging Face's evaluate. Agreement with the dense model is none: it says nothing about labels.
_METRICS = {"accuracy": "accuracy", "perplexity": "perplexity", "R2": "r_squared", "spearman": "spearmanr"}


def front_matter(report: Report, parent: dict[str, Any], *, embeds: bool = False) -> str:
    """The YAML between the two lines of dashes.

    ``parent``: :func:`parents_front_matter`; ``embeds``: the folder is one of sentence-transformers.
    """
    import yaml

    architecture = report.model.architecture or ""
    task = next((tag for end, tag in _TASKS.items() if architecture.endswith(end)), None)
    library = "pytorch" if report.model.kind == "plain torch" else "transformers"
    about: dict[str, Any] = {"library_name": library, "pipeline_tag": task}
    if embeds:
        about = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    about |= parent
    about["tags"] = list(dict.fromkeys(["winnow", "sparsity", *parent.get("tags", ())]))
    if _REPOSITORY.fullmatch(report.model.name):
        about["base_model"] = report.model.name
    about = {key: about[key] for key in ("tags", *sorted(about.keys() - {"tags"})) if about[key] is not None}
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:  # a plain torch model where transformers is not installed
        return yaml.safe_dump(about, sort_keys=False, allow_unicode=True).strip()
    figures = _figures(report, about.get("pipeline_tag"))
    if figures:
        about |= {
            "metrics": [figures["metric_type"]],
            "model_name": _name(report.title),
            "eval_results": [EvalResult(**figures)],
        }
    return ModelCardData(**about).to_yaml(original_order=["tags"])


def parents_front_matter(path: Path) -> dict[str, Any]:
    """What is kept of another model's card: texts and lists of texts; {} where there is none, or none that can be read."""
    try:
        from huggingface_hub import metadata_load

        read_regular(path, _LARGEST)  # what is no file, or too large for a card, raises
        found = metadata_load(path) or {}
    except Exception:  # a card of somebody else's making, which must not cost the result
        return {}
    tags = found.get("tags")
    kept = {key: found[key] for key in _KEPT if isinstance(found.get(key), str) or _texts(found.get(key))}
    return {**kept, "tags": tags} if _texts(tags) else kept


def _figures(report: Report, task: Any) -> dict[str, Any]:
    """Of the model in the folder, as arguments of ``EvalResult``; {} where nothing was measured on data with a name."""
    chosen, data = report.picked, report.task.evaluation_data
    metric = _METRICS.get(report.task.metric)
    if chosen is None or chosen.quality is None or not math.isfinite(chosen.quality) or not data or metric is None:
        return {}
    name = _name(data)
    return {
        "task_type": task if isinstance(task, str) else "other",
        "dataset_type": re.sub(r"[^\w./-]+", "-", name), "dataset_name": name,
        "metric_type": metric, "metric_name": amount(report.task.metric, report.task.unit and f"({report.task.unit})"),
        "metric_value": round(chosen.quality, 4),
    }  # fmt: skip


def _name(text: str) -> str:
    """A name of somebody else's making, of letters, digits and plain punctuation only."""
    return re.sub(r"[^\w.,:/%() +-]+", "-", text).strip() or "unnamed"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
