"""The callback for Lightning's Trainer: against a plain loop, resumed, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small import classifier, points
from sparse_methods import random_keeps
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train import Fixed, Gradual, RandomMasks, RigL, SignIn, attach

pytest.importorskip("lightning", reason="the callback is tested with pip install lightning")
pl = pytest.importorskip("lightning.pytorch")

X, Y = points()
Y = torch.as_tensor(Y)
BATCH, BATCHES = 16, 8  # of an epoch


def momentum(p: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01)


class Module(pl.LightningModule):
    def __init__(self, make: Any = momentum) -> None:
        super().__init__()
        self.model, self.make = classifier(), make

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def fit(module: pl.LightningModule, folder: Path, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> pl.Trainer:
    settings = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "enable_checkpointing": False, **options,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=list(callbacks), **settings)
    data = torch.utils.data.TensorDataset(X[: BATCH * BATCHES], Y[: BATCH * BATCHES])
    with warnings.catch_warnings():
        for words in ("does not have many workers", "need to be provided during", "exists and is not empty"):
            warnings.filterwarnings("ignore", f".*{words}.*")
        trainer.fit(module, torch.utils.data.DataLoader(data, BATCH), ckpt_path=ckpt_path)
    return trainer


def callback(method: Any = None, **options: Any) -> Any:
    from winnow.train import LightningCallback

    return LightningCallback(method, **options)


class Watch(pl.Callback):
    """That masked weights, and their gradients when the optimizer reads them, are zero."""

    def __init__(self, of: Any) -> None:
        self.of, self.steps = of, 0

    def on_before_optimizer_step(self, *_: Any) -> None:
        for name, weight in self.of.attached.weights.items():
            gone = ~self.of.attached.keeps[name]
            assert gone.any() and not weight[gone].count_nonzero() and not weight.grad[gone].count_nonzero()
        self.steps += 1


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_accumulation_and_clipping_equal_a_plain_loop(tmp_path, clip):
    module, hook = Module(), callback(SignIn(RigL(0.6, end=6, every=2), every=3))
    watch, limit = Watch(hook), {"norm": 0.1, "value": 0.01}[clip]
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": limit, "gradient_clip_algorithm": clip}
    fit(module, tmp_path, hook, watch, **options)
    model = classifier()
    optimizer = momentum(model.parameters())
    attached = attach(model, optimizer, SignIn(RigL(0.6, end=6, every=2), every=3))
    for step in range(8):
        optimizer.zero_grad()
        for half in range(2):
            rows = slice(BATCH * (2 * step % BATCHES + half), BATCH * (2 * step % BATCHES + half + 1))
            (F.cross_entropy(model(X[rows]), Y[rows]) / 2).backward()
        if clip == "norm":
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        else:
            nn.utils.clip_grad_value_(model.parameters(), limit)
        optimizer.step()
    assert watch.steps == attached.step == 8
    assert {f"model.{n}": m for n, m in attached.masks.items()} == dict(hook.masks.items())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(module.model.get_parameter(name), parameter, rtol=1e-5, atol=1e-7, msg=name)
    assert hook.attached is None and not module.model.blocks[0].up.weight._post_accumulate_grad_hooks
    assert hook.masks.zeros == round(0.6 * hook.masks.numel) == sum(
        int((module.get_parameter(n) == 0).sum()) for n in hook.masks
    )  # fmt: skip


METHODS: dict[str, Any] = {
    "random": lambda: RandomMasks(0.6),
    "gradual": lambda: Gradual(0.6, end=14, every=3),
    "sign-in": lambda: SignIn(RigL(0.6, end=14, every=3), every=4),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_bit_for_bit(tmp_path, method, precision):
    """From what ModelCheckpoint wrote on the way, and further from what was saved when the fit was over."""

    def adamw(p: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(p, 1e-2, weight_decay=0.1)

    whole, hook = Module(adamw), callback(METHODS[method]())
    save = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1)
    done = fit(whole, tmp_path, hook, save, precision=precision, enable_checkpointing=True)
    done.save_checkpoint(tmp_path / "done.ckpt")
    for file, left in (("epoch=0.ckpt", 2), ("done.ckpt", 3)):
        again, second = Module(adamw), callback(METHODS[method]())
        trainer = fit(
            again, tmp_path, second, Watch(second), precision=precision, ckpt_path=tmp_path / file, max_epochs=left
        )
        assert trainer.global_step == left * BATCHES and second.masks.zeros == round(0.6 * second.masks.numel)
        if left == 2:
            assert second.masks == hook.masks
            for name, parameter in whole.named_parameters():
                assert torch.equal(again.get_parameter(name), parameter), name


class Manual(pl.LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.model = classifier()
        self.automatic_optimization = False

    def training_step(self, batch: Any, number: int) -> None:
        first, last = self.optimizers()
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.manual_backward(loss)
        self.clip_gradients(last, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        for optimizer in (first, last):
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        matrices = [b.up.weight for b in self.model.blocks]
        others = [p for p in self.parameters() if all(p is not m for m in matrices)]
        return momentum(matrices), torch.optim.AdamW(others, 1e-3)


def test_manual_optimization(tmp_path):
    module, hook = Manual(), callback(SignIn(Gradual(0.5, end=10, every=2), every=5))
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    steps: list[int] = []

    class Count(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            steps.append(hook.attached.step)

    fit(module, tmp_path, hook, Count())
    assert steps == list(range(1, 17)) and hook.method.resets == 3
    for name, mask in hook.masks.items():
        weight, keep = module.get_parameter(name).detach(), mask.unpack()
        assert not weight[~keep].count_nonzero() and bool((weight[keep] != before[name][keep]).any())
    assert hook.masks.zeros == round(0.5 * hook.masks.numel)


def test_the_zeros_of_a_model_stay_and_averages_have_them(tmp_path):
    """Without arguments; Lightning's own average of the weights ends up in the module."""
    module = Module()
    keeps = random_keeps(find_scope(module.model))
    for name, keep in keeps.items():
        module.model.get_parameter(name).data *= keep
    module.model.winnow_zeros = {n: int((~k).sum()) for n, k in keeps.items()}
    module.model.head.weight.data[0] = 0
    module.model.winnow_zeros["head.weight"] = module.model.head.weight[0].numel()
    hook = callback()
    averaging = pl.callbacks.WeightAveraging(avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.5))
    fit(module, tmp_path, hook, averaging)
    assert set(hook.masks) == {f"model.{n}" for n in [*keeps, "head.weight"]}
    for name, mask in hook.masks.items():
        weight = module.get_parameter(name).detach()
        assert torch.equal(weight != 0, mask.unpack()), name


