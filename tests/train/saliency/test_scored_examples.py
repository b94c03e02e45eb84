"""What masks are scored on: as many examples of every class in two halves, batch norms in the mode of training."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from baseline_samples import cross_entropy, find, network, task
from winnow.tickets.methods.one_shot import GraspSettings, SnipSettings
from winnow.tickets.methods.registry import METHODS
from winnow.train.examples import Examples, divided
from winnow.train.saliency import saliency
from winnow.train.saliency.saliency import PER_CLASS, class_numbers, every_class, grasp, mini_batches, snip
from winnow.train.task.batches import Fetched, Whole
from winnow.train.task.run import Run


def labelled(labels: torch.Tensor, size: int) -> Examples:
    return Examples([(torch.arange(len(labels)).float()[:, None], labels)], size)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=2, max_size=12), st.integers(1, 40), st.integers(1, 10), st.integers(0, 50)
)
def test_ten_of_every_class_as_far_as_there_are(counts, size, batches, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)) * 7, torch.tensor(counts))
    examples = labelled(labels, size)
    drawn = every_class(examples, seed, batches)
    found = torch.cat(drawn)
    assert len(found.unique()) == len(found) and (len(drawn) % 2 == 0 or len(found) < 4)
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1
    assert all(torch.equal(a, b) for a, b in zip(drawn, every_class(examples, seed, batches), strict=True))
    assert len(found) >= min(batches * size, len(labels))
    even = len(labels) < saliency.LOOK * batches * size  # all of it was looked at
    for number, count in enumerate(counts):
        there = int((labels[found] == 7 * number).sum())
        if even or count * 2 > len(labels) / len(counts):  # not rare, so not missed
            assert there >= min(PER_CLASS, count)


def test_default_settings_take_as_many_of_each_class_as_published():
    """Two thousand examples of ten classes, mini-batches of 16 and 32: 12 and 25 of each, 10 to 25 in the paper's code."""
    labels = torch.arange(2000) % 10
    for size, least in ((16, 12), (32, 25), (1, 10)):
        drawn = every_class(labelled(labels, size), 0, GraspSettings().batches)
        assert len(drawn) == 2
        assert labels[torch.cat(drawn)].bincount(minlength=10).tolist() >= [least] * 10
        for half in drawn:
            assert len(labels[half].unique()) == 10  # not one half of the classes each
    assert SnipSettings().batches == 1


