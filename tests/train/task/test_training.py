"""The user's own training as a value: from data, from loaders, from a transformers Trainer."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ticket_inputs import bert, mlp, rows, save_bert, sentences, tokenizer, trainer, write_csv
from winnow.errors import InputError
from winnow.measure.evaluation import Evaluation
from winnow.run.identity import fingerprint
from winnow.tickets import training_from, training_from_trainer
from winnow.train.examples import Examples
from winnow.train.task.batches import Fetched
from winnow.train.task.check import check_training
from winnow.train.task.identity import training_identity
from winnow.train.task.run import Run
from winnow.train.task.training import Training, adamw, cosine, linear, warmup
from winnow.train.task_loss import TaskLoss


def first(training: Training):
    return next(iter(training.examples.all()))[1]


# -- the schedule, by hand


@pytest.mark.parametrize("then,at", [(linear, lambda q: 1 - q), (cosine, lambda q: (1 + math.cos(math.pi * q)) / 2)])
def test_warmup_rises_in_a_line_and_then_follows_the_schedule(then, at):
    schedule = warmup(0.2, then)
    for p in (0.0, 0.05, 0.1, 0.19):
        assert schedule(p) == pytest.approx(p / 0.2)
    for p in (0.2, 0.5, 0.9):
        assert schedule(p) == pytest.approx(at((p - 0.2) / 0.8))
    assert warmup(0.0, then) is then
    assert pickle.loads(pickle.dumps(schedule))(0.5) == schedule(0.5)


@pytest.mark.parametrize(
    "wrong,says",
    [
        ({"steps": 5, "epochs": 2}, "mutually exclusive"),
        ({"steps": 0}, "steps=1"),
        ({"epochs": 0}, "more than 0"),
        ({"batch": 0}, "1 or more"),
        ({"schedule": "steps"}, "linear or cosine"),
        ({"warmup": 1.0}, "share in"),
        ({"task": "poetry"}, "classification"),
        ({"lr": -1.0}, "more than 0"),
        ({"weight_decay": -0.1}, "0 or more"),
        ({"clip": 0.0}, "more than 0"),
        ({"precision": "float16"}, "bfloat16"),
        ({"steps": 10.5}, "whole number and is 10.5: give steps=10"),
        ({"steps": True}, "whole number and is True"),
        ({"batch": True}, "batch must be a whole number"),
        ({"batch": "4"}, "batch must be a whole number and is '4'"),
        ({"seed": False}, "seed must be a whole number"),
        ({"length": 3.5}, "length must be a whole number"),
        ({"lr": "fast"}, "lr must be a number and is 'fast'"),
        ({"lr": True}, "lr must be a number and is True"),
        ({"lr": math.nan}, "lr must be a number and is nan"),
        ({"epochs": True}, "epochs must be a number"),
        ({"epochs": math.inf}, "epochs must be a number"),
        ({"weight_decay": True}, "weight_decay must be a number"),
        ({"clip": "1"}, "clip must be a number"),
        ({"warmup": "some"}, "warmup must be a number"),
        ({"schedule": ["linear"]}, "linear or cosine"),
        ({"include": [3]}, "include holds 3"),
    ],
)
def test_numbers_that_train_nothing_are_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        training_from(mlp(), rows(), **wrong)


@pytest.mark.parametrize(
    "wrong", [{"steps": 2.5}, {"steps": True}, {"lr": "1e-3"}, {"seed": 0.5}, {"weight_decay": True}]
)
def test_a_training_made_by_hand_takes_no_other_numbers(wrong):
    ready = training_from(mlp(), rows(60))
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be a"):
        ready.replaced(**wrong)


def test_numbers_of_numpy_are_numbers_and_a_pattern_is_a_list_of_one():
    given = training_from(
        mlp(), rows(60), steps=np.int64(3), lr=np.float32(0.5), include="second.*", exclude="first.*", batch=np.int32(4)
    )
    assert (given.steps, given.lr) == (3, 0.5) and type(given.steps) is int and type(given.lr) is float
    assert (
        given.include == ("second.*",)
        and given.exclude == ("first.*",)
        and list(given.scope().prunables) == ["second.weight"]
    )
    assert given.replaced(include="head.weight").include == ("head.weight",)


# -- tensors


def test_tensors_and_classes_give_cross_entropy_and_a_held_out_fifth():
    x, y = rows(200)
    training = training_from(mlp(), (x, y), batch=16)
    assert training.steps == 3 * math.ceil(training.examples.count / 16)
    assert (training.lr, training.weight_decay) == (1e-3, 0.01)
    inputs, labels = first(training)
    with torch.no_grad():
        logits = training.model(inputs)
    by_hand = -torch.stack([row[k] - torch.logsumexp(row, 0) for row, k in zip(logits.double(), labels)])
    torch.testing.assert_close(training.loss(training.model, (inputs, labels)).double(), by_hand.mean().neg().neg())
    # every record on one side only, labels still theirs
    held = training.evaluate.__self__.records
    assert abs(len(held) - 40) <= 1 and training.examples.count + len(held) == 200
    trained = {tuple(r.tolist()): int(k) for r, k in zip(*training.examples.joined)}
    assert not {tuple(r.tolist()) for r in held.inputs[0]} & set(trained)
    original = {tuple(r.tolist()): int(k) for r, k in zip(x, y)}
    assert all(original[r] == k for r, k in trained.items())
    assert "held out" in training.notes[0]


def test_evaluation_counts_right_answers_on_the_evaluation_data():
    x, y = rows(60)
    other = rows(40, seed=5)
    training = training_from(mlp(), (x, y), eval=other, epochs=1)
    assert training.examples.count == 60
    right = (training.model.eval()(other[0]).argmax(1) == other[1]).float().mean()
    assert training.evaluate(training.model).value == pytest.approx(float(right))


def test_real_scores_give_squared_error_and_rank_correlation():
    from scipy.stats import spearmanr

    x, _ = rows(80)
    score = x[:, 0] * 2 + 0.5
    training = training_from(mlp(1), (x, score), eval=(x[:30] + 1, score[:30]), epochs=1)
    inputs, labels = first(training)
    out = training.model(inputs)[:, 0]
    torch.testing.assert_close(training.loss(training.model, (inputs, labels)), ((out - labels) ** 2).mean())
    found = training.evaluate(training.model)
    out = training.model.eval()(x[:30] + 1)[:, 0].detach().numpy()
    assert found.metric == "spearman" and found.value == pytest.approx(spearmanr(out, score[:30]).statistic)
    assert found.details["mse"] == pytest.approx(np.mean((out - score[:30].numpy()) ** 2), rel=1e-5)


def test_a_loss_of_the_users_own_takes_the_place_and_needs_no_labels():
    x, _ = rows(50)
    training = training_from(mlp(), x, loss=lambda model, batch: (model(batch[0]) ** 2).mean(), steps=3)
    inputs = first(training)[0]
    torch.testing.assert_close(training.loss(training.model, (inputs,)), (training.model(inputs) ** 2).mean())
    assert training.evaluate is None and training.examples.count == 50
    check_training(training)


def test_what_was_said_reaches_the_training():
    def sgd(parameters, lr, weight_decay):
        return torch.optim.SGD(parameters, lr, weight_decay=weight_decay)

    training = training_from(
        mlp(), rows(50), steps=7, lr=0.5, weight_decay=0.25, optimizer=sgd, schedule="cosine", warmup=0.5, clip=None,
        precision="bfloat16", include=["head"], exclude=["second"], seed=9,
    )  # fmt: skip
    assert (training.steps, training.lr, training.weight_decay, training.clip) == (7, 0.5, 0.25, None)
    assert training.precision == "bfloat16" and training.seed == 9 and training.optimizer is sgd
    assert training.schedule(0.25) == 0.5 and training.schedule(0.75) == pytest.approx(0.5)
    assert list(training.scope().prunables) == ["first.weight", "head.weight"]


# -- what is refused before any work


def test_data_and_models_that_cannot_be_trained_are_refused():
    x, y = rows(60)
    with pytest.raises(InputError, match="labelled data"):
        training_from(mlp(), None)
    with pytest.raises(InputError, match="at least two"):
        training_from(mlp(), (x[:0], y[:0]))
    with pytest.raises(InputError, match="no labels"):
        training_from(mlp(), x)
    with pytest.raises(InputError, match="every record has class 2"):
        training_from(mlp(), (x, torch.full((60,), 2)))
    with pytest.raises(InputError, match="label 7"):
        training_from(mlp(), (x, y + 4))
    with pytest.raises(InputError, match="label 9"):  # only in the evaluation data
        training_from(mlp(), (x, y), eval=(x + 1, torch.cat([y[1:], torch.tensor([9])])))
    with pytest.raises(InputError, match="share 10 records"):
        training_from(mlp(), (x, y), eval=(x[:10], y[:10]))
    with pytest.raises(InputError, match="one output"):
        training_from(mlp(), (x, x[:, 0]))
    with pytest.raises(InputError, match=r"scores are 3\.5"):
        training_from(mlp(1), (x, torch.full((60,), 3.5)), task="none")
    with pytest.raises(InputError, match="give a classifier"):
        training_from(nn.Sequential(nn.Unflatten(1, (4, 5)), nn.Linear(5, 5), nn.Linear(5, 3)), (x, y))


def test_faults_of_weights_and_losses_are_found_before_the_first_step():
    data = rows(60)
    poisoned = mlp()
    poisoned.second.weight.data[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"second\.weight holds NaN"):
        check_training(training_from(poisoned, data))
    frozen = mlp().requires_grad_(False)
    frozen.head.requires_grad_(True)
    with pytest.raises(InputError, match="frozen"):
        check_training(training_from(frozen, data))
    with pytest.raises(InputError, match="NaN in the data"):
        x, y = data
        check_training(training_from(mlp(), (torch.where(x > 2, torch.nan, x), y), task="none", batch=60))
    for loss, says in [
        (lambda m, b: m(b[0]), "one number"),
        (lambda m, b: 3.0, "one number"),
        (lambda m, b: m(b[0]).mean().detach(), "no gradient"),
        (lambda m, b: m(b[0]).mean() / 0, "before the first step"),
    ]:
        with pytest.raises(InputError, match=says):
            check_training(training_from(mlp(), data, loss=loss))


def test_data_of_another_width_is_named_with_its_shape():
    x, y = rows(60)
    narrow, loss = x[:, :15], TaskLoss("classes")
    for given in (
        lambda: training_from(mlp(), (narrow, y)),
        lambda: training_from(mlp(), (x, y), eval=(narrow, y)),
        lambda: training_from(mlp(), (x, y), eval=(narrow, y), loss=loss),
        lambda: check_training(training_from(mlp(), (narrow, y), task="none", loss=loss)),
        lambda: check_training(training_from(mlp(), (x, y)).replaced(examples=Examples([(narrow, y)], 8))),
    ):
        with pytest.raises(InputError, match=r"data, whose first batch is \[\d+, 15\].*cannot be multiplied") as error:
            given()
        assert isinstance(error.value.__cause__, RuntimeError) and "\n" not in str(error.value)


def test_want_of_memory_is_no_matter_of_shapes():
    def loss(model, batch):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        check_training(training_from(mlp(), rows(60), loss=loss))


def test_evaluation_data_with_nan_is_refused_where_the_model_passes_it_on():
    x, y = rows(60)
    holed = torch.where(x > 2, torch.nan, x)
    bad = int(holed.isnan().any(1).sum())
    with pytest.raises(InputError, match=f"{bad} of 60 records to evaluate on hold NaN"):
        training_from(mlp(), (x, y), eval=(holed + 1, y))
    filling = nn.Sequential(Filled(), mlp())
    assert training_from(filling, (x, y), eval=(holed + 1, y)).evaluate(filling).n == 60
    found = training_from(mlp(), (x, y)).evaluate
    torn = Evaluation("accuracy", math.nan, math.nan, math.nan, np.full(4, np.nan), np.full(4, -1), 4)
    with pytest.raises(InputError, match="eval finds NaN"):
        check_training(training_from(mlp(), (x, y), eval=lambda model: found(model) and torn))


class Filled(nn.Module):
    def forward(self, x):
        return x.nan_to_num()


def test_evaluations_of_the_users_own_are_tried_once():
    data = rows(60)
    with pytest.raises(InputError, match="eval returned float"):
        check_training(training_from(mlp(), data, eval=lambda model: 0.5))
    ready = training_from(mlp(), data).evaluate
    check_training(training_from(mlp(), data, eval=lambda model: ready(model)))


def test_the_check_leaves_model_and_random_numbers_alone():
    training = training_from(mlp().train(), rows(60))
    before = {n: t.clone() for n, t in training.model.state_dict().items()}
    training.model.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    check_training(training)
    assert torch.equal(torch.get_rng_state(), state) and training.model.training
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in training.model.parameters())


# -- loaders


class Noisy(Dataset):
    """An augmentation that draws from torch's, numpy's and Python's random numbers."""

    def __init__(self, n=30):
        self.x, self.y = rows(n)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        import random

        return self.x[i] + torch.randn(20) + float(np.random.randn()) + random.random(), int(self.y[i]), i


