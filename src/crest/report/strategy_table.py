"""The table of all strategies, from what each registered: as text and as Markdown."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Sequence

from crest.strategies import StrategyEntry, registered_strategies

__all__ = ["format_strategies", "strategies_as_markdown"]

_HEADER = ("strategy", "what it picks", "what it needs", "paper")
_SHARES = (0, 4, 3, 3)  # of the width that the words leave
_LEAST, _MOST = 80, 160  # characters in a line


def format_strategies(width: int | None = None) -> str:
    """Lay out one row for each strategy, in as many lines as it takes.

    Args:
        width: Characters in a line. None: those of the terminal, within reason.

    Returns:
        Lines, header first.
    """
    if width is None:
        width = min(max(shutil.get_terminal_size().columns, _LEAST), _MOST)
    rows = [_HEADER, *(_cells(entry, _short(entry)) for entry in registered_strategies().values())]
    first = max(len(row[0]) for row in rows)
    left = width - first - 2 * (len(_HEADER) - 1)
    widths = [share * left // sum(_SHARES) if share else first for share in _SHARES]
    lines = ["  ".join("-" * width for width in widths)]
    for row in rows:
        cells = [textwrap.wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            lines.append(_joined(parts, widths))
    return "\n".join([lines[1], lines[0], *lines[2:]])


def strategies_as_markdown() -> str:
    """Lay out one row for each strategy, with the titles of the papers.

    Returns:
        A table of Markdown.
    """
    rows = [_HEADER, ("---",) * len(_HEADER)]
    for entry in registered_strategies().values():
        source = _short(entry) if entry.paper is None else f"{_short(entry)}: {entry.paper.title}"
        word, *others = _cells(entry, source)
        rows.append((f"`{word}`", *others))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(entry: StrategyEntry, source: str) -> tuple[str, ...]:
    return (entry.word, entry.line, entry.needs_in_words or "-", source)


def _short(entry: StrategyEntry) -> str:
    return "-" if entry.paper is None else entry.paper.short


def _joined(parts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip()
