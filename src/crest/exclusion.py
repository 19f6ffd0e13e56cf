"""Which examples are learned and may leave the pool, Sec. 4.3."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["LearnedExamples"]


class LearnedExamples:
    """Watch losses over windows of T_2 steps and name the examples that stayed low.

    An example is learned if it was seen at least once in the window and no loss seen in it was
    above the threshold. Losses come free with the passes for selection and check.

    Args:
        num_examples: n, the size of the data set.
        interval: T_2, optimizer steps in a window.
        loss_threshold: alpha, in the unit of the loss.
    """

    def __init__(self, num_examples: int, interval: int, loss_threshold: float) -> None:
        self._interval = interval
        self._loss_threshold = loss_threshold
        self._window = 0
        self._largest = torch.full((num_examples,), -math.inf)

    def observe(self, indices: Tensor, losses: Tensor) -> None:
        """Take in losses measured now.

        Args:
            indices: Example indices, may repeat, int64, shape (k,).
            losses: Their losses, shape (k,).
        """
        self._largest.scatter_reduce_(0, indices, losses.to(self._largest), "amax")

    def collect(self, step: int) -> tuple[Tensor, Tensor]:
        """Close the window if `step` lies beyond its end, and open the next one.

        Call it at the start of step `step`, before that step's losses are observed: what is
        measured at a multiple of T_2 belongs to the window that starts there.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            Indices of the learned examples, int64, and their largest losses in the window, both
            shape (k,); empty while the window is open.
        """
        window = step // self._interval
        if window == self._window:
            return torch.empty(0, dtype=torch.int64), torch.empty(0)
        self._window = window
        seen = self._largest > -math.inf
        learned = (seen & (self._largest <= self._loss_threshold)).nonzero().squeeze(1)
        losses = self._largest[learned]
        self._largest.fill_(-math.inf)
        return learned, losses

    def state_dict(self) -> dict[str, Any]:
        """Return the open window."""
        return {"window": self._window, "largest": self._largest.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._window = state["window"]
        self._largest.copy_(state["largest"])