@pytest.mark.parametrize("kind", ["real", "tokens", "ids", "none", "dict"])
def test_without_classes_the_examples_come_as_they_are_drawn(kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    batch = {
        "real": (x, torch.rand(400)), "tokens": {"input_ids": torch.ones(400, 5).long(), "labels": torch.ones(400, 5).long()},
        "ids": (x, torch.arange(400)), "none": (x, x), "dict": {"x": x, "y": torch.arange(400) % 3},
    }[kind]  # fmt: skip
    examples = Examples([batch], 8)
    found = torch.cat(every_class(examples, 4, 2))
    first = torch.cat(mini_batches(examples, 4, 2))
    assert torch.equal(found.sort().values, first.sort().values) == (kind != "dict")
    assert len(found) == (30 if kind == "dict" else 16)  # ten of each of three classes, whatever their key


def test_class_numbers_are_the_one_whole_number_of_each_example():
    x, y = torch.randn(4, 2), torch.tensor([1, 0, 2, 1])
    assert class_numbers((x, y), 4) is y and class_numbers({"a": x, "b": [y]}, 4) is y
    assert class_numbers((y, y.clone()), 4) is None and class_numbers((x, y.float()), 4) is None
    assert class_numbers((x, y > 0), 4) is None and class_numbers(["text"], 1) is None


def test_images_are_not_decoded_for_their_classes():
    class Decoder:
        labels = torch.arange(300) % 3

        def __call__(self, numbers):
            raise AssertionError("an image was decoded")

    examples = Fetched(300, 4, Decoder())
    for part in (examples, divided(examples, 0.2, 0)[0]):
        drawn = torch.cat(every_class(part, 0, 1))
        assert Decoder.labels[drawn].bincount().tolist() == [10, 10, 10]
        assert set(drawn.tolist()) <= set(part.numbers.tolist())


def test_batches_that_are_drawn_whole_stay_whole():
    examples = Whole([(torch.randn(n, 2), torch.rand(n)) for n in (3, 5, 4)])
    assert [len(i) for i in every_class(examples, 0, 2)] == [1, 1] and len(every_class(examples, 0, 8)) == 3
    alike = Whole([(torch.randn(8, 2), torch.arange(8) % 2) for _ in range(9)])
    assert [len(every_class(alike, 0, n)) for n in (1, 2, 5)] == [3, 3, 5]  # ten of each class are in three batches
    rare = Whole([(torch.randn(8, 2), torch.arange(8) // (8 if i else 7)) for i in range(40)])
    assert len(every_class(rare, 0, 1)) <= 8  # and does not look through everything for a class that hardly comes


def test_large_halves_are_divided_again(monkeypatch):
    monkeypatch.setattr(saliency, "LARGEST", 16)
    drawn = every_class(labelled(torch.arange(400) % 4, 8), 0, 10)
    assert [len(i) for i in drawn] == [80 // 6 + (i < 2) for i in range(6)]


def in_training(model: nn.Module, names: list[str], halves, temperature: float) -> torch.Tensor:
    """w (H g) by explicit Hessians of the two halves' mean loss, the model in train mode."""
    model = copy.deepcopy(model).train()
    shapes = [model.get_parameter(n).shape for n in names]
    flat = torch.cat([model.get_parameter(n).detach().flatten() for n in names])

    def loss(vector):
        parts = vector.split([s.numel() for s in shapes])
        weights = {n: p.reshape(s) for n, p, s in zip(names, parts, shapes)}
        total = sum(F.cross_entropy(functional_call(model, weights, (x,)) / temperature, y) for x, y in halves)
        return total / len(halves)

    hessian = torch.autograd.functional.hessian(loss, flat)
    return flat * (hessian @ torch.autograd.functional.jacobian(loss, flat))


@pytest.mark.parametrize("frozen", [False, True])
def test_grasp_scores_in_the_mode_of_training_and_leaves_the_statistics(frozen):
    model = network().double()
    norm = model[1]
    norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    norm.running_var.fill_(0.3)
    norm.requires_grad_(not frozen)
    run = Run(task(model, rows=48, size=6))
    before = {n: t.clone() for n, t in run.model.state_dict().items()}
    found = torch.cat([s.flatten() for s in grasp(run, 8).values()])
    after = run.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())
    assert not any(m.training for m in run.model.modules()) and run.model[1].track_running_stats
    halves = [run.training.examples.take(i) for i in every_class(run.training.examples, 0, 8)]
    reference = copy.deepcopy(run.model)
    if frozen:  # by its running statistics, as the training has it
        reference[1].track_running_stats = False
        reference[1].forward = lambda x: F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    expected = in_training(reference, list(run.scope.prunables), halves, 200.0)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    other = copy.deepcopy(run.model).eval()
    other.train = lambda mode=True: other  # the scores that eval mode would give are others
    if not frozen:
        torch.testing.assert_close(found, expected)
        eval_scores = in_training(other, list(run.scope.prunables), halves, 200.0)
        assert not torch.allclose(found, eval_scores, rtol=1e-2, atol=1e-3 * float(found.abs().max()))


def test_snip_leaves_the_statistics_too():
    run = Run(task(network()))
    before = {n: t.clone() for n, t in run.model.state_dict().items()}
    snip(run, 2)
    assert all(torch.equal(t, run.model.state_dict()[n]) for n, t in before.items())


@pytest.mark.parametrize("classes", [2, 4, 9])
@pytest.mark.parametrize("size", [3, 12, 50])
def test_what_grasp_takes_is_planned(classes, size):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 10, generator=generator)
    training = task(network()).replaced(examples=Examples([(x, torch.arange(300) % classes % 4)], size))
    kept = METHODS["grasp"].settings_class(batches=2)
    (ticket,) = find("grasp", training, [0.5], batches=2)
    assert ticket.cost.steps == METHODS["grasp"].planned_steps(kept, training, 0.5)
    examples = max(2 * size, PER_CLASS * min(classes, 4))
    assert ticket.cost.extra == -(-3 * examples // size)


def test_one_example_more_than_a_batch_norm_takes():
    """Three examples are one part, not two of which one has a single example."""
    x = torch.randn(3, 10)
    training = task(network()).replaced(examples=Examples([(x, torch.tensor([0, 1, 2]))], 2), loss=cross_entropy)
    assert [len(i) for i in every_class(training.examples, 0, 8)] == [3]
    assert all(bool(s.isfinite().all()) for s in grasp(Run(training)).values())
