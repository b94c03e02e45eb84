import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patterns import realized
from winnow.errors import InputError
from winnow.masks.ranking import comparable, global_counts
from winnow.masks.structure import NM, BlockShape, Coupled, Unstructured, check, nearest_zeros, parse_structure, select

# Few distinct values, so that ties are the rule.
TIED = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 1.0, 3e38, float("inf")])


def matrices():
    shapes = st.tuples(st.integers(1, 6), st.integers(1, 9))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=TIED))


def slow_keep(scores, zeros, weight=None):
    """Sort (already zero first, score, index) in plain Python and take the first ``zeros``."""
    order = [
        (not (weight is not None and weight.flat[i] == 0), 0.0 if weight is not None and weight.flat[i] == 0 else s, i)
        for i, s in enumerate(scores.astype(np.float64).flat)
    ]
    keep = np.ones(scores.size, dtype=bool)
    for _, _, i in sorted(order)[:zeros]:
        keep[i] = False
    return keep.reshape(scores.shape)


@pytest.mark.parametrize(
    "text", ["unstructured", "2:4", "1:16", "block:1x4", "block:16x16", "neuron", "head", "channel"]
)
def test_parse_gives_back_the_text(text):
    assert str(parse_structure(text)) == text
    assert parse_structure(f" {text.upper()} ") == parse_structure(text)


def test_n_of_m_is_the_number_kept():
    assert parse_structure("1:4") == NM(n=1, m=4)
    assert select(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 3, NM(1, 4)).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(
    "text", ["0:4", "5:4", "4:4", "2-4", "", "2:4:8", "-1:4", "block:4", "block:0x4", "layer", "2.0:4"]
)
def test_nonsense_is_one_sentence(text):
    with pytest.raises(InputError) as caught:
        parse_structure(text)
    assert "\n" not in str(caught.value) and (":" in str(caught.value))


@pytest.mark.parametrize(
    "structure, shape, said",
    [(NM(2, 4), (8, 6), "multiple of 4"), (BlockShape(3, 1), (8, 6), "tile"), (BlockShape(2, 4), (8, 6), "tile")],
)
def test_check_names_what_does_not_divide(structure, shape, said):
    with pytest.raises(InputError, match=said) as caught:
        check(structure, *shape, "fc.weight")
    assert "fc.weight" in str(caught.value)
    with pytest.raises(InputError, match=said):
        select(torch.rand(shape), 24, structure)
    check(Unstructured(), *shape)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_layer_selection_is_the_plain_sort(data):
    scores = data.draw(matrices())
    weight = data.draw(
        st.none() | hnp.arrays(np.float32, scores.shape, elements=st.sampled_from([0.0, -0.0, 1.0, -2.0]))
    )
    zeros = data.draw(st.integers(0, scores.size))
    keep = select(
        torch.from_numpy(scores), zeros, Unstructured(), weight=None if weight is None else torch.from_numpy(weight)
    )
    assert int((~keep).sum()) == zeros
    assert np.array_equal(keep.numpy(), slow_keep(scores, zeros, weight))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_row_selection_shares_by_largest_remainder(data):
    scores = data.draw(matrices())
    weight = data.draw(st.none() | hnp.arrays(np.float32, scores.shape, elements=st.sampled_from([0.0, 1.0])))
    zeros = data.draw(st.integers(0, scores.size))
    keep = select(
        torch.from_numpy(scores), zeros, Unstructured(), "row", None if weight is None else torch.from_numpy(weight)
    ).numpy()
    rows = scores.shape[0]
    for r in range(rows):
        own = zeros // rows + (r < zeros % rows)
        expected = slow_keep(scores[r : r + 1], own, None if weight is None else weight[r : r + 1])
        assert np.array_equal(keep[r : r + 1], expected)
    assert (~keep).sum() == zeros


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_n_of_m_holds_in_every_group(data):
    m = data.draw(st.integers(2, 9))
    n = data.draw(st.integers(1, m - 1))
    rows, groups = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    scores = data.draw(hnp.arrays(np.float32, (rows, groups * m), elements=TIED))
    weight = data.draw(hnp.arrays(np.float32, scores.shape, elements=st.sampled_from([0.0, 1.0])))
    structure = NM(n, m)
    keep = select(torch.from_numpy(scores), rows * groups * (m - n), structure, weight=torch.from_numpy(weight))
    assert realized(structure, keep)
    for r in range(rows):
        for g in range(groups):
            at = slice(g * m, (g + 1) * m)
            expected = slow_keep(scores[r : r + 1, at], m - n, weight[r : r + 1, at])
            assert np.array_equal(keep[r : r + 1, at].numpy(), expected)


