"""Steps that the user leaves out come from the length of the training, in every method alike."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn import functional as F

from small import classifier, points
from winnow.errors import InputError
from winnow.train import SET, Gradual, RandomMasks, RigL, SignIn, attach
from winnow.train.methods import METHODS
from winnow.train.task.run import Run
from winnow.train.task.training import Training

X, Y = points()
Y = torch.as_tensor(Y)


def attached(method, **options):
    model = classifier()
    return attach(model, torch.optim.SGD(model.parameters(), 0.1), method, **options)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda **more: Gradual("80%", every=2, **more), dict(end=20)),
        (lambda **more: RigL("80%", every=2, **more), dict(end=30)),
        (lambda **more: SET("80%", every=2, **more), dict(end=30)),
        (lambda **more: SignIn(RandomMasks("80%"), **more), dict(every=4, end=36)),
    ],
)
def test_shares_of_forty_steps(make, found):
    method = make()
    with pytest.raises(InputError, match=r"how long the training is: give \w+\(\.\.\., \w+=STEP\), or .*attach\(\.\.\., steps=STEPS\)\.$"):  # fmt: skip
        attached(method)
    attached(method, steps=40)
    assert {name: getattr(method, name) for name in found} == found
    attached(method, steps=400)  # a method may serve a second training
    assert {name: getattr(method, name) for name in found} == {name: 10 * value for name, value in found.items()}
    given = make(**found)
    attached(given, steps=1000)
    assert {name: getattr(given, name) for name in found} == found  # what is given stays


def test_a_method_within_another_is_told_too():
    inner = RigL("80%", every=2)
    attached(SignIn(inner, every=3), steps=40)
    assert inner.end == 30
    short = SignIn(end=3)
    attached(short, steps=100)
    assert (short.every, short.end) == (3, 3)  # a tenth would come after the last reset allowed


def test_masks_are_those_of_the_same_steps_by_name():
    found = []
    for method, more in ((Gradual("80%", every=3), dict(steps=16)), (Gradual("80%", every=3, end=8), {})):
        hook = attached(method, **more)
        for step in range(16):
            hook.optimizer.zero_grad()
            F.cross_entropy(hook.model(X[16 * step : 16 * step + 16]), Y[16 * step : 16 * step + 16]).backward()
            hook.optimizer.step()
        found.append(hook.masks)
        assert hook.zeros == round(0.8 * hook.numel)
    assert found[0] == found[1]


def test_a_loop_of_winnow_says_its_length():
    from winnow.train.examples import Examples

    given = Training(classifier(), Examples([(X, Y)], 32), lambda m, b: F.cross_entropy(m(b[0]), b[1]), 12, lr=1e-2)
    method = Gradual("60%")
    Run(given, method=method)
    assert method.end == 6


def test_a_trainer_says_its_length(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from winnow.train import WinnowCallback

    class Model(type(classifier())):
        def forward(self, x, labels):
            return {"loss": F.cross_entropy(super().forward(x), labels)}

    callback = WinnowCallback(Gradual("60%", every=2))
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=1, per_device_train_batch_size=40, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in zip(X, Y)]
    transformers.Trainer(model=Model(), args=args, train_dataset=data, callbacks=[callback]).train()
    assert callback.method.end == 5  # of ten steps, which no one had to count
    assert callback.masks.zeros == round(0.6 * callback.masks.numel)


@pytest.mark.parametrize("steps", [0, -3, 2.5])
def test_a_length_that_is_none(steps):
    with pytest.raises(InputError, match="number of optimizer steps of the whole training"):
        attached(RandomMasks("80%"), steps=steps)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_needs_a_count_of_steps(name):
    """Of a method that is added, too: what it leaves open, the length of the training decides."""
    needed = [p.name for p in inspect.signature(METHODS[name]).parameters.values() if p.default is p.empty]
    assert not {"begin", "end", "every", "steps", "interval"} & {*needed}
    if {*needed} <= {"sparsity", "masks"}:
        assert attached(METHODS[name](**dict.fromkeys(needed, "80%")), steps=1000).step == 0