def loss_of_three(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_a_loader_is_drawn_anew_every_epoch_with_augmentation_that_repeats_on_resume():
    training = training_from(mlp(), DataLoader(Noisy(), batch_size=8, shuffle=True), loss=loss_of_three, epochs=2)
    assert training.examples.count == 30 and training.examples.parts == 4 and training.steps == 8
    order = training.examples.order(torch.Generator().manual_seed(0))
    assert sorted(torch.cat(order).tolist()) == list(range(30)) and max(map(len, order)) <= 8
    torch.manual_seed(1)
    one = training.examples.take(order[0])
    torch.manual_seed(2)
    np.random.seed(5)
    again, other = training.examples.take(order[0]), training.examples.take(order[1])
    assert torch.equal(one[0], again[0]) and one[2].tolist() == order[0].tolist()
    alone = training.examples.take(order[0][:3])  # the same example in another batch is augmented in another way
    assert not torch.equal(alone[0], one[0][:3]) and not torch.equal(one[0], other[0][:8])
    assert float(np.random.randn()) == float(np.random.RandomState(5).randn())  # the caller's numbers are untouched


def test_loaders_with_a_sampler_of_their_own_keep_their_batches():
    data = Noisy(24)
    sampler = torch.utils.data.WeightedRandomSampler([1.0] + [0.0] * 23, 24)
    training = training_from(mlp(), DataLoader(data, batch_size=6, sampler=sampler), loss=loss_of_three)
    assert training.examples.parts == 4 and all(set(b[2].tolist()) == {0} for b in training.examples.batches)
    batches = [(torch.randn(k, 20), torch.randint(4, (k,))) for k in (3, 5, 2)]
    training = training_from(mlp(), iter(batches), loss=loss_of_three, steps=3)
    taken = [training.examples.take(i) for i in training.examples.order(torch.Generator().manual_seed(0))]
    assert sorted(len(b[0]) for b in taken) == [2, 3, 5] and all(any(b is c for c in batches) for b in taken)


def test_an_endless_loader_needs_a_number_of_steps():
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.randn(20), 1

    with pytest.raises(InputError, match="give steps"):
        training_from(mlp(), DataLoader(Endless(), batch_size=4), loss=loss_of_three)
    training = training_from(mlp(), DataLoader(Endless(), batch_size=4), loss=loss_of_three, steps=5)
    assert training.examples.parts == 5 and training.steps == 5


def test_a_loader_without_a_loss_is_read_as_records():
    x, y = rows(64)
    training = training_from(mlp(), DataLoader(TensorDataset(x, y), batch_size=8), batch=8, epochs=1)
    assert training.examples.joined is not None and training.evaluate is not None
    evaluated = training_from(
        mlp(), DataLoader(TensorDataset(x, y), batch_size=8), loss=loss_of_three, eval=DataLoader(TensorDataset(x, y))
    )
    assert evaluated.evaluate(evaluated.model).n == 64


def test_ready_evaluations_are_taken_as_they_are():
    x, y = rows(64)
    task = training_from(mlp(), (x, y)).evaluate.__self__
    assert training_from(mlp(), (x, y), eval=task).evaluate.__self__ is task
    training = training_from(mlp(), (x, y), eval=task.evaluate)
    assert training.evaluate(training.model).n == task.n and training.examples.count == 64


# -- text


@pytest.mark.hf
def test_labelled_text_is_padded_and_every_label_stays_with_its_sentence(tmp_path):
    pytest.importorskip("transformers")
    data = sentences(50)
    folder = save_bert(tmp_path / "bert", "BertForSequenceClassification", num_labels=2)
    training = training_from(folder, write_csv(tmp_path / "a.csv", data), batch=8, task="none")
    assert (training.lr, training.weight_decay, training.kind) == (2e-5, 0.0, "encoder")
    assert training.examples.joined is not None  # drawn anew, not in fixed batches
    known = {tuple(tokenizer()(row["text"])["input_ids"]): row["label"] for row in data}
    seen = 0
    for index in training.examples.order(torch.Generator().manual_seed(2)):
        batch = training.examples.take(index)
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
            assert known[tuple(ids[mask.bool()].tolist())] == int(label)
            seen += 1
    assert seen == 50
    batch = first(training)
    theirs = training.model(**batch).loss  # Hugging Face's own loss for single labels
    torch.testing.assert_close(training.loss(training.model, batch), theirs)


@pytest.mark.hf
def test_words_are_numbered_as_the_models_configuration_says(tmp_path):
    pytest.importorskip("transformers")
    names = {"positive": 0, "negative": 1}
    model = bert("BertForSequenceClassification", label2id=names, id2label={0: "positive", 1: "negative"})
    data, held = sentences(30, names=True), sentences(20, seed=4, names=True)
    held = [r for r in held if r["text"] not in {d["text"] for d in data}]
    training = training_from(model, data, eval=held, processor=tokenizer(), batch=30)
    batch = first(training)
    known = {tuple(tokenizer()(row["text"])["input_ids"]): names[row["label"]] for row in data}
    for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
        assert known[tuple(ids[mask.bool()].tolist())] == int(label)
    assert training.evaluate.__self__.truth.tolist() == [names[r["label"]] for r in held]
    with pytest.raises(InputError, match="brings no tokenizer"):
        training_from(model, data)


@pytest.mark.hf
def test_evaluation_data_that_lacks_a_class_keeps_the_numbers_of_the_training_data():
    pytest.importorskip("transformers")
    data = [{"text": f"{w} film", "label": n} for w, n in zip(["good", "bad", "sad", "very", "nice"] * 1, "abcab")]
    held = [{"text": f"{w} story", "label": n} for w, n in zip(["good", "bad", "cat"], "cac")]
    training = training_from(bert(), data, eval=held, processor=tokenizer())
    assert training.evaluate.__self__.truth.tolist() == [2, 0, 2]
    with pytest.raises(InputError, match="class 'z'"):
        training_from(bert(), data, eval=[{"text": "a cat", "label": "z"}, *held], processor=tokenizer())


@pytest.mark.hf
def test_running_text_trains_with_the_models_own_loss(tmp_path):
    from small import save_llama
    from small import sentences as plain

    pytest.importorskip("transformers")
    folder = save_llama(tmp_path / "llama", layers=2)
    training = training_from(folder, plain(120), length=16, batch=4)
    batch = first(training)
    assert batch["input_ids"].shape[1] == 16 and training.kind == "causal-lm" and training.lr == 2e-5
    logits = training.model(batch["input_ids"]).logits
    by_hand = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch["input_ids"][:, 1:].reshape(-1))
    torch.testing.assert_close(training.loss(training.model, batch), by_hand)
    assert training.evaluate(training.model).metric == "perplexity"
    ids = torch.randint(3, 20, (12, 9))
    mask = torch.ones_like(ids)
    mask[:, 6:] = 0
    training = training_from(folder, {"input_ids": ids, "attention_mask": mask}, task="none", batch=4)
    assert (first(training)["labels"][:, 6:] == -100).all()


