import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from layers import make_layer, stats_of
from patterns import realized
from winnow.errors import InputError
from winnow.inputs import InputStats
from winnow.masks.structure import NM, BlockShape, Coupled, Unstructured
from winnow.quantize import Grid, round_to_nearest
from winnow.scores import score
from winnow.solve import Problem, parse_solver, solve, solve_group
from winnow.solve.factor import factor, gram_of, ridge_of, spectrum
from winnow.solve.least_squares import least_squares, masked_cg, relative_error, row_errors
from winnow.solve.order import by_activation, orders
from winnow.solve.sparsegpt import Band, sparsegpt
from winnow.solve.swap import swap

CPU = torch.device("cpu")


def damped(stats: InputStats, damp: float = 0.01) -> torch.Tensor:
    gram = stats.gram.double()
    return gram + torch.eye(stats.cols, dtype=torch.float64) * damp * gram.diagonal().mean()


# --- factorizations -------------------------------------------------------------------------------------------------


def test_one_reversed_cholesky_is_the_upper_factor_of_the_inverse():
    _, _, stats = make_layer(1, 24)
    found = factor(stats, 0.01, CPU)
    hessian = damped(stats)
    direct = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)  # the textbook way, two factorizations
    root = found.upper.double() * found.pivot.double()
    assert torch.allclose(root @ root.T, hessian, rtol=1e-5, atol=1e-5 * float(hessian.max()))
    assert torch.allclose(torch.linalg.inv(root), direct, rtol=1e-3, atol=1e-5 * float(direct.max()))
    assert torch.equal(found.upper.tril(-1), torch.zeros(24, 24)) and (found.upper.diagonal() == 1).all()


def test_factorizations_are_computed_once_for_each_damping():
    _, _, stats = make_layer(1, 8)
    assert factor(stats, 0.01, CPU) is factor(stats, 0.01, CPU)
    assert factor(stats, 0.01, CPU) is not factor(stats, 0.1, CPU)
    assert spectrum(stats, 0.01, CPU) is spectrum(stats, 0.01, CPU)


def test_damping_grows_until_an_indefinite_matrix_can_be_factorized():
    _, _, stats = make_layer(4, 8)
    stats.gram = stats.gram - torch.eye(8) * 0.05 * stats.gram.diagonal().mean()
    assert torch.linalg.eigvalsh(stats.gram).min() < 0
    found = factor(stats, 0.001, CPU)
    assert found.ridge > 0.01 * float(stats.gram.diagonal().mean())
    assert torch.isfinite(found.upper).all()


def test_more_inputs_than_tokens_and_no_damping():
    weight, _, stats = make_layer(6, 40, tokens=10)
    for solver in ("sparsegpt", "sparsegpt+lsq", "alps", "swap+lsq"):
        problem = Problem(weight, stats, 120, scores=score("wanda", weight, stats), damp=0.0)
        found = solve(problem, solver)
        assert torch.isfinite(found.weight).all() and int((~found.keep).sum()) == 120


# --- SparseGPT and GPTQ against the literal recursion ---------------------------------------------------------------


def lowest(cost: torch.Tensor, count: int) -> torch.Tensor:
    drop = torch.zeros(cost.numel(), dtype=torch.bool)
    drop[cost.flatten().argsort(stable=True)[:count]] = True
    return drop.reshape(cost.shape)


