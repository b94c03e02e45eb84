import pytest
import torch

from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.scores import NAMES, needs_data, score


def stats_of(inputs: torch.Tensor) -> InputStats:
    inputs = inputs.double()
    return InputStats(inputs.shape[1], len(inputs), inputs.sum(0), inputs.square().sum(0))


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_float32_of_the_weights_shape_and_finite_with_empty_rows_and_columns(name, dtype):
    weight = torch.randn(5, 3).to(dtype)
    weight[1] = 0
    weight[:, 2] = 0
    found = score(name, weight, stats_of(INPUTS * torch.tensor([1.0, 0.0, 1.0])))
    assert found.dtype == torch.float32 and found.shape == weight.shape and torch.isfinite(found).all()
    assert (found >= 0).all()
    if name != "random":
        assert (found[1] == 0).all() and (found[:, 2] == 0).all()


def test_random_repeats_for_its_seed_only():
    weight = torch.zeros(8, 8)
    assert torch.equal(score("random", weight, None, seed=5), score("random", weight, None, seed=5))
    assert not torch.equal(score("random", weight, None, seed=5), score("random", weight, None, seed=6))


def test_random_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    score("random", torch.zeros(4, 4), None, seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_names_and_what_they_read():
    assert [needs_data(name) for name in ("magnitude", "random", "wanda", "ria")] == [False, False, True, True]
    with pytest.raises(InputError, match="magnitude, wanda, ria, random"):
        needs_data("wonder")
    with pytest.raises(InputError, match="choose one of"):
        score("", WEIGHT, None)


def test_missing_or_foreign_statistics_are_named():
    with pytest.raises(InputError, match="calibration data"):
        score("wanda", WEIGHT, None)
    with pytest.raises(InputError, match="2 inputs"):
        score("ria", WEIGHT, stats_of(INPUTS[:, :2]))
