"""The distances of a student from the dense model: against float64 formulas, torch, and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from families import family
from small import classifier, convnet, images, points
from winnow.errors import InputError
from winnow.fcpts.settings import FcptsSettings
from winnow.masks.scope import find_scope
from winnow.train.distil.losses import distance
from winnow.train.distil.outputs import Outputs, read_output
from winnow.train.distil.settings import DistilSettings
from winnow.train.distil.student import Student
from winnow.train.distil.teacher import Blockwise, Teacher
from winnow.train.examples import Examples


def kl_by_hand(student, dense, t):
    """T^2 / rows * sum p log(p / q), with numpy in float64."""

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(dense / t), softmax(student / t)
    return t * t * float((p * (np.log(p) - np.log(q))).sum()) / len(dense)


def pair(rows=5, width=7, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, width, generator=g, dtype=dtype) * 3 for _ in range(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(2, 9), st.sampled_from([0.5, 1.0, 4.0, 20.0]), st.integers(0, 9))
def test_kl_is_the_formula_and_torchs(rows, width, temperature, seed):
    s, d = pair(rows, width, seed)
    found = float(distance(Outputs(s), d, "kl", temperature))
    assert found == pytest.approx(kl_by_hand(s.numpy(), d.numpy(), temperature), rel=1e-9)
    theirs = F.kl_div(F.log_softmax(s / temperature, -1), F.softmax(d / temperature, -1), reduction="batchmean")
    assert found == pytest.approx(float(theirs) * temperature**2, rel=1e-9)
    assert float(distance(Outputs(d), d, "kl", temperature)) == pytest.approx(0, abs=1e-12)


def test_kl_gradient_is_the_known_one():
    s, d = pair()
    s.requires_grad_()
    distance(Outputs(s), d, "kl", 4.0).backward()
    assert torch.allclose(s.grad, 4 * (torch.softmax(s / 4, -1) - torch.softmax(d / 4, -1)).detach() / len(s))


@pytest.mark.parametrize("loss", ["kl", "mse", "cosine"])
def test_only_rows_that_count_count(loss):
    g = torch.Generator().manual_seed(0)
    s, d = torch.randn(3, 4, 5, generator=g), torch.randn(3, 4, 5, generator=g)
    counts = torch.rand(3, 4, generator=g) > 0.4
    found = distance(Outputs(s, counts), d[counts], loss, 2.0)
    assert found == distance(Outputs(s[counts]), d[counts], loss, 2.0)
    assert found == distance(Outputs(s, counts), d, loss, 2.0)  # all values are as good as the counted rows
    spoilt = torch.where(counts[..., None], s, torch.full_like(s, 1e6))
    assert found == distance(Outputs(spoilt, counts), d[counts], loss, 2.0)
    if loss == "kl":
        ours = kl_by_hand(s[counts].double().numpy(), d[counts].double().numpy(), 2.0)
        assert float(found) == pytest.approx(ours, rel=1e-5)
    none = torch.zeros(3, 4, dtype=torch.bool)
    assert float(distance(Outputs(s, none), d[none], loss, 2.0)) == 0


def test_mse_is_relative_to_the_dense_output():
    s, d = pair()
    found = float(distance(Outputs(s, None, "features"), d, "mse", 1.0))
    assert found == pytest.approx(float(((s - d) ** 2).mean() / (d**2).mean()))
    for scale in (1e-3, 1e4):
        assert float(distance(Outputs(s * scale), d * scale, "mse", 1.0)) == pytest.approx(found)
    assert (
        float(distance(Outputs(torch.full((2, 3), 2.0)), torch.zeros(2, 3), "mse", 1.0)) == 4
    )  # a dense output of zeros


def test_joined_tensors_are_compared_on_their_own_scales():
    s, d = pair(width=9)
    read = Outputs(s, None, "features", (4, 5))
    parts = [float(((s - d)[:, c] ** 2).mean() / (d[:, c] ** 2).mean()) for c in (slice(0, 4), slice(4, 9))]
    assert float(distance(read, d, "mse", 1.0)) == pytest.approx(np.mean(parts))
    scale = torch.tensor([1e3] * 4 + [1e-2] * 5)
    scaled = Outputs(s * scale, None, "features", (4, 5))
    assert float(distance(scaled, d * scale, "auto", 1.0)) == pytest.approx(np.mean(parts))
    angles = [1 - float(F.cosine_similarity(s[:, c], d[:, c], -1).mean()) for c in (slice(0, 4), slice(4, 9))]
    assert float(distance(read, d, "cosine", 1.0)) == pytest.approx(np.mean(angles))


def test_cosine_is_the_mean_of_one_minus_the_cosine():
    s, d = pair()
    a, b = s.numpy(), d.numpy()
    expected = np.mean([1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b)])
    assert float(distance(Outputs(s), d, "cosine", 1.0)) == pytest.approx(expected)
    assert float(distance(Outputs(d * 3), d, "cosine", 1.0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", ["kl", "mse", "cosine"])
def test_gradients_agree_with_finite_differences(loss):
    s, d = pair(3, 4)
    read = Outputs(s.requires_grad_(), None, "logits")
    assert torch.autograd.gradcheck(lambda x: distance(Outputs(x, None, read.kind), d, loss, 3.0), (s,))


def test_large_and_infinite_logits_stay_numbers():
    s, d = torch.tensor([[1e30, -1e30, 0.0], [3e4, 0, -3e4]]), torch.tensor([[-1e30, 1e30, 0.0], [3e4, 1, -3e4]])
    s.requires_grad_()
    found = distance(Outputs(s), d, "kl", 1.0)
    found.backward()
    assert (
        torch.isfinite(found)
        and torch.isfinite(s.grad).all()
        and float(found.detach()) == pytest.approx(1e30, rel=1e-3)
    )
    never = torch.tensor([[1.0, 2.0, -torch.inf]])  # a class that the model rules out
    ours = torch.tensor([[2.0, 1.0, -torch.inf]], requires_grad=True)
    found = distance(Outputs(ours), never, "kl", 2.0)
    found.backward()
    assert float(found.detach()) == pytest.approx(
        float(distance(Outputs(ours.detach()[:, :2]), never[:, :2], "kl", 2.0))
    )
    assert torch.isfinite(ours.grad).all()
    assert torch.isnan(distance(Outputs(torch.tensor([[torch.nan, 1.0]])), torch.ones(1, 2), "kl", 1.0))  # not hidden


def test_auto_takes_kl_for_logits_and_mse_for_the_rest():
    assert DistilSettings().loss == FcptsSettings().loss == "auto"
    s, d = pair()
    assert distance(Outputs(s), d, "auto", 4.0) == distance(Outputs(s), d, "kl", 4.0)
    assert distance(Outputs(s, None, "features"), d, "auto", 4.0) == distance(Outputs(s), d, "mse", 4.0)
    one, other = s[:, :1], d[:, :1]
    assert distance(Outputs(one), other, "auto", 4.0) == distance(Outputs(one), other, "mse", 4.0) > 0


@pytest.mark.parametrize(
    ("read", "target", "loss", "fix"),
    [
        (Outputs(torch.ones(2, 3), None, "features"), torch.ones(2, 3), "kl", 'settings={"loss": "mse"}'),
        (Outputs(torch.ones(2, 1)), torch.ones(2, 1), "kl", 'settings={"loss": "mse"}'),
        (Outputs(torch.ones(2, 1)), torch.ones(2, 1), "cosine", 'settings={"loss": "mse"}'),
        (Outputs(torch.ones(2, 3)), torch.ones(3, 3), "auto", "one shape"),
    ],
)
def test_what_cannot_be_compared_is_refused(read, target, loss, fix):
    with pytest.raises(InputError, match=fix):
        distance(read, target, loss, 4.0)


# ------------------------------------------------------------------------------------------------------- blocks


def whole(student):
    return {name: m.detach() for name, m in student.matrices().items()}


def shaken(student, by=0.1):
    g = torch.Generator().manual_seed(3)
    return {n: m + by * torch.randn(m.shape, generator=g) for n, m in whole(student).items()}


def outputs_of(model, batch):
    """What each block puts out, by its own hooks."""
    from winnow.masks.blocks import find_blocks

    found, handles = [], []
    for b in find_blocks(model):
        first = lambda o: o[0] if isinstance(o, tuple) else o  # noqa: E731
        handles.append(
            b.module.register_forward_hook(lambda m, a, o, first=first: found.append(first(o).detach().clone()))
        )
    with torch.no_grad():
        model(**batch) if isinstance(batch, dict) else model(batch)
    for h in handles:
        h.remove()
    return found


def assign(model, scope, matrices):
    with torch.no_grad():
        for name, matrix in matrices.items():
            model.get_parameter(name).copy_(scope.prunables[name].restore(matrix))


@pytest.mark.parametrize("name", ["classifier", "llama", "t5", "clip", "encoder", "encoder_time_first", "cnn"])
def test_blockwise_adds_the_relative_errors_of_all_blocks(name):
    if name == "classifier":
        model, batch = classifier(), points(16)[0]
    else:
        model, batch = family(name).build(), family(name).batches()[0]
    scope = find_scope(model)
    student = Student(model, scope)
    examples = Examples([batch], 64)
    changed = shaken(student)
    index = torch.arange(examples.count)
    losses = {}
    for weight in (0.0, 0.5, 2.0):
        teacher = Teacher(student, examples, DistilSettings(blockwise=weight))
        target = teacher.target(index, batch)
        losses[weight] = float(teacher.loss(student, changed, target, batch).detach())
    dense = outputs_of(model, batch)
    assign(model, scope, changed)
    pruned = outputs_of(model, batch)
    expected = 0.0
    for ours, theirs in zip(pruned, dense):
        mask = None
        if isinstance(batch, dict):
            masks = [batch[k] != 0 for k in ("attention_mask", "decoder_attention_mask") if k in batch]
            masks += [~batch[k] for k in ("src_key_padding_mask",) if k in batch]
            if name == "encoder_time_first":
                masks = [m.t() for m in masks]
            mask = next(
                (m for m in masks if m.shape == ours.shape[:2] and not (name == "clip" and ours.shape[-1] == 16)), None
            )
        ours, theirs = (x.double() if mask is None else x[mask].double() for x in (ours, theirs))
        expected += float(((ours - theirs) ** 2).sum() / (theirs**2).sum())
    assert len(dense) == len(Blockwise(model).blocks) > 1
    assert losses[2.0] - losses[0.0] == pytest.approx(2 * expected, rel=1e-4)
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * expected, rel=1e-3)


def test_blockwise_gradient_reaches_every_block_and_hooks_go():
    model = classifier()
    student = Student(model, find_scope(model))
    examples = Examples([points(16)[0]], 16)
    teacher = Teacher(student, examples, DistilSettings(blockwise=1.0))
    index, batch = next(examples.all())
    changed = {n: m.requires_grad_() for n, m in shaken(student).items()}
    teacher.loss(student, changed, teacher.target(index, batch), batch).backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in changed.values())
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(InputError, match="other shapes"):
        teacher.loss(student, whole(student), teacher.target(index, batch), batch[:3])
    assert not any(m._forward_hooks for m in model.modules())


def test_a_later_layer_that_writes_to_a_blocks_output_changes_nothing():
    model, batch = family("cnn").build(), family("cnn").batches()[0]  # its blocks begin with ReLU(inplace=True)
    blockwise = Blockwise(model)
    with blockwise.recording(batch) as seen, torch.no_grad():
        model(batch)
    assert len(seen) == 2 and seen[0].min() < 0
    with torch.no_grad():
        hidden = model.stages[0](torch.relu(model.stem(batch)))
    assert torch.allclose(seen[0], hidden)


def test_without_blockwise_nothing_is_hooked_and_without_blocks_it_is_refused(monkeypatch):
    model = convnet()
    student = Student(model, find_scope(model))
    examples = Examples([images(8)[0]], 8)
    hooked = []
    monkeypatch.setattr(nn.Module, "register_forward_hook", lambda *a, **k: hooked.append(a))
    teacher = Teacher(student, examples, DistilSettings())
    index, batch = next(examples.all())
    teacher.loss(student, whole(student), teacher.target(index, batch), batch)
    assert not hooked
    with pytest.raises(InputError, match="no repeated blocks"):
        Teacher(student, examples, DistilSettings(blockwise=1.0))


# ------------------------------------------------------------------------------------------------- kept or not


class Widths(nn.Module):
    """Hidden states of tokens, whose mask is their own."""

    def __init__(self):
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 6)

    def forward(self, input_ids, attention_mask):
        return self.two(torch.relu(self.one(self.embed(input_ids))))


def texts(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(1, 50, mask.shape, generator=g) * mask, "attention_mask": mask}


def both(model, batches, size, **extra):
    student = Student(model, find_scope(model))
    examples = Examples(batches, size)
    return (
        examples,
        Teacher(student, examples, DistilSettings()),
        Teacher(student, examples, DistilSettings(), keep=0),
    )


@pytest.mark.parametrize(
    ("model", "batches"),
    [
        (lambda: classifier(), lambda: [points(23)[0]]),
        (lambda: convnet(), lambda: [images(5)[0], images(6, 1)[0]]),
        (Widths, lambda: [texts([5, 3, 2]), texts([7, 2], 1), texts([4, 4, 4], 2)]),  # joined and cut
        (Widths, lambda: [texts([5, 5]), texts([7], 1), texts([4, 4, 4], 2)]),  # drawn whole
        (Widths, lambda: [texts([5, 3, 2, 1])]),
    ],
)
def test_kept_and_recomputed_outputs_are_the_same(model, batches):
    torch.manual_seed(0)
    examples, kept, computed = both(model().eval(), batches(), 3)
    assert kept.kept and not computed.kept
    for epoch in range(3):
        for index in examples.order(torch.Generator().manual_seed(epoch)):
            batch = examples.take(index)
            one, other = kept.target(index, batch), computed.target(index, batch)
            assert one.rows.shape == other.rows.shape and torch.allclose(one.rows, other.rows, atol=1e-6)


def test_as_many_outputs_are_kept_as_fit():
    examples, _, _ = both(classifier(), [points(20)[0]], 5)
    student = Student(model := classifier(), find_scope(model))
    need = 20 * 3 * 4  # examples x classes x bytes
    assert Teacher(student, examples, DistilSettings(), keep=need).kept
    calls = []
    dense = student.dense
    student.dense = lambda batch: calls.append(1) or dense(batch)
    assert not Teacher(student, examples, DistilSettings(), keep=need - 1).kept
    assert len(calls) == 1  # the first batch tells


class Neighbours(nn.Module):
    """Its output for an example depends on the others of the batch."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.one(x)
        return self.two(h - h.mean(0))


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.two(torch.relu(self.one(x))).transpose(0, 1)


