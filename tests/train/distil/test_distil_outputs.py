"""What of an output is compared, and examples: every one once an epoch, padded texts without their padding."""

from collections import namedtuple
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import family
from winnow.errors import InputError
from winnow.train.distil.outputs import read_output
from winnow.train.examples import Examples

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


def run(name):
    model, batches = family(name).build(), family(name).batches()
    with torch.no_grad():
        outputs = [
            model(**b) if isinstance(b, dict) else model(*b) if isinstance(b, list) else model(b) for b in batches
        ]
    return model, batches, outputs


# ---------------------------------------------------------------------------------------------- shapes of outputs


def test_tensors_are_logits_with_the_classes_last():
    assert read_output(torch.zeros(4, 3), None).values.shape == (4, 3)
    assert read_output(torch.zeros(4), None).values.shape == (4, 1)
    image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    read = read_output(image, None)
    assert read.kind == "logits" and read.values.shape == (2, 4, 5, 3)
    assert torch.equal(read.rows()[7], image[0, :, 1, 2])


def test_half_precision_is_read_in_float32_and_float64_stays():
    assert read_output(torch.zeros(2, 3, dtype=torch.bfloat16), None).values.dtype == torch.float32
    assert read_output(torch.zeros(2, 3, dtype=torch.float64), None).values.dtype == torch.float64


@pytest.mark.parametrize(
    "output",
    [
        {"loss": torch.tensor(1.0), "logits": torch.ones(2, 3), "hidden_states": (torch.zeros(2, 4),)},
        SimpleNamespace(logits=torch.ones(2, 3), other=torch.zeros(2, 9)),
        namedtuple("Output", "loss logits")(None, torch.ones(2, 3)),
        (torch.ones(2, 3),),
        [torch.ones(2, 3), None, torch.zeros(2, dtype=torch.int64)],
        {"scores": torch.ones(2, 3)},
    ],
)
def test_logits_are_found_by_name_or_because_they_are_alone(output):
    read = read_output(output, None)
    assert read.kind == "logits" and read.parts == () and torch.equal(read.values, torch.ones(2, 3))


def test_padded_positions_do_not_count():
    values = torch.randn(2, 4, 5)
    for batch in ({"attention_mask": MASK}, {"src_key_padding_mask": MASK == 0}):
        read = read_output(values, batch)
        assert torch.equal(read.rows(), torch.cat([values[0, :3], values[1, :1]]))
    labels = torch.tensor([[-100, 5, 5, 5], [5, 5, -100, -100]])
    read = read_output(values, {"attention_mask": MASK, "labels": labels})
    assert torch.equal(read.rows(), torch.cat([values[0, 1:3], values[1, :1]]))
    assert read_output(values[:, 0], {"attention_mask": MASK}).counts is None  # a classifier


def test_an_encoder_decoder_counts_by_the_decoders_mask():
    values = torch.randn(2, 4, 5)
    ids = torch.ones(2, 4, dtype=torch.int64)
    both = {"attention_mask": MASK, "decoder_input_ids": ids, "decoder_attention_mask": MASK.flip(0)}
    assert torch.equal(read_output(values, both).counts, MASK.flip(0).bool())
    assert read_output(values, {"attention_mask": MASK, "decoder_input_ids": ids}).counts is None


def test_time_first_outputs_are_turned_round():
    _, batches, outputs = run("encoder_time_first")
    assert outputs[0].shape == (6, 3, 3)
    read = read_output(outputs[0], batches[0])
    assert read.values.shape == (3, 6, 3) and torch.equal(read.counts, ~batches[0]["src_key_padding_mask"])
    assert torch.equal(read.values[1], outputs[0][:, 1])


def test_question_answering_chooses_among_positions_that_are_not_padding():
    start, end = torch.randn(2, 4), torch.randn(2, 4)
    read = read_output({"start_logits": start, "end_logits": end}, {"attention_mask": MASK})
    assert read.kind == "logits" and read.values.shape == (2, 2, 4) and read.counts is None
    assert torch.equal(read.values[0, 1, :3], end[0, :3]) and (read.values[1, :, 1:] == -1e4).all()
    probability = torch.softmax(read.values[1], -1)
    assert torch.equal(probability[:, 0], torch.ones(2))