@pytest.mark.hf
def test_half_precision_weights_are_trained_in_float32(tmp_path):
    pytest.importorskip("transformers")
    folder = save_bert(tmp_path / "half", "BertForSequenceClassification", torch.float16)
    training = training_from(folder, sentences(30), task="none")
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert any("float32" in note for note in training.notes)
    memory = mlp().half()
    assert training_from(memory, rows(40), task="none").model is not memory
    assert {p.dtype for p in memory.parameters()} == {torch.float16}


# -- identity


def identity(**changes):
    x, y = rows(40)
    return training_identity(training_from(mlp(), (x, y), steps=5, **changes))


def test_the_identity_changes_with_everything_the_result_depends_on():
    base = identity()
    assert identity() == base
    scaled = [lambda m, b, k=k: loss_of_three(m, b) * k for k in (1, 2)]
    changes = [dict(lr=0.1), dict(weight_decay=0.3), dict(seed=1), dict(clip=None), dict(warmup=0.1), dict(batch=7),
               dict(schedule="cosine"), dict(exclude=("second",)), dict(task="none"), dict(precision="bfloat16"),
               dict(loss=scaled[0]), dict(loss=scaled[1]), dict(schedule=lambda p: 0.5), dict(schedule=lambda p: 0.25)]  # fmt: skip
    found = [base, *(identity(**c) for c in changes)]
    assert len({str(f) for f in found}) == len(found)
    x, y = rows(40)
    moved = mlp()
    moved.norm.running_mean[0] += 1
    y2 = y.clone()
    y2[0] = (y2[0] + 1) % 4
    frozen = mlp()
    frozen.first.requires_grad_(False)
    for training in (
        training_from(moved, (x, y), steps=5),
        training_from(mlp(), (x, y2), steps=5),
        training_from(frozen, (x, y), steps=5),
    ):
        assert training_identity(training) != base


