"""T_1 and P of Algorithm 1."""

import math

import pytest

from crest.schedule import AdaptiveSchedule


def make_schedule(h=1.0, b=5.0, max_check_interval=100, max_coresets=50):
    return AdaptiveSchedule(h, b, max_check_interval, max_coresets)


def test_round_one_checks_after_one_step_and_picks_b_coresets():
    schedule = make_schedule(b=5)
    assert (schedule.check_interval, schedule.num_coresets) == (1, 5)


@pytest.mark.parametrize(
    ("h", "norm", "interval", "coresets"),
    [
        (1.0, 8.0, 1, 5),  # the curvature of round one
        (1.0, 3.0, 3, 15),  # ceil(8 / 3)
        (10.0, 8.0, 10, 50),
        (1.0, 80.0, 1, 5),  # never below one step
        (4.0, 0.1, 100, 50),  # 320 and 500 are above both caps
    ],
)
def test_intervals_grow_with_the_inverse_of_the_curvature(h, norm, interval, coresets):
    schedule = make_schedule(h=h)
    schedule.observe(8.0)
    schedule.adapt(norm)
    assert (schedule.check_interval, schedule.num_coresets) == (interval, coresets)


def test_a_flat_loss_gives_the_longest_interval():
    schedule = make_schedule(max_check_interval=30, max_coresets=7)
    schedule.observe(2.0)
    schedule.adapt(0.0)
    assert (schedule.check_interval, schedule.num_coresets) == (30, 7)


def test_a_first_round_without_curvature_is_not_the_measure_of_all():
    schedule = make_schedule()
    schedule.observe(0.0)  # low-rank adapters at B = 0
    schedule.observe(4.0)  # the first curvature there is
    schedule.adapt(4.0)
    assert schedule.check_interval == 1
    schedule.adapt(1.0)
    assert schedule.check_interval == 4


def test_without_a_first_round_to_compare_with_the_interval_is_one_step():
    schedule = make_schedule()
    schedule.adapt(4.0)
    assert (schedule.check_interval, schedule.num_coresets) == (1, 5)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_curvature_that_is_not_finite_gives_the_shortest_interval(norm):
    schedule = make_schedule()
    schedule.observe(1.0)
    schedule.adapt(norm)
    assert schedule.check_interval == 1


def test_fractions_of_b_round_up():
    schedule = make_schedule(b=0.4)
    assert schedule.num_coresets == 1
    schedule.observe(6.0)
    schedule.adapt(1.0)
    assert schedule.num_coresets == 3  # ceil(0.4 * 6)


def test_state_holds_all():
    schedule, other = make_schedule(), make_schedule()
    schedule.observe(6.0)
    schedule.adapt(2.0)
    other.load_state_dict(schedule.state_dict())
    schedule.adapt(1.0)
    other.adapt(1.0)
    assert vars(other) == vars(schedule)