def test_detection_heads_are_joined_per_example_in_their_order():
    logits, boxes = torch.randn(2, 3, 4), torch.randn(2, 3, 2)
    read = read_output({"logits": logits, "pred_boxes": boxes, "last_hidden_state": torch.zeros(2, 9)}, None)
    assert read.kind == "features" and read.parts == (12, 6)
    assert torch.equal(read.values, torch.cat([logits.flatten(1), boxes.flatten(1)], 1))
    scales = [torch.randn(2, 6, 4, 4), torch.randn(2, 6, 2, 2)]
    read = read_output((scales, {"aux": torch.randn(2, 5)}, torch.ones(2, 3, dtype=torch.int64)), None)
    assert read.parts == (96, 24, 5) and torch.equal(read.values[:, 96:120], scales[1].flatten(1))


def test_towers_of_different_sizes_are_compared_as_a_whole():
    read = read_output({"image_embeds": torch.ones(2, 4), "text_embeds": torch.ones(3, 4)}, None)
    assert read.values.shape == (1, 20) and read.parts == (8, 12)


@pytest.mark.parametrize(
    "output", [torch.zeros(3, dtype=torch.int64), torch.tensor(1.0), {"loss": torch.tensor(1.0)}, (), None, "x"]
)
def test_an_output_without_floating_tensors_is_refused(output):
    with pytest.raises(InputError, match="return logits or hidden states"):
        read_output(output, None)


@pytest.mark.hf
@pytest.mark.parametrize("name", ["llama", "t5", "bert", "vit", "clip"])
def test_the_heads_of_hugging_face_models(name):
    _, batches, outputs = run(name)
    for batch, output in zip(batches, outputs):
        read = read_output(output, batch)
        if name == "clip":
            joined = torch.cat([output.image_embeds, output.text_embeds], 1)
            assert read.kind == "features" and read.parts == (16, 16) and torch.equal(read.values, joined)
            continue
        assert read.kind == "logits" and torch.equal(read.values, output.logits)
        mask = batch.get({"llama": "attention_mask", "t5": "decoder_attention_mask"}.get(name, ""))
        assert (read.counts is None) if mask is None else torch.equal(read.counts, mask.bool())


@pytest.mark.hf
@pytest.mark.parametrize("name", ["llama", "t5", "bert", "clip"])
def test_encoders_without_a_head_give_hidden_states(name):
    model, batches, _ = run(name)
    base = {"llama": "model", "t5": None, "bert": "bert", "clip": "vision_model"}[name]
    batch = batches[0]
    if name == "clip":
        batch = {"pixel_values": batch["pixel_values"]}
    if name == "t5":
        from transformers import T5Model

        torch.manual_seed(0)
        inner = T5Model(model.config).eval()
    else:
        inner = getattr(model, base)
    with torch.no_grad():
        output = inner(**batch)
    read = read_output(output, batch)
    assert read.kind == "features" and read.parts == () and torch.equal(read.values, output.last_hidden_state)
    mask = batch.get("decoder_attention_mask" if name == "t5" else "attention_mask")
    assert (read.counts is None) if mask is None else torch.equal(read.counts, mask.bool())


# ----------------------------------------------------------------------------------------------------- examples


def numbered(sizes, make):
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [make(torch.arange(a, b)) for a, b in pairwise(starts)]


LAYOUTS = {
    "tensor": (lambda i: i[:, None].float(), lambda b: b[:, 0]),
    "tuple": (lambda i: (i[:, None].float(), i), lambda b: b[1]),
    "dict": (lambda i: {"x": torch.zeros(len(i), 2), "n": i}, lambda b: b["n"]),
    "nested": (lambda i: {"x": [torch.zeros(len(i), 2), i]}, lambda b: b["x"][1]),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_every_example_comes_once_an_epoch_in_batches_of_at_most_the_size(layout, sizes, size, seed):
    make, read = LAYOUTS[layout]
    examples = Examples(numbered(sizes, make), size)
    assert examples.joined is not None and examples.count == sum(sizes)

    def draw(seed):
        return [read(examples.take(i)).long().tolist() for i in examples.order(torch.Generator().manual_seed(seed))]

    parts = draw(seed)
    assert sorted(chain(*parts)) == list(range(sum(sizes)))
    assert len(parts) == examples.parts and max(map(len, parts)) <= size
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == draw(seed)
    everything = [read(batch).long().tolist() for _, batch in examples.all()]
    assert list(chain(*everything)) == list(range(sum(sizes)))


def test_another_epoch_has_another_order():
    examples = Examples([torch.arange(100.0)[:, None]], 10)
    orders = [torch.cat(examples.order(torch.Generator().manual_seed(s))).tolist() for s in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=2, max_size=6, unique=True), st.integers(0, 5))