class Questions(nn.Module):
    """Chooses among the positions of a text."""

    def __init__(self):
        super().__init__()
        self.embed, self.one, self.two = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        start, end = self.two(torch.relu(self.one(self.embed(input_ids)))).unbind(-1)
        return {"start_logits": start, "end_logits": end}


@pytest.mark.parametrize(
    ("model", "batches", "size"),
    [
        (Neighbours, lambda: [points(12)[0]], 4),
        (TimeFirst, lambda: [torch.randn(15, 5, 4)], 5),  # as many examples as positions
        (Questions, lambda: [texts([5, 3, 2]), texts([7, 2], 1), texts([4, 4, 4], 2)], 4),  # a column a token
        (Questions, lambda: [texts([7, 3, 2, 1, 1, 1, 7]), texts([8, 8], 1)], 5),
    ],
)
def test_outputs_that_depend_on_the_batch_are_computed_anew(model, batches, size):
    torch.manual_seed(0)
    examples, teacher, _ = both(model(), batches(), size)
    assert examples.joined is not None and not teacher.kept
    for epoch in range(4):
        for index in examples.order(torch.Generator().manual_seed(epoch)):
            batch = examples.take(index)
            target = teacher.target(index, batch)
            assert torch.isfinite(teacher.loss(teacher.student, whole(teacher.student), target, batch))
            assert torch.equal(
                target.rows,
                read_output(
                    teacher.student.model(**batch) if isinstance(batch, dict) else teacher.student.model(batch), batch
                ).rows(),
            )


def test_answers_are_the_classes_the_dense_model_gives():
    model = nn.Linear(4, 6)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    scope, seen = find_scope(model, include=["weight"]), set()
    with torch.no_grad():
        seen = {int(i) for i in model(x).argmax(-1)}
    teacher = Teacher(Student(model, scope), Examples([x], 16), DistilSettings())
    assert teacher.answers() == (len(seen), 6)
    assert Teacher(Student(model, scope), Examples([x], 16), DistilSettings(), keep=0).answers() is None
