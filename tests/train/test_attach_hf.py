"""The callback for transformers.Trainer: masks while training, in every checkpoint, and after a restart."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_methods import random_keeps
from winnow.errors import FormatError, InputError
from winnow.masks.mask import Mask
from winnow.masks.scope import find_scope
from winnow.train import Fixed, Gradual, attach, read_state

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.hf

FILE = "winnow_train.safetensors"


def bert(seed: int = 5) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def examples(n: int = 40) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(30, (n, 8), generator=generator)
    return [{"input_ids": row, "labels": row[0] % 3} for row in ids]


def trainer(folder: Path, *callbacks: Any, model: torch.nn.Module | None = None, **options: Any) -> Any:
    settings = {
        "output_dir": str(folder), "max_steps": 10, "per_device_train_batch_size": 4, "learning_rate": 5e-3,
        "weight_decay": 0.1, "save_steps": 5, "logging_steps": 2, "report_to": [], "use_cpu": True, "seed": 3,
        "disable_tqdm": True, "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    return transformers.Trainer(
        model=bert() if model is None else model,
        args=transformers.TrainingArguments(**settings),
        train_dataset=examples(),
        eval_dataset=examples(8),
        callbacks=list(callbacks),
    )


def gradual() -> Any:
    from winnow.train import WinnowCallback

    return WinnowCallback(Gradual(0.6, begin=1, end=9, every=2))


class Watch(transformers.TrainerCallback):
    """Zeros after every step, and whether every masked gradient is zero when it is used."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.zeros = callback, []

    def on_pre_optimizer_step(self, args, state, control, **_):
        attached = self.callback.attached
        for name, weight in attached.weights.items():
            assert not weight.grad[~attached.keeps[name]].count_nonzero()

    def on_step_end(self, args, state, control, **_):
        assert self.callback.attached.step == state.global_step
        self.zeros.append(self.callback.attached.zeros)


def cubic(step: int, numel: int) -> int:
    final = round(0.6 * numel)
    return round(final * (1 - (1 - (step - 1) / 8) ** 3))


def test_gradual_through_the_trainer(tmp_path):
    whole = gradual()
    watch = Watch(whole)
    one = trainer(tmp_path / "whole", whole, watch)
    one.train()
    numel = whole.masks.numel
    changes = {1: 1, 2: 1, 3: 3, 4: 3, 5: 5, 6: 5, 7: 7, 8: 7, 9: 9, 10: 9}
    assert watch.zeros == [cubic(changes[s], numel) for s in range(1, 11)]
    assert whole.attached is None and whole.masks.zeros == round(0.6 * numel)
    assert all(not p._post_accumulate_grad_hooks for p in one.model.parameters())
    assert not one.optimizer.optimizer._optimizer_step_post_hooks

    saved = read_state(tmp_path / "whole" / "checkpoint-5" / FILE)
    assert saved["step"] == 5 and sum(
        Mask(b, tuple(whole.masks[n].shape)).zeros for n, b in saved["masks"].items()
    ) == cubic(5, numel)


def test_resuming_from_elsewhere(tmp_path):
    """A checkpoint outside output_dir is found by the argument; masks of another run are refused, and so are none."""
    first = gradual()
    trainer(tmp_path / "a", first, max_steps=5).train()
    shutil.copytree(tmp_path / "a" / "checkpoint-5", tmp_path / "moved")
    with pytest.raises(InputError, match="resume_from_checkpoint to it too"):
        trainer(tmp_path / "b", gradual()).train(resume_from_checkpoint=str(tmp_path / "moved"))
    again = gradual()
    moved = str(tmp_path / "moved")
    trainer(tmp_path / "b", again, resume_from_checkpoint=moved).train(resume_from_checkpoint=moved)
    assert again.masks.zeros == round(0.6 * again.masks.numel)
    other = gradual()
    trainer(tmp_path / "c", other, max_steps=5, model=bert(seed=8)).train()
    with pytest.raises(InputError, match="has weights where the masks of"):
        trainer(tmp_path / "c", gradual()).train(resume_from_checkpoint=moved)
    file = tmp_path / "moved" / FILE
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FormatError):
        trainer(tmp_path / "d", gradual(), resume_from_checkpoint=moved).train(resume_from_checkpoint=moved)


def test_best_model_at_the_end_has_its_own_masks(tmp_path, caplog):
    callback = gradual()
    run = trainer(
        tmp_path, callback, load_best_model_at_end=True, eval_strategy="steps", eval_steps=5,
        metric_for_best_model="first", greater_is_better=True,
    )  # fmt: skip
    scores = iter([1.0, 0.0])
    run.compute_metrics = lambda _: {"first": next(scores)}
    with caplog.at_level(logging.WARNING, "winnow.train.hf"):
        run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-5")
    assert callback.masks.zeros == cubic(5, callback.masks.numel)
    for name, mask in callback.masks.items():
        assert not run.model.get_parameter(name)[~mask.unpack()].count_nonzero()
    assert "turn load_best_model_at_end off" in caplog.text


