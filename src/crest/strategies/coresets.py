"""Mini-batch coresets from random subsets: what Crest and GreedyMiniBatch share, Eq. (11)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from crest.observer import LastLayerGradients
from crest.selection import Coreset, facility_location, last_layer_distances
from crest.strategies.protocol import Examples, MiniBatch, Task

__all__ = ["Features", "default_subset_size", "select_coresets"]

Features = Literal["logits", "input", "weight"]

_SUBSETS_AT_ONCE = 16  # bounds the memory of the distances, (16, r, r)


def select_coresets(
    examples: Examples, subsets: Tensor, batch_size: int, features: Features
) -> tuple[list[MiniBatch], Tensor]:
    """Read the random subsets, observe them, and pick a weighted mini-batch from each.

    Each distinct example is read and passed forward once, however many subsets hold it. A weight
    is cluster size * m / r, so that weights have mean 1 and the learning rate keeps its meaning.

    Args:
        examples: The data set; afterwards it holds the views of the picked examples.
        subsets: V_1, ..., V_P, example indices, int64, shape (P, r).
        batch_size: m, picks in each.
        features: Which last-layer gradients are compared.

    Returns:
        The P coresets, and the losses at the anchor of all subsets' examples, shape (P, r), CPU.
    """
    distinct, rows = torch.unique(subsets, return_inverse=True)
    with examples.timed("features"):
        examples.hold(distinct)
        gradients = examples.last_layer_gradients(distinct)
    with examples.timed("select"):
        coresets = []
        for some in rows.split(_SUBSETS_AT_ONCE):
            picked = _pick(gradients, some.to(gradients.losses.device), batch_size, features)
            coresets += list(zip(picked.indices.cpu(), picked.cluster_sizes.cpu(), strict=True))
        scale = batch_size / subsets.shape[1]
        batches = [
            MiniBatch(subset[chosen], sizes.float() * scale)
            for subset, (chosen, sizes) in zip(subsets, coresets, strict=True)
        ]
    examples.release(torch.unique(torch.cat([batch.indices for batch in batches])))
    return batches, gradients.losses.cpu()[rows]


def _pick(
    gradients: LastLayerGradients, rows: Tensor, batch_size: int, features: Features
) -> Coreset:
    if features == "logits":
        return facility_location(gradients.errors.flatten(1)[rows], batch_size)
    if features == "input":
        return facility_location(gradients.input_gradients.flatten(1)[rows], batch_size)
    if gradients.errors.ndim > 2:  # several positions: no product of two Gram matrices
        return facility_location(gradients.weight_gradients()[rows], batch_size)
    distances = last_layer_distances(gradients.errors[rows], gradients.inputs[rows])
    return facility_location(distances=distances, batch_size=batch_size)


def default_subset_size(subset_size: int | None, task: Task) -> int:
    """Resolve r and check it against the task.

    Args:
        subset_size: r, or None for 1 % of the data set but at least three mini-batches.
        task: Gives n and m.

    Returns:
        r, with m <= r <= n.

    Raises:
        ValueError: If r does not fit the task.
    """
    n, m = task.num_examples, task.batch_size
    r = min(max(round(0.01 * n), 3 * m), n) if subset_size is None else subset_size
    if m > r:
        raise ValueError(
            f"batch_size must be at most subset_size, {r}; got {m}. "
            "Use smaller batches or a larger subset."
        )
    if r > n:
        raise ValueError(
            f"subset_size must be at most the number of examples, {n}; got {r}. "
            "Use a smaller subset."
        )
    return r
