"""How far off the quadratic model of the loss was, and how far away, Eq. (10)."""

from __future__ import annotations

from typing import Any

from crest.checks import check, instance
from crest.history import History

__all__ = ["loss_model_errors"]

_HISTORY = instance(History, text="the history of a loader, loader.history")
_KEYS = ("relative_error", "predicted_loss", "check_loss", "check_loss_error", "anchor_loss")


def loss_model_errors(history: History) -> list[dict[str, Any]]:
    """List each check of the quadratic model: the distance from its anchor, and its error.

    Costs nothing: `Crest` checks anyway. Empty for other strategies, and for a `Crest` that keeps
    no coresets (`error_threshold=0`), which has nothing to check.

    Args:
        history: Of the loader, `loader.history`.

    Returns:
        For each check its `step`, the `distance` ||delta|| from the anchor, `age`, the steps since
        the anchor (None where a checkpoint cut off the anchor's record), `relative_error` (rho),
        `predicted_loss`, by F or the part of it that was asked, `check_loss` L^r with its standard
        error `check_loss_error`, and `anchor_loss` F(0).

    Raises:
        TypeError: If `history` is none.

    Example:
        >>> import torch
        >>> loss_model_errors(History(32, torch.device("cpu")))
        []
    """
    check("history", history, _HISTORY)
    checks = []
    anchor: int | None = None
    for record in history.records:
        if "relative_error" in record:
            checks.append(
                {
                    "step": record["step"],
                    "age": None if anchor is None else record["step"] - anchor,
                    "distance": record["displacement_norm"],
                    **{key: record[key] for key in _KEYS},
                }
            )
        if record.get("updated"):
            anchor = record["step"]
    return checks
