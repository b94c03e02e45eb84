"""The nearest plain quantization in the first sentence of every verdict, and what is said of it."""

import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import winnow
from small import classifier, points, trained
from winnow.compression.candidates import Candidate
from winnow.compression.outcome import Outcome
from winnow.compression.recipe import Recipe
from winnow.compression.rivals import examples_needed, nearest
from winnow.compression.verdict import judge
from winnow.measure.compare import compare
from winnow.measure.evaluation import Evaluation
from winnow.records.compression import Baseline

N, SIZE = 1000, 1000  # examples, and bytes of the dense file


class Task:
    metric, scale, higher_is_better, unit = "accuracy", 100.0, True, "points"


class Text:
    metric, scale, higher_is_better, unit = "perplexity", 1.0, False, "%"


def accuracy(right):
    """Of answers [n], 1 or 0."""
    right = np.asarray(right, dtype=float)
    value = float(right.mean())
    return Evaluation("accuracy", value, value - 0.02, value + 0.02, right, right.astype(int), len(right))


def perplexity(nll):
    nll = np.asarray(nll, dtype=float)
    value = math.exp(nll.mean()) if np.isfinite(nll).all() else math.nan
    return Evaluation("perplexity", value, 0.98 * value, 1.02 * value, nll, np.zeros((len(nll), 1), int), len(nll))


def flipped(lost, gained=0, n=N):
    """Right on the first nine tenths, but wrong on ``lost`` of them and right on ``gained`` of the others."""
    right = np.arange(n) < 0.9 * n
    right[:lost], right[n - gained :] = False, True
    return right


DENSE = accuracy(flipped(0))


def made(name, kind, size, measured, *, values="keep", sparsity=0.5, task=Task):
    recipe = Recipe(method="magnitude", sparsity=sparsity, zeros=round(1000 * sparsity), values=values)
    dense = DENSE if task is Task else perplexity(TEXT)
    loss = compare(dense, measured, higher_is_better=task.higher_is_better)
    return Outcome(Candidate(name, kind, recipe), None, measured, loss, size, 1.0)


def pruned(size, measured, **more):
    return made("s50", "pruned", size, measured, **more)


def plain(name, size, measured, **more):
    return made(name, "quantized", size, measured, values=name[:4], sparsity=0.0, **more)


def first(sentence):
    """Up to the first full stop that ends a sentence."""
    return sentence.partition(". ")[0]


TEXT = np.random.default_rng(0).normal(3, 0.2, 40)


def test_int4_that_is_smaller_and_better_is_named_though_a_sparse_candidate_is_smaller_still():
    chosen = pruned(500, accuracy(flipped(40)))
    int4 = plain("int4", 300, accuracy(flipped(10)))
    int8 = plain("int8", 480, accuracy(flipped(12)))
    tiny = made("s50-int4", "pruned+quantized", 200, accuracy(flipped(10)), values="int4")
    for others in ([int8, int4], [int8, int4, tiny], [tiny, int4, int8]):
        found = judge(chosen, others, Task(), DENSE, SIZE, "out")
        assert found.baseline.name == "int4" and found.baseline.dominates and found.baseline.chosen_is == "worse"
        assert "Plain quantization is the better answer here: int4" in first(found.sentence)
        assert "300 bytes instead of the 500 bytes of 50% sparsity and accuracy 89.00%, better by 3.00 points" in first(
            found.sentence
        )
        if tiny in others:  # of equal quality, and smaller
            assert found.better == "s50-int4" and "Store the same zeros in narrower values: 50" in found.sentence
            assert found.tone == "mixed" and found.answer == "Take another candidate"
        else:
            assert (found.better, found.tone, found.answer) == ("int4", "bad", None)


def test_a_model_that_beats_int4_in_both_says_so():
    chosen = pruned(200, accuracy(flipped(2)))
    found = judge(chosen, [plain("int4", 300, accuracy(flipped(30)))], Task(), DENSE, SIZE, "out")
    assert (found.tone, found.better, found.baseline.chosen_is) == ("good", None, "better")
    assert "the nearest plain quantization, int4" in first(found.sentence)
    assert "has 300 bytes (1.50× larger) and accuracy 87.00%, worse by 2.80 points (95% interval" in found.sentence
    assert "depends" not in found.sentence
    assert found.next_step == "Use it: `winnow.load('out')`, or `from_pretrained` after `import winnow`."


def test_the_next_step_is_a_line_that_loads_a_plain_torch_model(tmp_path):
    """As printed, run: with its code by name, and by a function where the model was given in memory."""
    net = trained(classifier(), *points(400), steps=200)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    options = dict(eval=points(2000, seed=3), sparsity=0.3, method="magnitude", baselines="none", speed=False, progress=False)  # fmt: skip
    for model, more in (("small:classifier", dict(weights=tmp_path / "weights.safetensors")), (net, {})):
        result = winnow.compress(model, points(400), out=tmp_path / "out", overwrite=True, **more, **options)
        said = re.search(r"^Use it: `(winnow\.load\([^`]*\))`", result.report.next_step)
        loaded = eval(said[1], {"winnow": winnow, "build": classifier})  # as a person would paste it
        assert torch.equal(loaded.state_dict()["head.weight"], net.state_dict()["head.weight"])
    unwritten = winnow.compress(net, points(400), **options)
    assert "result.save(FOLDER)" in unwritten.report.next_step and "winnow.load" not in unwritten.report.next_step


