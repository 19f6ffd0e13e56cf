"""The user's own batches, unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task
from crest.strategies.registry import register_strategy

__all__ = ["Full"]


@register_strategy(
    "full",
    line="The batches of the loader itself, all of them",
    takes_all_steps=True,
    is_baseline=True,
    style=("#333333", "-"),
)
@dataclass(frozen=True)
class Full:
    """Epochs exactly as the user's loader would give them, every weight 1.

    With budget 1 training equals a plain loop over that loader bit for bit: the sampler draws from
    the same generators at the same moments.
    """

    keeps_user_order: ClassVar[bool] = True

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        return _FullPlanner(task)


class _FullPlanner:
    def __init__(self, task: Task) -> None:
        self._task = task

    def next_region(self, examples: Examples, step: int) -> Region:
        batches = [MiniBatch.unweighted(indices) for indices in self._task.user_order()]
        return Region(batches, seeded=False)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