def test_n_of_m_refuses_another_count():
    scores = torch.rand(8, 64)
    assert int((~select(scores, 256, NM(2, 4))).sum()) == 256
    assert int((~select(scores, 255, NM(2, 4))).sum()) == 256  # one group's rounding
    with pytest.raises(InputError, match=r"ask for sparsity 0\.5"):
        select(scores, 300, NM(2, 4))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_blocks_go_whole_by_mean_magnitude(data):
    r, c = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    down, across = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    values = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, 5.0])
    scores = data.draw(hnp.arrays(np.float32, (down * r, across * c), elements=values))
    zeros = data.draw(st.integers(0, scores.size))
    group = data.draw(st.sampled_from(["layer", "row"]))
    structure = BlockShape(r, c)
    keep = select(torch.from_numpy(scores), zeros, structure, group).numpy()
    assert realized(structure, torch.from_numpy(keep))
    gone = (~keep).sum() // (r * c)
    assert abs(gone * r * c - zeros) * 2 <= r * c
    means = np.array(
        [[np.abs(scores[i * r : i * r + r, j * c : j * c + c]).sum() for j in range(across)] for i in range(down)]
    )
    kept_blocks = keep[::r, ::c]
    if group == "layer":
        assert np.array_equal(kept_blocks, slow_keep(means, gone))
    else:
        for i in range(down):
            own = gone // down + (i < gone % down)
            assert np.array_equal(kept_blocks[i : i + 1], slow_keep(means[i : i + 1], own))


def test_an_all_zero_block_goes_before_a_lower_score():
    scores = torch.tensor([[5.0, 5.0, 0.1, 0.1]])
    weight = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert select(scores, 2, BlockShape(1, 2), weight=weight).tolist() == [[False, False, True, True]]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_global_counts_are_those_of_one_plain_sort(data):
    tensors = data.draw(st.lists(matrices(), min_size=1, max_size=4))
    cap = data.draw(st.sampled_from([1.0, 0.5]))
    sizes = [int(cap * t.size) for t in tensors]
    zeros = data.draw(st.integers(0, sum(sizes)))
    found = global_counts({t: torch.from_numpy(x) for t, x in enumerate(tensors)}, zeros, dict(enumerate(sizes)))
    expected = dict.fromkeys(range(len(tensors)), 0)
    for _, t in sorted((s, t) for t, scores in enumerate(tensors) for s in scores.astype(np.float64).flat):
        if sum(expected.values()) < zeros and expected[t] < sizes[t]:  # a tensor at its cap is passed over
            expected[t] += 1
    assert found == expected


def test_global_counts_over_many_chunks_match_a_sort():
    generator = np.random.default_rng(0)
    big = generator.standard_normal((1100, 1100)).astype(np.float32)  # more than one chunk
    small = np.round(generator.standard_normal((40, 50)), 1).astype(np.float32)
    zeros = 700_001
    counts = global_counts({"big": lambda: torch.from_numpy(big), "small": torch.from_numpy(small)}, zeros)
    threshold = np.sort(np.concatenate([big.ravel(), small.ravel()]))[zeros - 1]
    assert sum(counts.values()) == zeros
    assert (big < threshold).sum() <= counts["big"] <= (big <= threshold).sum()
    assert (small < threshold).sum() <= counts["small"] <= (small <= threshold).sum()


def test_minus_zero_ties_with_zero_across_tensors():
    assert global_counts({"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([-0.0, 2.0])}, 1) == {"a": 1, "b": 0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_types_rank_the_same(dtype):
    values = torch.randperm(48).reshape(6, 8)
    expected = values >= 20
    assert torch.equal(select(values.to(dtype), 20, Unstructured()), expected)
    assert torch.equal(select(values.to(dtype).t().contiguous().t(), 20, Unstructured()), expected)  # any strides


def test_scores_are_not_written_to():
    scores, weight = torch.rand(4, 8), torch.zeros(4, 8)
    before = scores.clone()
    for structure in (Unstructured(), NM(2, 4), BlockShape(2, 2)):
        select(scores, 16, structure, weight=weight)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_scores_that_cannot_be_ranked(bad):
    scores = torch.rand(4, 8)
    scores[2, 3] = bad
    with pytest.raises(InputError, match="scores"):
        select(scores, 3, Unstructured())
    with pytest.raises(InputError, match="of fc hold"):
        comparable(scores, "fc")


def test_counts_groups_and_shapes_that_do_not_fit():
    scores = torch.rand(4, 8)
    for call in (
        lambda: select(scores, 33, Unstructured()),
        lambda: select(scores, -1, Unstructured()),
        lambda: select(scores, 3, Unstructured(), "column"),
        lambda: select(scores, 3, Unstructured(), weight=torch.rand(8, 4)),
        lambda: select(scores[0], 3, Unstructured()),
        lambda: select(scores, 3, Coupled("head")),
        lambda: Coupled("layer"),
    ):
        with pytest.raises(InputError):
            call()


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 400))
def test_nearest_zeros_is_the_nearest_multiple(units, area, zeros):
    zeros = min(zeros, units * area)
    found = nearest_zeros(BlockShape(1, area), units * area, zeros)
    assert found % area == 0
    assert abs(found - zeros) == min(abs(k * area - zeros) for k in range(units + 1))
