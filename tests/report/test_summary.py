"""Tables and verdicts say what the records say."""

import re

import pytest

from crest.report.comparison_table import format_table
from crest.report.summary import group, summarize, verdict


def test_records_are_grouped_in_order_of_appearance(make_record):
    records = [
        make_record("random"), make_record("full"), make_record("random", seed=1),
        make_record("random", equal_time=True),
    ]  # fmt: skip
    groups = group(records)
    assert list(groups) == ["random", "full", "random, equal time"]
    assert len(groups["random"]) == 2


def test_means_and_spread_by_hand(make_record):
    (summary,) = summarize(
        [
            make_record(accuracy=0.7, accuracy_gap=0.2, seconds=1.0, cost=20.0, overhead=1.0),
            make_record(seed=1, accuracy=0.9, accuracy_gap=None, seconds=2.0, cost=40.0),
        ]
    )
    assert summary.accuracy == pytest.approx(0.8)
    assert summary.spread == pytest.approx(0.2 / 2**0.5)  # n - 1 in the denominator
    assert summary.accuracy_gap == pytest.approx(0.2)
    assert (summary.seconds, summary.cost, summary.overhead) == (1.5, 30, 0.5)
    assert summary.seeds == 2


def test_table_by_hand(make_record):
    records = [
        make_record("crest", accuracy=0.951, steps=1234, cost=9876.5, overhead=7.0, seconds=12.34),
        make_record("full", accuracy=0.98, accuracy_gap=0.0),
        make_record("full", seed=1, accuracy=0.99, accuracy_gap=0.0),
    ]
    expected = """\
strategy    accuracy %  relative error %  steps  cost in random steps  break-even  seconds
--------  ------------  ----------------  -----  --------------------  ----------  -------
crest            95.10                 -  1,234                 9,876      8.00 x     12.3
full      98.50 ± 0.71              0.00     10                    10      1.00 x      2.0"""
    assert format_table(records) == expected


def runs(make_record, strategy, accuracies, **changes):
    return [
        make_record(strategy, seed=seed, accuracy=accuracy, **changes)
        for seed, accuracy in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        # The mean of three seeds is told from zero where it exceeds 4.30 / 3^0.5 = 2.48 spreads.
        ([0.62, 0.73, 0.84], r"\+3.00 ± 1.00 points over 3 seeds, crest is better"),
        ([0.58, 0.67, 0.76], r"-3.00 ± 1.00 points over 3 seeds, crest is worse"),
        ([0.61, 0.72, 0.83], r"\+2.00 ± 1.00 points over 3 seeds, no clear difference"),
        ([0.62, 0.74], r"\+3.00 ± 1.41 points over 2 seeds, no clear difference"),
        ([0.63, 0.73, 0.83], r"\+3.00 ± 0.00 points over 3 seeds, no clear difference"),
        ([0.60, 0.70], r"\+0.00 ± 0.00 points over 2 seeds, no clear difference"),
        ([0.62], r"\+2.00 points on a single seed, which proves nothing"),
    ],
)
def test_verdict_compares_seed_by_seed(make_record, accuracies, expected):
    records = runs(make_record, "crest", accuracies, seconds=5.0)
    records += runs(make_record, "random", [0.6, 0.7, 0.8])
    line = verdict(records)
    assert re.search(expected, line), line
    assert "Equal time: not measured; crest took 2.5 times the seconds" in line
    assert "\n" not in line


def test_verdict_at_equal_time(make_record):
    records = runs(make_record, "crest", [0.7, 0.8]) + runs(make_record, "random", [0.6, 0.7])
    records += runs(make_record, "random", [0.704, 0.805], equal_time=True)
    line = verdict(records)
    assert "Equal steps: crest minus random is +10.00" in line
    assert "Equal time: crest minus random is -0.45 ± 0.07 points over 2 seeds, no clear" in line


def test_verdict_names_the_break_even(make_record):
    records = runs(make_record, "crest", [0.7, 0.8], overhead=0.31)
    line = verdict(records + runs(make_record, "random", [0.6, 0.7]))
    assert "It pays only if a step of crest is worth more than 1.31 random steps." in line


def test_verdict_says_where_coresets_did_not_pay(make_record):
    regions = [
        {"step": 0, "length": 2, "selected": True},
        {"step": 2, "length": 7, "selected": False},
        {"step": 9, "length": 50, "selected": True},  # of which the run took one step
    ]
    records = [make_record("crest", history={"records": regions}), make_record("random")]
    assert "crest took 70 % of its steps on random batches" in verdict(records)
    assert "did not pay" not in verdict([make_record("crest"), make_record("random")])


def test_verdict_says_where_nothing_was_remembered_long_enough(make_record):
    for selected in (True, False):
        regions = [{"step": 0, "length": 10, "selected": selected}]
        records = [make_record("remembered", history={"records": regions}), make_record("random")]
        line = verdict(records)
        assert "remembered minus random" in line
        assert ("remembered picked nothing" in line) is not selected


def test_verdict_needs_both(make_record):
    assert verdict([make_record("crest"), make_record("full")]) == ""
    assert verdict([]) == ""


def test_verdict_without_a_common_seed(make_record):
    line = verdict([make_record("crest", seed=1), make_record("random", seed=2)])
    assert "unknown, as they share no seed" in line