def literal_obs(weight, hessian, zeros=0, structure=None, group="layer", block=32, keep=None, grid=None):
    """Column by column with the explicit inverse of the Hessian of the columns not yet settled, in float64."""
    weight, structure = weight.double().clone(), structure or Unstructured()
    rows, cols = weight.shape
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(cols)]
    price = torch.tensor([1 / float(inverse[0, 0]) for inverse in inverses], dtype=torch.float64)
    fixed = keep is not None
    if not fixed:
        cost = weight.square() * price
        if isinstance(structure, NM):
            runs = cost.reshape(-1, structure.m)
            keep = ~torch.stack([lowest(run, structure.m - structure.n) for run in runs]).reshape(rows, cols)
        elif group == "row":
            shares = [zeros // rows + (i < zeros % rows) for i in range(rows)]
            keep = ~torch.stack([lowest(cost[i], share) for i, share in enumerate(shares)])
        else:
            keep = ~lowest(cost, zeros)
    width = structure.m if isinstance(structure, NM) else block
    size = cols + 1 if grid is None else grid.size(cols)
    for j in range(cols):

        def fit():
            part = slice(j, min(j + size, cols))  # noqa: B023
            return Grid(grid.bits).fit(weight[:, part].float(), keep[:, part], price[part]).double()[:, 0]

        if grid is not None and j % size == 0 and size > width:
            scale = fit()
        inside = j % size if size > width else j  # blocks start anew in each larger quantization group
        if not fixed and inside % width == 0:
            here = slice(j, min(j + width, j - inside + size if size > width else cols, cols))
            cost = weight[:, here].square() * price[here]
            if isinstance(structure, NM):
                keep[:, here] = ~torch.stack([lowest(row, structure.m - structure.n) for row in cost])
            elif group == "row":
                keep[:, here] = ~torch.stack([lowest(row, int((~k).sum())) for row, k in zip(cost, keep[:, here])])
            else:
                keep[:, here] = ~lowest(cost, int((~keep[:, here]).sum()))
        if grid is not None and j % size == 0 and size <= width:
            scale = fit()
        final = weight[:, j] * keep[:, j]
        if grid is not None:
            final = torch.where(scale != 0, final / scale, 0.0).round().clamp(grid.low, grid.high) * scale
        step = (weight[:, j] - final) / inverses[j][0, 0]
        weight[:, j:] -= step[:, None] * inverses[j][0]
        weight[:, j] = final
    return weight, keep


def assert_same(found, wanted, keep=None, wanted_keep=None):
    """The same steps and the same mask: in float64, where no processor's rounding decides between two grid points."""
    assert found.dtype == torch.float64
    if keep is not None:
        assert torch.equal(keep, wanted_keep)
    assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-8 * float(wanted.abs().max()))


