"""The student against plain copies of the model: forward, gradients, its dense self, and the state it leaves behind."""

import copy

import pytest
import torch
from torch import nn

import families
from families import FAMILIES, TORCH
from small import classifier, convnet, images, points
from winnow.errors import InputError
from winnow.masks.scope import find_scope
from winnow.train.distil.loop import FixedMasks, Loop
from winnow.train.distil.outputs import read_output
from winnow.train.distil.settings import DistilSettings
from winnow.train.distil.student import Student
from winnow.train.distil.teacher import Teacher
from winnow.train.examples import Examples


def call(model, batch):
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def values(output, batch):
    return read_output(output, batch).values


def half_kept(scope, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.rows, p.cols, generator=g) > 0.5 for n, p in scope.prunables.items()}


def pruned_copy(model, scope, keeps):
    """A copy of the model whose parameters are overwritten, value by value, without :meth:`Prunable.restore`."""
    twin = copy.deepcopy(model)
    for name, keep in keeps.items():
        p = scope.prunables[name]
        weight = twin.get_parameter(name).data
        if p.kind == "experts":
            mask = keep.reshape(p.shape[0], -1, keep.shape[1])
            mask = mask.transpose(1, 2) if p.transposed else mask
        else:
            mask = keep.t() if p.transposed else keep.reshape(weight.shape)
        weight[~mask] = 0
    return twin


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def check(model, batches, *, include=(), rtol=1e-4, atol=1e-5):
    """(a) outputs, (b) gradients, (c) the dense self, (d) everything put back."""
    scope = find_scope(model, include)
    untouched, original = copy.deepcopy(model), copy.deepcopy(model)
    student, keeps = Student(model, scope), half_kept(scope)
    twin = pruned_copy(model, scope, keeps)
    for m in norms(twin):
        m.train()
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=rtol, atol=atol)  # noqa: E731

    with torch.no_grad():
        dense = [values(call(untouched, b), b) for b in batches]
        for batch, expected in zip(batches, dense):
            close(values(student.dense(batch), batch), expected)

    with student.training(weights=True, small=True):
        for batch in batches:
            masked = {n: m * keeps[n] for n, m in student.matrices().items()}
            found, expected = values(student(batch, masked), batch), values(call(twin, batch), batch)
            close(found, expected)
            direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
            (found * direction).sum().backward()
            (expected * direction).sum().backward()
        for name, p in scope.prunables.items():
            ours, theirs = student.weights[name].grad, twin.get_parameter(name).grad
            assert (ours is None) == (theirs is None), name  # an expert that no token reached
            if ours is not None:
                close(p.matrix(ours), p.matrix(theirs) * keeps[name])
        for name, p in student.small.items():
            if p.grad is not None:
                close(p.grad, twin.get_parameter(name).grad)
        for ours, theirs in zip(norms(model), norms(twin)):
            close(ours.running_mean, theirs.running_mean)
            assert not torch.equal(ours.running_mean, torch.zeros_like(ours.running_mean))
        with torch.no_grad():  # training has gone on for a while
            for p in (*student.weights.values(), *student.small.values()):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        for batch, expected in zip(batches, dense):
            close(values(student.dense(batch), batch), expected)
        assert {m for m in model.modules() if m.training} == set(norms(model))
    with torch.no_grad():
        for batch, expected in zip(batches, dense):
            close(values(student.dense(batch), batch), expected)
    trained = {id(p) for p in (*student.weights.values(), *student.small.values())}
    for name, p in model.named_parameters():
        before = original.get_parameter(name)
        assert p.requires_grad == before.requires_grad and p.grad is None
        assert id(p) in trained or torch.equal(p, before)
    return scope


@pytest.mark.hf
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in TORCH], ids=lambda f: f.name)
def test_hugging_face_families(family):
    pytest.importorskip("transformers")
    scope = check(family.build(), family.batches()[:2])
    assert scope.numel == family.weights


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in TORCH], ids=lambda f: f.name)
def test_torch_families(family):
    model = family.build()
    for m in model.modules():
        if isinstance(m, nn.ReLU):  # the first one would write to what a ReLU before it needs for its gradient
            m.inplace = False
    assert check(model, family.batches()).numel == family.weights


