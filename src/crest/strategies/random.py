"""The honest baseline: random mini-batches, under the same schedule or that of full training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task
from crest.strategies.registry import THIS_PAPER, register_strategy

__all__ = ["Random"]


@register_strategy(
    "random",
    line="Random mini-batches under the same schedule",
    is_baseline=True,
    style=("#0072b2", "--"),
)
@dataclass(frozen=True)
class Random:
    """Shuffled passes over the data, every weight 1.

    The order is `torch.randperm(n, generator=...)`, pass after pass, from a generator with the
    loader's seed; a pass may span several short epochs.
    """

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        return _RandomPlanner(task)


@register_strategy(
    "sgd_dagger",
    line="Random mini-batches under the schedule of full training, stopped at the budget",
    paper=THIS_PAPER,
    compresses_schedule=False,
    is_baseline=True,
)
def random_that_stops_early() -> Random:
    """Make `Random`, for the paper's SGD-dagger: what differs is the schedule of its run.

    Returns:
        The strategy.
    """
    return Random()


class _RandomPlanner:
    def __init__(self, task: Task) -> None:
        self._task = task

    def next_region(self, examples: Examples, step: int) -> Region:
        n, m = self._task.num_examples, self._task.batch_size
        order = torch.randperm(n, generator=self._task.generator)
        if self._task.drop_last and n >= m:
            order = order[: n - n % m]
        return Region([MiniBatch.unweighted(indices) for indices in order.split(m)])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