def test_what_is_refused_or_warned_of(tmp_path):
    module = Module()
    save = pl.callbacks.ModelCheckpoint(tmp_path, "plain")
    fit(module, tmp_path, save, enable_checkpointing=True, max_epochs=1)
    with pytest.raises(InputError, match="holds no masks: resume from a checkpoint written with this callback"):
        fit(Module(), tmp_path, callback(RandomMasks(0.5)), ckpt_path=tmp_path / "plain.ckpt")
    with pytest.raises(InputError, match=r"model\.blocks\.0\.up\.weight is bfloat16.*autocast"):
        fit(Module(), tmp_path, callback(SignIn(RandomMasks(0.5), every=2)), precision="bf16-true")
    save = pl.callbacks.ModelCheckpoint(tmp_path, "gradual")
    with pytest.warns(UserWarning, match="will be zero, not the 80% asked for.*going to end at step 16") as caught:
        fit(Module(), tmp_path, hook := callback(Gradual(0.8, end=20, every=2)), save, enable_checkpointing=True)
    assert hook.attached is None and any("training ended at step 16" in str(w.message) for w in caught)
    with pytest.raises(InputError, match=r"another method, Gradual, and this is SignIn\(RigL\)"):
        wrong = callback(SignIn(RigL(0.8, end=9, every=2), every=3))
        fit(Module(), tmp_path, wrong, ckpt_path=tmp_path / "gradual.ckpt", max_epochs=3)
    with pytest.raises(InputError, match="the first reset would come at step 100, and the training ends at step 16"):
        fit(Module(), tmp_path, callback(SignIn(Fixed(), every=100)))


def test_trained_again_after_an_error(tmp_path):
    class Stop(pl.Callback):
        armed = True

        def on_train_batch_end(self, *_: Any) -> None:
            if self.armed:
                self.armed = False
                raise ZeroDivisionError

    module, hook, stop = Module(), callback(Gradual(0.6, end=9)), Stop()
    with pytest.raises(ZeroDivisionError):
        fit(module, tmp_path, hook, stop)
    left = hook.attached
    fit(module, tmp_path, hook, stop)
    assert hook.attached is None and not left._handles and hook.masks.zeros == round(0.6 * hook.masks.numel)


def test_lightning_is_imported_when_it_is_asked_for():
    script = "import sys, winnow.train; assert 'lightning' not in sys.modules; winnow.train.LightningCallback"
    subprocess.run([sys.executable, "-c", script], check=True)
    hidden = "import sys; sys.modules['lightning'] = None; import winnow.train; winnow.train.LightningCallback"
    failed = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert "InputError: training with Lightning needs it: pip install 'winnow-nn[lightning]'" in failed.stderr