def test_convolutions_with_norms_and_depthwise_ones():
    check(convnet().eval(), [images(20)[0]])

    torch.manual_seed(0)
    depthwise = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 1, groups=4), nn.Flatten(), nn.Linear(256, 3),
    )  # fmt: skip
    scope = check(depthwise.eval(), [images(20)[0]])
    assert sorted(p.parts for p in scope.prunables.values()) == [1, 4, 8]


class SharedTwice(nn.Module):
    """One linear layer under two names, used twice; a bias shared by two layers."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(12, 12)
        self.two = self.one
        self.other, self.head = nn.Linear(12, 12), nn.Linear(12, 3)
        self.other.bias = self.one.bias

    def forward(self, x):
        return self.head(torch.relu(self.other(self.two(torch.relu(self.one(x))))))


def test_a_parameter_under_several_names_is_one():
    torch.manual_seed(0)
    model = SharedTwice().eval()
    scope = check(model, [points(9)[0]], include=["two.weight", "other.weight"])
    assert set(scope.prunables) == {"two.weight", "other.weight"}
    assert model.two is model.one and model.other.bias is model.one.bias
    assert all(isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_recurrent_weights_are_masked_where_they_are_asked_for():
    torch.manual_seed(0)
    scope = check(Recurrent().eval(), [torch.randn(5, 7, 4)], include=["lstm.weight_ih_l0", "lstm.weight_hh_l0"])
    assert set(scope.prunables) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0"}


@pytest.mark.hf
@pytest.mark.parametrize("tied", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_embeddings_and_heads(tied):
    transformers = pytest.importorskip("transformers")
    family = families.family("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**family.build().config.to_dict(), "tie_word_embeddings": True})
    model = transformers.LlamaForCausalLM(config).eval()
    scope = check(model, family.batches()[:1], include=[tied])
    assert "lm_head.weight" in scope.prunables  # whichever name is given: the one that multiplies inputs
    assert (
        "lm_head.weight" in Student(model, scope).start and "model.embed_tokens.weight" in Student(model, scope).start
    )


@pytest.mark.hf
@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM"])
def test_biases_of_tied_heads(name):
    transformers = pytest.importorskip("transformers")
    family = families.family("roberta")
    torch.manual_seed(0)
    config = getattr(transformers, name).config_class(**{**family.build().config.to_dict(), "model_type": None})
    check(getattr(transformers, name)(config).eval(), family.batches()[:1])


class Counting(nn.Module):
    """Buffers that its own forward writes to and reads."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(12), persistent=True)
        self.register_buffer("table", torch.randn(12, 12), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.two(self.one(x - self.mean) @ self.table) * self.calls


def test_buffers_that_a_forward_writes_to_start_anew_in_every_dense_pass():
    torch.manual_seed(0)
    model, x = Counting().eval(), points(9)[0]
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
    student = Student(model, find_scope(model))
    for _ in range(3):
        assert torch.allclose(student.dense(x), expected)
        student(x, student.matrices())
    assert model.calls == 3


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two, self.drop = (
            nn.Linear(12, 16),
            nn.BatchNorm1d(16),
            nn.Linear(16, 3),
            nn.Dropout(0.5),
        )
        self.lstm_like = nn.Dropout1d(0.5)

    def forward(self, x):
        return self.two(self.drop(torch.relu(self.norm(self.one(self.drop(x))))))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_modes_flags_gradients_and_switches_are_put_back(mode, fails):
    torch.manual_seed(0)
    model, x = Dropping().train(mode), points(30)[0]
    model.drop.eval()
    model.norm.weight.requires_grad_(False)
    model.one.weight.grad = kept = torch.ones_like(model.one.weight)
    modes = {m: m.training for m in model.modules()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    student = Student(model, find_scope(model))

    def work():
        with student.training(weights=True, small=False):
            assert not torch.backends.mha.get_fastpath_enabled()
            assert model.norm.training and not model.drop.training and not model.training
            assert {n for n, p in model.named_parameters() if p.requires_grad} == {"one.weight"}
            assert model.one.weight.grad is None
            mean = model.norm.running_mean.clone()
            first, second = student(x, student.matrices()), student(x, student.matrices())
            assert torch.equal(first, second)  # no dropout
            h = model.one(x)
            h = torch.relu((h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt())  # statistics of the batch
            assert torch.allclose(first, model.two(h), atol=1e-5)
            assert not torch.equal(mean, model.norm.running_mean)
            student.dense(x)
            assert model.norm.training
            first.sum().backward()
            if fails:
                raise KeyError("stop")

    fastpath = torch.backends.mha.get_fastpath_enabled()
    if fails:
        with pytest.raises(KeyError):
            work()
    else:
        work()
    assert modes == {m: m.training for m in model.modules()}
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    assert model.one.weight.grad is kept and model.two.weight.grad is None
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


@pytest.mark.hf
@pytest.mark.parametrize("fails", [True, False])
def test_a_cache_is_off_while_training_and_its_setting_is_put_back(fails):
    family = families.family("llama")
    model, batch = family.build(), family.batches()[0]
    assert model.config.use_cache is True
    student = Student(model, find_scope(model))
    assert student.dense(batch).past_key_values is None and model.config.use_cache is True
    try:
        with student.training(weights=True, small=True):
            assert model.config.use_cache is False
            assert student(batch, student.matrices()).past_key_values is None
            if fails:
                student({"input_ids": "nonsense"}, student.matrices())
    except Exception:
        assert fails
    assert model.config.use_cache is True and not any(m.training for m in model.modules())


@pytest.mark.parametrize(("weights", "small"), [(True, True), (True, False), (False, True)])
def test_only_what_is_trained_gets_a_gradient(weights, small):
    model, x = classifier(), points(8)[0]
    student = Student(model, find_scope(model))
    with student.training(weights=weights, small=small):
        student(x, student.matrices()).sum().backward()
        got = {n for n, p in model.named_parameters() if p.grad is not None}
        wanted = (set(student.weights) if weights else set()) | (set(student.small) if small else set())
        assert got == wanted
    assert not {"embed.weight", "head.weight"} & got


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_with_the_way_out(dtype):
    model = classifier().to(dtype)
    with pytest.raises(InputError, match=r"model\.float\(\)"):
        Student(model, find_scope(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distillation_under_a_mask_brings_the_outputs_nearer(dtype):
    model, x = classifier().to(dtype), points(64)[0].to(dtype)
    scope = find_scope(model)
    student, examples = Student(model, scope), Examples([x], 16)
    s = DistilSettings(steps=40, lr=0.05, blockwise=0.1)
    reference = Teacher(student, examples, s)
    trace = Loop(student, examples, reference, FixedMasks(half_kept(scope)), s).run()
    assert sum(trace.losses[-5:]) < 0.5 * sum(trace.losses[:5])


@pytest.mark.hf
@pytest.mark.parametrize("name", ["t5", "clip", "encoder"])
def test_the_whole_loop_runs_on_features_and_two_sided_texts(name):
    family = families.family(name)
    model = family.build()
    scope = find_scope(model)
    student, examples = Student(model, scope), Examples(family.batches()[:2], 2)
    assert (examples.joined is not None) == (name == "t5" or name == "clip")
    s = DistilSettings(steps=30, lr=0.01)
    trace = Loop(student, examples, Teacher(student, examples, s), FixedMasks(half_kept(scope)), s).run()
    assert trace.steps == 30 and sum(trace.losses[-6:]) < sum(trace.losses[:6])


def test_batches_follow_the_models_device():
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3)).to("meta")
    student = Student(model, find_scope(model))
    assert student.device.type == "meta"
    output = student.dense({"input": points(4)[0]})
    assert output.device.type == "meta" and output.shape == (4, 3)
