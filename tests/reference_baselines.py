"""Slow and obvious versions of the baselines, word for word from their papers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

import reference


def craig(errors: Tensor, groups: list[tuple[Tensor, int]]) -> dict[int, int]:
    """Greedy facility location in each group: cluster size by pick."""
    found = {}
    for rows, size in groups:
        picks = reference.greedy(errors[rows], size)
        sizes = reference.cluster_sizes(errors[rows], picks)
        found |= dict(zip(rows[picks].tolist(), sizes, strict=True))
    return found


def spread(distances: Tensor, picks) -> float:
    """What facility location makes small: sum over i of min over j in S of ||g_i - g_j||."""
    return float(distances[:, list(picks)].min(dim=1).values.sum())


def matching_pursuit(gradients: Tensor, size: int, ridge: float) -> dict[int, float]:
    """Add the row that fits best to the rest, solve NNLS from nothing, leave out what became 0."""
    gradients = gradients.double()
    total = gradients.sum(0)
    picks: list[int] = []
    seen: set[int] = set()
    weights = gradients.new_zeros(0)
    while len(picks) < size:
        fits = gradients @ (total - weights @ gradients[picks])
        fits[list(seen)] = -np.inf
        best = int(fits.argmax())
        seen.add(best)
        weights = ridge_nnls(gradients[[*picks, best]], total, ridge)
        picks = [row for row, weight in zip([*picks, best], weights, strict=True) if weight > 0]
        weights = weights[weights > 0]
    return dict(zip(picks, weights.tolist(), strict=True))


def ridge_nnls(rows: Tensor, total: Tensor, ridge: float) -> Tensor:
    """Minimise ||total - x A||^2 + ridge ||x||^2 over x >= 0."""
    system = np.concatenate([rows.double().numpy().T, ridge**0.5 * np.eye(len(rows))])
    solution, _ = nnls(system, np.concatenate([total.double().numpy(), np.zeros(len(rows))]))
    return torch.from_numpy(solution)


def glister(
    head: nn.Linear,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    groups: list[tuple[Tensor, int]],
    *,
    step_of_one: float,
    rounds: int,
) -> list[int]:
    """Move the real last layer after each round; both pairs are head inputs and classes."""

    def gradients(parameters, inputs, targets):
        parameters = [parameter.clone().requires_grad_() for parameter in parameters]
        loss = nn.functional.cross_entropy(nn.functional.linear(inputs, *parameters), targets)
        return torch.autograd.grad(loss, parameters)

    at_start = [parameter.detach().double() for parameter in head.parameters()]
    inputs, targets = train[0].double(), train[1]
    each = [gradients(at_start, inputs[i : i + 1], targets[i : i + 1]) for i in range(len(inputs))]
    moved = [parameter.clone() for parameter in at_start]
    picks: list[int] = []
    for turn in range(rounds):
        slope = gradients(moved, validation[0].double(), validation[1])
        gains = [sum(float((a * b).sum()) for a, b in zip(g, slope, strict=True)) for g in each]
        new = []
        for rows, size in groups:
            count = size * (turn + 1) // rounds - size * turn // rounds
            left = [row for row in rows.tolist() if row not in picks]
            new += sorted(left, key=lambda row: -gains[row])[:count]
        for row in new:
            for parameter, gradient in zip(moved, each[row], strict=True):
                parameter -= step_of_one * gradient
        picks += new
    return picks
