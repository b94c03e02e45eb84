"""What of a transformers Trainer decides its loss."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from winnow.train.task.code import is_library

# keyed on their own (model, data, optimizer, schedule), or bookkeeping
_ELSEWHERE = {
    "model", "model_wrapped", "model_init", "train_dataset", "eval_dataset", "data_collator", "processing_class",
    "tokenizer", "optimizer", "lr_scheduler", "optimizer_cls_and_kwargs", "callback_handler", "accelerator", "deepspeed",
    "gather_function", "state", "control", "compute_metrics", "preprocess_logits_for_metrics", "hub_model_id", "hp_name",
    "hp_search_backend", "current_flos", "is_in_train", "_memory_tracker", "_loggers_initialized", "_signature_columns",
    "_train_batch_size", "_created_lr_scheduler", "_mixed_mesh_grads",
}  # fmt: skip
# of the arguments that transformers defines: where it writes, what it says, how it loads, on how many machines
_BOOKKEEPING = (
    "output_dir", "overwrite_output_dir", "logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_",
    "save_", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "hub_", "push_to_hub", "eval_",
    "per_device_eval_batch_size", "evaluation_strategy", "prediction_loss_only", "batch_eval_metrics", "include_", "do_",
    "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "ignore_data_skip",
    "dataloader_", "ddp_", "fsdp", "deepspeed", "accelerator_config", "parallelism_config", "debug", "skip_memory_metrics",
    "local_rank", "tpu_",
)  # fmt: skip
_PLACE = {"distributed_state", "deepspeed_plugin", "fsdp_plugin_args", "mixed_precision", "local_rank", "_n_gpu"}


def is_trainer(kind: type) -> bool:
    return hasattr(kind, "compute_loss") and hasattr(kind, "get_train_dataloader")


def of(trainer: Any) -> tuple[Any, ...]:
    """Attributes by name, those of a subclass included, and the arguments that can bear on a loss."""
    found = {n: v for n, v in vars(trainer).items() if n not in _ELSEWHERE}
    args = found.get("args")
    if is_dataclass(args) and not isinstance(args, type):
        found["args"] = (type(args), *_arguments(args))
    return tuple(sorted(found.items()))


def _arguments(args: Any) -> list[tuple[str, Any]]:
    bases = [b for b in type(args).__mro__ if is_dataclass(b) and is_library(b.__module__)]
    theirs = {f.name for b in bases for f in fields(b)}
    return sorted(
        (n, v)
        for n, v in vars(args).items()
        if not (n in theirs and n.startswith(_BOOKKEEPING)) and n not in _PLACE and "_setup_devices" not in n
    )
