import pytest
import torch

from layers import stats_of
from winnow.errors import InputError
from winnow.scores import needs_data, score

INPUTS = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])  # norms 5, 2, 1
WEIGHT = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.0, 1.0]])


def test_magnitude_by_hand():
    assert score("magnitude", WEIGHT, None).tolist() == [[1, 2, 3], [4, 0, 1]]


def test_wanda_by_hand():
    assert torch.allclose(score("wanda", WEIGHT, stats_of(INPUTS)), torch.tensor([[5.0, 4.0, 3.0], [20.0, 0.0, 1.0]]))


def test_ria_by_hand():
    # |w| over its column's sum plus |w| over its row's sum, times the square root of the norm
    root = torch.tensor([5.0, 2.0, 1.0]).sqrt()
    relative = torch.tensor([[1 / 5 + 1 / 6, 2 / 2 + 2 / 6, 3 / 4 + 3 / 6], [4 / 5 + 4 / 5, 0.0, 1 / 4 + 1 / 5]])
    assert torch.allclose(score("ria", WEIGHT, stats_of(INPUTS)), relative * root)


def test_wanda_is_the_error_of_removing_one_weight():
    torch.manual_seed(3)
    inputs, weight = torch.randn(50, 7).double(), torch.randn(4, 7)
    found = score("wanda", weight, stats_of(inputs))
    for i in range(4):
        for j in range(7):
            pruned = weight.double().clone()
            pruned[i, j] = 0
            lost = (inputs @ (pruned - weight.double()).T).norm()
            assert abs(found[i, j] - lost) < 1e-4


def test_names_and_what_they_read():
    assert [needs_data(name) for name in ("magnitude", "random", "wanda", "ria")] == [False, False, True, True]
    with pytest.raises(InputError, match="magnitude, wanda, ria, random"):
        needs_data("wonder")
    with pytest.raises(InputError, match="choose one of"):
        score("", WEIGHT, None)
