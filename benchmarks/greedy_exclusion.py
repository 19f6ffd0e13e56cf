"""Greedy mini-batches that leave out what is learned: what exclusion does, at no other cost.

    crest compare cifar10 --import benchmarks/greedy_exclusion.py --network resnet20 \
        --strategies random,greedy,greedy_excluding --seeds 0 --epochs 40 --data-dir DIR \
        --threads 1 --autocast bfloat16 --compile default --diagnostics excluded --out runs
    ... --strategies greedy_excluding --option low_looks=1 ...
    ... --strategies greedy_excluding --option min_pool=40000 ...   # the floor of the authors' code
    ... --strategies greedy_excluding --option readmit_after=10 ...

A new coreset for each step, as `GreedyMiniBatch` has it, and the exclusion of Sec. 4.3 by the
losses of these selections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from crest import register_strategy
from crest.exclusion import LearnedExamples
from crest.pool import Pool
from crest.strategies.coresets import default_subset_size, select_coresets
from crest.strategies.protocol import Examples, Region, Task


@register_strategy("greedy_excluding", needs=("passes",))
@dataclass(frozen=True)
class GreedyExcluding:
    """Greedy mini-batches from the examples that are not learned.

    Args:
        low_looks: As in `LearnedExamples`.
        interval: T_2.
        loss_threshold: alpha.
        min_pool: Exclusion stops at this many examples. None: a tenth of the data set, where
            `crest.CrestAdvanced` takes four fifths.
        readmit_after: As in `crest.CrestAdvanced`.
    """

    low_looks: int = 3
    interval: int = 20
    loss_threshold: float = 0.1
    min_pool: int | None = None
    readmit_after: int | None = None

    def start(self, task: Task) -> _Planner:
        """Begin a run, see `Strategy.start`."""
        return _Planner(self, task)


class _Planner:
    def __init__(self, settings: GreedyExcluding, task: Task) -> None:
        self._task = task
        self._subset_size = default_subset_size(None, task)
        n = task.num_examples
        min_pool = settings.min_pool or math.ceil(0.1 * n)
        self._pool = Pool(n, min_pool=max(self._subset_size, min_pool))
        self._learned = LearnedExamples(
            n,
            settings.interval,
            settings.loss_threshold,
            low_looks=settings.low_looks,
            readmit_after=settings.readmit_after,
        )

    @property
    def active(self) -> Tensor:
        return self._pool.active

    def next_region(self, examples: Examples, step: int) -> Region:
        dropped = self._pool.exclude(*self._learned.collect(step), examples.labels)
        self._learned.note_excluded(dropped)
        self._pool.readmit(self._learned.collect_returning())
        subsets = self._pool.draw(
            self._task.batches_per_step, self._subset_size, self._task.generator
        )
        selection = select_coresets(examples, subsets, self._task.batch_size, "weight")
        self._learned.observe(selection.candidates, selection.losses, step)
        record = {"updated": True, "selected": True, "active": self._pool.num_active}
        return Region(selection.coresets, held=True, record=record)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self._pool.state_dict(), "learned": self._learned.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool.load_state_dict(state["pool"])
        self._learned.load_state_dict(state["learned"])