def test_batches_that_cannot_be_joined_are_drawn_whole(widths, seed):
    batches = [torch.full((2, w), float(i)) for i, w in enumerate(widths)]
    examples = Examples(batches, 3)
    assert examples.joined is None and examples.count == 2 * len(widths)
    drawn = [examples.take(i) for i in examples.order(torch.Generator().manual_seed(seed))]
    assert sorted(float(b[0, 0]) for b in drawn) == [float(i) for i in range(len(widths))]
    assert all(any(b is given for given in batches) for b in drawn)
    assert [int(i) for i, _ in examples.all()] == list(range(len(widths)))


@pytest.mark.parametrize("batches", [[], [{"x": 3}], [torch.zeros(0, 2)], [(None,)]])
def test_no_examples_is_refused(batches):
    with pytest.raises(InputError, match="calibration"):
        Examples(batches, 4)


# ------------------------------------------------------------------------------------------------- padded texts

PAD = 7


def padded(rows, prefix="", **extra):
    """Rows of token ids (lists) as a right-padded batch."""
    width = max(map(len, rows))
    ids = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask, **extra}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=2, max_size=5),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_padded_texts_are_joined_and_cut_to_the_longest_drawn(lengths, size, seed):
    number, batches, texts = 100, [], []
    for group in lengths:
        rows = []
        for n in group:
            rows.append(list(range(number, number + n)))
            number += n
        texts += rows
        batches.append(padded(rows, types=torch.arange(len(group))))
    known = any(len(set(group)) > 1 for group in lengths)
    widths = {max(group) for group in lengths}
    examples = Examples(batches, size)
    if len(widths) > 1 and not known:
        assert examples.joined is None  # no padding was seen: which token pads is not known
        return
    assert examples.joined is not None
    drawn = []
    for index in examples.order(torch.Generator().manual_seed(seed)):
        batch = examples.take(index)
        if len(widths) > 1:
            assert batch["input_ids"].shape[1] == max(len(texts[i]) for i in index)
        mask = batch["attention_mask"].bool()
        assert (batch["input_ids"][~mask] == PAD).all()
        found = [row[m].tolist() for row, m in zip(batch["input_ids"], mask)]
        assert found == [texts[i] for i in index]
        drawn += found
    assert sorted(drawn) == sorted(texts)


def test_texts_of_about_one_length_are_drawn_together():
    rows = [[1] * n for n in range(1, 65)] * 4
    batches = [padded(rows[i : i + 8]) for i in range(0, len(rows), 8)]
    examples = Examples(batches, 8)
    drawn = [examples.take(i)["attention_mask"] for i in examples.order(torch.Generator().manual_seed(0))]
    tokens, counted = sum(m.numel() for m in drawn), sum(int(m.sum()) for m in drawn)
    assert counted == sum(map(len, rows)) and tokens < 1.15 * counted
    widths = [m.shape[1] for m in drawn]
    assert widths != sorted(widths)


def test_both_sides_of_an_encoder_decoder_are_padded():
    batches = [
        {**padded([[1, 2, 3], [4]]), **padded([[5], [6, 8]], "decoder_")},
        {**padded([[1, 2], [4]]), **padded([[5, 5, 5, 5], [6]], "decoder_")},
    ]
    examples = Examples(batches, 2)
    batch = examples.take(torch.tensor([1, 3]))
    assert batch["input_ids"].tolist() == [[4], [4]] and batch["decoder_input_ids"].tolist() == [[6, 8], [6, PAD]]


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.pop("attention_mask"),  # which tokens count is not known
        lambda b: b.update(attention_mask=b["attention_mask"].flip(1), input_ids=b["input_ids"].flip(1)),  # on the left
        lambda b: b["input_ids"].__setitem__((1, -1), 9),  # two padding tokens
        lambda b: b.update(other=torch.zeros(len(b["input_ids"]), b["input_ids"].shape[1] + 1)),  # follows no mask
    ],
)
def test_texts_that_cannot_be_padded_safely_are_drawn_whole(change):
    batches = [padded([[1, 2, 3], [4]]), padded([[1, 2, 3, 5], [4, 4]])]
    assert Examples(batches, 2).joined is not None
    for b in batches:
        change(b)
    assert Examples(batches, 2).joined is None
