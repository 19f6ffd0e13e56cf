"""The table of a comparison, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crest.report.summary import Summary, summarize

__all__ = ["format_table"]

_HEADER = (
    *("strategy", "accuracy %", "relative error %", "steps", "cost in random steps"),
    *("break-even", "seconds"),
)


def format_table(records: Iterable[dict[str, Any]]) -> str:
    """Lay out one row for each strategy: means over seeds, accuracy with its spread.

    Args:
        records: See `lab.run.training.train`.

    Returns:
        Lines of equal width, header first.
    """
    rows = [_HEADER, *(_cells(summary) for summary in summarize(records))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cells(summary: Summary) -> tuple[str, ...]:
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.2f}"
    gap = "-" if summary.accuracy_gap is None else f"{100 * summary.accuracy_gap:.2f}"
    return (
        summary.label,
        f"{100 * summary.accuracy:.2f}{spread}",
        gap,
        f"{summary.steps:,.0f}",
        f"{summary.cost:,.0f}",
        f"{1 + summary.overhead:,.2f} x",
        f"{summary.seconds:,.1f}",
    )
