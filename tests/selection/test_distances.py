from __future__ import annotations

import math

import pytest
import torch
from tests import reference

from crest.selection import last_layer_distances, pairwise_distances

pytestmark = pytest.mark.usefixtures("version")


def make_rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def full_gradients(errors, inputs, bias=True):
    """e (x) [h, 1], or e (x) h, formed."""
    if bias:
        inputs = torch.cat([inputs, torch.ones(*inputs.shape[:-1], 1)], dim=-1)
    return (errors[..., :, None].double() * inputs[..., None, :]).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 10, 32, 33, 200])
def test_distances_are_the_definition(d, dtype):
    rows = make_rows(50, d, dtype=dtype)
    distances = pairwise_distances(rows)
    expected = reference.distance_matrix(rows)
    assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Sums of d rounded squares: d / 2 units in the last place, and one for the root.
    tolerance = (d / 2 + 2) * torch.finfo(distances.dtype).eps
    torch.testing.assert_close(distances.double(), expected, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("d", [4, 100])
def test_equal_rows_are_no_distance_apart_however_far_from_zero(d):
    rows = make_rows(150, d) + 1000
    rows[100:] = rows[:50]
    distances = pairwise_distances(rows)
    assert distances.diagonal().count_nonzero() == 0
    assert distances[:50, 100:].diagonal().count_nonzero() == 0
    assert torch.equal(distances, distances.T)
    # Equal rows have equal distances to all others, so that they tie.
    assert torch.equal(distances[100:], distances[:50])


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_leading_dimensions_are_kept(shape):
    errors, inputs = make_rows(*shape, 4), make_rows(*shape, 6, seed=1)
    last = last_layer_distances(errors, inputs)
    pairs = pairwise_distances(inputs)
    assert last.shape == pairs.shape == (*shape, 7)
    expected = pairwise_distances(full_gradients(errors, inputs)).float()
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_last_layer_distances_are_those_of_the_full_gradients(bias):
    errors = make_rows(3, 120, 10).softmax(2)
    errors -= torch.eye(10)[torch.arange(120) % 10]
    inputs = make_rows(3, 120, 64, seed=1).relu()
    errors[:, 60:70], inputs[:, 60:70] = errors[:, :10], inputs[:, :10]
    errors[:, 80:90] = 0
    distances = last_layer_distances(errors, inputs, bias=bias)
    expected = pairwise_distances(full_gradients(errors, inputs, bias))
    torch.testing.assert_close(distances.double(), expected, rtol=1e-6, atol=1e-7)
    assert distances[:, 60:70, :10].diagonal(dim1=1, dim2=2).count_nonzero() == 0
    assert distances[:, 80:90, 80:90].count_nonzero() == 0
    assert torch.equal(distances, distances.mT)


def test_float64_stays_float64():
    errors, inputs = make_rows(9, 4, dtype=torch.float64), make_rows(9, 6)
    distances = last_layer_distances(errors, inputs)
    assert distances.dtype == torch.float64
    torch.testing.assert_close(distances, pairwise_distances(full_gradients(errors, inputs)))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(scale):
    rows = make_rows(20, 5) * scale
    expected = reference.distance_matrix(rows)
    torch.testing.assert_close(pairwise_distances(rows).double(), expected, rtol=1e-6, atol=0)
    many = rows.repeat(1, 10)
    expected = reference.distance_matrix(many)
    torch.testing.assert_close(pairwise_distances(many).double(), expected, rtol=1e-6, atol=0)


ROWS = make_rows(5, 3)


@pytest.mark.parametrize(
    ("errors", "inputs", "message"),
    [
        (ROWS, ROWS[:4], "one row each"),
        (ROWS[0], ROWS, "errors must be floating-point rows"),
        (ROWS, ROWS.long(), "inputs must be floating-point rows"),
        (ROWS * math.nan, ROWS, "errors must be finite"),
        (ROWS, ROWS / 0, "inputs must be finite"),
        (ROWS, ROWS.to("meta"), "on one device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_rows_are_one_clear_error(errors, inputs, message):
    with pytest.raises(ValueError, match=message):
        last_layer_distances(errors, inputs)


def test_bad_features_are_one_clear_error():
    with pytest.raises(ValueError, match="features must be floating-point rows"):
        pairwise_distances(ROWS[:0])
    with pytest.raises(ValueError, match="features must be finite"):
        pairwise_distances(ROWS * math.inf)
