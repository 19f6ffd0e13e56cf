"""A subset of the whole data set, picked anew after a short epoch: what CRAIG and its kin share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crest.checks import boolean, check_fields, many, number, optional
from crest.looking.gradients import LastLayerGradients
from crest.pool import UNKNOWN_CLASS, Deck
from crest.strategies.protocol import Examples, MiniBatch, Region, Task

__all__ = ["Pick", "Share", "SubsetPlanner", "SubsetSettings"]

_RULES = {
    "subset_fraction": number(
        0,
        1,
        above=True,
        text="in (0, 1], the share of examples to pick",
        hint="Write 0.1 for 10 %.",
    ),
    "reselect_steps": optional(many()),
    "per_class": optional(boolean()),
    "keep_views": boolean(),
}

_EXAMPLES_AT_ONCE = 2048  # in memory, where views are not kept


class Share(NamedTuple):
    """Part of the data set that is picked from on its own: a class, or all of it.

    Attributes:
        rows: Example indices, ascending, int64, on the device of the gradients.
        size: How many to pick, from 1 to all.
    """

    rows: Tensor
    size: int


@dataclass(frozen=True, kw_only=True)
class SubsetSettings:
    """Settings of the methods that pick one subset of the whole data set at a time.

    All n examples pass forward once, a subset of k is picked, and the steps of a short epoch are
    mini-batches of m drawn from it without replacement; then all begins anew. Steps are counted
    from the first of the run, whether or not epochs of the loader are broken off. Weights have mean
    1 over the subset, not within each mini-batch, which would bias the gradient. Records of
    the history tell `effective_subset`, (sum w)^2 / sum w^2 of the k weights.

    Args:
        subset_fraction: k / n, in (0, 1]; as a rule the budget of the loader.
        reselect_steps: Optimizer steps between two selections, >= 1. None: one short epoch, which
            is `subset_fraction` of the steps of an epoch of the user's own loader.
        per_class: Whether each class is picked from on its own, in proportion to its examples and
            with one pick at least, k in all. None: where the class of every example is known. Any
            integer of the data is a class, -1 too.
        keep_views: Whether to train on the very views that were selected, as weights are right
            for those alone; all n are then in memory during selection, and the k picked ones
            until the next. False reads 2048 at a time and trains on new views: the same thing
            where the dataset draws nothing at random.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.
    """

    subset_fraction: float = 0.1
    reselect_steps: int | None = None
    per_class: bool | None = None
    keep_views: bool = True

    def __post_init__(self) -> None:
        check_fields(self, _RULES)


# From the data set, the gradients of all its examples and its shares to example indices, (k,), and
# weights in the scale of the sum of all n: sum_j w_j g_j stands for sum_i g_i, or is unweighted.
Pick = Callable[[Examples, LastLayerGradients, list[Share]], tuple[Tensor, Tensor]]


class SubsetPlanner:
    """Looks at all examples, lets the method pick, and plans the steps of one epoch.

    Nothing needs to survive a step: the region holds the rest of the epoch.

    Args:
        settings: Those of the method.
        task: Sizes and randomness of the run.
        pick: The method.
        reads_inputs: Whether the method asks for the inputs of the head. None asks for
            `input_gradients`: neither is kept for nothing, they are the most of what n examples
            take.

    Raises:
        ValueError: If the subset is smaller than a mini-batch.
    """

    def __init__(
        self, settings: SubsetSettings, task: Task, pick: Pick, *, reads_inputs: bool = True
    ) -> None:
        self._settings = settings
        self._task = task
        self._pick = pick
        self._reads_inputs = reads_inputs
        self._size = max(round(settings.subset_fraction * task.num_examples), 1)
        if task.batch_size > self._size:
            raise ValueError(
                f"batch_size must be at most the subset, {self._size} of {task.num_examples} "
                f"examples; got {task.batch_size}. Use smaller batches or a larger subset_fraction."
            )

    def next_region(self, examples: Examples, step: int) -> Region:
        """Pick a subset at the current parameters and plan the steps until the next.

        Args:
            examples: The data set at the current parameters.
            step: Optimizer steps taken so far.

        Returns:
            One short epoch, or `reselect_steps`.
        """
        gradients = self._observe(examples)
        with examples.timed("select"):
            shares = self._shares(examples.labels, gradients.losses.device)
            indices, weights = (part.cpu() for part in self._pick(examples, gradients, shares))
            weights = (weights.double() * (self._size / self._task.num_examples)).float()
            batches = [MiniBatch(indices[rows], weights[rows]) for rows in self._rows_of_batches()]
        keep_views = self._settings.keep_views
        if keep_views:
            examples.release(indices)
        record = {
            "updated": True,
            "selected_loss": float(gradients.losses.mean()),
            "effective_subset": float(weights.sum().square() / weights.square().sum()),
        }
        return Region(batches, held=keep_views, record=record)

    def _observe(self, examples: Examples) -> LastLayerGradients:
        everything = torch.arange(self._task.num_examples)
        keep_views = self._settings.keep_views
        parts = []
        with examples.timed("features"):
            if keep_views:
                examples.hold(everything)
            for some in everything.split(_EXAMPLES_AT_ONCE):
                if not keep_views:
                    examples.hold(some)
                parts.append(self._needed(examples.last_layer_gradients(some)))
            if not keep_views:
                examples.release(everything[:0])
        return LastLayerGradients.concatenate(parts)

    def _needed(self, gradients: LastLayerGradients) -> LastLayerGradients:
        nothing = gradients.errors.new_empty(len(gradients.errors), 0)
        inputs = gradients.inputs if self._reads_inputs else nothing
        return dataclasses.replace(gradients, inputs=inputs, input_gradients=nothing)

    def _shares(self, labels: Tensor, device: torch.device) -> list[Share]:
        unknown = int((labels == UNKNOWN_CLASS).sum())
        per_class = self._settings.per_class
        if per_class and unknown:
            raise ValueError(
                f"per_class=True needs the class of every example; {unknown} of {len(labels)} are "
                "unknown. Pass labels= to the loader, or per_class=False."
            )
        if per_class is False or unknown:
            return [Share(torch.arange(len(labels), device=device), self._size)]
        classes, counts = (part.tolist() for part in labels.unique(return_counts=True))
        return [
            Share((labels == label).nonzero().squeeze(1).to(device), size)
            for label, size in zip(classes, _in_proportion(counts, self._size), strict=True)
        ]

    def _rows_of_batches(self) -> list[Tensor]:
        """Draw the mini-batches: no row twice before all were used, nor within a batch."""
        deck = Deck(self._size, self._task.generator)
        num_batches = self._num_steps() * self._task.batches_per_step
        return [deck.draw(self._task.batch_size) for _ in range(num_batches)]

    def _num_steps(self) -> int:
        settings, task = self._settings, self._task
        if settings.reselect_steps is not None:
            return settings.reselect_steps
        steps = settings.subset_fraction * task.batches_per_pass / task.batches_per_step
        return max(math.floor(steps + 0.5), 1)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: each selection starts anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


def _in_proportion(counts: list[int], size: int) -> list[int]:
    """Divide the picks among classes by largest remainder, then see that none goes without."""
    if size < len(counts):
        raise ValueError(
            f"the subset must have room for each of {len(counts)} classes; got {size} picks. "
            "Raise subset_fraction, or set per_class=False."
        )
    n = sum(counts)
    sizes = [size * count // n for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda k: -(size * counts[k] % n))
    for k in by_remainder[: size - sum(sizes)]:
        sizes[k] += 1
    for k in range(len(sizes)):
        if sizes[k] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[k] = 1
    return sizes
