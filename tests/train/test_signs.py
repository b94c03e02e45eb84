"""The signs of weights in training, against counting them one by one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from small import Classifier, classifier, points
from sparse_methods import Grow, magnitude_keeps, random_keeps
from winnow.errors import FormatError, InputError
from winnow.masks.scope import find_scope
from winnow.records.signs import SignReport
from winnow.report.signs.page import read
from winnow.train import Fixed, Gradual, RandomMasks, SignIn, Signs, attach, read_state, write_state
from winnow.train.signs import sign_run

X, Y = points()
Y = torch.as_tensor(Y)


def begun(method, model=None, lr=0.3, **options):
    model = model or classifier()
    return attach(model, torch.optim.SGD(model.parameters(), lr, momentum=0.9), method, **options)


def step(attached, number):
    rows = slice(32 * number, 32 * number + 32)
    attached.optimizer.zero_grad()
    F.cross_entropy(attached.model(X[rows]), Y[rows]).backward()
    attached.optimizer.step()


def weights(attached):
    return {n: w.detach().flatten().tolist() for n, w in attached.weights.items()}


def counted(now, other):
    """(entries that are zero in neither, those with the same sign), in a Python loop."""
    pairs = [(a, b) for a, b in zip(now, other, strict=True) if a != 0 and b != 0]
    return len(pairs), sum((a > 0) == (b > 0) for a, b in pairs)


@pytest.mark.parametrize(
    "method", [lambda: Fixed(random_keeps(find_scope(classifier()))), lambda: Gradual(0.7, end=5, every=1), Grow]
)
def test_counts_are_those_of_a_loop_over_all_weights(method):
    """Under masks that stay, shrink and grow; the reference has zeros of its own."""
    reference = classifier()
    with torch.no_grad():
        for p in reference.parameters():
            p += torch.randn_like(p)
            p[torch.rand_like(p) < 0.4] = 0
    plain = begun(method(), lr=0.8)
    attached = begun(signs := Signs(method(), every=2, reference=reference), lr=0.8)
    start = previous = weights(attached)
    theirs = {n: reference.get_parameter(n).detach().flatten().tolist() for n in attached.weights}
    expected = {}
    for number in range(7):
        if number:
            step(attached, number), step(plain, number)
        if number % 2 == 0:
            now = weights(attached)
            expected[number] = {
                n: (*counted(w, start[n]), *counted(w, previous[n]), *counted(w, theirs[n])) for n, w in now.items()
            }
            previous = now
    assert all(torch.equal(w, attached.weights[n]) for n, w in plain.weights.items())  # nothing but counting was added
    report = signs.report()
    (run,) = report.runs
    assert [p.step for p in run.points] == signs.steps == [0, 2, 4, 6]
    for point in run.points:
        rows = expected[point.step].values()
        compared, same, since, unchanged, shared, aligned = (sum(column) for column in zip(*rows))
        found = (point.compared, point.flipped, point.since, point.changed, point.shared, point.aligned)
        assert found == (compared, compared - same, since, since - unchanged, shared, aligned)
        assert point.kept == attached.numel - attached.zeros or point.step < 6
    assert run.points[-1].flipped and run.points[-1].changed and 0 < run.points[-1].alignment < 1
    for layer in run.layers:
        compared, same, *_ = expected[6][layer.name]
        assert (layer.last.compared, layer.last.flipped) == (compared, compared - same)
        assert layer.flips[-1] == (compared - same) / compared and layer.flips[0] == 0
        assert layer.numel == attached.weights[layer.name].numel()


def test_a_weight_that_crosses_and_returns_is_a_transition_and_no_flip():
    model = classifier()
    attached = begun(signs := Signs(every=1), model, lr=0.0)
    weight = attached.weights["blocks.0.up.weight"]
    for sign in (
        -1,
        -1,
        1,
    ):  # what the loop writes: the first row flips, flips back, and a kept weight becomes an exact zero
        with torch.no_grad():
            weight[0] *= sign
            weight[1, 0] = 0
        step(attached, 0)
    points = signs.report().runs[0].points
    assert [(p.flipped, p.changed) for p in points] == [(0, 0), (24, 24), (0, 24), (0, 0)]
    assert [p.compared for p in points] == [attached.numel, *[attached.numel - 1] * 3]
    assert [p.kept for p in points] == [attached.numel] * 4 and points[-1].alignment is None


def test_health_is_that_of_the_factors_before_the_reset():
    model = classifier().double()
    attached = begun(signs := Signs(SignIn(magnitude_keeps(model), every=3), every=1), model, lr=0.1)
    assert signs.resets == 0  # whatever else the method has is to be had
    told = []
    for number in range(3):
        if number < 2:
            F.cross_entropy(model(X[:32].double()), Y[:32]).backward()
            attached.optimizer.step()
            told.append(
                [float((f[0] ** 2 - f[1] ** 2).sum()) for f in (p.detach() for p in attached.factors.tensors.values())]
            )
        else:
            F.cross_entropy(model(X[:32].double()), Y[:32]).backward()
            attached.optimizer.step()
    kept = int(attached.numel - attached.zeros)
    healths = [p.health for p in signs.report().runs[0].points]
    assert healths[0] is None  # before the factors are made
    assert healths[1:3] == [pytest.approx(sum(t) / kept) for t in told]
    assert healths[3] < healths[2] < healths[1] < 1  # the reset of step 3 comes after
    assert signs.resets == 1 and all(math.isclose(h, 1) for h in signs.health(attached).values())


@pytest.mark.parametrize("torch_save", [True, False])
def test_the_record_survives_a_checkpoint(torch_save, tmp_path):
    def method():
        return Signs(SignIn(magnitude_keeps(classifier()), every=2), every=2, reference=classifier())

    whole, first = begun(one := method()), begun(method())
    for number in range(6):
        step(whole, number)
    for number in range(3):
        step(first, number)
    saved, moments = tmp_path / "state", copy.deepcopy(first.optimizer.state_dict())
    if torch_save:
        torch.save(first.state_dict(), saved)
        state = torch.load(saved, weights_only=True)
    else:
        write_state(saved, first.state_dict())
        state = read_state(saved)
    model = classifier()
    model.load_state_dict(first.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    optimizer.load_state_dict(moments)
    second = attach(model, optimizer, other := method(), state=state)
    for number in range(3, 6):
        step(second, number)
    assert one.report() == other.report() and other.resets == 3
    copied = copy.deepcopy(other)  # as a job elsewhere gets it
    assert copied.report() == other.report()


def test_seeds_add_up_and_a_bare_file_is_written(tmp_path):
    several = []
    for seed in range(2):
        attached = begun(Signs(random_keeps(find_scope(classifier()), seed=seed), every=2))
        for number in range(4):
            step(attached, number)
        several.append(attached.method)
    both, apart = sign_run(several, "both"), [sign_run([s], "one") for s in several]
    assert both.seeds == 2
    for point, *parts in zip(both.points, *(a.points for a in apart)):
        for name in ("kept", "compared", "flipped", "since", "changed"):
            assert getattr(point, name) == sum(getattr(p, name) for p in parts)
    page = several[0].save(tmp_path / "record")
    assert read(page.parent) == several[0].report() == SignReport.load(tmp_path / "record" / "signs.json")
    assert "<svg" in page.read_text() and "<script" not in page.read_text()
    (tmp_path / "record" / "signs.json").write_text("{}")
    with pytest.raises(FormatError, match="format None"):
        read(page.parent)


@pytest.mark.hf
def test_the_trainer_records_and_resumes(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from winnow.train import WinnowCallback

    class Model(Classifier):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": F.cross_entropy(super().forward(x), labels)}

    records = []
    for resumed in (None, str(tmp_path / "checkpoint-5")):
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=16, learning_rate=0.05, save_steps=5,
            report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, seed=3,
        )  # fmt: skip
        torch.manual_seed(1)
        model, signs = Model(), Signs(SignIn(RandomMasks(0.8), every=3), every=2)
        data = [{"x": x, "labels": y} for x, y in zip(X, Y)]
        trainer = transformers.Trainer(model=model, args=args, train_dataset=data, callbacks=[WinnowCallback(signs)])
        trainer.train(resume_from_checkpoint=resumed)
        records.append(signs.report())
    assert records[0] == records[1] and [p.step for p in records[0].runs[0].points] == [0, 2, 4, 6, 8, 10]
    assert records[0].runs[0].points[-1].flipped > 0


def test_mistakes_name_their_fix():
    with pytest.raises(InputError, match="give 1 or more"):
        Signs(every=0)
    with pytest.raises(InputError, match=r"the reference has no blocks\.0\.up\.weight"):
        begun(Signs(reference={}))
    wrong = classifier().state_dict() | {"blocks.1.up.weight": torch.zeros(2, 3)}
    with pytest.raises(InputError, match=r"blocks\.1\.up\.weight is \[2, 3\] in the reference and \[48, 24\] here"):
        begun(Signs(reference=wrong))
    with pytest.raises(InputError, match=r"the checkpoint is of another method, Fixed, and this is Signs\(Fixed\)"):
        begun(Signs(), state=begun(Fixed()).state_dict())
    attached = begun(Signs(SignIn(every=2), every=5))
    with pytest.warns(UserWarning, match="before signs are recorded at step 5: give a smaller every"):
        attached.detach()
    with pytest.raises(InputError, match="before the training"):
        Signs().report()
    with pytest.raises(AttributeError):
        Signs().nothing  # noqa: B018
