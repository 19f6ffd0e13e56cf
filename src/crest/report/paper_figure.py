"""A figure of the paper from our runs."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crest.lab.optional import require
from crest.lab.paper import Outcome
from crest.lab.paper.published import PUBLISHED
from crest.report.comparison_figure import write_figure
from crest.report.paper_table import share_of, title

__all__ = ["plot_item"]

Records = Sequence[dict[str, Any]]
_Points = list[tuple[float, float]]

# Told apart by colour-blind readers, and by line style in grey print.
_STYLES = {
    "Full": ("#333333", "-"),
    "Random": ("#0072b2", "--"),
    "Random, m x 4": ("#56b4e9", ":"),
    "CRAIG": ("#009e73", "-."),
    "Greedy mini-batch": ("#009e73", "-."),
    "CREST-first": ("#0072b2", "--"),
    "CREST w/o smooth": ("#e69f00", "-."),
    "CREST w/o excluding": ("#009e73", ":"),
    "CREST": ("#d55e00", "-"),
}


def plot_item(outcome: Outcome, path: Path) -> None:
    """Draw a figure; curves and bars are means over seeds, with the standard deviation at bars.

    Args:
        outcome: What is kept of the runs of `"fig1"` to `"fig9"`.
        path: Image file to write; the suffix names the format.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure_module = require("matplotlib.figure", "the figure")
    bars, curves = _BARS.get(outcome.name, {}), _CURVES.get(outcome.name, {})
    panels = [*bars, *curves]
    width = max(4.2 * len(panels), 7.5)
    figure = figure_module.Figure(figsize=(width, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, label in zip(axes, panels, strict=True):
        if label in bars:
            _draw_bars(panel, outcome, label, bars[label])
        else:
            x_label = _X_LABELS.get(label, _STEP)
            _draw_curves(panel, outcome, curves[label], x_label)
            panel.set_xlabel(x_label)
            if label in _LOGARITHMIC:
                panel.set_yscale("log")
        panel.set_title(label, fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("\n".join(textwrap.wrap(title(outcome), round(12 * width))), fontsize=10)
    shown = {
        label: handle
        for panel in axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if shown:
        figure.legend(
            shown.values(), shown.keys(), loc="outside lower center", ncols=4, frameon=False
        )
    write_figure(figure, path, dpi=120)


def _draw_curves(
    panel: Any, outcome: Outcome, measure: Callable[[dict[str, Any]], Any], x_label: str
) -> None:
    (task,) = outcome.tasks
    for variant in outcome.item.variants:
        curves: list[dict[str, _Points]] = [
            found if isinstance(found, dict) else {"": found}
            for record in outcome.records.get((task, variant.label), [])
            for found in [measure(record)]
        ]
        for quantity in dict.fromkeys(key for curve in curves for key in curve):
            points = _average([curve[quantity] for curve in curves], x_label)
            if not points:
                continue
            colour, line = _STYLES[variant.label]
            if quantity:  # one of several of the same run
                colour, line = _QUANTITIES[quantity][1:]
            label = quantity or variant.label
            panel.plot(*zip(*points, strict=True), line, color=colour, label=label, marker=".")


def _average(curves: Sequence[_Points], x_label: str) -> _Points:
    """Average over seeds: at each step that some have, or each count, of which others have 0."""
    if x_label == "updates":  # differ from seed to seed: the k-th points belong together
        return [
            (statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points))
            for points in zip(*curves, strict=False)
        ]
    at: dict[float, list[float]] = {}
    for x, y in itertools.chain.from_iterable(curves):
        at.setdefault(x, []).append(y)
    return [(x, sum(at[x]) / (len(at[x]) if x_label == _STEP else len(curves))) for x in sorted(at)]


def _draw_bars(
    panel: Any, outcome: Outcome, name: str, measure: Callable[[Outcome, str, str], list[float]]
) -> None:
    """Set ours beside the paper's for each task and variant."""
    published = PUBLISHED[outcome.name].get(name, {})
    labels, ours, spread, theirs = [], [], [], []
    for task in outcome.tasks:
        for variant in outcome.item.variants:
            values = measure(outcome, task, variant.label)
            paper = published.get(task, {}).get(variant.label)
            if values or paper:
                several = f"{task}\n" if len(outcome.tasks) > 1 else ""
                labels.append(several + variant.label)
                ours.append(statistics.fmean(values) if values else math.nan)
                spread.append(statistics.stdev(values) if len(values) > 1 else math.nan)
                theirs.append(paper[0] if paper else math.nan)
    places = range(len(labels))
    left = [place - 0.2 for place in places]
    panel.bar(left, ours, 0.4, color="#d55e00", label="ours", yerr=spread, capsize=2)
    if not all(map(math.isnan, theirs)):
        panel.bar([place + 0.2 for place in places], theirs, 0.4, color="#999999", label="paper")
    panel.set_xticks(list(places), labels, fontsize=7, rotation=45, ha="right")
    panel.set_ylabel("%")


def _relative(base: str, key: str) -> Callable[[Outcome, str, str], list[float]]:
    def measure(outcome: Outcome, task: str, label: str) -> list[float]:
        if label == base:
            return []
        records = outcome.records
        shares = share_of(records.get((task, label), []), records.get((task, base), []), key)
        return [100 * share for share in shares]

    return measure


def _relative_error(outcome: Outcome, task: str, label: str) -> list[float]:
    return [abs(100 - share) for share in _relative("Full", "accuracy")(outcome, task, label)]


def _accuracy(record: dict[str, Any]) -> _Points:
    return [(point["step"], 100 * point["accuracy"]) for point in record["curve"]]


def _updates(record: dict[str, Any]) -> _Points:
    """Count the updates up to each evaluation."""
    steps = [region["step"] for region in record["history"]["records"] if region.get("updated")]
    return [
        (point["step"], float(sum(step < point["step"] for step in steps)))
        for point in record["curve"]
    ]


def _accuracy_over_updates(record: dict[str, Any]) -> _Points:
    updates = (count for _, count in _updates(record))
    return list(zip(updates, (accuracy for _, accuracy in _accuracy(record)), strict=True))


def _gradient(key: str) -> Callable[[dict[str, Any]], _Points]:
    def measure(record: dict[str, Any]) -> _Points:
        points = record.get("diagnostics", {}).get("gradient_error", [])
        return [(point["step"], point[key]) for point in points if point[key] is not None]

    return measure


def _variances(record: dict[str, Any]) -> dict[str, _Points]:
    return {name: _gradient(key)(record) for name, (key, _, _) in _QUANTITIES.items()}


def _scores(record: dict[str, Any]) -> _Points:
    periods = record["diagnostics"]["forgetting"]["selected"]
    return [(period["step"], period["score"]) for period in periods]


def _excluded(record: dict[str, Any]) -> _Points:
    return [
        (point["step"], 100 * point["accuracy"])
        for point in record["diagnostics"]["excluded"]
        if point["accuracy"] is not None
    ]


def _picks(record: dict[str, Any]) -> _Points:
    return [(k, count) for k, count in enumerate(record["diagnostics"]["selections"]["histogram"])]


def _score_counts(record: dict[str, Any]) -> _Points:
    found = record["diagnostics"]["forgetting"]["selected_histogram"]
    return [(score, count) for score, count in enumerate(found)]


_QUANTITIES = {
    "mini-batches of CREST": ("variance", "#d55e00", "-"),
    "random batches": ("random_variance", "#0072b2", "--"),
    "random subsets V_r": ("subset_variance", "#009e73", "-."),
}

_STEP = "step"
_X_LABELS = {
    "test accuracy over updates, %": "updates",
    "examples picked so often": "times picked",
    "picks of examples with that score": "forgetting score",
}

_BARS: dict[str, dict[str, Callable[[Outcome, str, str], list[float]]]] = {
    "fig2": {
        "run time / full": _relative("Full", "seconds"),
        "accuracy / full": _relative("Full", "accuracy"),
    },
    "fig3": {
        "accuracy / greedy": _relative("Greedy mini-batch", "accuracy"),
        "updates / greedy": _relative("Greedy mini-batch", "updates"),
    },
    "fig8": {"relative error": _relative_error},
}

_CURVES: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {
    "fig1": {
        "(a) test accuracy, %": _accuracy,
        "(b) squared error of mini-batches together": _gradient("union_error"),
        "(c) normalized bias": _gradient("normalized_bias"),
        "(d) variance": _gradient("variance"),
    },
    "fig4": {
        "updates so far": _updates,
        "test accuracy over updates, %": _accuracy_over_updates,
    },
    "fig5": {"mean forgetting score of what is picked": _scores},
    "fig6": {
        "(a) squared error of mini-batches together": _gradient("union_error"),
        "(b) normalized bias": _gradient("normalized_bias"),
    },
    "fig7": {
        "(a) accuracy on excluded examples, %": _excluded,
        "examples picked so often": _picks,
        "picks of examples with that score": _score_counts,
    },
    "fig9": {"variance of gradients": _variances},
}

_LOGARITHMIC = (  # fall by two orders of magnitude while the network learns
    "(a) squared error of mini-batches together",
    "(b) squared error of mini-batches together",
    "(d) variance",
    "variance of gradients",
)
