"""Collects what a page says of a run."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from crest.history import History
from crest.ledger import Ledger

__all__ = [
    "gallery_groups",
    "joined_regions",
    "pack_columns",
    "run_facts",
    "selected_steps",
    "thinned",
]

Column = np.ndarray[Any, Any]

_OF_A_GROUP = 48  # examples that are shown of each kind
_ENOUGH = 24  # labels that look wrong, for a group of their own
_MOST_POINTS = 400  # of a curve
_UNPACKED = ("index", "mistakenness")  # the page computes them


def run_facts(
    name: str,
    settings: Mapping[str, Any],
    history: History,
    ledger: Ledger,
    columns: Mapping[str, Column],
    *,
    classes: Sequence[str],
    curve: Sequence[Mapping[str, Any]],
    items: Mapping[int, Any],
    groups: Sequence[dict[str, Any]],
    notes: Sequence[str],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Put together what a page says of a run.

    Args:
        name: Of the run.
        settings: Of the loader.
        history: Costs and records of regions.
        ledger: Counts, and the record of examples.
        columns: Of the table of examples.
        classes: Name of each class, or none.
        curve: Points with `step`, and `accuracy`, `loss` or `seconds`.
        items: Pictures by index, see `Pictures.encoded`.
        groups: See `gallery_groups`.
        notes: What is missing, and why.
        versions: Of the packages.

    Returns:
        Primitives only.
    """
    records = history.records
    selected, steps = selected_steps(records, history.steps), history.steps
    record = ledger.record
    return {
        "name": name,
        "verdict": _verdict(columns, history, selected),
        "settings": dict(settings),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": dict(versions),
        "numbers": {
            "examples": len(columns["index"]),
            "steps": steps,
            "selected_steps": selected,
            "cost": history.cost,
            "overhead": history.overhead,
            "seconds": sum(history.seconds.values()),
            "choosing": _share_of_choosing(history),
            "lag": history.lag,
        },
        "seconds": dict(history.seconds),
        "costs": history.costs,
        "curve": thinned([dict(point) for point in curve]),
        "train_curve": thinned(
            []
            if record is None
            else [{"step": s, "loss": loss, "accuracy": a} for s, loss, a in record.curve]
        ),
        "regions": thinned(joined_regions(records)),
        "classes": [str(one) for one in classes],
        "columns": pack_columns(columns),
        "groups": list(groups),
        "items": {str(index): dict(item) for index, item in items.items()},
        "histories": (
            {} if record is None else {str(index): record.history(index) for index in items}
        ),
        "notes": list(notes),
    }


