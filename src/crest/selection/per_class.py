"""Facility location in each class on its own, picks in proportion to the class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["pick_per_class"]

Pick = Callable[[Tensor, int, Tensor | None], tuple[Tensor, Tensor]]


def pick_per_class(
    pick: Pick,
    given: Tensor,
    batch_size: int,
    are_features: bool,
    weights: Tensor | None,
    labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Pick from the classes of P subsets.

    Args:
        pick: Picks from one whole subset: `pick(given, batch_size, weights)`.
        given: Features (P, r, d) or distances (P, r, r).
        batch_size: m, over all classes.
        are_features: Which of the two `given` is.
        weights: Of the rows, (P, r), or None.
        labels: Classes, (P, r).

    Returns:
        Indices, by class and then in the order of picking, and cluster sizes, (P, m).
    """
    subsets = []
    for p in range(len(given)):
        indices, sizes, left_out = [], [], []
        classes, counts = (part.tolist() for part in labels[p].unique(return_counts=True))
        for label, share in zip(classes, _shares(counts, batch_size), strict=True):
            rows = (labels[p] == label).nonzero().squeeze(1)
            if share == 0:
                left_out.append(rows)
                continue
            part = given[p, rows] if are_features else given[p, rows][:, rows]
            part_weights = None if weights is None else weights[p, rows].unsqueeze(0)
            picked, part_sizes = pick(part.unsqueeze(0), share, part_weights)
            indices.append(rows[picked[0]])
            sizes.append(part_sizes[0])
        chosen, counted = torch.cat(indices), torch.cat(sizes)
        if left_out:
            rows = torch.cat(left_out)
            if are_features:
                to_picks = torch.cdist(given[p, rows].double(), given[p, chosen].double())
            else:
                to_picks = given[p, rows][:, chosen]
            counted += to_picks.argmin(1).bincount(minlength=batch_size)
        subsets.append((chosen, counted))
    all_indices, all_sizes = zip(*subsets, strict=True)
    return torch.stack(all_indices), torch.stack(all_sizes)


def _shares(counts: list[int], batch_size: int) -> list[int]:
    """Divide the picks by largest remainder; equal remainders go to the first class."""
    r = sum(counts)
    shares = [batch_size * count // r for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda k: -(batch_size * counts[k] % r))
    for k in by_remainder[: batch_size - sum(shares)]:
        shares[k] += 1
    return shares
