"""How the model does on examples that it is no longer trained on, Figure 7a."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crest.data_checks import check_mask

__all__ = ["excluded_accuracy"]


def excluded_accuracy(active: Tensor, correct: Tensor) -> dict[str, Any]:
    """Measure the accuracy on the examples that were taken out of play.

    Args:
        active: Which examples are in play, `loader.active`, bool, shape (n,).
        correct: Whether the model has each example right now, bool, shape (n,).

    Returns:
        `excluded`, how many are out of play, and `accuracy`, the fraction of these that is right,
        None if there are none; `active_accuracy`, that of the others.

    Raises:
        TypeError: If either is no tensor.
        ValueError: If the shapes or dtypes differ from that.

    Example:
        >>> import torch
        >>> active = torch.tensor([True, False, False, True])
        >>> excluded_accuracy(active, torch.tensor([False, True, False, False]))
        {'excluded': 2, 'accuracy': 0.5, 'active_accuracy': 0.0}
    """
    check_mask("active", active)
    check_mask("correct", correct)
    if active.shape != correct.shape:
        raise ValueError(
            f"correct must have the shape of active, {tuple(active.shape)}; "
            f"got {tuple(correct.shape)}."
        )
    correct = correct.to(active.device)
    excluded = int((~active).sum())
    return {
        "excluded": excluded,
        "accuracy": float(correct[~active].float().mean()) if excluded else None,
        "active_accuracy": float(correct[active].float().mean()),
    }
