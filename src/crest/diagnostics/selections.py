"""Which examples were trained on, and how often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crest.checks import SIZE, check, instance, whole
from crest.data_checks import check_entries, check_indices, tensor_like

__all__ = ["Selections"]

_PERIODS = instance(list, text="a list")


class Selections:
    """Counts how often each example was trained on, period by period.

    Attributes:
        counts: Since the beginning, int64, shape (n,).
        periods: For each closed period its last step, and counts within it, int32, shape (n,).

    Args:
        num_examples: n, >= 1.

    Raises:
        TypeError: If `num_examples` is no integer.
        ValueError: If it is out of its range.

    Example:
        In a training loop, once for each batch: `selections.observe(loader.handed_out.indices)`.

        >>> selections = Selections(4)
        >>> selections.observe(torch.tensor([0, 1]))
        >>> selections.observe(torch.tensor([0, 2]))
        >>> selections.counts, selections.histogram()
        (tensor([2, 1, 1, 0]), [1, 2, 1])
    """

    def __init__(self, num_examples: int) -> None:
        num_examples = check("num_examples", num_examples, SIZE)
        self.counts = torch.zeros(num_examples, dtype=torch.int64)
        self.periods: list[tuple[int, Tensor]] = []
        self._closed = self.counts.clone()  # counts when the last period was closed

    def observe(self, indices: Tensor) -> None:
        """Take in a mini-batch.

        Args:
            indices: Distinct example indices, int64, shape (m,).

        Raises:
            TypeError: If it is no tensor.
            ValueError: If one is of no example.
        """
        check_indices("indices", indices, len(self.counts))
        self.counts[indices] += 1

    def close_period(self, step: int) -> None:
        """End a period, for `Forgetting.of_selected`; one without picks is left out.

        Args:
            step: Steps taken so far.

        Raises:
            TypeError: If it is no integer.
            ValueError: If it is negative.
        """
        step = check("step", step, whole(0))
        counts = (self.counts - self._closed).int()
        if counts.any():
            self.periods.append((step, counts))
        self._closed = self.counts.clone()

    def histogram(self) -> list[int]:
        """Count examples by how often they were trained on.

        Returns:
            How many were trained on 0, 1, 2, ... times, up to the most.
        """
        histogram: list[int] = torch.bincount(self.counts).tolist()
        return histogram

    def state_dict(self) -> dict[str, Any]:
        """Return all counts."""
        return {
            "counts": self.counts.clone(),
            "closed": self._closed.clone(),
            "periods": [(step, counts.clone()) for step, counts in self.periods],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Args:
            state: What `state_dict` returned.

        Raises:
            TypeError: If it is no dict, or an entry is of a wrong kind.
            ValueError: If an entry is missing, or of another number of examples.
        """
        row = tensor_like(self.counts)
        check_entries("state", state, {"counts": row, "closed": row, "periods": _PERIODS})
        self.counts.copy_(state["counts"])
        self._closed.copy_(state["closed"])
        self.periods = [(step, counts.clone()) for step, counts in state["periods"]]
