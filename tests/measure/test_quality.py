"""Tasks against loops over single examples, sklearn and formulas; real figures where the real models are at hand."""

import itertools
import json
import math
import mmap
import sys

import numpy as np
import pytest
import torch
from torch import nn

from winnow.data import Records, open_data
from winnow.errors import FormatError, InputError
from winnow.forward.model import call, evaluating
from winnow.machine.facts import machine
from winnow.machine.memory import available_memory, peak_rss, reset_peak, resident
from winnow.measure import evaluation as evaluation_module
from winnow.measure import language as language_module
from winnow.measure.agreement import AgreementTask
from winnow.measure.classification import ClassificationTask
from winnow.measure.compare import changed_examples, class_changes, compare
from winnow.measure.evaluation import Evaluation
from winnow.measure.feed import Feed
from winnow.measure.language import LanguageModelTask
from winnow.measure.quality import open_task
from winnow.measure.spearman import SimilarityTask
from words import WordTokenizer


class Bigram(nn.Module):
    """A language model whose next-token logits depend on the last token alone; dropout tells the mode."""

    def __init__(self, vocabulary=11, seed=0):
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)
        self.drop = nn.Dropout(0.5)
        with torch.no_grad():
            self.table.weight.copy_(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)))
        self.rows = []

    def forward(self, input_ids):
        self.rows.append(len(input_ids))
        return self.drop(self.table(input_ids))


def segments(n=7, length=9, vocabulary=11):
    return torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(5))


def slow_nll(weight, row):
    """Mean negative log-likelihood of one segment in float64, one token at a time."""
    table = weight.double().numpy()
    losses = []
    for last, following in zip(row[:-1].tolist(), row[1:].tolist()):
        logits = table[last]
        losses.append(math.log(sum(math.exp(v) for v in logits)) - logits[following])
    return sum(losses) / len(losses)


# --- perplexity


def test_perplexity_equals_a_loop_over_tokens():
    model, rows = Bigram().train(), segments()
    task = LanguageModelTask(rows)
    found = task.evaluate(model)
    expected = [slow_nll(model.table.weight.detach(), row) for row in rows]
    assert found.per_example == pytest.approx(expected, rel=1e-6)
    assert found.value == pytest.approx(math.exp(sum(expected) / 7), rel=1e-6)
    assert found.low < found.value < found.high
    assert found.details["length"] == 9 and found.details["tokens"] == 7 * 8 and task.n == 7
    assert (found.predictions == model.table.weight.argmax(-1)[rows[:, :-1]].numpy()).all()
    assert model.training and model.drop.training, "the model's mode is given back"


