"""Greedy mini-batch selection: every step its own random subset, the paper's Fig. 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crest.checks import check_fields, optional, whole
from crest.pool import Pool
from crest.strategies.coresets import FEATURES, Features, default_subset_size, select_coresets
from crest.strategies.protocol import Examples, Planner, Region, Task
from crest.strategies.registry import THIS_PAPER, register_strategy

__all__ = ["GreedyMiniBatch"]

_RULES = {"subset_size": optional(whole(1)), "features": FEATURES}


@register_strategy(
    "greedy",
    line="A new coreset of a random subset for each step, nothing checked or excluded",
    needs=("passes",),
    paper=THIS_PAPER,
    is_baseline=True,
    style=("#009e73", "-."),
)
@dataclass(frozen=True)
class GreedyMiniBatch:
    """Pick each mini-batch by facility location from a fresh random subset.

    No quadratic model, no exclusion: the costly upper end that `Crest` is compared with.

    Args:
        subset_size: r, in [m, n]. None: 1 % of the data set, at least three mini-batches.
        features: Gradients that are compared, as in `Crest`.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.
    """

    subset_size: int | None = None
    features: Features = "weight"

    def __post_init__(self) -> None:
        check_fields(self, _RULES)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        return _GreedyPlanner(self, task)


class _GreedyPlanner:
    def __init__(self, settings: GreedyMiniBatch, task: Task) -> None:
        self._settings = settings
        self._task = task
        self._subset_size = default_subset_size(settings.subset_size, task)
        self._pool = Pool(task.num_examples)

    def next_region(self, examples: Examples, step: int) -> Region:
        subsets = self._pool.draw(
            self._task.batches_per_step, self._subset_size, self._task.generator
        )
        selection = select_coresets(
            examples, subsets, self._task.batch_size, self._settings.features
        )
        record = {
            "updated": True,
            "selected": True,
            "selected_loss": float(selection.losses.mean()),
            "gradient_error": selection.gradient_error,
        }
        return Region(selection.coresets, held=True, record=record)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
