"""Mini-batches picked by gradients that training has shown before: no passes of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crest.pool import Deck
from crest.selection import facility_location
from crest.strategies.coresets import SUBSETS_AT_ONCE, resolve_num_candidates
from crest.strategies.last_seen import LastSeen
from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task

__all__ = ["RememberedGradients"]


@dataclass(frozen=True)
class RememberedGradients:
    """Pick each mini-batch by facility location on gradients that training has shown before.

    Not in the paper. Whenever an example is trained on, the derivative of its loss by the output is
    known, p - y for cross-entropy. Of r random candidates m are picked that cover these remembered
    derivatives best, Eq. (5). So selection needs no pass over the data, and a step costs what a
    random one costs. The loop passes on what it computes: `loader.observe(losses, outputs)` after
    each forward pass and before `backward()`.

    Measured in docs/results/remembered.md: ahead of random mini-batches of the same cost in runs of
    a few passes; level in longer ones, and where labels are wrong.

    Weights are 1: cluster sizes of gradients that old led astray. So examples with rare gradients
    are trained on more often than others, and the mean gradient of a mini-batch is not an unbiased
    estimate of that of all examples.

    The first pass is whole and in random order, as are passes while an example has no gradient yet:
    a run of one pass is as with `Random`. Records of the history tell what was `selected`. The
    gradients of all n examples stay in memory, and in checkpoints.

    Args:
        num_candidates: r, in [m, n]. None: four mini-batches, or n if that is less.

    Example:
        >>> RememberedGradients(num_candidates=512)
        RememberedGradients(num_candidates=512)
    """

    num_candidates: int | None = None

    def start(self, task: Task) -> Planner:
        """Begin with a whole pass.

        Args:
            task: Sizes and randomness of the run.

        Returns:
            A planner at step 0.

        Raises:
            ValueError: If `num_candidates` does not fit the task.
        """
        r = resolve_num_candidates(self.num_candidates, task, batches=4)
        return _RememberingPlanner(task, r)


class _RememberingPlanner:
    """Remembers the last gradient of each example, and cuts each pass into groups of r."""

    def __init__(self, task: Task, num_candidates: int) -> None:
        self._task = task
        self._num_candidates = num_candidates
        self._deck = Deck(task.num_examples, task.generator)
        self._gradients = LastSeen(task.num_examples, "outputs' gradients")

    def remember(self, indices: Tensor, errors: Tensor) -> None:
        self._gradients.tell(indices, errors.flatten(1))

    def next_region(self, examples: Examples, step: int) -> Region:
        self._gradients.take_in()
        known = self._gradients.known
        if step > 0 and not known.any():
            raise ValueError(
                "RememberedGradients needs what training computes; nothing was observed so far. "
                "Call loader.observe(losses, outputs) after each forward pass."
            )
        selects = bool(known.all())
        with examples.timed("select"):
            picks = self._picks() if selects else self._whole_pass()
        return Region(
            [MiniBatch.unweighted(pick) for pick in picks],
            record={"updated": selects, "selected": selects},
        )

    def _whole_pass(self) -> list[Tensor]:
        """Draw random mini-batches until every example came once; whole groups of accumulation."""
        task = self._task
        steps = math.ceil(task.num_examples / (task.batch_size * task.batches_per_step))
        return [self._deck.draw(task.batch_size) for _ in range(steps * task.batches_per_step)]

    def _picks(self) -> list[Tensor]:
        """Cut a pass into random groups of candidates, and pick a mini-batch from each."""
        groups = self._task.num_examples // self._num_candidates
        accumulated = self._task.batches_per_step
        count = max(groups // accumulated, 1) * accumulated
        subsets = torch.stack([self._deck.draw(self._num_candidates) for _ in range(count)])
        picks: list[Tensor] = []
        for some in subsets.split(SUBSETS_AT_ONCE):
            rows = self._pick(self._gradients.values[some], self._task.batch_size)
            picks += some.gather(1, rows)
        return picks

    def _pick(self, gradients: Tensor, size: int) -> Tensor:
        """Pick rows of each set of gradients, shape (sets, r, d); int64, shape (sets, size)."""
        return facility_location(gradients, size).indices

    def state_dict(self) -> dict[str, Any]:
        self._gradients.take_in()
        return {
            "deck": self._deck.state_dict(),
            "gradients": self._gradients.values.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._deck.load_state_dict(state["deck"])
        self._gradients.replace(state["gradients"])
