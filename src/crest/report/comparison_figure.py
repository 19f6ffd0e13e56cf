"""The figure of a comparison: accuracy against steps and seconds."""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crest.lab.optional import require
from crest.lab.run.files import replace_file
from crest.report.summary import RANDOM_AT_EQUAL_TIME, group
from crest.strategies import registered_strategies

__all__ = ["log_axis", "plot_comparison", "write_figure"]

# Told apart by colour-blind readers, and by line style in grey print, as those that strategies
# register with.
_EQUAL_TIME = ("#56b4e9", ":")
_OTHERS = [  # taken in turn
    (colour, line)
    for line in ("--", ":")
    for colour in ("#009e73", "#e69f00", "#999999", "#d55e00")
]
_MARKERS = "osD^vP*Xph<>"  # one for each: a run of one evaluation is no more than a dot


def plot_comparison(records: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Draw test accuracy against steps and against seconds, both on a logarithmic axis.

    Lines are means over seeds; bands span one standard deviation to either side.

    Args:
        records: See `lab.run.training.train`.
        path: Image file to write; the suffix names the format.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure_module = require("matplotlib.figure", "the figure")
    figure = figure_module.Figure(figsize=(10, 4.2), layout="constrained")
    groups = group(records)
    styles = {word: entry.style for word, entry in registered_strategies().items()}
    styles[RANDOM_AT_EQUAL_TIME] = _EQUAL_TIME
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, label in zip(panels, ("step", "seconds"), ("steps", "seconds"), strict=True):
        others = itertools.cycle(_OTHERS)
        for marker, (name, some) in zip(itertools.cycle(_MARKERS), groups.items(), strict=False):
            style = styles.get(name) or next(others)
            _draw(panel, name, some, key, (*style, marker))
        log_axis(panel)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy, %")
    first = next(iter(groups.values()))[0]
    seeds = max(len(some) for some in groups.values())
    what = "a single seed" if seeds == 1 else f"mean and standard deviation of {seeds} seeds"
    figure.suptitle(f"{first['data']}, {first['network']}: {what}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(groups), 6), frameon=False
    )
    write_figure(figure, Path(path), dpi=150)


def write_figure(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a figure in one piece.

    Args:
        figure: Of matplotlib.
        path: Image file to write; the suffix names the format.
        dpi: Dots per inch.
    """
    image = io.BytesIO()
    figure.savefig(image, dpi=dpi, format=path.suffix[1:] or "png")
    replace_file(path, image.getvalue())


def log_axis(panel: Any) -> None:
    """Give a panel a logarithmic x axis with plain numbers at 1, 2 and 5.

    Args:
        panel: Axes of matplotlib.
    """
    ticker = require("matplotlib.ticker", "the figure")
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())


def _draw(
    panel: Any, name: str, records: Sequence[dict[str, Any]], key: str, style: tuple[str, str, str]
) -> None:
    """Average over seeds at each evaluation: the k-th comes at the same share of every run."""
    colour, line, marker = style
    x, mean, spread = [], [], []
    for points in zip(*(record["curve"] for record in records), strict=False):
        accuracies = [100 * point["accuracy"] for point in points]
        x.append(statistics.fmean(point[key] for point in points))
        mean.append(statistics.fmean(accuracies))
        spread.append(statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0)
    panel.plot(x, mean, line, color=colour, label=name, marker=marker, markersize=5)
    low = [m - s for m, s in zip(mean, spread, strict=True)]
    high = [m + s for m, s in zip(mean, spread, strict=True)]
    panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
