"""Packed matrices against a slow reference written bit by bit from the format's description."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import FormatError, InputError
from winnow.formats import nm
from winnow.formats.packed import PackedTensor, pack
from winnow.masks.structure import NM, BlockShape, Coupled, Unstructured
from winnow.quantize import Quantized

VALUES = ["float32", "float16", "bfloat16", "int8", "int4"]


def make(rows, cols, structure, values, density=0.5, seed=0, group=None):
    """(matrix, keep, quantized) of a random pruned matrix; kept weights include -0.0 and +0.0."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(structure, NM):
        noise = torch.rand(rows, cols // structure.m, structure.m, generator=generator)
        keep = torch.zeros_like(noise, dtype=torch.bool)
        keep.scatter_(2, noise.topk(structure.n, dim=2).indices, True)
        keep = keep.reshape(rows, cols)
    elif isinstance(structure, BlockShape):
        blocks = torch.rand(rows // structure.r, cols // structure.c, generator=generator) < density
        keep = blocks.repeat_interleave(structure.r, 0).repeat_interleave(structure.c, 1)
    else:
        keep = torch.rand(rows, cols, generator=generator) < density
    if values.startswith("int"):
        bits = int(values[3:])
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, cols), generator=generator).to(torch.int8)
        scales = torch.rand(rows, -(-cols // (group or cols)), generator=generator).half() + 0.01
        quantized = Quantized(codes=codes * keep, scales=scales, bits=bits, group=group)
        return quantized.dequantize(), keep, quantized
    matrix = torch.randn(rows, cols, generator=generator).to(getattr(torch, values))
    matrix.view(-1)[::5] = -0.0
    matrix.view(-1)[1::7] = 0.0
    return torch.where(keep, matrix, torch.zeros((), dtype=matrix.dtype)), keep, None


def same_bits(a, b):
    ints = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(ints), b.view(ints))


def bytes_of_bits(bits):
    bits = bits + [0] * (-len(bits) % 8)
    return [sum(bit << place for place, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8)]


def reference_mask(keep, structure):
    rows, cols = len(keep), len(keep[0])
    if isinstance(structure, NM):
        # Colexicographic order: the rank of a subset is its place when subsets are compared from the largest position.
        order = sorted(combinations(range(structure.m), structure.n), key=lambda kept: kept[::-1])
        width = max(0, (len(order) - 1).bit_length())
        out = []
        for row in keep:
            bits = []
            for start in range(0, cols, structure.m):
                kept = tuple(i for i in range(structure.m) if row[start + i])
                rank = order.index(kept)
                bits += [rank >> place & 1 for place in range(width)]
            out.append(bytes_of_bits(bits))
        return out
    if isinstance(structure, BlockShape):
        return [
            bytes_of_bits([int(keep[i][j]) for j in range(0, cols, structure.c)]) for i in range(0, rows, structure.r)
        ]
    return [bytes_of_bits([int(bit) for bit in row]) for row in keep]


def reference_values(numbers, keep, structure, int4):
    """Kept values, line by line of the layout; int4 as bytes."""
    rows, cols = len(keep), len(keep[0])
    r, c = (structure.r, structure.c) if isinstance(structure, BlockShape) else (1, 1)
    out = []
    for top in range(0, rows, r):
        line = []
        for left in range(0, cols, c):
            for i in range(top, top + r):
                line += [numbers[i][j] for j in range(left, left + c) if keep[i][j]]
        if int4:
            line = [code & 15 for code in line] + [0] * (len(line) % 2)
            line = [line[i] | line[i + 1] << 4 for i in range(0, len(line), 2)]
        out += line
    return out


CASES = [(5, 13, Unstructured()), (4, 16, NM(2, 4)), (3, 15, NM(1, 3)), (3, 20, NM(4, 5)), (6, 12, BlockShape(2, 3))]
CASES += [(4, 9, BlockShape(1, 3)), (6, 7, Coupled("neuron"))]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("rows, cols, structure", CASES, ids=str)
def test_bytes_are_the_described_ones(rows, cols, structure, values):
    matrix, keep, quantized = make(rows, cols, structure, values)
    packed = pack(matrix, keep, structure, quantized)
    assert packed.mask.tolist() == reference_mask(keep.tolist(), structure)
    source = quantized.codes if quantized else matrix.view({2: torch.int16, 4: torch.int32}[matrix.element_size()])
    stored = packed.data if quantized else packed.data.view(source.dtype)
    assert stored.tolist() == reference_values(source.tolist(), keep.tolist(), structure, values == "int4")
    assert packed.zeros == sum(not bit for row in keep.tolist() for bit in row)
    assert packed.nbytes == sum(t.numel() * t.element_size() for t in packed.tensors().values())


def test_hand_written_bytes():
    keep = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    codes = torch.tensor([[1, 0, -1, 0, 0, 0, 0, 7, -8], [0, 0, 0, 0, 0, 0, 0, 0, 3]], dtype=torch.int8)
    scales = torch.tensor([[0.5], [2.0]], dtype=torch.float16)
    packed = pack(torch.zeros(2, 9), keep, Unstructured(), Quantized(codes=codes, scales=scales, bits=4))
    assert packed.mask.tolist() == [[0b10000101, 1], [0, 1]]
    assert packed.data.tolist() == [0xF1, 0x87, 0x03]  # low nibble first; the second row is padded
    assert packed.unpack().tolist() == [[0.5, 0, -0.5, 0, 0, 0, 0, 3.5, -4.0], [0] * 8 + [6.0]]


@st.composite
def cases(draw):
    structure = draw(
        st.sampled_from(
            [Unstructured(), NM(1, 2), NM(2, 4), NM(3, 5), NM(8, 16), NM(16, 32), NM(9, 18), BlockShape(4, 2)]
        )
    )
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    if isinstance(structure, NM):
        cols *= structure.m
    elif isinstance(structure, BlockShape):
        rows, cols = rows * structure.r, cols * structure.c
    values = draw(st.sampled_from([*VALUES, "float64"]))
    group = draw(st.sampled_from([None, 3, 32]))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0]))
    return structure, make(rows, cols, structure, values, density, draw(st.integers(0, 999)), group)


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from([1 << 21, 64]))
def test_unpack_is_the_inverse(case, band):
    structure, (matrix, keep, quantized) = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("winnow.formats.bits.BAND", band)  # many small bands must give the same as one
        packed = pack(matrix, keep, structure, quantized)
        again = PackedTensor.from_tensors(packed.meta(), packed.tensors())
        assert same_bits(again.unpack(), matrix)
        assert torch.equal(again.keep(), keep)
        assert again.unpack(torch.bfloat16).dtype == torch.bfloat16
        if quantized:
            codes = again.quantized()
            assert torch.equal(codes.codes, quantized.codes) and torch.equal(codes.scales, quantized.scales)
            assert (codes.bits, codes.group) == (quantized.bits, quantized.group)
    whole = pack(matrix, keep, structure, quantized)
    assert whole.meta() == packed.meta()
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors().values(), packed.tensors().values()))


