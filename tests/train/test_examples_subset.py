"""Some of a training's examples as examples of their own, whichever way they are drawn."""

from __future__ import annotations

import pytest
import torch

from winnow.errors import InputError
from winnow.tickets.trial.size import subset
from winnow.train.examples import Examples, divided
from winnow.train.task.batches import Fetched, Whole


def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), torch.arange(n)


def fetched(count: int = 50, size: int = 8) -> Fetched:
    """Rows that are made, and augmented, when they are drawn."""
    x, y = rows(count)
    return Fetched(count, size, lambda numbers: (x[numbers] + torch.randn(len(numbers), 6), y[numbers]), seed=3)


def test_subset_joined() -> None:
    x, y = torch.arange(60.0).view(20, 3), torch.arange(20)
    found = subset(Examples([(x, y)], 4), 7, seed=1)
    rows = found.joined[1]
    assert found.count == 7 and found.size == 4 and len(set(rows.tolist())) == 7
    assert torch.equal(found.joined[0], x[rows])
    assert torch.equal(subset(Examples([(x, y)], 4), 7, seed=1).joined[1], rows)
    whole = Examples([(x, y)], 4)
    assert subset(whole, 20, seed=1) is whole


def test_subset_of_padded_texts() -> None:
    batches = []
    for i, width in enumerate((3, 5, 4, 6)):
        lengths = torch.randint(2, width + 1, (5,), generator=torch.Generator().manual_seed(i))
        lengths[0] = width
        mask = (torch.arange(width) < lengths[:, None]).long()
        batches.append({"input_ids": mask * (1 + i), "attention_mask": mask, "labels": torch.arange(5) + 5 * i})
    whole = Examples(batches, 2)
    found = subset(whole, 9, seed=0)
    assert found.count == 9 and found.lengths is not None
    for row in range(9):
        label = int(found.joined["labels"][row])
        assert found.lengths[row] == whole.lengths[label]
        assert int(found.joined["input_ids"][row].sum()) == int(whole.joined["input_ids"][label].sum())


def test_subset_of_whole_batches() -> None:
    whole = Examples([torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 7)], 4)
    found = subset(whole, 5, seed=0)
    assert whole.joined is None and len(found.batches) == 2
    assert found.joined is None and found.parts == 2 and found.count == 8  # as equal in shape as they may be
    same = subset(Whole([torch.zeros(4, 3), torch.ones(4, 3), torch.ones(2, 3)]), 8, seed=0)
    assert same.joined is None and isinstance(same, Whole) and same.count == sum(len(b) for b in same.batches)


def drawn_once(examples: Examples, count: int, size: int) -> list[int]:
    """Numbers drawn in an epoch, checked: each once, in mini-batches of like sizes."""
    for seed in (0, 1):
        order = examples.order(torch.Generator().manual_seed(seed))
        numbers = sorted(int(n) for index in order for n in index)
        sizes = {len(index) for index in order}
        assert len(order) == examples.parts == -(-count // size) and max(sizes) <= size and max(sizes) - min(sizes) <= 1
        assert numbers == examples.numbers.tolist() and len(set(numbers)) == count == examples.count
        assert numbers == [int(n) for index, _ in examples.all() for n in index]
    return numbers


def test_subset_of_what_is_made_when_it_is_drawn() -> None:
    whole = fetched()
    found = subset(whole, 21, seed=0)
    numbers = drawn_once(found, 21, 8)
    assert found.size == 8 and set(numbers) <= set(range(50)) and numbers != list(range(21))
    assert numbers == subset(whole, 21, seed=0).numbers.tolist() != subset(whole, 21, seed=1).numbers.tolist()
    index = found.numbers[:5]
    assert all(torch.equal(a, b) for a, b in zip(found.take(index), whole.take(index)))  # its random numbers too
    assert subset(whole, 50, seed=0) is whole


@pytest.mark.parametrize("kind", ["fetched", "joined"])
def test_subset_of_a_part(kind: str) -> None:
    whole = fetched() if kind == "fetched" else Examples([rows(50)], 8)
    rest, held = divided(whole, 0.3, 0)
    assert (rest.count, held.count, rest.size) == (35, 15, 8)
    drawn_once(rest, 35, 8)
    drawn_once(held, 15, 8)
    found = subset(rest, 21, seed=0)
    numbers = drawn_once(found, 21, 8)
    if kind == "joined":  # a copy, numbered anew
        numbers = found.joined[1].tolist()
    assert len(numbers) == 21 and set(numbers) <= set(rest.numbers.tolist())
    again, _ = divided(found, 0.3, 0)
    drawn_once(again, 15, 8)


def test_a_part_of_uneven_batches_keeps_their_nominal_size() -> None:
    """21 examples in mini-batches of 20 at most are 11 and 10; 19 of them are one mini-batch."""
    rest, _ = divided(Examples([rows(21)], 20), 0.1, 0)
    assert (rest.size, rest.count, rest.parts) == (20, 19, 1)


def test_subset_of_a_part_of_whole_batches() -> None:
    whole = Examples([torch.full((n, 2 + n), float(n)) for n in (3, 4, 5, 6)], 4)
    rest, held = divided(whole, 0.25, 0)
    assert rest.count + held.count == 18 and (rest.parts, held.parts) == (3, 1)
    found = subset(rest, rest.count // 2, seed=0)
    mine = {int(b[0, 0]) for _, b in found.all()}
    assert found.parts == len(mine) == 2 and found.count == sum(mine)
    assert mine <= {int(b[0, 0]) for _, b in rest.all()}


def test_no_numbers_make_no_examples() -> None:
    for whole in (Examples([rows(5)], 2), fetched(), Examples([torch.zeros(1, 2), torch.zeros(1, 3)], 2)):
        with pytest.raises(InputError, match="at least one"):
            whole.subset(torch.empty(0, dtype=torch.long))
