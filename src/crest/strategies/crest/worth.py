"""Whether coresets are worth their cost, and random mini-batches where they are not."""

from __future__ import annotations

from typing import Any

import torch

from crest.pool import Pool
from crest.strategies.coresets import Selection
from crest.strategies.protocol import MiniBatch

__all__ = ["RandomPasses", "weigh"]

# What a smaller gradient error is worth: with the e-th part of the squared error of random batches
# a step counts for e^-1/5 random steps. Measured in short runs: e = 0.29 at the last layer was
# worth 1.29 random steps (docs/results/equal-time.md).
_WORTH_EXPONENT = 0.2


def weigh(
    selection: Selection, count: int, batch_size: int, spent: float, forward_price: float
) -> dict[str, float]:
    """Compare what a step on some coresets is worth with its price, both in random steps.

    Args:
        selection: The coresets.
        count: Mini-batches that will be trained on.
        batch_size: m.
        spent: Passes that they took, in forward passes of one example.
        forward_price: Time of such a pass over that of one example in a training step.

    Returns:
        `worth` and `price`.
    """
    reused = max(1.0, count / len(selection.coresets))
    return {
        "worth": (selection.gradient_error * reused + 1e-12) ** -_WORTH_EXPONENT,
        "price": 1 + forward_price * spent / (count * batch_size),
    }


class RandomPasses:
    """Random mini-batches of a pool that may shrink, in shuffled passes.

    Args:
        pool: The examples in play.
        batch_size: m.
        generator: CPU generator, the only source of randomness.
    """

    def __init__(self, pool: Pool, batch_size: int, generator: torch.Generator) -> None:
        self._pool = pool
        self._batch_size = batch_size
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)

    def draw(self, count: int) -> list[MiniBatch]:
        """Draw the mini-batches that come next.

        Args:
            count: How many.

        Returns:
            Mini-batches of weight 1.
        """
        m = self._batch_size
        batches = []
        self._order = self._order[self._pool.active[self._order]]
        for _ in range(count):
            if len(self._order) < m:
                members = self._pool.active.nonzero().squeeze(1)
                self._order = members[torch.randperm(len(members), generator=self._generator)]
            batches.append(MiniBatch.unweighted(self._order[:m]))
            self._order = self._order[m:]
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Return what is left of the pass."""
        return {"order": self._order.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._order = state["order"].clone()
