"""The quadratic model of the loss around an anchor, and how far off it is, Eq. (6) and (10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["QuadraticModel", "relative_error"]


@dataclass(frozen=True)
class QuadraticModel:
    """F(delta) = L0 + g . delta + 1/2 delta . diag(H) . delta, Eq. (6).

    Attributes:
        loss: L0, the mean loss at the anchor.
        gradient: g, shape (q,).
        curvature: diag(H), shape (q,).
    """

    loss: float
    gradient: Tensor
    curvature: Tensor

    def __call__(self, displacement: Tensor) -> float:
        """Predict the loss.

        Args:
            displacement: delta, parameters minus anchor, shape (q,).

        Returns:
            F(delta).
        """
        return self.loss + self.linear_term(displacement) + self.quadratic_term(displacement)

    def linear_term(self, displacement: Tensor) -> float:
        """Return g . delta for `displacement` of shape (q,)."""
        return float(self.gradient @ displacement)

    def quadratic_term(self, displacement: Tensor) -> float:
        """Return 1/2 delta . diag(H) . delta for `displacement` of shape (q,)."""
        return float(0.5 * (self.curvature @ displacement.square()))


def relative_error(predicted_loss: float, check_loss: float) -> float:
    """Compare the quadratic model with the loss that was measured, Eq. (10).

    Args:
        predicted_loss: F(delta).
        check_loss: L^r, the mean loss of the check subset at the same parameters.

    Returns:
        rho = |F(delta) - L^r| / |L^r|; infinite if only L^r is zero.
    """
    difference = abs(predicted_loss - check_loss)
    if difference == 0:
        return 0.0
    return difference / abs(check_loss) if check_loss else math.inf
