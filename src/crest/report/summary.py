"""Means and spreads over seeds, and what they say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from crest.strategies import Random, registered_strategies
from crest.strategies.registry import word_of

__all__ = [
    "RANDOM_AT_EQUAL_TIME",
    "Summary",
    "group",
    "half_interval",
    "selected_share",
    "summarize",
    "verdict",
]

_RANDOM = word_of(Random)
_AT_EQUAL_TIME = ", equal time"  # ends the label of a run whose steps were set by seconds

RANDOM_AT_EQUAL_TIME = _RANDOM + _AT_EQUAL_TIME

# 97.5 % of Student's t for 1 to 10 degrees of freedom; the last serves for more, too.
_T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True)
class Summary:
    """One strategy over all its seeds; fractions, not percent.

    Attributes:
        label: Strategy, with ", equal time" if its steps were set by seconds.
        accuracy: Mean test accuracy.
        spread: Standard deviation of the accuracy over seeds, None for a single one.
        accuracy_gap: Mean of |accuracy - a| / a, a from the full run of the same seed, or None.
        steps: Mean number of steps.
        cost: Mean cost in random steps.
        overhead: Mean cost beyond training, as a fraction of training.
        seconds: Mean seconds.
        seeds: Number of seeds.
    """

    label: str
    accuracy: float
    spread: float | None
    accuracy_gap: float | None
    steps: float
    cost: float
    overhead: float
    seconds: float
    seeds: int


def group(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Put the records of each strategy together.

    Args:
        records: See `lab.run.training.train`.

    Returns:
        Records by label, in the order of their first appearance.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        label = record["strategy"] + (_AT_EQUAL_TIME if record["equal_time"] else "")
        groups.setdefault(label, []).append(record)
    return groups


def summarize(records: Iterable[dict[str, Any]]) -> list[Summary]:
    """Average the records of each strategy over seeds.

    Args:
        records: See `lab.run.training.train`.

    Returns:
        One summary for each strategy, in the order of first appearance.
    """
    summaries = []
    for label, some in group(records).items():
        accuracies = [record["accuracy"] for record in some]
        gaps = [record["accuracy_gap"] for record in some if record["accuracy_gap"] is not None]
        summaries.append(
            Summary(
                label=label,
                accuracy=statistics.fmean(accuracies),
                spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                accuracy_gap=statistics.fmean(gaps) if gaps else None,
                steps=_mean(some, "steps"),
                cost=_mean(some, "cost"),
                overhead=_mean(some, "overhead"),
                seconds=_mean(some, "seconds"),
                seeds=len(some),
            )
        )
    return summaries


def verdict(records: Iterable[dict[str, Any]]) -> str:
    """Say in a few words what is gained over random batches by what is no baseline, or is not.

    A difference of paired seeds counts as clear only if Student's t test tells it from zero at the
    level of 5 %, two-sided.

    Args:
        records: See `lab.run.training.train`.

    Returns:
        The words; empty if such strategies or random batches are missing.
    """
    groups = group(records)
    random = groups.get(_RANDOM, [])
    known = registered_strategies()
    ours = [name for name in groups if name in known and not known[name].is_baseline]
    if not ours or not random:
        return ""
    parts = [
        f"Equal steps: {name} minus random is {_difference(name, groups[name], random)}."
        for name in ours
    ]
    parts += [
        f"It pays only if a step of {name} is worth more than "
        f"{1 + _mean(groups[name], 'overhead'):.2f} random steps."
        for name in ours
    ]
    name, first = ours[0], groups[ours[0]]
    if RANDOM_AT_EQUAL_TIME in groups:
        difference = _difference(name, first, groups[RANDOM_AT_EQUAL_TIME])
        parts.append(f"Equal time: {name} minus random is {difference}.")
    else:
        factor = _mean(first, "seconds") / _mean(random, "seconds")
        parts.append(
            f"Equal time: not measured; {name} took {factor:.1f} times the seconds of random "
            "(--time-matched adds that row)."
        )
    parts += [_unselected(name, groups[name], known[name].unselected) for name in ours]
    return " ".join(part for part in parts if part)


def selected_share(record: dict[str, Any]) -> float:
    """Compute the share of the steps that were taken on coresets.

    Args:
        record: Of a run, see `lab.run.training.train`.

    Returns:
        In [0, 1]; 0 for random batches.
    """
    steps: int = record["steps"]
    selected: int = sum(
        min(region["length"], steps - region["step"])  # the last is planned beyond the end
        for region in record["history"]["records"]
        if region.get("selected")
    )
    return selected / steps


def _unselected(name: str, records: Sequence[dict[str, Any]], reason: str) -> str:
    """Say how many steps were on random batches, and why; nothing if the reason is not known."""
    share = statistics.fmean(map(selected_share, records)) if reason else 1.0
    if share >= 0.995:
        return ""
    if share == 0:
        return f"{name} picked nothing: {reason}."
    return f"{name} took {100 * (1 - share):.0f} % of its steps on random batches: {reason}."


def half_interval(values: Sequence[float]) -> float:
    """Compute half the 95 % interval of a mean, by Student's t.

    Args:
        values: Two or more.

    Returns:
        In the unit of the values.
    """
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _difference(name: str, one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> str:
    """Describe the accuracy of `one` minus that of `other`, seed by seed, in points."""
    by_seed = {record["seed"]: record["accuracy"] for record in other}
    points = [
        100 * (record["accuracy"] - by_seed[record["seed"]])
        for record in one
        if record["seed"] in by_seed
    ]
    if not points:
        return "unknown, as they share no seed"
    mean = statistics.fmean(points)
    if len(points) == 1:
        return f"{mean:+.2f} points on a single seed, which proves nothing"
    spread = statistics.stdev(points)
    verdict = "no clear difference"
    # Equal differences, but for rounding, are a coincidence of few test examples.
    if spread > 1e-9 and abs(mean) > half_interval(points):
        verdict = f"{name} is better" if mean > 0 else f"{name} is worse"
    return f"{mean:+.2f} ± {spread:.2f} points over {len(points)} seeds, {verdict}"


def _mean(records: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.fmean(record[key] for record in records)
