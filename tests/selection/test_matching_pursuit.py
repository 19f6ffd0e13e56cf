"""Matching pursuit against scipy's non-negative least squares."""

from itertools import pairwise

import pytest
import torch
from torch.overrides import TorchFunctionMode

import reference_baselines
from crest.selection.matching_pursuit import matching_pursuit


def make_rows(n=60, c=2, d=8, seed=2, scale=1.0):
    """Factors of last-layer gradients, as cross-entropy makes them, and the gradients."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.randn(n, c, generator=generator).softmax(1)
    errors[torch.arange(n), torch.randint(c, (n,), generator=generator)] -= 1
    inputs = scale * torch.randn(n, d, generator=generator).relu()
    with_one = torch.cat([inputs, torch.ones(n, 1)], dim=1)
    return errors, inputs, torch.einsum("nc,nd->ncd", errors, with_one).flatten(1)


@pytest.mark.parametrize("seed", [2, 3, 4])
@pytest.mark.parametrize("ridge", [0.5, 0.01])
@pytest.mark.parametrize("size", [1, 2, 7, 20], ids="k={}".format)
def test_picks_and_weights_are_those_of_the_slow_version(size, ridge, seed):
    _, _, gradients = make_rows(seed=seed)
    expected = reference_baselines.matching_pursuit(gradients, size, ridge)
    indices, weights = matching_pursuit(gradients, size, ridge=ridge)
    assert indices.tolist() == sorted(expected)
    for index, weight in zip(indices.tolist(), weights.tolist(), strict=True):
        assert weight == pytest.approx(expected[index], rel=1e-6)


def test_rows_whose_weights_turn_negative_leave():
    """The cases above hold some, or they would not tell the two apart."""
    _, _, gradients = make_rows()
    total, picks = gradients.double().sum(0), []
    weights = gradients.new_zeros(0).double()
    for _ in range(20):
        fits = gradients.double() @ (total - weights @ gradients[picks].double())
        fits[picks] = -torch.inf
        picks.append(int(fits.argmax()))
        weights = reference_baselines.ridge_nnls(gradients[picks], total, 0.01)
    assert (weights == 0).any()
    assert set(picks) != set(matching_pursuit(gradients, 20, ridge=0.01).indices.tolist())


@pytest.mark.parametrize("seed", [2, 3, 4])
@pytest.mark.parametrize("ridge", [0.5, 0.01])
@pytest.mark.parametrize("factored", [False, True])
def test_more_picks_than_dimensions_are_those_of_the_slow_version_too(factored, ridge, seed):
    errors, inputs, gradients = make_rows(d=3, seed=seed)  # 8 dimensions
    expected = reference_baselines.matching_pursuit(gradients, 20, ridge)
    rows = {"gradients": errors, "inputs": inputs} if factored else {"gradients": gradients}
    indices, weights = matching_pursuit(size=20, ridge=ridge, **rows)
    assert indices.tolist() == sorted(expected)
    for index, weight in zip(indices.tolist(), weights.tolist(), strict=True):
        assert weight == pytest.approx(expected[index], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("size", [2, 3], ids="k={}".format)
def test_a_row_alone_in_its_direction_can_leave(size):
    """Two dimensions: three picks take the other of the two inverses that can be kept."""
    first, second = torch.tensor([10.0, 0.0]), torch.tensor([1.0, 0.9])
    third = 1 - first - second  # so that their sum is [1, 1]
    indices, weights = matching_pursuit(torch.stack([first, second, third]), size, ridge=1e-12)
    found = dict(zip(indices.tolist(), weights.tolist(), strict=True))
    exact = torch.linalg.solve(torch.stack([second, third]).T, torch.ones(2)).tolist()
    assert [found[1], found[2]] == pytest.approx(exact, rel=1e-5)
    assert found.get(0, 0) == 0  # picked first, then not wanted beside the second


def test_factors_give_the_picks_of_the_gradients_they_stand_for():
    errors, inputs, gradients = make_rows()
    formed = matching_pursuit(gradients, 15)
    factored = matching_pursuit(errors, 15, inputs=inputs)
    assert torch.equal(factored.indices, formed.indices)
    assert torch.allclose(factored.weights, formed.weights, rtol=1e-5)


def test_rows_of_a_head_without_bias_have_no_column_for_it():
    errors, inputs, gradients = make_rows()
    formed = matching_pursuit(gradients.view(60, 2, 9)[:, :, :8].flatten(1), 15)
    factored = matching_pursuit(errors, 15, inputs=inputs, bias=False)
    assert torch.equal(factored.indices, formed.indices)
    assert torch.allclose(factored.weights, formed.weights, rtol=1e-5)


def test_large_gradients_do_not_end_the_pursuit_before_the_budget():
    """The ridge is then little beside them, and most of the sum is matched by a few rows."""
    _, _, gradients = make_rows(n=600, d=4, scale=200.0)
    indices, weights = matching_pursuit(gradients, 60)
    assert (weights > 0).all()
    total = gradients.double().sum(0)
    best = reference_baselines.ridge_nnls(gradients[indices], total, 0.5)
    assert objective(gradients, indices, weights) < 1.0001 * objective(gradients, indices, best)


@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("d", [4, 60])
def test_a_ridge_that_is_tiny_beside_the_gradients_leaves_the_weights_small(scale, d):
    """Rows that depend on the picked ones would be weighed against them without bound."""
    _, _, gradients = make_rows(n=600, d=d, scale=scale)
    indices, weights = matching_pursuit(gradients, 200)
    total = gradients.double().sum(0)
    best = reference_baselines.ridge_nnls(gradients[indices], total, 0.5)
    excess = objective(gradients, indices, weights) - objective(gradients, indices, best)
    assert excess < 1e-6 * float(total.square().sum())
    assert float(weights.sum()) < 2 * 600


def objective(gradients, indices, weights, ridge=0.5):
    residual = gradients.double().sum(0) - weights @ gradients[indices].double()
    return float(residual.square().sum() + ridge * weights.square().sum())


@pytest.mark.parametrize("size", [1, 5, 30, 60], ids="k={}".format)
@pytest.mark.parametrize("kind", ["random", "duplicate", "equal", "zero", "tiny", "cancelling"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_there_are_exactly_k_distinct_rows_and_no_negative_weight(kind, size, dtype):
    _, _, gradients = make_rows()
    if kind == "duplicate":
        gradients = gradients[torch.arange(60) // 10]
    elif kind == "equal":
        gradients = gradients[:1].expand(60, -1)
    elif kind == "zero":
        gradients = torch.zeros(60, 5)
    elif kind == "tiny":
        gradients = 1e-4 * gradients
    elif kind == "cancelling":
        gradients = torch.cat([gradients[:30], -gradients[:30]])
    indices, weights = matching_pursuit(gradients.to(dtype), size)
    assert len(indices.unique()) == len(indices) == len(weights) == size
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()


def test_rows_that_complete_the_budget_weigh_nothing():
    """Known elsewhere: random rows complete it, on another scale of weights."""
    gradients = torch.eye(3).repeat(10, 1)
    gradients[3:] *= 0.1  # three rows could match the sum
    indices, weights = matching_pursuit(gradients, 20, ridge=1e-15)  # else 20 are better than 3
    residual = gradients.double().sum(0) - weights @ gradients[indices].double()
    assert float(residual.norm()) < 1e-6
    assert int((weights > 0).sum()) == 3


class Work(TorchFunctionMode):
    """Numbers read by all operations, and whether one of them solves a system."""

    def __init__(self):
        super().__init__()
        self.numbers = 0
        self.solved = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if "__get__" not in name:  # the property of a tensor reads none of it
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            self.numbers += sum(tensor.numel() for tensor in tensors)
        self.solved |= any(word in name for word in SOLVERS)
        return function(*args, **(kwargs or {}))


SOLVERS = ("linalg", "inverse", "cholesky", "lstsq", "triangular", "lu_solve")


def test_work_sees_solvers():
    matrix = torch.eye(2)
    for solve in (torch.inverse, torch.linalg.inv, torch.linalg.cholesky, torch.Tensor.inverse):
        with Work() as counted:
            solve(matrix)
        assert counted.solved
    with Work() as counted:
        _ = matrix @ matrix.T
    assert counted.numbers == 8
    assert not counted.solved


def test_a_step_costs_no_more_than_the_rows_and_the_square_of_the_picks():
    """Known elsewhere: a system solved from nothing at each step, k^4 in all."""
    _, _, gradients = make_rows(n=400, c=10, d=30)
    work = []
    for size in (40, 80, 160):
        with Work() as counted:
            matching_pursuit(gradients, size)
        assert not counted.solved
        work.append(counted.numbers)
    assert work[1] < 8 * work[0]
    assert work[2] < 8 * work[1]


@pytest.mark.parametrize("ridge", [0.5, 0.01])
def test_the_residual_falls_with_every_pick_and_beats_random_rows(ridge):
    _, _, gradients = make_rows(n=200)
    total = gradients.double().sum(0)

    def residual(indices, weights):
        rest = total - weights @ gradients[indices].double()
        return float(rest.square().sum() + ridge * weights.square().sum())

    values = [residual(*matching_pursuit(gradients, size, ridge=ridge)) for size in range(1, 25)]
    assert all(later <= earlier for earlier, later in pairwise(values))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):  # random rows with the best weights they can have
        rows = torch.randperm(200, generator=generator)[:24]
        best = residual(rows, reference_baselines.ridge_nnls(gradients[rows], total, ridge))
        assert values[-1] < 0.7 * best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients": torch.zeros(5)}, "gradients must be floating-point rows"),
        ({"gradients": torch.zeros(5, 2, dtype=torch.int64)}, "rows of shape .* got torch.int64"),
        ({"gradients": torch.full((5, 2), torch.nan)}, "gradients must be finite"),
        ({"inputs": torch.full((5, 3), torch.inf)}, "inputs must be finite"),
        ({"inputs": torch.zeros(4, 3)}, "one row for each row of gradients, 5; got 4"),
        ({"size": 0}, r"size must be in \[1, 5\], the rows; got 0"),
        ({"size": 6}, r"size must be in \[1, 5\], the rows; got 6"),
        ({"ridge": 0.0}, r"ridge must be > 0 and finite; got 0\.0"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        matching_pursuit(**{"gradients": torch.ones(5, 2), "size": 2, **arguments})
