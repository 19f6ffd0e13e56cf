"""How far off the quadratic model is, Eq. (10), and from which error on that is too far."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from crest.quadratic import QuadraticModel, relative_error

__all__ = ["ErrorThreshold", "compare"]

_ROUNDS_FOR_THRESHOLD = 5  # rounds whose mean relative error becomes an automatic tau


def compare(
    model: QuadraticModel, displacement: Tensor, losses: Tensor, noise: Tensor
) -> dict[str, Any]:
    """Compare F(delta) with the loss of the check subset, Eq. (10).

    Args:
        model: F.
        displacement: delta, shape (q,).
        losses: Of the check subset V_r, shape (k,).
        noise: What the standard error of their mean is that of: the losses, or, where the same
            views were measured at the anchor, how they changed. Shape (k,).

    Returns:
        rho as `relative_error`, and its parts, primitives only.
    """
    predicted, measured = model(displacement), float(losses.mean())
    return {
        "relative_error": relative_error(predicted, measured),
        "predicted_loss": predicted,
        "check_loss": measured,
        "check_loss_error": float(noise.std(correction=0)) / math.sqrt(len(losses)),
        "anchor_loss": model.loss,
        "linear_term": model.linear_term(displacement),
        "quadratic_term": model.quadratic_term(displacement),
        "displacement_norm": float(displacement.norm()),
    }


class ErrorThreshold:
    """tau: a number, or the mean relative error after each of the first five regions.

    Args:
        setting: tau >= 0, or `"auto"`.
    """

    def __init__(self, setting: float | Literal["auto"]) -> None:
        self._setting = setting
        self._first_errors: list[float] = []

    def is_exceeded(self, error: float) -> bool:
        """Tell whether an error is above tau; an automatic one is below the first five.

        Args:
            error: rho.

        Returns:
            Whether to pick anew.
        """
        if self._setting != "auto":
            return error > self._setting
        if len(self._first_errors) < _ROUNDS_FOR_THRESHOLD:
            self._first_errors.append(error)
            return True
        return error > sum(self._first_errors) / _ROUNDS_FOR_THRESHOLD

    def state_dict(self) -> dict[str, Any]:
        """Return the errors that an automatic tau is made of."""
        return {"first_errors": list(self._first_errors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._first_errors = list(state["first_errors"])
