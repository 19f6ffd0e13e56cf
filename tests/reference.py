"""Slow and obvious versions, word for word from the paper."""

from __future__ import annotations

import torch
from torch import Tensor


def distance_matrix(gradients: Tensor) -> Tensor:
    """All ||g_i - g_j|| in float64, one pair at a time in spirit."""
    gradients = gradients.double()
    return (gradients[:, None] - gradients[None]).square().sum(2).sqrt()


def coverage(gradients: Tensor, rows) -> float:
    """Eq. (5): the sum over i of C - min over j in S of ||g_i - g_j||."""
    return coverage_of_distances(distance_matrix(gradients), rows)


def coverage_of_distances(distances: Tensor, rows) -> float:
    distances = distances.double()
    return float((distances.max() - distances[:, list(rows)].min(dim=1).values).sum())


def greedy(gradients: Tensor, batch_size: int, weights: Tensor | None = None) -> list[int]:
    """Greedy maximization of Eq. (5) in float64, every gain computed from nothing."""
    distances = distance_matrix(gradients)
    weights = torch.ones(len(distances)) if weights is None else weights
    picks: list[int] = []
    nearest = distances.max().expand(len(distances))
    for _ in range(batch_size):
        gains = ((nearest[:, None] - distances).clamp(min=0) * weights.double()[:, None]).sum(0)
        gains[picks] = -1
        picks.append(int((gains >= gains.max() * (1 - 1e-12)).nonzero()[0]))  # lowest of equals
        nearest = torch.minimum(nearest, distances[:, picks[-1]])
    return picks


def cluster_sizes(gradients: Tensor, picks: list[int]) -> list[int]:
    """Rows nearest to each pick: a pick is its own, and other ties go to the earliest."""
    to_picks = distance_matrix(gradients)[:, picks]
    sizes = [0] * len(picks)
    for row in range(len(gradients)):
        sizes[picks.index(row) if row in picks else int(to_picks[row].argmin())] += 1
    return sizes