def assert_every_step_follows(weight, stats, found, block=32):
    """Each value is what the recursion makes of the values before it, and each mask what their costs say, up to ties.

    True of float32 on every machine: what a tie went to is taken over, and only the step from there is judged.
    """
    hessian, dense, cols = damped(stats), weight.double(), weight.shape[1]
    change = dense - found.weight.double()
    price = torch.tensor([1 / float(torch.linalg.inv(hessian[j:, j:])[0, 0]) for j in range(cols)])
    coarse = 2e-4 * float(dense.abs().max())
    for j in range(cols):
        rest = slice(j, cols)
        now = dense[:, rest] + change[:, :j] @ hessian[:j, rest] @ torch.linalg.inv(hessian[rest, rest])
        value, final = now[:, 0], found.weight[:, j].double()
        kept = found.keep[:, j]
        assert (final[~kept] == 0).all()
        if found.quantized is None:
            assert torch.allclose(final[kept], value[kept], rtol=1e-3, atol=coarse)
        else:
            size = found.quantized.group or cols
            scale = found.quantized.scales[:, j // size].double()
            code, high = found.quantized.codes[:, j].double(), 2 ** (found.quantized.bits - 1) - 1
            exact = (value / scale).clamp(-high - 1, high)
            assert ((code - exact).abs() <= 0.5 + coarse / scale.abs())[kept].all()
        if j % block == 0:
            cost = (now[:, :block].square() * price[j : j + block]).sqrt()
            here = found.keep[:, j : j + block]
            assert float(cost[~here].max()) <= float(cost[here].min()) + 2e-4 * float(cost.max())


@pytest.mark.parametrize("group", ["layer", "row"])
@pytest.mark.parametrize("rate", [0.0, 0.31, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(8, 24), (5, 70), (3, 140)])
def test_sparsegpt_is_the_literal_recursion(shape, rate, group):
    weight, _, stats = make_layer(*shape)
    zeros = round(rate * weight.numel())
    wanted, wanted_keep = literal_obs(weight, damped(stats), zeros, group=group)
    found = solve(Problem(weight.double(), stats, zeros, group=group), "sparsegpt")
    assert_same(found.weight, wanted, found.keep, wanted_keep)
    assert (found.weight[~found.keep] == 0).all() and not torch.signbit(found.weight[~found.keep]).any()


@pytest.mark.parametrize("structure", [NM(2, 4), NM(1, 4), NM(4, 8), NM(3, 5), NM(2, 40)])
def test_sparsegpt_with_n_of_m_is_the_literal_recursion(structure):
    weight, _, stats = make_layer(6, 160)
    zeros = weight.numel() // structure.m * (structure.m - structure.n)
    wanted, wanted_keep = literal_obs(weight, damped(stats), structure=structure)
    found = solve(Problem(weight.double(), stats, zeros, structure), "sparsegpt")
    assert_same(found.weight, wanted, found.keep, wanted_keep)
    assert realized(structure, found.keep)


@pytest.mark.parametrize("group", [None, 1, 8, 32, 48, 64, 90, 200])
@pytest.mark.parametrize("bits", [3, 4])
def test_without_zeros_it_is_gptq(bits, group):
    weight, _, stats = make_layer(4, 100)
    grid, band = Grid(bits, group), [Band(slice(0, 4), 0)]
    wanted, _ = literal_obs(weight, damped(stats), grid=grid)
    prepared = factor(stats, 0.01, CPU, dtype=torch.float64)
    found, _, quantized = sparsegpt(weight.double(), prepared, band, Unstructured(), grid=grid)
    assert_same(found, wanted)
    assert torch.equal(found.float(), quantized.dequantize())


def literal_static(weight, hessian, columns, grid):
    """GPTQ in the order ``columns``, each group's scales fitted before to the columns that lie in it, in float64."""
    value, cols = weight.double().clone(), weight.shape[1]
    price = torch.empty(cols, dtype=torch.float64)
    for k in range(cols):
        price[columns[k]] = 1 / torch.linalg.inv(hessian[columns[k:]][:, columns[k:]])[0, 0]
    size = grid.size(cols)
    scales = torch.empty(weight.shape, dtype=torch.float64)
    for start in range(0, cols, size):
        part = slice(start, min(start + size, cols))
        scales[:, part] = Grid(grid.bits).fit(weight[:, part].float(), None, price[part]).double()
    for k, j in enumerate(columns.tolist()):
        final = (value[:, j] / scales[:, j]).round().clamp(grid.low, grid.high) * scales[:, j]
        rest = columns[k:]
        inverse = torch.linalg.inv(hessian[rest][:, rest])
        value[:, rest] -= ((value[:, j] - final) / inverse[0, 0])[:, None] * inverse[0]
        value[:, j] = final
    return value


@pytest.mark.parametrize("group", [None, 8, 32, 48, 200])
def test_columns_ordered_by_activation_are_the_literal_recursion(group):
    weight, _, stats = make_layer(4, 100)
    grid, power, band = Grid(4, group), stats.gram.diagonal(), [Band(slice(0, 4), 0)]
    together, apart = by_activation(power, group), by_activation(power)
    assert power[apart.columns].diff().max() <= 0
    if group is not None and group < 100:
        full = 100 // group * group
        runs = together.columns[:full].reshape(-1, group)
        assert (runs // group == runs[:, :1] // group).all() and (together.columns[full:] >= full).all()
        assert power[runs].mean(1).diff().max() <= 0 and power[runs].diff(dim=1).max() <= 0
    for order in (together, apart):
        prepared = factor(stats, 0.01, CPU, dtype=torch.float64, columns=order.columns)
        found, _, quantized = sparsegpt(weight.double(), prepared, band, Unstructured(), grid=grid, order=order)
        if order.whole:
            wanted = literal_static(weight, damped(stats), order.columns, grid)
        else:
            columns = order.columns
            wanted = torch.empty(weight.shape, dtype=torch.float64)
            wanted[:, columns], _ = literal_obs(weight[:, columns], damped(stats)[columns][:, columns], grid=grid)
        assert_same(found, wanted)
        assert torch.equal(found.float(), quantized.dequantize())
        assert quantized.scales.shape == (4, grid.groups(100)) and quantized.group == group


def errors_of_orders(weight, stats, grid, ways, keep=None):
    """Each row's output error in each order."""
    found = []
    for order in ways:
        prepared = factor(stats, 0.01, CPU, columns=None if order is None else order.columns)
        zeros = 0 if keep is None else int((~keep).sum())
        bands = [Band(slice(0, len(weight)), zeros)]
        rounded = sparsegpt(weight, prepared, bands, Unstructured(), keep=keep, grid=grid, order=order)[0]
        found.append(row_errors(rounded - weight, stats.gram))
    return torch.stack(found)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, 32), Grid(4, 40), Grid(3, 64)])