def test_perplexity_does_not_depend_on_batches_or_chunks(monkeypatch):
    model, task = Bigram(), LanguageModelTask(segments(20))
    plain = task.evaluate(model)
    monkeypatch.setattr(language_module, "CAP", 3 * 9 * 11 * 4)  # three segments of float32 logits
    monkeypatch.setattr(language_module, "_CHUNK", 5 * 11 * 4)  # five positions
    model.rows.clear()
    seen = []
    small = task.evaluate(model, progress=lambda done, total: seen.append((done, total)))
    assert model.rows == [1, 3, 3, 3, 3, 3, 3, 1]
    assert seen[-1] == (20, 20) and [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert small.per_example == pytest.approx(plain.per_example, rel=1e-6)
    assert (small.predictions == plain.predictions).all()


@pytest.mark.parametrize("cap", [64 << 20, 13 * 2 * 11])
def test_agreement_and_kl_by_brute_force(monkeypatch, cap):
    monkeypatch.setattr(evaluation_module, "CAP", cap)
    rows = segments(6)
    dense, pruned = Bigram(seed=0).eval(), Bigram(seed=0).eval()
    with torch.no_grad():
        pruned.table.weight[pruned.table.weight.abs() < 0.7] = 0
    task = LanguageModelTask(rows)
    reference = task.reference(dense)
    found = task.evaluate(pruned, reference)
    before, after = (m(rows)[:, :-1].reshape(-1, 11).double().detach() for m in (dense, pruned))
    same = (before.argmax(-1) == after.argmax(-1)).double().view(6, 8).mean(1)
    assert found.details["agreement"] == pytest.approx(float(same.mean()))
    assert found.details["agreement_low"] <= found.details["agreement"] <= found.details["agreement_high"]
    kept = min(48, cap // (2 * 11))
    chosen = [i * 48 // kept for i in range(kept)]
    assert reference.outputs.shape == (kept, 11) and reference.outputs.dtype == torch.float16
    assert reference.chosen.tolist() == chosen
    p, q = before.log_softmax(-1)[chosen], after.log_softmax(-1)[chosen]
    assert found.details["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=5e-3)
    tail = np.percentile((p.exp() * (p - q)).sum(-1).numpy(), 99)
    assert found.details["kl_p99"] == pytest.approx(float(tail), rel=5e-3) and tail > found.details["kl"]
    itself = task.evaluate(dense, reference)
    assert itself.details["agreement"] == 1 and 0 <= itself.details["kl"] < 1e-5
    assert itself.value == reference.evaluation.value


def test_impossible_answers_have_a_finite_kl():
    model = Bigram()
    with torch.no_grad():
        model.table.weight[:, 3] = -math.inf
    rows = segments()
    rows[rows == 3] = 4
    task = LanguageModelTask(rows)
    assert task.evaluate(model, task.reference(model)).details["kl"] == pytest.approx(0, abs=1e-5)


def test_nan_is_a_figure_and_not_a_crash():
    model, task = Bigram(), LanguageModelTask(segments())
    reference = task.reference(model)
    with torch.no_grad():
        model.table.weight[int(task.segments[2, 0])] = math.nan
    found = task.evaluate(model, reference)
    assert math.isnan(found.value) and found.details["nan_examples"] >= 1
    assert found.predictions[2, 0] == -1
    lost = compare(reference.evaluation, found, higher_is_better=False)
    assert math.isnan(lost.drop) and not lost.high <= 1000


def test_perplexity_drop_is_paired_and_in_per_cent():
    rows = segments(200, 12)
    dense, other = Bigram(seed=0), Bigram(seed=0)
    with torch.no_grad():
        other.table.weight += 0.2 * torch.randn(11, 11, generator=torch.Generator().manual_seed(1))
    task = LanguageModelTask(rows)
    a, b = task.evaluate(dense), task.evaluate(other)
    lost = compare(a, b, higher_is_better=task.higher_is_better)
    assert lost.relative and lost.n == 200
    assert lost.drop == pytest.approx(100 * (b.value / a.value - 1), rel=1e-9)
    assert lost.low < lost.drop < lost.high
    assert lost.high - lost.low < 100 * (b.high - b.low) / a.value, "pairing narrows the interval"
    back = compare(b, a, higher_is_better=False)
    assert (1 + back.low / 100) * (1 + lost.high / 100) == pytest.approx(1)
    nothing = compare(a, a, higher_is_better=False)
    assert (nothing.drop, nothing.low, nothing.high) == (0, 0, 0)


def test_text_becomes_segments_and_words_again():
    texts = ["the cat sat on the mat and slept", "a dog ran over the hill to the sea"]
    tokenizer = WordTokenizer(texts)
    task = LanguageModelTask(texts, tokenizer, length=5)
    stream = [token for text in texts for token in [*tokenizer([text])["input_ids"][0], 1]]
    assert task.segments.flatten().tolist() == stream[: len(stream) // 5 * 5]
    assert "3 segments of 5 tokens" in task.describe()
    model, other = Bigram(len(tokenizer)), Bigram(len(tokenizer))
    with torch.no_grad():  # the dense model knows the text by heart, the other forgot one word
        for first, second in itertools.pairwise(stream):
            model.table.weight[first, second] = 20
        other.table.weight.copy_(model.table.weight)
        cat, sat = tokenizer.vocabulary["cat"], tokenizer.vocabulary["sat"]
        other.table.weight[cat] = torch.zeros(len(tokenizer)).scatter(0, torch.tensor(tokenizer.vocabulary["sea"]), 9.0)
    assert task.segments[0, 1] == cat and task.segments[0, 2] == sat
    found = changed_examples(task, task.evaluate(model), task.evaluate(other))
    assert found == [{"index": 0, "input": "the cat", "truth": "sat", "dense": "sat", "pruned": "sea"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 5), "whole numbers"),
        (torch.zeros(1, 5, dtype=torch.long), "at least two"),
        (torch.full((3, 5), 11), "token 11, which the model does not know"),
    ],
)
def test_unusable_segments_are_one_sentence(data, message):
    with pytest.raises(InputError, match=message):
        LanguageModelTask(data).evaluate(Bigram())


# --- classification


class Lookup(nn.Module):
    """Logits by example: the input is the row number."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, x):
        return self.logits[x[:, 0].long()]


def classified(truth, seed=0, classes=4):
    logits = torch.randn(len(truth), classes, generator=torch.Generator().manual_seed(seed))
    logits[torch.arange(len(truth)), torch.as_tensor(truth)] += 0.8
    return Lookup(logits)


TRUTH = np.random.default_rng(0).integers(0, 4, size=300)


def numbered(truth, names=None):
    return Records("tensors", (torch.arange(len(truth))[:, None].float(),), np.asarray(truth), names, name="numbers")


def test_classification_equals_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    model = classified(TRUTH)
    found = ClassificationTask(numbered(TRUTH)).evaluate(model)
    answers = model.logits.argmax(-1).numpy()
    assert (found.predictions == answers).all() and (found.truth == TRUTH).all()
    assert found.value == metrics.accuracy_score(TRUTH, answers)
    assert found.details["recall"] == pytest.approx(metrics.recall_score(TRUTH, answers, average=None))
    assert found.details["macro_f1"] == pytest.approx(metrics.f1_score(TRUTH, answers, average="macro"))
    assert found.details["support"] == np.bincount(TRUTH).tolist()
    json.dumps(found.summary())


def test_a_class_without_examples_counts_where_it_is_answered():
    metrics = pytest.importorskip("sklearn.metrics")
    truth = np.where(TRUTH == 2, 1, TRUTH)
    model = classified(TRUTH)
    found = ClassificationTask(numbered(truth)).evaluate(model)
    answers = model.logits.argmax(-1).numpy()
    assert found.details["recall"][2] is None
    assert found.details["macro_f1"] == pytest.approx(metrics.f1_score(truth, answers, average="macro"))


def test_classification_agreement_and_kl():
    task = ClassificationTask(numbered(TRUTH))
    dense, other = classified(TRUTH), classified(TRUTH, seed=1)
    reference = task.reference(dense)
    found = task.evaluate(other, reference)
    p, q = dense.logits.detach().double().log_softmax(-1), other.logits.detach().double().log_softmax(-1)
    assert found.details["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.details["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=5e-3)
    with pytest.raises(InputError, match="another task"):
        ClassificationTask(numbered(TRUTH[:50])).evaluate(other, reference)


def test_accuracy_drop_counts_the_answers_that_changed():
    task = ClassificationTask(numbered(TRUTH, ("ant", "bee", "cat", "dog")))
    dense = task.evaluate(classified(TRUTH))
    other = task.evaluate(classified(TRUTH, seed=1))
    right, still = dense.predictions == TRUTH, other.predictions == TRUTH
    lost = compare(dense, other, higher_is_better=True)
    assert lost.drop == pytest.approx(100 * (int((right & ~still).sum()) - int((~right & still).sum())) / 300)
    assert lost.low < lost.drop < lost.high and not lost.relative
    changes = class_changes(dense, other)
    assert [c["change"] for c in changes] == sorted(c["change"] for c in changes)
    bee = next(c for c in changes if c["name"] == "bee")
    of_bee = TRUTH == 1
    assert bee["n"] == of_bee.sum()
    assert bee["before"] == pytest.approx(right[of_bee].mean()) and bee["after"] == pytest.approx(still[of_bee].mean())
    examples = changed_examples(task, dense, other, k=5)
    assert len(examples) == 5
    for example in examples:
        i = example["index"]
        assert right[i] and not still[i], "losses come first"
        assert example["truth"] == example["dense"] == ("ant", "bee", "cat", "dog")[TRUTH[i]] != example["pruned"]
    everything = changed_examples(task, dense, other, k=1000)
    assert {e["index"] for e in everything} == set(np.flatnonzero(dense.predictions != other.predictions))
    assert changed_examples(task, dense, dense) == []


def test_nan_logits_are_flagged():
    model = classified(TRUTH)
    task = ClassificationTask(numbered(TRUTH))
    reference = task.reference(model)
    with torch.no_grad():
        model.logits[7, 2] = math.nan
    found = task.evaluate(model, reference)
    assert math.isnan(found.value) and found.details["nan_examples"] == 1 and found.predictions[7] == -1
    assert not compare(reference.evaluation, found, higher_is_better=True).high <= 1000
    assert changed_examples(task, reference.evaluation, found)[-1]["pruned"] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 4, 1]), "label 4, the model knows the 4 classes 0 to 3"),
        (np.array([0, -1, 1]), "label -1 of record 1"),
        (np.array([0.0, 2.5, 1.0]), "2.5 of record 1 is not a class"),
        (np.array([0.0, math.nan, 1.0]), "not a class"),
        (None, "name their column with label"),
    ],
)
def test_labels_that_are_no_classes(labels, message):
    records = numbered([0, 1, 2])
    records.labels = labels
    with pytest.raises(InputError, match=message):
        ClassificationTask(records).evaluate(classified([0, 1, 2]))


def test_labels_as_words_follow_the_models_own_order():
    class Config:
        label2id = {"POSITIVE": 0, "NEGATIVE": 1}  # noqa: RUF012
        id2label = {0: "POSITIVE", 1: "NEGATIVE"}  # noqa: RUF012

    records = open_data([{"text": "good", "label": "positive"}, {"text": "bad", "label": "negative"}])
    assert records.label_names == ("negative", "positive")
    task = ClassificationTask(records, WordTokenizer(["good bad"]), config=Config())
    assert task.truth.tolist() == [0, 1] and task.class_names == ["POSITIVE", "NEGATIVE"]


class Sums(nn.Module):
    """A text classifier that reads its attention mask: the padding must not be seen."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.shapes = []

    def forward(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        total = (input_ids * attention_mask).sum(1)
        return {"logits": self.one * nn.functional.one_hot(total % 3, 3).float()}


@pytest.mark.parametrize("pad", [True, False])
def test_texts_are_sorted_padded_and_answered_in_their_order(pad):
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(50)]
    texts = [" ".join(rng.choice(vocabulary, size=rng.integers(1, 30))) for _ in range(300)]
    tokenizer = WordTokenizer([" ".join(vocabulary)], pad=pad)
    truth = np.array([sum(ids) % 3 for ids in tokenizer(texts)["input_ids"]])
    model = Sums()
    found = ClassificationTask(Records("text", texts, truth), tokenizer).evaluate(model)
    assert found.value == 1.0
    if pad:
        assert all(rows * width <= 4096 or rows == 1 for rows, width in model.shapes)
        assert max(rows for rows, _ in model.shapes) > 50
    else:
        assert {rows for rows, _ in model.shapes} == {1}


def test_images_are_prepared_batch_by_batch():
    images = np.random.default_rng(0).integers(0, 256, size=(40, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(40) % 2

    class Mean(nn.Module):
        def forward(self, pixel_values):
            assert pixel_values.shape[1:] == (3, 6, 5)
            mean = pixel_values.mean((1, 2, 3))
            return torch.stack([-mean, mean], 1)

    found = ClassificationTask(Records("images", images, labels), {"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    answers = ((images / 255.0 - 0.5).mean((1, 2, 3)) > 0).astype(int)
    assert (found.evaluate(Mean()).predictions == answers).all()


# --- similarity and agreement


class Embedder(nn.Module):
    def __init__(self, vocabulary, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Embedding(vocabulary, 8, _weight=torch.randn(vocabulary, 8, generator=generator))
        self.seen = 0

    def forward(self, input_ids, attention_mask):
        self.seen += len(input_ids)
        return {"last_hidden_state": self.table(input_ids)}


def pairs_of_texts(n=60, seed=0):
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(20)]
    pairs = [tuple(" ".join(rng.choice(words, size=rng.integers(1, 9))) for _ in range(2)) for _ in range(n)]
    return Records("pairs", pairs, rng.uniform(0, 5, size=n), name="pairs"), WordTokenizer([" ".join(words)])


def slow_cosine(table, tokenizer, pair):
    vectors = []
    for ids in tokenizer(list(pair))["input_ids"]:
        mean = table[ids].astype(np.float64).mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    return float(vectors[0] @ vectors[1])


def test_similarity_equals_a_loop_over_pairs():
    from scipy.stats import spearmanr

    records, tokenizer = pairs_of_texts()
    records.inputs[5] = (records.inputs[4][0], records.inputs[6][1])  # a text met twice is encoded once
    model = Embedder(len(tokenizer))
    task = SimilarityTask(records, tokenizer)
    found = task.evaluate(model)
    table = model.table.weight.detach().numpy()
    expected = [slow_cosine(table, tokenizer, pair) for pair in records.inputs]
    assert found.predictions == pytest.approx(np.array(expected), abs=1e-6)
    assert found.value == pytest.approx(spearmanr(expected, records.labels).statistic)
    assert found.low < found.value < found.high
    assert model.seen == len({text for pair in records.inputs for text in pair})


def test_similarity_drop_and_agreement():
    records, tokenizer = pairs_of_texts()
    task = SimilarityTask(records, tokenizer)
    dense, other = Embedder(len(tokenizer)), Embedder(len(tokenizer))
    with torch.no_grad():
        other.table.weight[:, :5] = 0
    reference = task.reference(dense)
    found = task.evaluate(other, reference)
    texts = list(dict.fromkeys(text for pair in records.inputs for text in pair))
    cosines = []
    for ids in tokenizer(texts)["input_ids"]:
        one, two = (m.table.weight.detach().numpy()[ids].mean(0) for m in (dense, other))
        cosines.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert found.details["embedding_cosine"] == pytest.approx(np.mean(cosines), abs=1e-3)
    assert task.evaluate(dense, reference).details["embedding_cosine"] == pytest.approx(1, abs=1e-5)
    lost = compare(reference.evaluation, found, higher_is_better=True)
    assert lost.drop == pytest.approx(100 * (reference.evaluation.value - found.value))
    assert lost.low < lost.drop < lost.high and not lost.relative
    moved = changed_examples(task, reference.evaluation, found, k=3)
    assert len(moved) == 3 and all(" | " in entry["input"] for entry in moved)


def test_scores_that_are_no_scores():
    records, tokenizer = pairs_of_texts(5)
    records.labels = np.full(5, 2.5)
    with pytest.raises(InputError, match=r"all scores are 2\.5"):
        SimilarityTask(records, tokenizer)
    records.labels = None
    with pytest.raises(InputError, match="column with label"):
        SimilarityTask(records, tokenizer)
    with pytest.raises(InputError, match="two text columns"):
        SimilarityTask(Records("text", ["a", "b"], np.ones(2)), tokenizer)


def test_agreement_needs_no_labels():
    records = numbered(TRUTH)
    records.labels = None
    task = AgreementTask(records)
    dense, other = classified(TRUTH), classified(TRUTH, seed=1)
    reference = task.reference(dense)
    assert reference.evaluation.value == 1.0
    found = task.evaluate(other, reference)
    same = (dense.logits.argmax(-1) == other.logits.argmax(-1)).numpy()
    assert found.value == pytest.approx(same.mean()) and (found.per_example == same).all()
    lost = compare(reference.evaluation, found, higher_is_better=True)
    assert lost.drop == pytest.approx(100 * (1 - same.mean())) and lost.low < lost.drop < lost.high
    assert found.details["kl"] > 0


def test_agreement_of_embeddings_is_their_cosine():
    records, tokenizer = pairs_of_texts()
    texts = Records("text", [pair[0] for pair in records.inputs])
    task = AgreementTask(texts, tokenizer)
    dense, other = Embedder(len(tokenizer)), Embedder(len(tokenizer), seed=0)
    with torch.no_grad():
        other.table.weight[:, 0] = 0
    reference = task.reference(dense)
    found = task.evaluate(other, reference)
    cosines = []
    for ids in tokenizer(texts.inputs)["input_ids"]:
        one, two = (m.table.weight.detach().numpy()[ids].mean(0) for m in (dense, other))
        cosines.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert found.per_example == pytest.approx(np.array(cosines), abs=1e-5)
    assert found.value == pytest.approx(np.mean(cosines), abs=1e-5)
    assert changed_examples(task, reference.evaluation, found) == []


def test_agreement_averages_over_positions_and_flags_nan():
    ids = segments(5)
    task = AgreementTask(Records("tensors", (ids,)))
    dense, other = Bigram(seed=0), Bigram(seed=3)
    reference = task.reference(dense)
    found = task.evaluate(other, reference)
    same = (dense.table.weight.argmax(-1)[ids] == other.table.weight.argmax(-1)[ids]).double().mean(1)
    assert found.per_example == pytest.approx(same.numpy())
    with torch.no_grad():
        other.table.weight[:] = math.nan
    broken = task.evaluate(other, reference)
    assert math.isnan(broken.value) and broken.details["nan_examples"] == 5


# --- what all share


def test_the_task_that_fits():
    records, tokenizer = pairs_of_texts()
    assert isinstance(open_task(records, tokenizer, model_kind="encoder"), SimilarityTask)
    assert isinstance(open_task(numbered(TRUTH), model_kind="tensors"), ClassificationTask)
    unlabelled = numbered(TRUTH)
    unlabelled.labels = None
    assert isinstance(open_task(unlabelled, model_kind="tensors"), AgreementTask)
    assert isinstance(open_task(numbered(TRUTH), model_kind="tensors", task="agreement"), AgreementTask)
    texts = Records("text", ["w1 w2 w3 w4"] * 4)
    assert isinstance(open_task(texts, tokenizer, model_kind="causal-lm", length=4), LanguageModelTask)
    with pytest.raises(InputError, match="task perplexity, classification"):
        open_task(texts, tokenizer, model_kind="encoder", task="bleu")


def test_evaluations_of_different_data_are_not_compared():
    a = ClassificationTask(numbered(TRUTH)).evaluate(classified(TRUTH))
    b = ClassificationTask(numbered(TRUTH[:100])).evaluate(classified(TRUTH))
    with pytest.raises(InputError, match="300 examples"):
        compare(a, b, higher_is_better=True)


def test_an_evaluation_is_stored_and_read_back(tmp_path):
    task = ClassificationTask(numbered(TRUTH))
    found = task.evaluate(classified(TRUTH), task.reference(classified(TRUTH, seed=1)))
    found.save(tmp_path / "a.npz")
    again = Evaluation.load(tmp_path / "a.npz")
    assert again.summary() == found.summary()
    for name in ("per_example", "predictions", "truth"):
        assert (getattr(again, name) == getattr(found, name)).all()
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(FormatError, match="delete it"):
        Evaluation.load(tmp_path / "b.npz")


def test_calling_leaves_out_what_forward_does_not_take():
    class Narrow(nn.Module):
        def forward(self, input_ids):
            return input_ids

    class Foreign(nn.Module):
        def forward(self, tokens):
            return tokens

    batch = {"input_ids": torch.ones(1, 2), "token_type_ids": torch.zeros(1, 2)}
    assert call(Narrow(), batch, use_cache=False).sum() == 2
    assert call(Foreign(), batch).sum() == 2
    assert call(Foreign(), (torch.zeros(3),)).shape == (3,)


def test_modes_are_given_back_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    model.train()
    model[1].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model[0].training and torch.is_inference_mode_enabled()
        raise RuntimeError
    assert model[0].training and not model[1].training


def test_a_feed_serves_every_row_once():
    records, tokenizer = pairs_of_texts(100)
    feed = Feed(records, tokenizer, 6)
    rows = np.concatenate([rows for rows, _ in feed.batches(nn.Identity())])
    assert sorted(rows) == list(range(100))
    assert all(batch["input_ids"].shape[1] <= 6 for _, batch in feed.batches(nn.Identity()))


def test_memory_and_machine():
    assert peak_rss() >= resident() * 0.9 > 1 << 20
    if reset_peak():
        base = peak_rss()
        # Pages of its own: the allocator may hand out memory that was resident before.
        block = np.frombuffer(mmap.mmap(-1, 64 << 20), dtype=np.uint8)
        block.fill(1)
        assert peak_rss() - base > 48 << 20
        del block
        reset_peak()
        assert peak_rss() - base < 48 << 20
    assert available_memory() > 0
    facts = machine()
    assert facts["torch"] == torch.__version__ and facts["cores"] >= 1 and facts["ram"] > available_memory()
    json.dumps(facts)


def test_the_harness_is_optional_and_says_so(monkeypatch, tmp_path):
    from winnow.measure.harness import harness

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'winnow-nn\[eval\]'"):
        harness(None, None, ["copa"], tmp_path)


# --- real models


@pytest.mark.shared_data
@pytest.mark.hf
def test_minilm_on_stsb(shared_data):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / "minilm-l6")
    model = transformers.AutoModel.from_pretrained(shared_data / "minilm-l6", dtype=torch.float32)
    records = open_data(str(shared_data / "stsb" / "test.csv.gz"), column="0,1", label="2")
    assert len(records) == 1379
    found = SimilarityTask(records, tokenizer, limit=60).evaluate(model)
    # 0.8203 on all 1,379 pairs.
    assert found.low < 0.8203 < found.high and 0.7 < found.value < 0.92
    first = records.inputs[0]
    with torch.no_grad():
        alone = []
        for text in first:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            alone.append(hidden / hidden.norm())
    assert found.predictions[0] == pytest.approx(float(alone[0] @ alone[1]), abs=1e-5)


@pytest.mark.shared_data
@pytest.mark.hf
def test_reference_lm_on_its_corpus(shared_data):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared_data / "reference-lm")
    model = transformers.AutoModelForCausalLM.from_pretrained(shared_data / "reference-lm", dtype=torch.float32)
    records = open_data(str(shared_data / "corpus" / "test.txt.gz"))
    assert len(records) == 103
    task = LanguageModelTask(records, tokenizer, length=256, limit=24)
    found = task.evaluate(model)
    # 42.82 on all segments; the interval of a few must hold it.
    assert found.low < 42.82 < found.high and 30 < found.value < 60
    with torch.no_grad():
        loss = model(input_ids=task.segments[:1], labels=task.segments[:1]).loss
    assert found.per_example[0] == pytest.approx(float(loss), abs=1e-4)


@pytest.mark.shared_data
def test_resnet_on_cifar(shared_data, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.syspath_prepend(str(shared_data / "cifar10"))
    monkeypatch.syspath_prepend(str(shared_data / "resnet-cifar10"))
    for name in ("load", "model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import load
    import model as zoo

    images, labels = load.jpeg("test", limit=400)
    net = zoo.load("resnet20_jpegft", str(shared_data / "resnet-cifar10"))
    settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    found = ClassificationTask(open_data((images, labels)), settings).evaluate(net)
    # 85.78% on all 10,000.
    assert found.low < 0.8578 < found.high
    for name in ("load", "model"):
        sys.modules.pop(name, None)
