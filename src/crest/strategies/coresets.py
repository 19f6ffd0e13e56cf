"""Mini-batch coresets from random subsets: what Crest and GreedyMiniBatch share, Eq. (11)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crest.checks import one_of
from crest.looking.gradients import LastLayerGradients
from crest.pool import UNKNOWN_CLASS
from crest.selection import Coreset, facility_location, last_layer_distances
from crest.selection.facility_location import cover
from crest.selection.on_device import cover_features, cover_last_layer
from crest.strategies.protocol import Examples, MiniBatch, Task

__all__ = [
    "FEATURES",
    "Features",
    "Selection",
    "default_subset_size",
    "relative_gradient_error",
    "resolve_num_candidates",
    "select_coresets",
    "split_subsets",
]

Features = Literal["logits", "input", "weight"]
FEATURES = one_of("logits", "input", "weight")  # the rule for a field of this type

_ROUNDING = 1e-6  # of float32, relative
_SUBSETS_AT_ONCE = 16
_DISTANCES_AT_ONCE = 2**25  # unless one subset has more; some GB with what they are made from


class Selection(NamedTuple):
    """Coresets of one round, and what was seen on the way.

    Attributes:
        coresets: P weighted mini-batches.
        candidates: The distinct examples that were observed, int64, shape (k,).
        losses: Their losses, on the CPU, shape (k,).
        rows: Rows of `candidates` in each random subset, shape (P, r).
        gradient_error: See `relative_gradient_error`.
    """

    coresets: list[MiniBatch]
    candidates: Tensor
    losses: Tensor
    rows: Tensor
    gradient_error: float


def select_coresets(
    examples: Examples,
    subsets: Tensor,
    batch_size: int,
    features: Features,
    keep: Tensor | None = None,
    per_class: bool | None = False,
) -> Selection:
    """Read the random subsets, observe them, and pick a weighted mini-batch from each.

    Each distinct example is read and passed forward once, however many subsets hold it. A weight
    is cluster size * m / r, so that weights have mean 1 and the learning rate keeps its meaning.

    Args:
        examples: The data set; afterwards it holds the views of the picked examples.
        subsets: V_1, ..., V_P, example indices, int64, shape (P, r).
        batch_size: m, picks in each.
        features: Which last-layer gradients are compared.
        keep: Other examples whose views are still needed: of the subsets, or read with them.
        per_class: Pick from each class on its own, in proportion, and not from the whole subset.
            None: if the classes of all that is read are known, and no more than m.

    Returns:
        The P coresets, and the losses at the anchor.

    Raises:
        ValueError: If a gradient is not finite.
    """
    candidates, rows = torch.unique(subsets, return_inverse=True)
    with examples.timed("features"):
        examples.hold(candidates if keep is None else torch.unique(torch.cat([candidates, keep])))
        gradients = examples.last_layer_gradients(candidates)
    with examples.timed("select"):
        device = gradients.losses.device
        pick: Callable[..., Coreset] = _pick if device.type == "cpu" else _pick_without_waiting
        labels = examples.labels[candidates]  # told, or read with the examples
        if per_class is None:
            is_known = not (labels == UNKNOWN_CLASS).any()
            per_class = is_known and len(labels.unique()) <= batch_size
        if per_class:
            pick = functools.partial(_pick_per_class, labels=labels.to(device))
        parts = [
            pick(gradients, some.to(device, non_blocking=True), batch_size, features)
            for some in split_subsets(rows)
        ]
        # One copy for all subsets; what is not finite shows in it.
        picks = torch.stack([torch.cat(of_parts) for of_parts in zip(*parts, strict=True)], 1).cpu()
        if int(picks.min()) < 0:
            raise ValueError(
                "gradients must be finite; got a nan or infinite value. "
                "Lower lr, or leave out the examples it belongs to."
            )
        scale = batch_size / subsets.shape[1]
        batches = [
            MiniBatch(subset[chosen], sizes.float() * scale)
            for subset, (chosen, sizes) in zip(subsets, picks, strict=True)
        ]
        error = relative_gradient_error(gradients, candidates, batches)
    kept = [batch.indices for batch in batches] + ([] if keep is None else [keep])
    examples.release(torch.unique(torch.cat(kept)))
    return Selection(batches, candidates, gradients.losses.cpu(), rows, error)


def split_subsets(subsets: Tensor) -> tuple[Tensor, ...]:
    """Cut random subsets, shape (P, r), into groups whose distances fit the memory together."""
    r = subsets.shape[1]
    at_once = max(1, min(_SUBSETS_AT_ONCE, _DISTANCES_AT_ONCE // r**2))
    return torch.split(subsets, at_once)


def relative_gradient_error(
    gradients: LastLayerGradients, candidates: Tensor, coresets: Sequence[MiniBatch]
) -> float:
    """Estimate how far the coresets' mean gradient is off, with random mini-batches as 1.

    The squared distance, at the last layer, from the mean gradient of all examples, over that of as
    many random mini-batches of the same size. Both are averages over the P coresets, as momentum
    averages over steps: coresets that share candidates also share their error. It is the measured
    distance to the mean of the k candidates, plus the sampling error of these, sigma^2 / k; random
    mini-batches have sigma^2 / (P m).

    Note:
        No choice from k candidates can be below P m / k, what all of them together would have. It
        takes n for large beside k: where the candidates are most of a small data set, coresets are
        better than it says, and so are random mini-batches.

    Args:
        gradients: Of the candidates, k rows.
        candidates: Their example indices, ascending, shape (k,).
        coresets: P mini-batches of m candidates.

    Returns:
        Below 1 if the coresets are better than random mini-batches; 1 if all gradients are equal.
    """
    k = len(candidates)
    used = sum(len(coreset.indices) for coreset in coresets)
    weights = torch.full((k,), -1.0 / k)
    for coreset in coresets:
        places = torch.searchsorted(candidates, coreset.indices)
        weights[places] += coreset.weights / used
    device = gradients.losses.device
    mean = gradients.weighted_sum(torch.full((k,), 1.0 / k, device=device))
    measured = (
        gradients.weighted_sum(weights.to(device)).square().sum(),
        gradients.squared_norms().double().mean(),
        mean.double().square().sum(),
    )
    # Read together: a GPU is waited for once.
    distance, mean_square, square_of_mean = torch.stack([x.double() for x in measured]).tolist()
    variance = mean_square - square_of_mean
    return distance * used / variance + used / k if variance > _ROUNDING * mean_square else 1.0


def _pick(
    gradients: LastLayerGradients, rows: Tensor, batch_size: int, features: Features
) -> Coreset:
    if features == "weight" and gradients.errors.ndim == 2:  # of one position: no gradient is made
        distances = last_layer_distances(
            gradients.errors[rows], gradients.inputs[rows], bias=gradients.bias
        )
        return cover(distances, batch_size)
    return facility_location(_compared(gradients, features)[rows], batch_size)


def _pick_per_class(
    gradients: LastLayerGradients, rows: Tensor, batch_size: int, features: Features, labels: Tensor
) -> Coreset:
    if features == "weight" and gradients.errors.ndim == 2:
        distances = last_layer_distances(
            gradients.errors[rows], gradients.inputs[rows], bias=gradients.bias
        )
        return facility_location(None, batch_size, distances=distances, labels=labels[rows])
    return facility_location(_compared(gradients, features)[rows], batch_size, labels=labels[rows])


def _pick_without_waiting(
    gradients: LastLayerGradients, rows: Tensor, batch_size: int, features: Features
) -> Coreset:
    """Do as `_pick`, and leave it to the caller to look for picks of -1."""
    if features == "weight" and gradients.errors.ndim == 2:
        errors, inputs = gradients.errors[rows], gradients.inputs[rows]
        return cover_last_layer(errors, inputs, batch_size, bias=gradients.bias)
    return cover_features(_compared(gradients, features)[rows], batch_size)


def _compared(gradients: LastLayerGradients, features: Features) -> Tensor:
    """Give the features, a row for each example."""
    if features == "logits":
        return gradients.errors.flatten(1)
    if features == "input":
        return gradients.input_gradients.flatten(1)
    return gradients.weight_gradients()


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


def resolve_num_candidates(num_candidates: int | None, task: Task, *, batches: int) -> int:
    """Resolve how many candidates a mini-batch is chosen from, and check it against the task.

    Args:
        num_candidates: r, or None for some mini-batches.
        task: Gives n and m.
        batches: How many mini-batches, at most n examples.

    Returns:
        r, with m <= r <= n.

    Raises:
        ValueError: If r does not fit the task.
    """
    n, m = task.num_examples, task.batch_size
    r = min(batches * m, n) if num_candidates is None else num_candidates
    if not m <= r <= n:
        raise ValueError(
            f"num_candidates must be in [{m}, {n}], batch_size to the number of examples; got {r}."
        )
    return r
