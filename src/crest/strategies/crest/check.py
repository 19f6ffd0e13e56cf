"""How far off the model of the loss is, Eq. (10), and from which error on that is too far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from crest.quadratic import QuadraticModel, relative_error

__all__ = ["ErrorThreshold", "TrackRecord", "compare"]

_ROUNDS_FOR_THRESHOLD = 5  # rounds whose mean relative error becomes an automatic tau
_DECAY = 0.9  # of a track record, a check: it is that of some ten checks


def compare(
    model: QuadraticModel, displacement: Tensor, losses: Tensor, noise: Tensor, order: int
) -> tuple[list[float], dict[str, Any]]:
    """Compare F(delta) with the loss of the check subset, Eq. (10).

    Args:
        model: F.
        displacement: delta, shape (q,).
        losses: Of the check subset V_r, shape (k,).
        noise: What the standard error of their mean is that of: the losses, or, where the same
            views were measured at the anchor, how they changed. Shape (k,).
        order: Of the part of F that is asked, 0 to 2.

    Returns:
        rho of the constant, the linear and the quadratic part of F, each with those before it; and
        what they are made of, primitives only.
    """
    measured = float(losses.mean())
    linear, quadratic = model.linear_term(displacement), model.quadratic_term(displacement)
    predicted = [model.loss, model.loss + linear, model.loss + linear + quadratic]
    return [relative_error(loss, measured) for loss in predicted], {
        "order": order,
        "predicted_loss": predicted[order],
        "check_loss": measured,
        "check_loss_error": float(noise.std(correction=0)) / math.sqrt(len(losses)),
        "anchor_loss": model.loss,
        "linear_term": linear,
        "quadratic_term": quadratic,
        "displacement_norm": float(displacement.norm()),
    }


class TrackRecord:
    """Which part of Eq. (6) predicted the loss best in the last checks.

    Note:
        Along the way of SGD the linear term is mostly taken back by curvature off the diagonal: of
        delta . H . delta the diagonal holds a few per cent at a learning rate of 0.1
        (docs/results/paper.md). F is then further off than its constant part alone.
    """

    def __init__(self) -> None:
        self._errors = [0.0, 0.0, 0.0]  # constant, linear, quadratic

    @property
    def order(self) -> int:
        """0 for the constant part, 1 with the linear, 2 with the quadratic term, as at first."""
        return min((2, 1, 0), key=self._errors.__getitem__)

    def observe(self, errors: Sequence[float]) -> None:
        """Take in what a check found.

        Args:
            errors: rho of constant, linear and quadratic part; beyond 1 it counts as 1.
        """
        for order, error in enumerate(errors):
            mean = self._errors[order]
            self._errors[order] = _DECAY * mean + (1 - _DECAY) * min(error, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean errors."""
        return {"errors": list(self._errors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._errors = list(state["errors"])


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