def test_a_trade_off_says_on_what_it_depends():
    smaller = judge(
        pruned(200, accuracy(flipped(9))), [plain("int4", 300, accuracy(flipped(0)))], Task(), DENSE, SIZE, "out"
    )
    assert smaller.tone == "mixed" and smaller.baseline.chosen_is == "worse" and not smaller.baseline.dominates
    assert "the nearest plain quantization, int4" in first(smaller.sentence)
    assert "It depends on" in smaller.sentence and "what counts more, a file 1.50× smaller or the accuracy of int4" in smaller.sentence  # fmt: skip

    larger = judge(
        pruned(400, accuracy(flipped(0))), [plain("int4", 300, accuracy(flipped(30)))], Task(), DENSE, SIZE, "out"
    )
    assert larger.tone == "mixed" and larger.baseline.chosen_is == "better"
    assert "what counts more, this accuracy or the file of int4 g128 RTN, 1.33× smaller" in larger.sentence

    costly = judge(
        pruned(200, accuracy(flipped(25))), [plain("int4", 300, accuracy(flipped(25)))], Task(), DENSE, SIZE, "out"
    )
    assert costly.tone == "mixed" and "whether a file 5.0× smaller is worth 2.50 points of accuracy" in costly.sentence
    unsure = judge(pruned(200, accuracy(flipped(8, 2))), [plain("int4", 300, accuracy(flipped(8, 2)))], Task(), DENSE, SIZE, "out")  # fmt: skip
    assert (
        unsure.tone == "mixed"
        and "whether more than 1 point is lost, which 1,000 examples leave open" in unsure.sentence
    )
    assert unsure.next_step.startswith("Check the examples")


def test_two_numbers_of_examples_each_say_what_they_would_tell():
    """One for the difference from plain quantization, one for the loss against the dense model."""
    chosen, int4 = pruned(200, accuracy(flipped(12, 6))), plain("int4", 300, accuracy(flipped(9, 6)))
    found = judge(chosen, [int4], Task(), DENSE, SIZE, "out")
    apart, settled = found.baseline.needed, examples_needed(chosen.comparison, apart_from=1.0)
    assert None not in (apart, settled) and apart != settled
    assert f"with 1,000 examples; about {apart:,} would be needed to tell the two apart" in first(found.sentence)
    assert f"which 1,000 examples leave open (about {settled:,} would settle that)" in found.sentence


def test_what_the_interval_does_not_tell_is_not_called_better():
    """8 examples lost and 3 gained: 0.5 points, of which 0.2 would be noise."""
    int4 = plain("int4", 300, accuracy(flipped(0)))
    found = judge(pruned(200, accuracy(flipped(8, 3))), [int4], Task(), DENSE, SIZE, "out")
    assert found.baseline.chosen_is == "undecided" and found.baseline.drop == pytest.approx(0.5)
    assert f"not significantly different with 1,000 examples; about {found.baseline.needed:,} would be needed to tell the two apart" in first(found.sentence)  # fmt: skip
    assert "better" not in found.sentence and "worse" not in found.sentence
    smaller = judge(pruned(400, accuracy(flipped(8, 3))), [int4], Task(), DENSE, SIZE, "out")
    assert (smaller.tone, smaller.better) == ("bad", "int4")
    assert smaller.sentence.startswith("Plain quantization is smaller at no loss that could be measured: int4")
    real = judge(
        pruned(400, accuracy(flipped(0))), [plain("int4", 300, accuracy(flipped(3, 1)))], Task(), DENSE, SIZE, "out"
    )
    assert (
        real.tone == "mixed" and "whether its difference from int4 g128 RTN, which is smaller, is real" in real.sentence
    )
    none = judge(pruned(200, accuracy(flipped(5, 5))), [int4], Task(), DENSE, SIZE, "out")
    assert none.baseline.needed is None and "close to zero" in first(none.sentence) and "needed" not in none.sentence


@pytest.mark.parametrize(("lost", "gained"), [(6, 3), (4, 2), (5, 4), (3, 7), (9, 4)])
def test_about_as_many_examples_as_are_said_would_tell(lost, gained):
    """The same hundred examples over and over: a fifth more than said put zero outside the interval, two thirds of them do not."""

    def loss(times):
        other = accuracy(flipped(lost * times, gained * times, 100 * times))
        return compare(accuracy(flipped(0, n=100 * times)), other, higher_is_better=True)

    needed = examples_needed(loss(1))
    fewer, more = loss(int(needed / 150)), loss(math.ceil(1.2 * needed / 100))
    assert fewer.low < 0 < fewer.high and (more.low > 0 or more.high < 0)
    assert needed == float(f"{needed:.1e}")  # two digits: it is an estimate


