"""When to check the quadratic model, and how many coresets to pick: T_1 and P."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["AdaptiveSchedule"]


class AdaptiveSchedule:
    """T_1 and P of Algorithm 1: both grow as the curvature falls.

    Attributes:
        check_interval: T_1, optimizer steps between two checks; 1 at first.
        num_coresets: P, coresets picked in a round; b at first.

    Args:
        interval_multiplier: h > 0.
        coreset_multiplier: b > 0.
        max_check_interval: Upper bound of T_1, in steps.
        max_coresets: Upper bound of P.
    """

    def __init__(
        self,
        interval_multiplier: float,
        coreset_multiplier: float,
        max_check_interval: int,
        max_coresets: int,
    ) -> None:
        self._interval_multiplier = interval_multiplier
        self._coreset_multiplier = coreset_multiplier
        self._max_check_interval = max_check_interval
        self._max_coresets = max_coresets
        self._first_norm: float | None = None
        self.check_interval = 1
        self.num_coresets = math.ceil(min(coreset_multiplier, max_coresets))

    def adapt(self, curvature_norm: float) -> None:
        """Set T_1 = ceil(h ||H_0|| / ||H_t||) and P = ceil(b T_1), within their bounds.

        Note:
            ||H_0|| is the first norm that is neither zero nor infinite: at the start of a low-rank
            fine-tuning a part of the network has exactly zero gradient and curvature. A zero
            ||H_t|| means a flat loss and gives the upper bound of T_1; as long as there is no
            ||H_0|| to compare with, T_1 is 1.

        Args:
            curvature_norm: ||H_t||, the Euclidean norm of the smoothed curvature.
        """
        if curvature_norm == 0:
            interval = math.inf
        elif not math.isfinite(curvature_norm) or self._first_norm is None:
            interval = 1.0
        else:
            interval = self._interval_multiplier * self._first_norm / curvature_norm
        self.check_interval = max(1, math.ceil(min(interval, self._max_check_interval)))
        wanted = self._coreset_multiplier * self.check_interval
        self.num_coresets = max(1, math.ceil(min(wanted, self._max_coresets)))

    def observe(self, curvature_norm: float) -> None:
        """Remember ||H_0|| from the first round that is told; later rounds change nothing.

        Args:
            curvature_norm: ||H||, the Euclidean norm of the smoothed curvature of a round.
        """
        if self._first_norm is None and math.isfinite(curvature_norm) and curvature_norm > 0:
            self._first_norm = curvature_norm

    def state_dict(self) -> dict[str, Any]:
        """Return T_1, P and ||H_0||."""
        return {
            "check_interval": self.check_interval,
            "num_coresets": self.num_coresets,
            "first_norm": self._first_norm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.check_interval = state["check_interval"]
        self.num_coresets = state["num_coresets"]
        self._first_norm = state["first_norm"]