def test_functions_are_named_by_what_they_hold():
    def scaled(k):
        return lambda p: p * k

    assert fingerprint(scaled(2)) == fingerprint(scaled(2)) != fingerprint(scaled(3))
    assert fingerprint(warmup(0.1)) != fingerprint(warmup(0.2))


# -- a transformers Trainer


@pytest.mark.hf
def test_the_settings_of_a_trainer_carry_over(tmp_path):
    training = training_from_trainer(trainer(tmp_path))
    assert (training.lr, training.weight_decay, training.clip, training.seed) == (3e-4, 0.05, 0.7, 11)
    assert (training.steps, training.examples.size, training.precision) == (10, 4, "float32")
    assert isinstance(training.examples, Fetched)  # drawn anew every epoch
    optimizer = training.optimizer(list(training.model.parameters()), training.lr, training.weight_decay)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["betas"] == (0.9, 0.999)
    assert sorted({g["weight_decay"] for g in optimizer.param_groups}) == [0.0, 0.05]
    more = training_from_trainer(
        trainer(tmp_path, max_steps=7, gradient_accumulation_steps=2, adam_beta1=0.8, bf16=True, max_grad_norm=0.0)
    )
    assert (more.steps, more.examples.size, more.precision, more.clip) == (7, 8, "bfloat16", None)
    assert more.optimizer(list(more.model.parameters()), 1e-3, 0.0).defaults["betas"] == (0.8, 0.999)