def ours(caught: Any) -> list[str]:
    return [str(w.message) for w in caught if "schedule ends" in str(w.message)]


@pytest.mark.parametrize("every", [2, 100])
def test_a_schedule_longer_than_the_training_is_told_before_and_after(tmp_path, every):
    from winnow.train import WinnowCallback

    callback = WinnowCallback(Gradual("80%", end=20, every=every))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, callback, max_steps=5).train()
    before, after = ours(caught)
    numel = callback.masks.numel
    # The last change is after step 4, or, with every 100 steps, none at all.
    assert callback.masks.zeros == (round(0.8 * numel) - round(0.8 * numel * 0.8**3) if every == 2 else 0)
    assert callback.masks.zeros > 0.39 * numel or every == 100
    share = "39" if every == 2 else "0"
    assert before.startswith(
        f"{share}% of the weights will be zero, not the 80% asked for: the schedule ends at step 20"
    )
    assert "going to end at step 5" in before
    assert after == (
        f"{share}% of the weights are zero, not the 80% asked for: the schedule ends at step 20 and training ended at step 5."
    )


def test_a_training_stopped_early_is_told_at_the_end_only(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 4

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path / "whole", gradual()).train()
        assert ours(caught) == []
        trainer(tmp_path / "cut", gradual(), Stop()).train()
    (only,) = ours(caught)
    assert "not the 60% asked for: the schedule ends at step 9 and training ended at step 4" in only


def test_trained_again_after_an_error(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3 and self.armed:
                self.armed = False
                raise KeyboardInterrupt

    Stop.armed = True
    callback = gradual()
    run = trainer(tmp_path, callback, Stop())
    with pytest.raises(KeyboardInterrupt):
        run.train()
    left = callback.attached
    run.train()
    assert callback.attached is None and not left._handles
    assert callback.masks.zeros == round(0.6 * callback.masks.numel)


def test_the_package_needs_no_transformers_before_it_is_asked_for():
    script = (
        "import sys, json; import winnow.train; before = 'transformers' in sys.modules; "
        "from winnow.train import WinnowCallback; print(json.dumps([before, 'transformers' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, True]
    hidden = "import sys; sys.modules['transformers'] = None; import winnow.train; winnow.train.WinnowCallback"
    failed = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert "InputError: training with transformers needs it: pip install 'winnow-nn[hf]'" in failed.stderr
    import winnow.train

    with pytest.raises(AttributeError, match="nothing_here"):
        winnow.train.nothing_here  # noqa: B018


def test_the_trainer_equals_a_plain_loop(tmp_path):
    """Accumulation, clipping and weight decay as the Trainer does them, against a loop with attach; fixed masks.

    With SGD: Adam blows up the rounding noise of gradients that ought to be zero (the keys' biases).
    """
    from winnow.train import WinnowCallback

    model, plain = bert(), bert()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain.eval()
    fixed = Fixed(random_keeps(find_scope(plain, exclude=["*.query"])))
    callback = WinnowCallback(fixed, exclude=["*.query"])

    def summed(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")

    run = trainer(
        tmp_path, callback, model=model, gradient_accumulation_steps=2, max_grad_norm=0.5, max_steps=4, optim="sgd",
        optim_args="momentum=0.9", learning_rate=0.1, lr_scheduler_type="constant", save_strategy="no",
    )  # fmt: skip
    run.compute_loss_func = lambda outputs, labels, num_items_in_batch: summed(outputs, labels) / num_items_in_batch
    transformers.set_seed(run.args.seed)  # as train() does before it makes its loader
    order = [batch["input_ids"] for batch in run.get_train_dataloader()]
    run.train()
    decayed, named = run.get_decay_parameter_names(plain), dict(plain.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if (n in decayed) == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=run.optimizer.param_groups[0]["momentum"])
    attached = attach(plain, optimizer, fixed, exclude=["*.query"])
    for step in range(4):
        optimizer.zero_grad()
        for ids in order[2 * step : 2 * step + 2]:
            (summed(plain(input_ids=ids), ids[:, 0] % 3) / 8).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    assert callback.masks.hamming(attached.masks).overall == 0 and callback.masks.zeros > 0
    start = dict(bert().named_parameters())
    assert max(float((p - start[n]).detach().abs().max()) for n, p in named.items()) > 0.01
    for (name, a), b in zip(model.named_parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