@pytest.mark.parametrize("values", VALUES)
def test_nothing_pruned_takes_no_index(values):
    matrix, _, quantized = make(6, 11, Unstructured(), values, density=1.0, group=4)
    for keep in (None, torch.ones(6, 11, dtype=torch.bool)):
        packed = pack(matrix, keep, Unstructured(), quantized)
        assert packed.encoding == "dense" and packed.mask is None and packed.zeros == 0
        assert same_bits(PackedTensor.from_tensors(packed.meta(), packed.tensors()).unpack(), matrix)


def test_pruned_positions_come_back_as_plus_zero():
    keep = torch.tensor([[True, False, True]])
    packed = pack(torch.tensor([[-0.0, -0.0, 0.0]]), keep, Unstructured())
    assert torch.signbit(packed.unpack()).tolist() == [[True, False, False]]


BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("density", [0.5, 0.3, 0.1])
def test_a_million_weights_take_the_promised_bits(values, density):
    rows, cols, group = 1000, 1024, 128
    matrix, keep, quantized = make(rows, cols, Unstructured(), values, density, group=group)
    packed = pack(matrix, keep, Unstructured(), quantized)
    scales = 16 / group if quantized else 0
    promised = int(keep.sum()) / keep.numel() * BITS[values] + 1 + scales
    assert promised <= packed.bits_per_weight <= 1.02 * promised
    assert packed.bits_per_weight == 8 * packed.nbytes / (rows * cols)


@pytest.mark.parametrize("n, m, bits", [(2, 4, 3), (1, 4, 2), (4, 8, 7), (8, 16, 14), (16, 32, 30), (1, 2, 1)])
def test_nm_index_bits(n, m, bits):
    assert nm.index_bits(n, m) == bits
    matrix, keep, _ = make(1024, 32 * 32, NM(n, m), "bfloat16")
    packed = pack(matrix, keep, NM(n, m))
    assert packed.encoding == "nm"
    assert packed.bits_per_weight == pytest.approx(16 * n / m + bits / m, rel=1e-3)
    assert torch.equal(packed.unpack(), matrix)


def test_blocks_take_one_bit_each():
    matrix, keep, _ = make(1024, 1024, BlockShape(16, 16), "bfloat16")
    packed = pack(matrix, keep, BlockShape(16, 16))
    assert packed.mask.numel() == 64 * 64 // 8
    assert torch.equal(packed.unpack(), matrix)


