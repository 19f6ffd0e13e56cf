"""The examples in play, V, random subsets of them, V_p, and passes in random order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["UNKNOWN_CLASS", "Deck", "Pool", "random_subsets", "systematic_sample"]

UNKNOWN_CLASS = torch.iinfo(torch.int64).min  # -1 may be a class


class Pool:
    """The example indices in play, to draw random subsets from.

    Attributes:
        active: Which examples are in play, bool, shape (n,).

    Args:
        num_examples: n, the size of the data set.
        min_pool: Exclusion stops at this many examples.
    """

    def __init__(self, num_examples: int, *, min_pool: int = 1) -> None:
        self.min_pool = min_pool
        self.active = torch.ones(num_examples, dtype=torch.bool)

    @property
    def num_active(self) -> int:
        """Number of examples in play."""
        return int(self.active.sum())

    def draw(
        self, count: int, size: int, generator: torch.Generator, *, labels: Tensor | None = None
    ) -> Tensor:
        """Draw random subsets V_1, ..., V_count, each without replacement.

        Two subsets may share examples.

        Args:
            count: How many subsets.
            size: r, examples in each, at most the number in play.
            generator: CPU generator, the only source of randomness.
            labels: Class of each example, int64, shape (n,). If given, subsets are stratified:
                each class takes part in proportion to its share of the pool, what is left of an
                example by chance.

        Returns:
            Example indices, int64, shape (count, size).

        Raises:
            ValueError: If `size` is larger than the number of examples in play.
        """
        members = self.active.nonzero().squeeze(1)
        if size > len(members):
            raise ValueError(
                f"subset_size must be at most the number of active examples, {len(members)}; "
                f"got {size}."
            )
        return random_subsets(members, count, size, generator, labels=labels)

    def exclude(self, indices: Tensor, losses: Tensor, labels: Tensor) -> Tensor:
        """Drop learned examples, Sec. 4.3, the smallest losses first.

        Two guards keep some of them: the pool stays at or above `min_pool`, and of each class one
        example stays that is known to be in play.

        Args:
            indices: Examples to drop, distinct, int64, shape (k,).
            losses: Their largest recent losses, shape (k,).
            labels: Class of each example of the data set, or `UNKNOWN_CLASS`, int64, shape (n,).

        Returns:
            The indices that were dropped, shape (at most k,).
        """
        indices = indices[torch.argsort(losses, stable=True)]
        indices = indices[self.active[indices]]
        indices = indices[: max(self.num_active - self.min_pool, 0)]
        self.active[indices] = False
        classes = labels[indices]
        emptied = (classes != UNKNOWN_CLASS) & ~torch.isin(classes, labels[self.active])
        keep = torch.zeros(len(indices), dtype=torch.bool)
        for label in classes[emptied].unique().tolist():
            keep[(classes == label).nonzero()[-1]] = True
        self.active[indices[keep]] = True
        return indices[~keep]

    def readmit(self, indices: Tensor) -> None:
        """Put excluded examples back into play.

        Args:
            indices: Int64, shape (k,).
        """
        self.active[indices] = True

    def state_dict(self) -> dict[str, Any]:
        """Return the active mask."""
        return {"active": self.active.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.active.copy_(state["active"])


class Deck:
    """Rows in random order: none is drawn twice before all were, nor twice at once.

    Args:
        num_rows: n.
        generator: CPU generator, the only source of randomness.
    """

    def __init__(self, num_rows: int, generator: torch.Generator) -> None:
        self._num_rows = num_rows
        self._generator = generator
        self._rest = torch.empty(0, dtype=torch.int64)

    def draw(self, size: int) -> Tensor:
        """Draw the next rows, shuffling anew where a pass ends.

        Args:
            size: How many, at most n.

        Returns:
            Distinct rows, int64, shape (size,).
        """
        if len(self._rest) < size:
            shuffled = torch.randperm(self._num_rows, generator=self._generator)
            left = torch.isin(shuffled, self._rest)
            self._rest = torch.cat([self._rest, shuffled[~left], shuffled[left]])
        drawn, self._rest = self._rest[:size], self._rest[size:]
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Return the rows that are left of the pass."""
        return {"rest": self._rest.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._rest = state["rest"].clone()


def random_subsets(
    members: Tensor,
    count: int,
    size: int,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
) -> Tensor:
    """Draw random subsets of some examples, each without replacement, as `Pool.draw` does.

    Args:
        members: Example indices to draw from, distinct, int64, shape (k,).
        count: How many subsets.
        size: r, examples in each, at most k.
        generator: CPU generator, the only source of randomness.
        labels: Class of each example of the data set, to stratify by.

    Returns:
        Example indices, int64, shape (count, size).
    """
    if labels is None:
        return members[
            torch.stack([_distinct(len(members), size, generator) for _ in range(count)])
        ]
    subsets = []
    for _ in range(count):
        shuffled = members[torch.randperm(len(members), generator=generator)]
        subsets.append(shuffled[_first_in_proportion(labels[shuffled], size, generator)])
    return torch.stack(subsets)


def systematic_sample(probabilities: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Keep exactly `size` rows, each with its own probability.

    A comb of distance 1 with a random start is laid over the cumulated probabilities. Rows should
    come in random order, so that neighbours exclude each other by chance alone.

    Args:
        probabilities: In (0, 1], sum `size`, float64, shape (r,).
        size: m.
        generator: CPU generator.

    Returns:
        Distinct rows, ascending, int64, shape (m,).
    """
    start = torch.rand((), generator=generator, dtype=torch.float64)
    ends = probabilities.cumsum(0)
    ends *= size / ends[-1]
    teeth = torch.arange(size, dtype=torch.float64) + start
    return torch.searchsorted(ends, teeth, right=True).clamp_(max=len(ends) - 1)


def _distinct(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw distinct numbers below n, in random order, in a time that does not grow with n."""
    if 4 * size > n:
        return torch.randperm(n, generator=generator)[:size]
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < size:  # drawing again what came before changes no chances
        drawn = torch.cat([drawn, torch.randint(n, (size,), generator=generator)])
        order = torch.argsort(drawn, stable=True)
        repeats = drawn[order][1:] == drawn[order][:-1]
        first = torch.ones(len(drawn), dtype=torch.bool)
        first[order[1:][repeats]] = False
        drawn = drawn[first]
    return drawn[:size]


def _first_in_proportion(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Find the first positions of each class, `size` in all, in proportion to the classes."""
    _, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    quotas = counts * size // len(labels)
    odd_ones = size - int(quotas.sum())
    if odd_ones:  # by chance: the largest remainders would leave a rare class out for good
        remainders = counts * size % len(labels)
        order = torch.randperm(len(counts), generator=generator)
        order = order[remainders[order] > 0]
        chances = remainders[order].double() / len(labels)
        quotas[order[systematic_sample(chances, odd_ones, generator)]] += 1
    by_class = torch.argsort(labels, stable=True)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return by_class[rank < quotas[labels[by_class]]]