def gallery_groups(columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """Name the examples that are worth a look.

    Args:
        columns: Of the table of examples.

    Returns:
        For each kind that there is `name`, `title`, `about` and `indices`, the most telling first.
    """
    n = len(columns["index"])
    everything = np.ones(n, dtype=bool)
    seen, out = columns["observed"], columns["left_out_since"] >= 0
    trained = columns["times_trained"]
    loss = np.where(
        np.isnan(columns["smoothed_loss"]), columns["last_loss"], columns["smoothed_loss"]
    )
    score = columns["label_score"]
    rated = seen & ~np.isnan(score)
    issues = columns["is_label_issue"]
    kinds: list[tuple[str, str, str, Column, Column]] = [
        (
            "suspicious",
            "Suspicious labels",
            "Labels that look wrong; then others that the model contradicts, most clearly first.",
            issues if issues.sum() >= _ENOUGH else rated & (issues | (columns["aum"] < 0)),
            score - 2 * issues,
        ),
        ("hardest", "Hardest", "The largest smoothed losses.", seen & ~np.isnan(loss), -loss),
        ("most", "Most trained on", "Handed out most often.", trained > 0, -trained),
        ("least", "Least trained on", "Handed out least often.", everything, trained),
        (
            "excluded",
            "Left out",
            "Out of play at the end, since when they are told by the row.",
            out,
            columns["left_out_since"],
        ),
        (
            "forgotten",
            "Forgotten",
            "Right predictions that turned wrong, most often first.",
            columns["forgotten"] > 0,
            -columns["forgotten"],
        ),
    ]
    groups = []
    for name, title, about, which, order in kinds:
        rows = which.nonzero()[0]
        if name in ("most", "least") and trained.min() == trained.max():
            continue  # all alike: nothing to see
        if len(rows):
            first = rows[np.argsort(order[rows], kind="stable")][:_OF_A_GROUP]
            groups.append(
                {
                    "name": name,
                    "title": title,
                    "about": about,
                    "count": len(rows),
                    "indices": first.tolist(),
                }
            )
    if not groups:
        first = np.arange(min(n, _OF_A_GROUP))
        about = "Nothing is known of the examples yet."
        groups.append(
            {"name": "first", "title": "First", "about": about, "count": n}
            | {"indices": first.tolist()}
        )
    return groups


def pack_columns(columns: Mapping[str, Column]) -> dict[str, dict[str, Any]]:
    """Pack columns into little space: whole numbers in as few bytes as they fit, others in half.

    Args:
        columns: Each of shape (n,).

    Returns:
        For each `type` (u8, u16, u32 or f16), `base`, which is added, and `data` in base64.
    """
    packed = {}
    for name, column in columns.items():
        if name in _UNPACKED:
            continue
        base = 0
        if column.dtype.kind == "f":
            kind, most = "f16", float(np.finfo(np.float16).max)
            small = np.clip(column, -most, most).astype(np.float16)
        else:
            whole = column.astype(np.int64)
            base = int(min(whole.min(), 0))
            most_whole = int(whole.max()) - base
            bits = 8 if most_whole < 2**8 else 16 if most_whole < 2**16 else 32
            kind, small = f"u{bits}", (whole - base).astype(f"<u{bits // 8}")
        data = base64.b64encode(small.tobytes()).decode()
        packed[name] = {"type": kind, "base": base, "data": data}
    return packed


def thinned(points: list[Any]) -> list[Any]:
    """Keep at most 400 points, evenly spread, the last among them."""
    if len(points) <= _MOST_POINTS:
        return points
    rows = np.linspace(0, len(points) - 1, _MOST_POINTS).round().astype(int)
    return [points[row] for row in rows]


def joined_regions(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Keep what is drawn of each region; neighbours of a kind that say nothing else are joined."""
    told = (
        *("relative_error", "check_interval", "num_coresets", "active", "effective_batch"),
        *("rule", "noise", "left_out", "imbalance", "kept"),
    )
    joined: list[dict[str, Any]] = []
    for record in records:
        one = {name: record[name] for name in told if record.get(name) is not None}
        one |= {"step": record["step"], "length": record["length"], "selected": _selects(record)}
        last = joined[-1] if joined else None
        alike = last is not None and {**last, "step": 0, "length": 0} == {
            **one,
            "step": 0,
            "length": 0,
        }
        if last is not None and alike:
            last["length"] += one["length"]
        else:
            joined.append(one)
    return joined


def _selects(record: Mapping[str, Any]) -> bool:
    return bool(record.get("selected", record.get("updated", False)))


def selected_steps(records: Sequence[Mapping[str, Any]], steps: int) -> int:
    """Count the steps taken on regions that were selected, of `steps` in all."""
    return sum(
        max(min(record["length"], steps - record["step"]), 0)
        for record in records
        if _selects(record)
    )


def _share_of_choosing(history: History) -> float:
    """Share of the seconds that went neither into training nor into reading for it."""
    total = sum(history.seconds.values())
    own = total - history.seconds["train"] - history.seconds["data"]
    return own / total if total else 0.0


def _verdict(columns: Mapping[str, Column], history: History, selected: int) -> str:
    steps = history.steps
    if not steps:
        return "Nothing was trained yet: there is nothing to compare."
    n = len(columns["index"])
    trained = int((columns["times_trained"] > 0).sum())
    said = [
        f"{selected / steps:.0%} of {steps:,} steps were on selected batches; choosing took "
        f"{_share_of_choosing(history):.1%} of the seconds. {trained:,} of {n:,} examples were "
        "trained on."
    ]
    issues, out = int(columns["is_label_issue"].sum()), int((columns["left_out_since"] >= 0).sum())
    if issues:
        said.append(f"{issues:,} labels look wrong.")
    if out:
        said.append(f"{out:,} examples are left out.")
    return " ".join(said)