def test_groups_too_long_for_a_rank_fall_back_to_the_bitmask():
    matrix, keep, _ = make(2, 256, NM(64, 128), "float32")
    packed = pack(matrix, keep, NM(64, 128))
    assert packed.encoding == "bitmask" and torch.equal(packed.unpack(), matrix)


def test_every_rank_is_hit_once():
    ranks = torch.arange(70).reshape(1, 70).numpy()
    keep = nm.unrank(ranks, 4, 8)
    assert len({tuple(group) for group in keep.reshape(-1, 8).tolist()}) == 70
    assert (nm.rank(keep, 4, 8) == ranks).all()
    with pytest.raises(FormatError, match="does not exist"):
        nm.unrank(ranks + 1, 4, 8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad):
    matrix = torch.ones(4, 4)
    matrix[2, 1] = bad
    with pytest.raises(InputError, match="NaN"):
        pack(matrix, None, Unstructured())


def test_weights_at_pruned_positions_are_refused():
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[0, 0] = False
    with pytest.raises(InputError, match="apply the mask"):
        pack(torch.ones(4, 4), keep, Unstructured())


def test_a_pattern_that_is_not_the_structure_is_refused():
    keep = torch.tensor([[1, 1, 1, 0, 1, 0, 0, 0]], dtype=torch.bool)
    with pytest.raises(InputError, match="2 of every 4"):
        pack(keep.float(), keep, NM(2, 4))
    with pytest.raises(InputError, match="blocks"):
        pack(keep.float(), keep, BlockShape(1, 2))
    with pytest.raises(InputError):
        pack(keep.float(), keep, NM(2, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 1 << 40},
        {"rows": 10**30},
        {"cols": -3},
        {"rows": True},
        {"rows": "8"},
        {"zeros": 3},
        {"zeros": None},
        {"encoding": "nm"},
        {"encoding": "pickle"},
        {"encoding": "block", "pattern": [1 << 30, 1 << 30]},
        {"encoding": "block", "pattern": [0, 4]},
        {"encoding": "nm", "pattern": [2, 2]},
        {"values": "bfloat16"},
        {"values": "int8"},
        {"values": "complex"},
        {"dtype": "object"},
        {"group": 4},
        {"structure": None},
        {"pattern": 7},
    ],
    ids=str,
)
def test_hostile_descriptions_are_refused(change):
    matrix, keep, _ = make(8, 24, Unstructured(), "float32")
    packed = pack(matrix, keep, Unstructured())
    with pytest.raises(FormatError):
        PackedTensor.from_tensors({**packed.meta(), **change}, packed.tensors())
    for key in change:
        meta = packed.meta()
        del meta[key]
        with pytest.raises(FormatError):
            PackedTensor.from_tensors(meta, packed.tensors())


def test_a_tiny_file_cannot_claim_terabytes():
    meta = pack(torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.bool), BlockShape(4, 8)).meta()
    side = 1 << 20
    meta |= {"rows": side, "cols": side, "zeros": side * side, "pattern": [side, side]}
    with pytest.raises(FormatError, match="weights in 1 bytes"):
        PackedTensor.from_tensors(
            meta, {"mask": torch.zeros(1, 1, dtype=torch.uint8), "values": torch.zeros(0, dtype=torch.float32)}
        )


@pytest.mark.parametrize("values", VALUES)
def test_altered_parts_are_refused(values):
    matrix, keep, quantized = make(8, 24, Unstructured(), values, group=8)
    packed = pack(matrix, keep, Unstructured(), quantized)
    for suffix, tensor in packed.tensors().items():
        for other in (tensor[:-1], tensor.reshape(-1, 1), tensor.to(torch.int32)):
            with pytest.raises(FormatError):
                PackedTensor.from_tensors(packed.meta(), {**packed.tensors(), suffix: other}).unpack()
    mask = packed.mask.clone()
    mask[0, 0] ^= 1
    with pytest.raises(FormatError):
        PackedTensor.from_tensors(packed.meta(), {**packed.tensors(), "mask": mask})


def test_int4_index_that_moves_a_weight_to_another_row_is_refused():
    codes = torch.tensor([[1, 2, 0, 0], [3, 4, 0, 0]], dtype=torch.int8)
    quantized = Quantized(codes=codes, scales=torch.ones(2, 1, dtype=torch.float16), bits=4)
    packed = pack(torch.zeros(2, 4), codes != 0, Unstructured(), quantized)
    mask = torch.tensor([[0b0111], [0b0001]], dtype=torch.uint8)  # the same count of zeros, one more byte of values
    with pytest.raises(FormatError, match="disagree"):
        PackedTensor.from_tensors(packed.meta(), {**packed.tensors(), "mask": mask}).unpack()
