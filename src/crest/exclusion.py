"""Which examples are learned and may leave the pool, Sec. 4.3."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["LearnedExamples"]


class LearnedExamples:
    """Watch losses and name, every T_2 steps, the examples whose last looks were all low.

    Note:
        Sec. 4.3 excludes examples that "consistently have a loss smaller than a threshold" within
        an interval of T_2 steps, as a single point "can be very noisy"; Sec. 1 says "during
        multiple consecutive training iterations". How many it does not say, and in an interval of
        20 steps most examples are looked at once or never. Here a streak of `low_looks` looks, at
        as many different parameters, goes on across intervals, and a look above the threshold
        ends it. Streaks are asked for at the end of each interval.

    Args:
        num_examples: n, the size of the data set.
        interval: T_2, optimizer steps in a window.
        loss_threshold: alpha, in the unit of the loss; a loss equal to it is low.
        low_looks: Low looks in a row that make an example learned, >= 1.
        readmit_after: Windows after which an excluded example comes back, to be watched anew.
            None: never.
    """

    def __init__(
        self,
        num_examples: int,
        interval: int,
        loss_threshold: float,
        *,
        low_looks: int,
        readmit_after: int | None = None,
    ) -> None:
        self._interval = interval
        self._loss_threshold = loss_threshold
        self._low_looks = low_looks
        self._readmit_after = readmit_after
        self._window = 0
        self._streak = torch.zeros(num_examples, dtype=torch.int32)
        self._largest = torch.full((num_examples,), -math.inf)  # of the streak
        self._looked_at = torch.full((num_examples,), -1)  # step of the last look
        self._left_in = torch.full((num_examples,), -1)  # window of leaving, -1: in play

    def observe(self, indices: Tensor, losses: Tensor, step: int) -> None:
        """Take in losses measured now.

        Args:
            indices: Example indices, may repeat, int64, shape (k,).
            losses: Their losses, shape (k,).
            step: Optimizer steps taken so far: losses at the same step are one look, whose largest
                loss counts.
        """
        indices, places = torch.unique(indices, return_inverse=True)
        largest = torch.full((len(indices),), -math.inf)
        largest.scatter_reduce_(0, places, losses.to(largest), "amax")
        low = largest <= self._loss_threshold
        is_new = self._looked_at[indices] != step
        self._streak[indices] = (self._streak[indices] + is_new).where(low, 0).int()
        # A look at this step that was high, as its streak of 0 says, is not made low by another.
        goes_on = self._streak[indices] > 0
        self._largest[indices] = torch.maximum(self._largest[indices], largest).where(
            goes_on, -math.inf
        )
        self._looked_at[indices] = step

    def collect(self, step: int) -> tuple[Tensor, Tensor]:
        """Close the window if `step` lies beyond its end, and open the next one.

        Call it at the start of step `step`, before that step's losses are observed: what is
        measured at a multiple of T_2 belongs to the window that starts there.

        Args:
            step: Optimizer steps taken so far.

        Returns:
            Indices of the learned examples, int64, and the largest losses of their streaks, both
            shape (k,); empty while the window is open.
        """
        window = step // self._interval
        if window == self._window:
            return torch.empty(0, dtype=torch.int64), torch.empty(0)
        self._window = window
        learned = (self._streak >= self._low_looks).nonzero().squeeze(1)
        return learned, self._largest[learned]

    def note_excluded(self, indices: Tensor) -> None:
        """Hear which examples left the pool in this window.

        Args:
            indices: Int64, shape (k,).
        """
        self._left_in[indices] = self._window

    def collect_returning(self) -> Tensor:
        """Name the excluded examples whose time is over, and forget what was seen of them.

        Returns:
            Int64, shape (k,); empty without `readmit_after`.
        """
        if self._readmit_after is None:
            return torch.empty(0, dtype=torch.int64)
        is_over = (self._left_in >= 0) & (self._left_in + self._readmit_after <= self._window)
        returning = is_over.nonzero().squeeze(1)
        self._left_in[returning] = -1
        self._streak[returning] = 0
        self._largest[returning] = -math.inf
        return returning

    def state_dict(self) -> dict[str, Any]:
        """Return the open window, the streaks, and who left when."""
        return {
            "window": self._window,
            "streak": self._streak.clone(),
            "largest": self._largest.clone(),
            "looked_at": self._looked_at.clone(),
            "left_in": self._left_in.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._window = state["window"]
        self._streak.copy_(state["streak"])
        self._largest.copy_(state["largest"])
        self._looked_at.copy_(state["looked_at"])
        self._left_in.copy_(state["left_in"])