@pytest.mark.parametrize("outliers", [0, 6])
def test_each_row_is_rounded_in_the_order_that_leaves_it_least(grid, outliers):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(600, 160, generator=generator) @ torch.randn(160, 160, generator=generator) / 160**0.5
    inputs[:, torch.randperm(160, generator=generator)[:outliers]] *= 20
    weight, stats = torch.randn(48, 160, generator=generator), stats_of(inputs.double())
    found = solve(Problem(weight, stats, 0, grid=grid), "sparsegpt")
    assert torch.equal(found.weight, found.quantized.dequantize())
    rows = row_errors(found.weight - weight, stats.gram)
    ways = errors_of_orders(weight, stats, grid, orders(stats.gram.diagonal(), grid, pruned=False))
    assert torch.allclose(rows, ways.amin(0), rtol=1e-3)
    plain = float(errors_of_orders(weight, stats, grid, [None]).sum())
    assert float(rows.sum()) < (0.75 if outliers else 1.0) * plain
    keep = torch.rand(48, 160, generator=generator) < 0.5
    masked = solve(Problem(weight, stats, int((~keep).sum()), keep=keep, grid=grid), "lsq")
    assert torch.equal(masked.keep, keep) and (masked.weight[~keep] == 0).all()
    assert torch.equal(masked.weight, masked.quantized.dequantize())


