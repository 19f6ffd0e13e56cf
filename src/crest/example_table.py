"""One row for each example: how often it was trained on, and what training showed of it."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crest.checks import ArgumentTypeError
from crest.ledger import Ledger
from crest.pool import UNKNOWN_CLASS

__all__ = ["COLUMNS", "as_frame", "example_columns", "write_table"]

COLUMNS: dict[str, str] = {
    "index": "of the example in the data set",
    "times_trained": "how often it was handed out",
    "times_selected": "how often of these by selection, not at random",
    "num_observations": "how often its loss was seen",
    "observed": "whether it was seen at all; rows that were not have no scores",
    "last_loss": "loss, the last time",
    "smoothed_loss": "average in which an older loss counts half of the next",
    "aum": "mean margin: probability of the given class less that of the strongest other",
    "forgotten": "how often a right prediction was followed by a wrong one, -1 if unknown",
    "label_score": "0 to 1, low = suspicious: how likely the label is right",
    "is_label_issue": "whether its label is more likely wrong than right, as far as could be told",
    "given_label": "class in the data, -1 if unknown",
    "predicted_label": "class that the model preferred last, -1 if unknown",
    "mistakenness": "0 to 1, high = suspicious: 1 - label_score",
    "left_out_since": "step from which on it is out of play, -1 if it is in play",
}


def example_columns(
    ledger: Ledger, knowledge: Mapping[str, Tensor], labels: Tensor
) -> dict[str, np.ndarray[Any, Any]]:
    """Put together what is known of each example.

    Args:
        ledger: Counts, and the record if there is one.
        knowledge: What the strategy knows, by column, see `Knows`; the record goes first.
        labels: Class of each example as far as it was read, -1 elsewhere, int64, shape (n,).

    Returns:
        The columns of `COLUMNS`, each of shape (n,).
    """
    known = dict(knowledge)
    n = len(ledger.trained)
    none = torch.zeros(n, dtype=torch.bool)
    issues = known.get("is_label_issue", none)
    if ledger.record is not None:
        known |= ledger.record.knowledge()
        issues = issues | known["is_label_issue"]
    unknown = torch.full((n,), torch.nan)
    times = known.get("num_observations", torch.zeros(n, dtype=torch.int32))
    observed = times > 0
    aum = _margin(known)
    given = known.get("given_label", torch.full((n,), -1))
    score = known.get("label_score", ((1 + aum) / 2).clamp(0, 1))
    columns = {
        "index": torch.arange(n),
        "times_trained": ledger.trained,
        "times_selected": ledger.selected,
        "num_observations": times,
        "observed": observed,
        "last_loss": known.get("last_loss", unknown),
        "smoothed_loss": known.get("smoothed_loss", unknown),
        "aum": aum if len(aum) else unknown,
        "forgotten": known.get("forgotten", torch.full((n,), -1)).where(observed, -1),
        "label_score": score if len(aum) else unknown,
        "is_label_issue": issues & observed,
        "given_label": given.where(given >= 0, labels.where(labels != UNKNOWN_CLASS, -1)),
        "predicted_label": known.get("predicted_label", torch.full((n,), -1)),
        "mistakenness": 1 - score if len(aum) else unknown,
        "left_out_since": ledger.left_out_since,
    }
    return {name: columns[name].cpu().numpy().copy() for name in COLUMNS}


def _margin(known: Mapping[str, Tensor]) -> Tensor:
    if "aum" in known:
        return known["aum"]
    if "p_given" in known:
        return known["p_given"] - known["p_other"]
    return torch.empty(0)


def as_frame(columns: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """Make a table of columns.

    Args:
        columns: Each of shape (n,).

    Returns:
        A pandas `DataFrame` where pandas is installed, else a dict of the columns.
    """
    if importlib.util.find_spec("pandas") is None:
        return dict(columns)
    pandas = importlib.import_module("pandas")
    return pandas.DataFrame(dict(columns))


def write_table(columns: Mapping[str, np.ndarray[Any, Any]], path: str | Path) -> None:
    """Write columns to a file.

    Args:
        columns: Each of shape (n,).
        path: Ends in `.csv` or `.parquet`; its folder is made.

    Raises:
        ArgumentTypeError: If it is no path.
        ImportError: If Parquet is asked for and pyarrow is missing.
        ValueError: If it ends otherwise.
    """
    if not isinstance(path, (str, Path)):
        raise ArgumentTypeError(f"path must be a path; got {type(path).__name__}.")
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"path must end in .csv or .parquet; got {str(path)!r}.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError("Parquet needs pyarrow: pip install pyarrow, or write .csv.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        arrow, parquet = map(importlib.import_module, ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(arrow.table(dict(columns)), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(_plain(column) for column in columns.values()), strict=True))


def _plain(column: np.ndarray[Any, Any]) -> list[Any]:
    """Give Python's own values; what is unknown is left empty, as tables have it."""
    values: list[Any] = column.tolist()
    if column.dtype.kind != "f":
        return values
    return ["" if value != value else float(f"{value:.7g}") for value in values]
