"""Slow and obvious versions, word for word from the paper."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor


def distance_matrix(gradients: Tensor) -> Tensor:
    """All ||g_i - g_j|| in float64, one pair at a time in spirit."""
    gradients = gradients.double()
    return (gradients[:, None] - gradients[None]).square().sum(2).sqrt()


def coverage(gradients: Tensor, rows) -> float:
    """Eq. (5): the sum over i of C - min over j in S of ||g_i - g_j||."""
    distances = distance_matrix(gradients)
    return float((distances.max() - distances[:, list(rows)].min(dim=1).values).sum())


def best_coverage(gradients: Tensor, batch_size: int) -> float:
    """The largest Eq. (5) over every coreset of that size."""
    distances = distance_matrix(gradients)
    coresets = torch.tensor(list(combinations(range(len(gradients)), batch_size)))
    nearest = distances[:, coresets].amin(dim=2)  # (r, number of coresets)
    return float((distances.max() - nearest).sum(dim=0).max())


def greedy(gradients: Tensor, batch_size: int, weights: Tensor | None = None) -> list[int]:
    """Greedy maximization of Eq. (5) in float64, every gain computed from nothing."""
    return greedy_of_distances(distance_matrix(gradients), batch_size, weights)


def greedy_of_distances(
    distances: Tensor, batch_size: int, weights: Tensor | None = None
) -> list[int]:
    distances = distances.double()
    weights = torch.ones(len(distances)) if weights is None else weights
    picks: list[int] = []
    nearest = distances.max().expand(len(distances))
    for _ in range(batch_size):
        gains = ((nearest[:, None] - distances).clamp(min=0) * weights.double()[:, None]).sum(0)
        gains[picks] = -1
        rounding = 1e-13 * float(nearest.sum() + distances.max())
        picks.append(int((gains >= gains.max() - rounding).nonzero()[0]))  # lowest of equals
        nearest = torch.minimum(nearest, distances[:, picks[-1]])
    return picks


def cluster_sizes(gradients: Tensor, picks: list[int]) -> list[int]:
    """Rows nearest to each pick: a pick is its own, and other ties go to the earliest."""
    to_picks = distance_matrix(gradients)[:, picks]
    sizes = [0] * len(picks)
    for row in range(len(gradients)):
        sizes[picks.index(row) if row in picks else int(to_picks[row].argmin())] += 1
    return sizes