@pytest.mark.parametrize("group", [None, 16, 48, 64, 192])
def test_pruned_and_rounded_in_one_loop_is_the_literal_recursion(group):
    weight, _, stats = make_layer(6, 288)
    grid = Grid(4, group)
    wanted, wanted_keep = literal_obs(weight, damped(stats), weight.numel() // 2, grid=grid)
    found = solve(Problem(weight.double(), stats, weight.numel() // 2, grid=grid), "sparsegpt")
    assert_same(found.weight, wanted, found.keep, wanted_keep)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("grid", [None, Grid(4), Grid(4, 32), Grid(3, 64)])
def test_in_float32_every_step_follows_from_those_before(grid, seed):
    weight, _, stats = make_layer(6, 192, seed)
    found = solve(Problem(weight, stats, weight.numel() // 2, grid=grid), "sparsegpt")
    assert found.weight.dtype == torch.float32 and int((~found.keep).sum()) == weight.numel() // 2
    assert_every_step_follows(weight, stats, found)


def test_a_fixed_mask_is_held():
    weight, _, stats = make_layer(6, 70)
    keep = torch.rand(6, 70) < 0.5
    wanted, _ = literal_obs(weight, damped(stats), keep=keep.clone())
    found = solve(Problem(weight.double(), stats, int((~keep).sum()), keep=keep), "sparsegpt")
    assert_same(found.weight, wanted, found.keep, keep)


def test_blocks_go_by_their_summed_cost():
    weight, _, stats = make_layer(8, 24)
    price = 1 / torch.stack([torch.linalg.inv(damped(stats)[j:, j:])[0, 0] for j in range(24)])
    summed = (weight.double().square() * price).reshape(4, 2, 6, 4).sum((1, 3))
    wanted_keep = (~lowest(summed, 12)).repeat_interleave(2, 0).repeat_interleave(4, 1)
    wanted, _ = literal_obs(weight, damped(stats), keep=wanted_keep)
    found = solve(Problem(weight.double(), stats, 96, BlockShape(2, 4)), "sparsegpt")
    assert_same(found.weight, wanted, found.keep, wanted_keep)


def test_smaller_and_larger_column_blocks_are_the_literal_recursion_too():
    weight, _, stats = make_layer(4, 150)
    for block in (1, 8, 48, 128, 512):
        wanted, wanted_keep = literal_obs(weight, damped(stats), 300, block=block)
        found, keep, _ = sparsegpt(
            weight.double(),
            factor(stats, 0.01, CPU, dtype=torch.float64),
            [Band(slice(0, 4), 300)],
            Unstructured(),
            block=block,
        )
        assert_same(found, wanted, keep, wanted_keep)


# --- exact least squares --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False])
def test_least_squares_is_lstsq_row_by_row(direct):
    weight, inputs, stats = make_layer(9, 30)
    keep = torch.rand(9, 30) < 0.5
    keep[0], keep[1] = False, True
    ridge = ridge_of(stats.gram, 0.01)
    found = least_squares(weight, weight * keep, keep, stats.gram, ridge, direct=direct)
    system = torch.cat([inputs, torch.eye(30, dtype=torch.float64) * ridge**0.5])
    for i in range(9):
        wanted = torch.zeros(30, dtype=torch.float64)
        if keep[i].any():
            wanted[keep[i]] = torch.linalg.lstsq(
                system[:, keep[i]], system @ weight[i].double(), driver="gelsd"
            ).solution
        assert (found[i][~keep[i]] == 0).all()
        lost, best = (float((system @ (w.double() - weight[i].double())).square().sum()) for w in (found[i], wanted))
        assert lost <= best * (1 + 1e-4) + 1e-6 * ridge
        assert torch.allclose(found[i].double(), wanted, rtol=5e-3, atol=5e-3 * float(weight[i].abs().max()))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), rate=st.floats(0, 1), damp=st.sampled_from([0.0, 0.01, 1.0]), direct=st.booleans())
@example(seed=512, rate=0.0, damp=0.0, direct=False)  # fewer tokens than inputs, no damping: values ran off
def test_no_row_is_worse_than_what_it_came_from(seed, rate, damp, direct):
    weight, _, stats = make_layer(5, 20, seed, tokens=15)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(5, 20, generator=generator) >= rate
    current = weight * keep * torch.randn(5, 20, generator=generator).mul(0.1).add(1)
    found = least_squares(weight, current, keep, stats.gram, ridge_of(stats.gram, damp), direct=direct)
    gram = stats.gram.double()
    before, after = (((w - weight).double() @ gram * (w - weight)).sum(1) for w in (current, found))
    assert (after <= before * (1 + 1e-5) + 1e-6 * float(gram.max())).all()
    assert torch.isfinite(found).all() and (found[~keep] == 0).all()


def test_rows_of_any_support_size_in_bounded_batches(monkeypatch):
    weight, _, stats = make_layer(30, 16)
    keep = torch.rand(30, 16) < torch.linspace(0, 1.01, 30)[:, None]
    ridge = ridge_of(stats.gram, 0.01)
    whole = least_squares(weight, weight * keep, keep, stats.gram, ridge)
    monkeypatch.setattr("winnow.solve.least_squares._BYTES", 8 * 100)
    assert torch.allclose(least_squares(weight, weight * keep, keep, stats.gram, ridge), whole, atol=1e-5)


# --- 1-swap ---------------------------------------------------------------------------------------------------------


def mask_error(weight, keep, gram):
    removed = (weight * ~keep).double()
    return ((removed @ gram.double()) * removed).sum(-1)


def all_swaps(keep, m=None):
    for u, p in itertools.product(keep.nonzero().flatten().tolist(), (~keep).nonzero().flatten().tolist()):
        if m is None or u // m == p // m:
            changed = keep.clone()
            changed[u], changed[p] = False, True
            yield changed


@pytest.mark.parametrize("structure", [Unstructured(), NM(2, 4)])
def test_one_step_is_the_best_of_all_swaps(structure):
    weight, _, stats = make_layer(12, 24)
    keep = torch.zeros(12, 6, 4, dtype=torch.bool)
    keep[:, :, :2] = True
    keep = keep.reshape(12, 24)
    found = swap(weight, keep, stats.gram, structure, steps=1)
    for i in range(12):
        m = structure.m if isinstance(structure, NM) else None
        options = [float(mask_error(weight[i], k, stats.gram)) for k in (keep[i], *all_swaps(keep[i], m))]
        assert float(mask_error(weight[i], found[i], stats.gram)) == pytest.approx(min(options), rel=1e-4)


@pytest.mark.parametrize("structure", [Unstructured(), NM(1, 4)])
def test_at_the_end_no_swap_helps_and_counts_stand(structure):
    weight, _, stats = make_layer(6, 24, seed=4)
    keep = torch.zeros(6, 6, 4, dtype=torch.bool)
    keep[:, :, 3] = True
    keep = keep.reshape(6, 24)
    found = swap(weight, keep, stats.gram, structure, steps=1000)
    assert torch.equal(found.sum(1), keep.sum(1)) and realized(structure, found)
    m = structure.m if isinstance(structure, NM) else None
    for i in range(6):
        here = float(mask_error(weight[i], found[i], stats.gram))
        assert here < float(mask_error(weight[i], keep[i], stats.gram))
        assert all(float(mask_error(weight[i], k, stats.gram)) > here * (1 - 1e-4) for k in all_swaps(found[i], m))


def test_every_step_lowers_the_error_also_beyond_the_shortlist():
    weight, _, stats = make_layer(10, 120)
    keep = score("wanda", weight, stats) > score("wanda", weight, stats).median(1, keepdim=True).values
    before = mask_error(weight, keep, stats.gram)
    for _ in range(10):
        after = mask_error(weight, keep := swap(weight, keep, stats.gram, Unstructured(), steps=1), stats.gram)
        assert (after <= before * (1 + 1e-9)).all()
        before = after


def test_full_and_empty_rows_stay():
    weight, _, stats = make_layer(2, 8)
    keep = torch.tensor([[True] * 8, [False] * 8])
    assert torch.equal(swap(weight, keep, stats.gram, Unstructured()), keep)


# --- ALPS -----------------------------------------------------------------------------------------------------------


def test_alps_is_among_the_best_of_all_masks():
    better = 0
    for seed in range(6):
        weight, _, stats = make_layer(1, 8, seed)
        found = solve(Problem(weight, stats, 4, damp=1e-5), "alps+lsq")
        assert int((~found.keep).sum()) == 4
        errors = []
        for kept in itertools.combinations(range(8), 4):
            keep = torch.zeros(1, 8, dtype=torch.bool)
            keep[0, list(kept)] = True
            exact = least_squares(weight, weight * keep, keep, stats.gram, 0.0)
            errors.append(relative_error(exact, weight, stats.gram))
        assert found.error >= min(errors) * (1 - 1e-3)
        better += sum(error < found.error * (1 - 1e-2) for error in errors)
    assert better <= 0.03 * 6 * 70  # of six times seventy masks, each with its best values


@pytest.mark.parametrize("tokens", [20, 60, 400])
@pytest.mark.parametrize("structure", [Unstructured(), NM(2, 4)])
def test_alps_refines_from_where_its_iteration_arrived(structure, tokens):
    """Ten steps from the dense weights fall short where inputs are correlated, from the iteration's own they do not."""
    weight, _, stats = make_layer(40, 80, tokens=tokens)
    zeros = weight.numel() // 2
    found = solve(Problem(weight, stats, zeros, structure), "alps")
    hessian = damped(stats).float()
    best = least_squares(weight, weight * found.keep, found.keep, stats.gram, ridge_of(stats.gram, 0.01))
    from_dense = masked_cg(weight, weight * found.keep, found.keep, hessian, 10, 1e-4)
    least, came_from = (relative_error(w, weight, stats.gram) for w in (best, from_dense))
    assert found.error <= 1.05 * min(least, came_from)


@pytest.mark.parametrize("structure", [Unstructured(), NM(2, 4), BlockShape(2, 4)])
def test_alps_beats_sparsegpt_in_every_structure(structure):
    weight, _, stats = make_layer(32, 64)
    zeros = weight.numel() // 2
    found = solve(Problem(weight, stats, zeros, structure), "alps")
    assert found.error < solve(Problem(weight, stats, zeros, structure), "sparsegpt").error
    assert realized(structure, found.keep) and int((~found.keep).sum()) == zeros


# --- chains ---------------------------------------------------------------------------------------------------------

CHAINS = ["none", "lsq", "swap", "sparsegpt", "alps", "swap+lsq", "sparsegpt+lsq", "sparsegpt+swap+lsq"]
CHAINS += ["none+sparsegpt"]


@pytest.mark.parametrize("chain", [*CHAINS])
@pytest.mark.parametrize("grid", [None, Grid(4, 32)])
def test_layers_solved_together_are_as_solved_alone(chain, grid):
    _, _, stats = make_layer(1, 70)
    problems = []
    for rows, zeros, group in ((8, 280, "layer"), (3, 100, "layer"), (5, 123, "row"), (4, 0, "layer")):
        weight = torch.randn(rows, 70)
        scores = score("wanda", weight, stats)
        problems.append(Problem(weight, stats, zeros, group=group, scores=scores, grid=grid))
    together = solve_group(problems, parse_solver(chain))
    for problem, found in zip(problems, together, strict=True):
        alone = solve(problem, chain)
        assert torch.equal(found.keep, alone.keep)
        assert torch.allclose(found.weight, alone.weight, rtol=1e-3, atol=1e-4)
        assert found.error == pytest.approx(alone.error, rel=1e-2, abs=1e-9)
        assert (found.quantized is None) == (grid is None)


def test_none_removes_by_score_and_changes_no_value():
    weight, _, stats = make_layer(4, 12)
    found = solve(Problem(weight, None, 20, scores=weight.abs()), "none")
    assert torch.equal(found.weight, weight * found.keep) and found.error is None and found.quantized is None
    assert float(weight[~found.keep].abs().max()) <= float(weight[found.keep].abs().min())
    rounded = solve(Problem(weight, stats, 20, scores=weight.abs(), grid=Grid(4)), "none")
    plain = round_to_nearest(weight * found.keep, Grid(4), found.keep, stats.sum_sq)
    assert torch.equal(rounded.weight, plain.dequantize())


def test_error_is_the_relative_output_error():
    weight, inputs, stats = make_layer(6, 20)
    for chain in ("none", "sparsegpt", "alps"):
        found = solve(Problem(weight, stats, 60, scores=weight.abs()), chain)
        lost = (inputs @ (found.weight - weight).double().T).square().sum()
        assert found.error == pytest.approx(float(lost / (inputs @ weight.double().T).square().sum()), rel=1e-4)
    assert solve(Problem(weight, stats, 0), "sparsegpt").error == pytest.approx(0, abs=1e-9)
    assert solve(Problem(weight * 0, stats, 60, scores=weight), "none").error == 0


def test_row_errors_over_column_chunks(monkeypatch):
    weight, inputs, stats = make_layer(6, 50)
    monkeypatch.setattr("winnow.solve.least_squares._COLS", 16)
    assert torch.allclose(row_errors(weight, stats.gram), (inputs @ weight.double().T).square().sum(0), rtol=1e-4)


@pytest.mark.parametrize("chain", ["sparsegpt+lsq", "alps", "swap", "lsq"])
def test_rounding_after_a_chain_holds_its_mask_and_beats_plain_rounding(chain):
    weight, _, stats = make_layer(32, 96)
    zeros, scores = weight.numel() // 2, score("wanda", weight, stats)
    unrounded = solve(Problem(weight, stats, zeros, scores=scores), chain)
    found = solve(Problem(weight, stats, zeros, scores=scores, grid=Grid(3, 32)), chain)
    assert torch.equal(found.keep, unrounded.keep)
    plain = round_to_nearest(unrounded.weight, Grid(3, 32), unrounded.keep, stats.sum_sq)
    assert found.error < relative_error(plain.dequantize(), weight, stats.gram)


def test_gptq_beats_rounding_to_nearest():
    weight, _, stats = make_layer(32, 96)
    for grid in (Grid(4, 32), Grid(3, 32), Grid(3)):
        rounded = solve(Problem(weight, stats, 0, grid=grid), "none")
        assert solve(Problem(weight, stats, 0, grid=grid), "sparsegpt").error < 0.8 * rounded.error


def test_without_a_gram_matrix_weights_round_to_nearest():
    weight, _, stats = make_layer(4, 32)
    stats.gram = None
    found = solve(Problem(weight, stats, 0, grid=Grid(4)), "sparsegpt")
    assert torch.equal(found.weight, round_to_nearest(weight, Grid(4), importance=stats.sum_sq).dequantize())


def test_inputs_that_never_fire_lose_their_weights_first_and_disturb_nothing():
    weight, inputs, _ = make_layer(6, 20)
    inputs[:, 5:9] = 0
    stats = stats_of(inputs)
    for chain in ("sparsegpt", "sparsegpt+lsq"):
        found = solve(Problem(weight, stats, 24), chain)
        assert not found.keep[:, 5:9].any() and torch.equal(found.weight[:, :5], weight[:, :5])
        fewer = solve(Problem(weight, stats, 10), chain)
        assert int((~fewer.keep[:, 5:9]).sum()) == 10 and torch.equal(fewer.weight[fewer.keep], weight[fewer.keep])


def test_names_and_what_they_need():
    assert str(parse_solver("sparsegpt + lsq")) == "sparsegpt+lsq"
    found = [parse_solver(name) for name in ("none", "sparsegpt", "alps", "lsq", "swap+lsq")]
    assert [chain.needs_gram for chain in found] == [False, True, True, True, True]
    assert [chain.needs_scores for chain in found] == [True, False, False, True, True]
    for text, message in (("gptq", "choose from"), ("", "choose from"), ("lsq+alps", "first"), ("swap+none", "first")):
        with pytest.raises(InputError, match=message):
            parse_solver(text)


def test_bad_input_is_one_sentence_naming_layer_and_fix():
    weight, _, stats = make_layer(4, 12)
    broken = weight.clone()
    broken[1, 2] = torch.nan
    cases = [
        (Problem(broken, stats, 4, where="h.0"), "sparsegpt", "the weights of h.0 contain NaN"),
        (Problem(weight, stats, 49), "sparsegpt", "48 weights"),
        (Problem(weight, stats, 4, group="column"), "sparsegpt", "layer or row"),
        (Problem(weight, stats, 4, scores=broken), "none", "scores of the layer contain NaN"),
        (Problem(weight, stats, 4), "lsq", "no scores"),
        (Problem(weight, None, 4, scores=weight), "swap", "Gram"),
        (Problem(weight[:, :8], stats, 4), "sparsegpt", "12 inputs"),
        (Problem(weight, stats, 24, keep=weight[:2] > 0), "lsq", "mask"),
        (Problem(weight, stats, 16, NM(5, 8)), "sparsegpt", "multiple of 8"),
        (Problem(weight, stats, 24, NM(2, 4), grid=Grid(4, 6)), "sparsegpt", "quantization group"),
        (Problem(weight, stats, 24, BlockShape(1, 4), scores=weight), "swap", "sparsegpt"),
        (Problem(weight, stats, 24, Coupled("neuron")), "sparsegpt", "whole model"),
    ]
    for problem, solver, message in cases:
        with pytest.raises(InputError, match=message):
            solve(problem, solver)
    stats = make_layer(1, 12)[2]
    stats.gram[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"inputs of h\.1 contain NaN or infinity"):
        solve(Problem(weight, stats, 4, where="h.1"), "sparsegpt")
    with pytest.raises(InputError, match="no Gram matrix"):
        gram_of(InputStats(3), CPU)
    with pytest.raises(InputError, match="share one statistics"):
        solve_group([Problem(weight, make_layer(1, 12)[2], 4) for _ in range(2)], parse_solver("sparsegpt"))
