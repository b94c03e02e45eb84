"""Tasks of the language-model evaluation harness (lm-eval), through its public functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.errors import InputError


def harness(
    model: Any,
    tokenizer: Any,
    tasks: list[str],
    include_path: str | Path,
    *,
    batch_size: int = 8,
    limit: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Runs lm-eval on tasks defined by YAML files in a folder; none of its own tasks is read and nothing is fetched.

    Args:
        model, tokenizer: a transformers causal language model with its tokenizer.
        tasks: names of tasks (or groups) in ``include_path``.
        include_path: folder of task YAML files; their data_files may be local.
        limit: only the first ``limit`` examples of each task.

    Returns:
        For each task its figures, such as {"acc": 0.61, "acc_stderr": 0.02}.

    Raises:
        InputError: lm-eval is not installed, or a task is not in the folder.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError("harness tasks need lm-eval: pip install 'winnow-nn[eval]'.") from None
    if not Path(include_path).is_dir():
        raise InputError(f"{include_path} is not a folder: give the one that holds the tasks' YAML files.")
    manager = TaskManager(include_path=str(include_path), include_defaults=False)
    missing = [task for task in tasks if task not in manager.all_tasks]
    if missing or not tasks:
        known = ", ".join(sorted(manager.all_tasks)) or "none"
        raise InputError(f"{include_path} defines no task {missing[0] if missing else ''!r}: it has {known}.")
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        bootstrap_iters=1_000,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return {task: _figures(values) for task, values in found["results"].items()}


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of one task; lm-eval writes "acc,none" for a metric without a filter."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if "," in key and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