@pytest.mark.hf
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"])
def test_learning_rates_are_those_the_trainer_would_use(tmp_path, schedule):
    theirs = trainer(tmp_path, lr_scheduler_type=schedule, warmup_steps=3)
    training = training_from_trainer(theirs)
    theirs.create_optimizer_and_scheduler(training.steps)
    for step in range(training.steps):
        rate = theirs.optimizer.param_groups[0]["lr"]
        assert training.lr * training.schedule(step / training.steps) == pytest.approx(rate, abs=1e-12), step
        theirs.optimizer.step()
        theirs.lr_scheduler.step()


@pytest.mark.hf
@pytest.mark.parametrize("how", ["plain", "smoothed", "overridden", "function"])
def test_the_loss_of_a_batch_is_the_trainers_own(tmp_path, how):
    transformers = pytest.importorskip("transformers")

    class Doubled(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            loss = 2 * F.cross_entropy(model(**inputs).logits, labels) + 1
            return (loss, None) if return_outputs else loss

    theirs = trainer(
        tmp_path, Doubled if how == "overridden" else None, label_smoothing_factor=0.1 if how == "smoothed" else 0.0
    )
    if how == "function":
        theirs.compute_loss_func = lambda outputs, labels, num_items_in_batch: (
            F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
        )
    training = training_from_trainer(theirs)
    batch = training.examples.take(torch.arange(4))
    model = training.model.eval()
    mine = training.loss(model, batch)
    items = theirs._get_num_items_in_batch([dict(batch)], torch.device("cpu"))
    torch.testing.assert_close(mine, theirs.compute_loss(model, dict(batch), num_items_in_batch=items))
    plain = F.cross_entropy(model(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"])
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    smooth = 0.9 * plain + 0.1 * -torch.log_softmax(logits, -1).mean()
    by_hand = {"plain": plain, "smoothed": smooth, "overridden": 2 * plain + 1, "function": plain}[how]
    torch.testing.assert_close(mine, by_hand)
    assert "labels" in batch  # the batch is still whole


@pytest.mark.hf
def test_the_steps_of_a_trainer_are_the_steps_of_the_run(tmp_path):
    """Same batches, same numbers: two steps of plain SGD by the Trainer's own machinery."""
    pytest.importorskip("transformers")
    model = bert("BertForSequenceClassification", attention_probs_dropout_prob=0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    theirs = trainer(tmp_path, model=model, optim="sgd", learning_rate=0.5, max_steps=2, lr_scheduler_type="linear")
    training = training_from_trainer(theirs)
    run = Run(training)
    run.advance_to(run.step + 2)
    import copy

    mine = copy.deepcopy(training.model).train()
    order = training.examples.order(torch.Generator().manual_seed(0))  # only the sizes matter here
    assert {len(i) for i in order} == {4}
    decay = [p for p in mine.parameters() if p.ndim > 1]
    rest = [p for p in mine.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD([{"params": decay, "weight_decay": 0.05}, {"params": rest}], lr=0.5)
    for step, rate in enumerate((0.5, 0.25)):
        batch = training.examples.take(run._draw(step, "main"))
        optimizer.zero_grad()
        theirs.compute_loss(mine, dict(batch)).backward()
        nn.utils.clip_grad_norm_(mine.parameters(), 0.7)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for (name, p), q in zip(mine.named_parameters(), run.model.parameters()):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.hf
def test_a_trainers_evaluation_counts_its_own_predictions(tmp_path):
    theirs = trainer(tmp_path)
    training = training_from_trainer(theirs)
    output = theirs.predict(theirs.eval_dataset)
    found = training.evaluate(training.model)
    assert found.value == pytest.approx((output.predictions.argmax(1) == output.label_ids).mean()) and found.n == 12


@pytest.mark.hf
def test_optimizers_and_schedules_handed_to_a_trainer(tmp_path):
    pytest.importorskip("transformers")
    model = bert("BertForSequenceClassification")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, betas=(0.7, 0.9), weight_decay=0.3)
    halved = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    training = training_from_trainer(trainer(tmp_path, model=model, optimizers=(optimizer, halved)))
    assert (training.lr, training.weight_decay) == (0.02, 0.3)
    assert training.optimizer(list(model.parameters()), 0.1, 0.0).defaults["betas"] == (0.7, 0.9)
    assert training.schedule(2 / training.steps) == pytest.approx(0.25)
    grouped = torch.optim.SGD([{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(model.parameters())])
    with pytest.raises(InputError, match="each group"):
        training_from_trainer(trainer(tmp_path, model=model, optimizers=(grouped, None)))
    stepped = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with pytest.raises(InputError, match="no function of the step"):
        training_from_trainer(trainer(tmp_path, model=model, optimizers=(optimizer, stepped)))


@pytest.mark.hf
def test_trainers_that_cannot_be_carried_over_are_refused(tmp_path):
    theirs = trainer(tmp_path)
    theirs.train_dataset = None
    with pytest.raises(InputError, match="train_dataset"):
        training_from_trainer(theirs)
    theirs = trainer(tmp_path)
    theirs.args.fp16 = True
    with pytest.raises(InputError, match="bf16"):
        training_from_trainer(theirs)


def test_plain_adamw_decays_matrices_only():
    model = mlp()
    optimizer = adamw(model.parameters(), 0.1, 0.2)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}


def test_a_training_is_a_value_that_pickles():
    training = training_from(mlp(), rows(40), warmup=0.1, steps=3)
    again = pickle.loads(pickle.dumps(training))
    assert training_identity(again) == training_identity(training)
    assert isinstance(again.examples, Examples)