def test_where_no_number_of_examples_would_tell_none_is_said():
    same = compare(DENSE, accuracy(flipped(7, 7)), higher_is_better=True)
    hardly = compare(DENSE, accuracy(flipped(40, 39)), higher_is_better=True)  # 0.1 points, give or take 1.7
    few = compare(perplexity([3.0]), perplexity([3.1]), higher_is_better=False)  # one segment has no interval
    broken = compare(perplexity([3.0, 3.1]), perplexity([math.nan, 3.1]), higher_is_better=False)
    assert [examples_needed(c) for c in (same, hardly, few, broken)] == [None] * 4


def test_perplexities_are_compared_as_ratios_and_counted_in_segments():
    noise = np.random.default_rng(1).normal(0, 0.02, 40)
    chosen = pruned(200, perplexity(TEXT + 0.03), task=Text)
    clear = judge(
        chosen, [plain("int4", 300, perplexity(TEXT + 0.01), task=Text)], Text(), perplexity(TEXT), SIZE, "out"
    )
    assert "which is better: the chosen model's is 2.02% higher (95% interval 2.02 to 2.02)" in first(clear.sentence)
    assert "is worth perplexity 3.05% higher" in clear.sentence
    vague = judge(
        chosen, [plain("int4", 300, perplexity(TEXT + 0.027 + noise), task=Text)], Text(), perplexity(TEXT), SIZE, "out"
    )
    assert "not significantly different with 40 segments; about" in first(vague.sentence)
    broken = pruned(200, perplexity(np.full(40, np.nan)), task=Text)
    lost = judge(broken, [plain("int4", 300, perplexity(TEXT), task=Text)], Text(), perplexity(TEXT), SIZE, "out")
    assert lost.tone == "bad" and "where the chosen model's outputs hold NaN" in first(lost.sentence)
    assert lost.baseline.chosen_is is None and lost.baseline.drop is None


def test_without_plain_quantization_it_is_said_why():
    chosen, task = pruned(500, accuracy(flipped(0))), Task()
    for level, why in (("none", " (baselines: none)"), ("all", "")):
        found = judge(chosen, [], task, DENSE, SIZE, "out", level=level)
        assert f"; plain quantization was not measured{why}." in found.sentence
        assert found.baseline == Baseline(missing=f"plain quantization was not measured{why}")
    own = plain("int8", 300, accuracy(flipped(0)))
    assert "; it is itself plain quantization." in judge(own, [], task, DENSE, SIZE, "out").sentence
    alone = judge(chosen, [], None, None, SIZE, "out")
    assert alone.answer == "Quality not measured" and "nor was plain quantization beside it" in alone.sentence


def test_the_nearest_is_the_one_that_dominates_else_the_closest_in_bytes():
    def named(size, lost, *rows, limit=None):
        at = [plain(f"int4-{i}", s, accuracy(flipped(k))) for i, (s, k) in enumerate(rows)]
        found = nearest(pruned(size, accuracy(flipped(lost))), at, limit)
        return None if found is None else int(found.name[5:])

    assert named(100, 5) is None
    assert named(100, 5, (60, 9), (99, 4), (95, 3)) == 2  # no larger and no worse: the best
    assert named(100, 5, (60, 9), (130, 0), (160, 0)) == 1  # 1.30 is nearer than 1.67
    assert named(100, 5, (1000, 0), (1004, 2), (1009, 1), (1020, 0)) == 0
    assert named(100, 5, (1000, 2), (1004, 1), (1020, 0)) == 1  # within a hundredth in size: the better
    assert named(100, 5, (130, 1), (150, 0)) == 0
    assert named(100, 50, (130, 30), (150, 0), limit=200) == 1  # a size that was asked for is what others may use
    assert named(100, 5, (130, 1), (150, 0), limit=200) == 0  # not told apart: the smaller one
    assert named(500, 5, (480, 0), (160, 2), (90, 40)) == 1  # nor is a third of the size passed over for it
    broken = plain("int8", 120, accuracy(flipped(0)))
    broken.comparison = compare(DENSE, Evaluation("accuracy", math.nan, 0, 1, np.zeros(N), np.zeros(N), N), higher_is_better=True)  # fmt: skip
    sound = plain("int4", 900, accuracy(flipped(0)))
    assert nearest(pruned(100, accuracy(flipped(5))), [broken, sound]) is sound
    assert nearest(pruned(100, accuracy(flipped(5))), [broken]) is broken


def test_a_gain_among_many_candidates_needs_more_than_one_interval():
    """Of ten models that are all as good as the dense one, one often seems better at 95%: the interval grows with their number."""
    from winnow.measure.chance import too_good
    from winnow.measure.compare import Comparison

    found = Comparison(-1.5, -2.8, -0.2, False, 800, "")
    assert "not by chance" in too_good(found) and too_good(found, 10) is None
    assert too_good(Comparison(-4.0, -5.3, -2.7, False, 800, ""), 10) is not None
