"""Soft loss pruning with rescaled losses: InfoBatch (Qin et al., ICLR 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crest.checks import boolean, check_fields, number, optional, whole
from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task
from crest.strategies.registry import Paper, register_strategy
from crest.watching.memory import LastSeen

__all__ = ["LossPruning"]

_RULES = {
    "prune_probability": number(
        0, 1, below=True, hint="At 1 nothing would stand for what is left out."
    ),
    "num_steps": optional(whole(1, 10**15, ">= 1 and <= 10**15")),
    "pruned_share": number(0, 1),
    "match_scale": boolean(),
}

_EXAMPLES_AT_ONCE = 2048  # in memory, while losses are measured


@register_strategy(
    "loss_pruning",
    line="Passes over the data that leave out some of what has a small loss (InfoBatch)",
    needs=("losses",),
    paper=Paper(
        "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
        "Qin, Wang, Zheng, Gu, Peng, Xu, Zhou, Shang, Sun, Xie, You",
        "ICLR",
        2024,
    ),
    follows={"num_steps": "num_steps"},
    is_baseline=True,
)
@dataclass(frozen=True, kw_only=True)
class LossPruning:
    """Pass over the data, leaving out some of what has a small loss, and let the rest count more.

    In each pass an example whose last loss was below the mean is left out with probability r. If it
    is kept, it counts 1 / (1 - r) times, so that the expected gradient is that of all examples. The
    first pass is whole, and examples without a loss are kept: in a run of one pass all is as in
    `Random`. Batches of a pass that fill no group of accumulation come first in the next one.

    Losses are those of training, which the loader sees in the loop by itself, at no cost; loops
    that it cannot see call `loader.observe(losses)` after each forward pass. After a pass of which
    it heard nothing, the strategy spends one forward pass over all examples. Records of the history
    tell how many examples of a pass were `kept`.

    Args:
        prune_probability: r, in [0, 1). InfoBatch takes 0.5.
        num_steps: Optimizer steps of the whole run, >= 1. None: unknown, and nothing ends pruning.
        pruned_share: Part of `num_steps` after which passes are whole again, in [0, 1]. InfoBatch
            takes 7/8: what was left out last is seen once more.
        match_scale: Whether weights are 1 and 1 / (1 - r), as in InfoBatch, so that the fewer steps
            of a pass add up to those of a whole pass. Their mean is then above 1: steps are longer.
            False scales them to a mean of 1 over many passes, which leaves the learning rate its
            meaning where the number of steps is given.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> LossPruning(num_steps=1000).prune_probability
        0.5
    """

    prune_probability: float = 0.5
    num_steps: int | None = None
    pruned_share: float = 0.875
    match_scale: bool = False

    def __post_init__(self) -> None:
        check_fields(self, _RULES)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        task.refuse_cheaper_looks("LossPruning")
        return _PruningPlanner(self, task)


class _PruningPlanner:
    """Remembers the last loss of each example."""

    def __init__(self, settings: LossPruning, task: Task) -> None:
        self._settings = settings
        self._task = task
        self._losses = LastSeen(task.num_examples, "losses")
        self._left: list[MiniBatch] = []  # of the last pass: they filled no group of accumulation
        self._was_told = False  # since this pass began
        self._passes = 0

    def observe(self, indices: Tensor, losses: Tensor) -> None:
        self._losses.tell(indices, losses)

    @property
    def first_selected_step(self) -> int:
        return self._task.steps_of_a_pass

    def knowledge(self) -> dict[str, Tensor]:
        self._take_in()
        return {
            "num_observations": self._losses.known.int(),  # at least
            "last_loss": self._losses.values.clone(),
        }

    def next_region(self, examples: Examples, step: int) -> Region:
        task, settings = self._task, self._settings
        self._take_in()
        last_step = None  # of pruning
        if settings.num_steps is not None:
            last_step = round(settings.pruned_share * settings.num_steps)
        prunes = last_step is None or step < last_step
        if prunes and self._passes and not self._was_told:
            self._losses.replace(_measure(examples, task.num_examples))
        self._was_told = False
        self._passes += 1

        n, m = task.num_examples, task.batch_size
        kept, weights = torch.randperm(n, generator=task.generator), torch.ones(n)
        if prunes:
            kept, weights = self._prune(kept)
        else:  # whole passes hold nothing of a pruned one
            self._left = [batch for batch in self._left if (batch.weights == 1).all()]
        used = kept
        if task.drop_last and len(kept) >= m:
            used = kept[: len(kept) - len(kept) % m]
        batches = self._left + [MiniBatch(indices, weights[indices]) for indices in used.split(m)]
        group = task.batches_per_step
        if len(batches) < group:
            batches = _cut_anew(batches, group)
        whole = len(batches) // group * group
        batches, self._left = batches[:whole], batches[whole:]
        if len(kept) < n and last_step is not None:
            batches = batches[: (last_step - step) * group]
        return Region(batches, record={"updated": len(kept) < n, "kept": len(kept)})

    def _prune(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Leave out some of an order; give what is kept, and the weights of all n examples."""
        settings, n = self._settings, len(order)
        losses = self._losses.values
        # In float32 the mean of equal losses may be above them. A comparison with nan is false.
        small = losses < losses.double().nanmean()
        drawn = torch.rand(n, generator=self._task.generator)
        kept = order[~(small & (drawn < settings.prune_probability))[order]]
        weights = torch.where(small, 1 / (1 - settings.prune_probability), 1.0)
        return kept, weights if settings.match_scale else weights * (len(kept) / n)

    def _take_in(self) -> None:
        if self._losses.take_in():
            self._was_told = True

    def state_dict(self) -> dict[str, Any]:
        self._take_in()
        return {
            "losses": self._losses.values.clone(),
            "was_told": self._was_told,
            "passes": self._passes,
            "left_indices": [batch.indices.clone() for batch in self._left],
            "left_weights": [batch.weights.clone() for batch in self._left],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.replace(state["losses"])
        self._was_told = state["was_told"]
        self._passes = state["passes"]
        left = zip(state["left_indices"], state["left_weights"], strict=True)
        self._left = [MiniBatch(indices, weights) for indices, weights in left]


def _cut_anew(batches: list[MiniBatch], count: int) -> list[MiniBatch]:
    """Make `count` mini-batches of the examples of fewer; each comes as often as it has to."""
    indices = torch.cat([batch.indices for batch in batches])
    weights = torch.cat([batch.weights for batch in batches])
    times = math.ceil(count / len(indices))
    pieces = zip(
        indices.repeat(times).tensor_split(count),
        weights.repeat(times).tensor_split(count),
        strict=True,
    )
    return [MiniBatch(*piece) for piece in pieces]


def _measure(examples: Examples, num_examples: int) -> Tensor:
    with examples.timed("check"):
        everything = torch.arange(num_examples).split(_EXAMPLES_AT_ONCE)
        return torch.cat([examples.fresh_losses(some) for some in everything])
