import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from winnow.errors import FormatError, InputError
from winnow.masks.mask import Mask, MaskSet
from winnow.masks.soup import soup

bools = st.tuples(st.integers(0, 5), st.integers(0, 19)).flatmap(lambda shape: hnp.arrays(np.bool_, shape))


@st.composite
def families(draw, count=3):
    """Several mask sets of the same names and shapes, as bool arrays."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 11)), min_size=1, max_size=3))
    return [{f"t{i}": draw(hnp.arrays(np.bool_, shape)) for i, shape in enumerate(shapes)} for _ in range(count)]


def as_set(arrays):
    return MaskSet({name: torch.from_numpy(a) for name, a in arrays.items()})


def flat(arrays):
    return np.concatenate([a.ravel() for a in arrays.values()])


@given(bools)
def test_pack_is_one_bit_a_weight_and_back(array):
    mask = Mask.pack(torch.from_numpy(array))
    rows, cols = array.shape
    assert mask.bits.dtype == torch.uint8 and tuple(mask.bits.shape) == (rows, -(-cols // 8))
    assert np.array_equal(mask.unpack().numpy(), array)
    assert (mask.numel, mask.nonzeros, mask.zeros) == (array.size, array.sum(), array.size - array.sum())
    assert mask == Mask.pack(torch.from_numpy(array.copy())) and hash(mask) == hash(Mask.pack(torch.from_numpy(array)))


def test_bit_order_is_little_endian_by_row():
    keep = torch.zeros(2, 10, dtype=torch.bool)
    keep[0, 0] = keep[0, 9] = keep[1, 3] = True
    assert Mask.pack(keep).bits.tolist() == [[1, 2], [8, 0]]


def test_what_is_no_mask():
    with pytest.raises(InputError):
        Mask.pack(torch.ones(2, 3))
    with pytest.raises(InputError):
        Mask.pack(torch.ones(3, dtype=torch.bool))
    with pytest.raises(FormatError):
        Mask(torch.zeros(2, 2, dtype=torch.uint8), (2, 3))
    with pytest.raises(FormatError, match="beyond"):
        Mask(torch.tensor([[0], [8]], dtype=torch.uint8), (2, 3))


def test_counts_and_table():
    masks = as_set({"a": np.array([[1, 0, 0]], dtype=bool), "b": np.ones((2, 2), dtype=bool)})
    assert list(masks) == ["a", "b"] and len(masks) == 2
    assert (masks.numel, masks.zeros, masks.nonzeros) == (7, 2, 5) and masks.sparsity == 2 / 7
    assert [tuple(row) for row in masks.table] == [("a", 3, 2, 2 / 3), ("b", 4, 0, 0.0)]
    assert MaskSet({}).sparsity == 0


def test_apply_removes_even_what_is_not_finite():
    weight = torch.tensor([[float("nan"), -2.0], [float("inf"), 3.0]])
    bias = torch.ones(2)
    masks = MaskSet({"w": torch.tensor([[False, True], [False, True]])})
    state = {"w": weight, "b": bias}
    result = masks.apply(state)
    assert result["w"].tolist() == [[0, -2], [0, 3]] and result["b"] is bias
    assert weight.isnan().any()  # the given state is left alone
    for bad in ({"b": bias}, {"w": weight.reshape(4, 1)}):
        with pytest.raises(InputError, match="mask of w"):
            masks.apply(bad)


@settings(max_examples=60, deadline=None)
@given(families(2))
def test_distances_are_those_of_the_plain_vectors(pair):
    a, b = (as_set(arrays) for arrays in pair)
    overlap, hamming, cosine = a.overlap(b), a.hamming(b), a.cosine(b)
    for x, y, get in [
        (flat(pair[0]), flat(pair[1]), lambda figure: figure.overall),
        *((pair[0][n].ravel(), pair[1][n].ravel(), lambda figure, n=n: figure.layers[n]) for n in pair[0]),
    ]:
        both, either = (x & y).sum(), (x | y).sum()
        assert get(overlap.iou) == pytest.approx(both / either if either else 1.0)
        assert get(overlap.shared) == pytest.approx(both / x.sum() if x.any() else 1.0)
        assert get(hamming) == (x != y).sum()
        if x.any() and y.any():
            assert get(cosine) == pytest.approx(x.astype(float) @ y / np.linalg.norm(x) / np.linalg.norm(y))
        else:
            assert get(cosine) == float(x.any() == y.any())


def test_masks_of_different_models_do_not_compare():
    a = as_set({"a": np.ones((2, 3), dtype=bool)})
    for other in (as_set({"b": np.ones((2, 3), dtype=bool)}), as_set({"a": np.ones((3, 2), dtype=bool)})):
        for call in (a.overlap, a.hamming, a.cosine, lambda o: soup([a, o])):
            with pytest.raises(InputError, match="differ in"):
                call(other)


def slow_soup(candidates, how, zeros, scores, caps=None):
    votes = sum(flat(c).astype(int) for c in candidates)
    mean = sum(flat(s).astype(np.float64) for s in scores) / len(scores) if scores else None
    first = {
        "vote": votes,
        "mean": votes * 0,
        "union": (votes > 0).astype(int),
        "intersection": (votes == len(candidates)).astype(int),
    }[how]
    second = mean if mean is not None else (votes if how != "vote" else votes * 0)
    keep = np.ones(votes.size, dtype=bool)
    owner = [n for n, c in candidates[0].items() for _ in range(c.size)]
    room = dict(caps or {n: c.size for n, c in candidates[0].items()})
    for i in sorted(range(votes.size), key=lambda i: (first[i], second[i], i)):
        if zeros and room[owner[i]]:
            keep[i], zeros, room[owner[i]] = False, zeros - 1, room[owner[i]] - 1
    return keep


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_soup_is_exact_and_ranks_as_said(data):
    candidates = data.draw(families(data.draw(st.integers(1, 4))))
    how = data.draw(st.sampled_from(["vote", "mean", "union", "intersection"]))
    # 12 divides by every candidate count, so the float32 mean is exact
    elements = st.sampled_from([0.0, 12.0, 24.0, 120.0])
    scores = None
    if how == "mean" or data.draw(st.booleans()):
        scores = [
            {n: data.draw(hnp.arrays(np.float32, a.shape, elements=elements)) for n, a in c.items()} for c in candidates
        ]
    caps = (
        {n: data.draw(st.integers(0, c.size)) for n, c in candidates[0].items()} if data.draw(st.booleans()) else None
    )
    zeros = data.draw(st.integers(0, sum(caps.values()) if caps else flat(candidates[0]).size))
    given_scores = [{n: torch.from_numpy(a) for n, a in s.items()} for s in scores] if scores else None
    result = soup([as_set(c) for c in candidates], how, zeros, given_scores, caps)
    assert result.zeros == zeros and list(result) == list(candidates[0])
    assert np.array_equal(
        flat({n: m.unpack().numpy() for n, m in result.items()}), slow_soup(candidates, how, zeros, scores, caps)
    )


@given(families(3))
def test_plain_union_and_intersection(candidates):
    sets = [as_set(c) for c in candidates]
    for how, combine in (("union", np.logical_or), ("intersection", np.logical_and)):
        expected = {n: combine.reduce([c[n] for c in candidates]) for n in candidates[0]}
        assert soup(sets, how) == as_set(expected)


def test_soup_says_what_is_missing():
    a = as_set({"a": np.array([[1, 0, 1]], dtype=bool)})
    b = as_set({"a": np.array([[1, 1, 1]], dtype=bool)})
    assert soup([a, a]) == a  # equal counts are kept
    nan = {"a": torch.full((1, 3), float("nan"))}
    for call, said in [
        (lambda: soup([]), "at least one"),
        (lambda: soup([a, b]), "give the number with zeros"),
        (lambda: soup([a, b], "mean", 1), "scores"),
        (lambda: soup([a, b], "vote", 1, [nan]), "one mapping"),
        (lambda: soup([a, b], "vote", 1, [nan, nan]), "finite"),
        (lambda: soup([a, b], "vote", 1, [{}, {}]), "missing"),
        (lambda: soup([a, b], "vote", 4), "fit"),
        (lambda: soup([a, b], "median", 1), "aggregate"),
    ]:
        with pytest.raises(InputError, match=said):
            call()


@settings(max_examples=30, deadline=None)
@given(families(1))
def test_save_and_load_are_inverse(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("masks")
    masks = as_set({f"é {n}": a for n, a in reversed(arrays[0].items())})
    masks.save(folder / "m.safetensors")
    first = (folder / "m.safetensors").read_bytes()
    loaded = MaskSet.load(folder / "m.safetensors")
    assert loaded == masks and list(loaded) == list(masks)
    loaded.save(str(folder / "m.safetensors"))
    assert (folder / "m.safetensors").read_bytes() == first
    assert os.listdir(folder) == ["m.safetensors"]


def test_a_damaged_file_is_never_a_mask(tmp_path):
    path = tmp_path / "m.safetensors"
    masks = as_set({"a": np.random.default_rng(0).random((16, 24)) > 0.5, "b": np.ones((3, 7), dtype=bool)})
    masks.save(path)
    whole = path.read_bytes()
    for cut in (0, 1, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            MaskSet.load(path)
    generator = np.random.default_rng(1)
    for place in [*generator.integers(0, len(whole), 60), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            found = MaskSet.load(path)
        except FormatError:
            continue
        # A flip the format cannot see may rename a tensor consistently, never change a bit of it.
        assert [m for m in found.values()] == [m for m in masks.values()]
    with pytest.raises(InputError, match="not a file"):
        MaskSet.load(tmp_path / "none")


@pytest.mark.parametrize(
    "header, said",
    [
        ("[1]", "damaged"),
        ("{", "damaged"),
        ({"version": 1, "masks": [{"name": "a", "shape": [2, -3], "sha256": ""}]}, "damaged"),
        ({"version": 1, "masks": [{"name": "a", "shape": [2, 3, 1], "sha256": ""}]}, "damaged"),
        ({"version": 99, "masks": []}, "format 99"),
        ({"version": 1, "masks": []}, "other masks"),
        ({"version": 1, "masks": [{"name": "a", "shape": [2, 30], "sha256": ""}]}, "no mask of 2 x 30"),
        ({"version": 1, "masks": [{"name": "a", "shape": [2, 3], "sha256": "0"}]}, "checksum"),
        (None, "damaged"),
    ],
)
def test_a_hostile_header_is_an_error(tmp_path, header, said):
    path = tmp_path / "m.safetensors"
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"a": torch.zeros(2, 1, dtype=torch.uint8)}, path, None if header is None else {"winnow_masks": text})
    with pytest.raises(FormatError, match=said):
        MaskSet.load(path)


def test_a_mask_that_is_a_view_is_saved(tmp_path):
    """As masks of transposed weights (GPT-2's) come: what is stored is the mask, not the memory it is a view of."""
    keep = torch.rand(6, 9) < 0.5
    MaskSet({"w": keep.T}).save(tmp_path / "masks.safetensors")
    assert torch.equal(MaskSet.load(tmp_path / "masks.safetensors")["w"].unpack(), keep.T)
