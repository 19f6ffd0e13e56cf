"""A picture of labels that look wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crest.lab.data.image_data import ImageData
from crest.lab.optional import require
from crest.report.comparison_figure import write_figure

__all__ = ["plot_label_issues"]

_COLUMNS, _ROWS = 10, 4


def plot_label_issues(
    issues: Sequence[Mapping[str, int]], data: ImageData, path: str | Path
) -> None:
    """Draw the images whose labels look wrong most, each with its label and what it looks like.

    Args:
        issues: Surest first: `index`, `given` and `predicted` label, see `Diagnosis.to_record`.
        data: Whose train images they are.
        path: Image file to write; the suffix names the format.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure = require("matplotlib.figure", "the figure").Figure(
        figsize=(_COLUMNS, 1.35 * _ROWS + 0.5), layout="constrained"
    )
    shown = issues[: _COLUMNS * _ROWS]
    figure.suptitle(f"{data.name}: the {len(shown)} labels that look wrong most, of {len(issues)}")
    for panel in figure.subplots(_ROWS, _COLUMNS).flat:
        panel.axis("off")
    for panel, issue in zip(figure.axes, shown, strict=False):
        pixels = data.train_images[issue["index"]].permute(1, 2, 0).squeeze(2)
        panel.imshow(pixels.numpy(), cmap="gray")
        given, predicted = (_short(data.classes[issue[key]]) for key in ("given", "predicted"))
        panel.set_title(f"not {given},\n{predicted}?", fontsize=9)
    write_figure(figure, Path(path), dpi=120)


def _short(name: Any) -> str:
    return str(name)[:10]
