"""The schedule of the paper, against values by hand."""

import pytest

from crest.lab.run.learning_rate import learning_rate_factor


def test_schedule_of_a_hundred_steps():
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert factors[10:60] == [1.0] * 50
    assert factors[60:85] == [0.1] * 25
    assert factors[85:] == [0.01] * 15


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 39_000])
def test_schedule_fits_any_number_of_steps(num_steps):
    factors = [learning_rate_factor(step, num_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1
    peak = factors.index(1)
    lowered = [sum(factor == value for factor in factors[peak:]) for value in (0.1, 0.01)]
    tenth, hundredth = -(-60 * num_steps // 100), -(-85 * num_steps // 100)  # rounded up
    assert lowered == [hundredth - tenth, num_steps - hundredth]
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_a_budget_compresses_the_same_curve():
    full = [learning_rate_factor(step, 1000) for step in range(1000)]
    short = [learning_rate_factor(step, 100) for step in range(100)]
    assert short == pytest.approx(full[9::10])
