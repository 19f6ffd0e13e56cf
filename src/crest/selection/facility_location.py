"""Greedy facility location: the rows that stand best for all others, Eq. (5) and (11)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from crest.checks import check, instance, one_of, optional, tensor, whole
from crest.selection.distances import (
    MAX_FEATURES_OF_DIFFERENCES,
    distances_of_scaled,
    largest_value,
    scale_down,
)
from crest.selection.grid import on_grid
from crest.selection.kernels.backend import compiled_for, pick_on_gpu
from crest.selection.large_set import pick_from_large_set
from crest.selection.per_class import pick_per_class

__all__ = ["Coreset", "cover", "facility_location", "pick_checked"]

Method = Literal["exact", "matrix-free", "stochastic"]

_METHOD = one_of(*get_args(Method))
_GENERATOR = optional(instance(torch.Generator, text="a torch.Generator"))

_LARGEST_MATRIX = 8192  # rows; above it distances (268 MB in float32) are rebuilt where needed
_TILE = 64  # rows and columns that are compared at once: both fit the cache
_ROUNDING = (
    1e-3  # of the largest distance; squared distances in float32 leave equal rows 3e-4 apart
)
_ENTRIES_AT_ONCE = 2**22  # of distance matrices on a CPU, unless one subset has more


class Coreset(NamedTuple):
    """Rows of one random subset that stand for all of it, or of P subsets.

    Attributes:
        indices: Picked rows in the order of picking, int64, shape (m,) or (P, m).
        cluster_sizes: How many rows of the subset each pick stands for, int64, same shape; at
            least 1 each, r in sum.
    """

    indices: Tensor
    cluster_sizes: Tensor


def facility_location(
    gradients: Tensor | None = None,
    batch_size: int = 128,
    *,
    distances: Tensor | None = None,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    method: Method = "exact",
    generator: torch.Generator | None = None,
) -> Coreset:
    """Pick the examples whose gradients stand best for the whole random subset.

    Greedy maximization of Eq. (5) over each subset V_p, as in Algorithm 1: every pick lowers the
    sum over i in V_p of min over j in S of ||g_i - g_j|| the most. Equal gains go to the lowest
    row, so that the result depends on the input alone, not on the number of threads or the order in
    which a device sums.

    A pick stands for itself, and any other row is counted with its nearest pick, the earliest of
    several. A float32 distance below 2^-20 C, C being the largest in V_p, is rounded to a multiple
    of about C / (2^53 r), which makes sums exact.

    Args:
        gradients: Last-layer gradients g^L, any floating dtype, shape (r, d), or (P, r, d) for P
            subsets at once.
        batch_size: Picks from each subset, m with 1 <= m <= r.
        distances: Instead of gradients: ||g_i - g_j||, symmetric with diagonal 0, shape (r, r) or
            (P, r, r).
        labels: Class of each row, any integer dtype, shape (r,) or (P, r). Each class is then
            picked from on its own, in proportion to its rows (largest remainder, m in all), and
            picks are ordered by class. Rows of a class too small for a pick are counted with the
            nearest pick of another.
        weights: How much each row counts in the sum, positive, shape (r,) or (P, r). Cluster sizes
            still count rows.
        method: `"exact"`; `"matrix-free"`, the same picks in memory linear in r, which `"exact"`
            turns to by itself for gradients of more than 8192 rows; or `"stochastic"`, which looks
            only at ln(10) r / m random candidates for each pick and is within 1 - 1/e - 0.1 of the
            best on average.
        generator: Randomness of `"stochastic"`, on any device; torch's default if None.

    Returns:
        Picked rows and cluster sizes, (m,) each, or (P, m); on the device of the input.

    Raises:
        TypeError: If an argument is of a wrong kind.
        ValueError: If not exactly one of `gradients` and `distances` is given; if an argument has
            the wrong shape, dtype or device, or a value that is not finite or out of range; if
            distances are not symmetric with diagonal 0, beyond rounding; or if `batch_size` is not
            in [1, r].

    Example:
        >>> gradients = torch.tensor([[0.0], [0.5], [5.0], [1.0], [5.5]])
        >>> indices, cluster_sizes = facility_location(gradients, 2)
        >>> indices.tolist(), cluster_sizes.tolist()
        ([3, 2], [3, 2])

    Note:
        Eq. (11) as printed takes the sum over the coreset and the minimum over the subset, which
        would be 0. Eq. (5) and Algorithm 1 have it the other way round, and so has this.
    """
    given, batch_size = _check_rows(gradients, distances, batch_size)
    are_features = distances is None
    batched = given.ndim == 3
    given = given if batched else given.unsqueeze(0)
    labels = _check_labels(labels, given, batched)
    weights = _check_weights(weights, given, batched)
    check("method", method, _METHOD)
    check("generator", generator, _GENERATOR)
    if method == "matrix-free" and not are_features:
        raise ValueError("method 'matrix-free' needs gradients; got distances, the whole matrix.")

    if not are_features:
        _check_symmetric(given)
    if not are_features and (
        labels is not None or method != "exact" or not compiled_for(given.device)
    ):
        _largest_distance(given)  # else the kernel sees to it, and reads the matrix once

    def pick(given: Tensor, batch_size: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        large = are_features and given.shape[1] > _LARGEST_MATRIX
        if method == "exact" and not large:
            return _pick(given, batch_size, are_features, weights)
        return pick_from_large_set(
            given, batch_size, are_features, weights, method == "stochastic", generator
        )

    if labels is None:
        indices, cluster_sizes = pick(given, batch_size, weights)
    else:
        indices, cluster_sizes = pick_per_class(
            pick, given, batch_size, are_features, weights, labels
        )
    return Coreset(indices, cluster_sizes) if batched else Coreset(indices[0], cluster_sizes[0])


def cover(distances: Tensor, batch_size: int) -> Coreset:
    """Pick as `facility_location` does, from distances that were measured by `distances.py`.

    They are symmetric to the bit; to look for that again takes as long as to pick.

    Args:
        distances: Float32 or float64, shape (P, r, r).
        batch_size: m, in [1, r].

    Returns:
        Picked rows and cluster sizes, (P, m).
    """
    if not compiled_for(distances.device):
        _largest_distance(distances)
    return Coreset(*_pick(distances, batch_size, False, None))


def pick_checked(given: Tensor, batch_size: int, *, are_features: bool) -> Coreset:
    """Pick from subsets that need no check, without a wait for the device.

    Args:
        given: Features (P, r, d) whose squares neither overflow nor vanish, or distances (P, r, r);
            float32 or float64.
        batch_size: m, in [1, r].
        are_features: Which of the two `given` is.

    Returns:
        Picked rows and cluster sizes, (P, m).
    """
    return Coreset(*_pick(given, batch_size, are_features, None))


def _pick(
    given: Tensor, batch_size: int, are_features: bool, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    num_subsets, r, _ = given.shape
    compiled = compiled_for(given.device)
    few_features = are_features and given.shape[2] <= MAX_FEATURES_OF_DIFFERENCES
    if compiled is not None and (few_features or not are_features):
        picked = compiled.greedy(given, batch_size, are_features=are_features, weights=weights)
        if picked is None:  # raise what is wrong, unless it is only a -0.0 or next to overflow
            scaled, _ = scale_down(given.abs(), _largest_distance(given))
            picked = compiled.greedy(scaled, batch_size, are_features=False, weights=weights)
        assert picked is not None
        return cast("tuple[Tensor, Tensor]", picked)
    if few_features:
        picked = pick_on_gpu(given, batch_size, are_features=True, weights=weights)
        if picked is not None:
            return picked
    on_cpu = given.device.type == "cpu"
    together = max(1, _ENTRIES_AT_ONCE // r**2) if on_cpu else num_subsets
    parts = []
    for first in range(0, num_subsets, together):
        some = slice(first, first + together)
        distances = distances_of_scaled(given[some]) if are_features else given[some]
        some_weights = None if weights is None else weights[some]
        if compiled is not None:
            part = compiled.greedy(distances, batch_size, are_features=False, weights=some_weights)
        else:
            part = pick_on_gpu(
                distances, batch_size, are_features=False, weights=some_weights
            ) or greedy(distances, batch_size, some_weights)
        parts.append(part)
    all_indices, all_sizes = zip(*parts, strict=True)
    return torch.cat(all_indices), torch.cat(all_sizes)


def greedy(distances: Tensor, batch_size: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pick from P subsets at once: the plain version, for any device, no wait for it in the loop.

    Args:
        distances: (P, r, r).
        batch_size: m.
        weights: Of the rows, in (0, 1], shape (P, r), or None.

    Returns:
        Indices and cluster sizes, (P, m).
    """
    num_subsets, r, _ = distances.shape
    largest = distances.amax((1, 2))  # C
    if weights is not None:
        distances = distances * weights.unsqueeze(2)  # row i counts weights[i] times
    distances = on_grid(distances, largest)
    every = torch.arange(num_subsets, device=distances.device)
    nearest = largest.unsqueeze(1).repeat(1, r)  # (P, r), C while S is empty
    owner = torch.zeros_like(nearest, dtype=torch.int64)
    picked = torch.zeros_like(nearest, dtype=torch.bool)
    picks = []
    for step in range(batch_size):
        # The sum of Eq. (5) with each candidate added; the largest gain leaves the least.
        left = torch.minimum(distances, nearest.unsqueeze(2)).sum(1, dtype=torch.float64)
        pick = left.masked_fill_(picked, math.inf).argmin(1)
        to_pick = distances[every, :, pick]
        closer = to_pick < nearest
        closer[every, pick] = True  # a pick is its own even where an earlier one equals it
        owner.masked_fill_(closer, step)
        nearest = torch.minimum(nearest, to_pick)
        picked[every, pick] = True
        picks.append(pick)
    indices = torch.stack(picks, dim=1)
    cluster_sizes = torch.zeros_like(indices).scatter_add_(1, owner, torch.ones_like(owner))
    return indices, cluster_sizes


def _check_rows(
    gradients: Tensor | None, distances: Tensor | None, batch_size: int
) -> tuple[Tensor, int]:
    """Check the input and bring it to float32 or float64; gradients to a size safe to square."""
    if (gradients is None) == (distances is None):
        raise ValueError(
            "exactly one of gradients and distances must be given; got "
            f"{'none' if gradients is None else 'both'}."
        )
    name, columns = ("gradients", "d") if distances is None else ("distances", "r")
    given = gradients if distances is None else distances
    check(name, given, tensor())
    assert given is not None
    shape = tuple(given.shape)
    if given.ndim not in {2, 3} or 0 in shape or not given.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point, shape (r, {columns}) or (P, r, {columns}), none of it "
            f"empty; got {given.dtype} of shape {shape}."
        )
    if distances is not None and shape[-1] != shape[-2]:
        raise ValueError(f"distances must have shape (r, r) or (P, r, r); got {shape}.")
    r = shape[-2]
    within = whole(1, r, f"in [1, {r}], the random subset")
    batch_size = check("batch_size", batch_size, within)
    if distances is None:
        return scale_down(given, largest_value(name, given))[0], batch_size
    return given.detach().to(torch.promote_types(given.dtype, torch.float32)), batch_size


def _check_symmetric(distances: Tensor) -> None:
    """Refuse what are no distances of rows to each other, (P, r, r)."""
    diagonal = distances.diagonal(dim1=1, dim2=2)
    tiles = range(0, distances.shape[1], _TILE)
    if not diagonal.any() and all(
        torch.equal(distances[:, i : i + _TILE, i:], distances[:, i:, i : i + _TILE].mT)
        for i in tiles
    ):
        return
    bound = _ROUNDING * _largest_distance(distances)
    for i in tiles:
        off = distances[:, i : i + _TILE, i:] - distances[:, i:, i : i + _TILE].mT
        if float(off.abs().max()) > bound:
            p, j, k = (off.abs() > bound).nonzero()[0].tolist()
            raise ValueError(
                "distances must be symmetric, ||g_i - g_j|| both ways; got "
                f"{float(distances[p, i + j, i + k]):g} from row {i + j} to {i + k} and "
                f"{float(distances[p, i + k, i + j]):g} back. Pass (d + d.mT) / 2 if that is what "
                "you mean."
            )
    if float(diagonal.max()) > bound:
        raise ValueError(
            "distances must have diagonal 0, what a row is away from itself; got "
            f"{float(diagonal.max()):g}. Pass ||g_i - g_j||, not similarities."
        )


def _largest_distance(distances: Tensor) -> float:
    largest = largest_value("distances", distances)
    least = float(distances.min())
    if least < 0:
        raise ValueError(
            f"distances must not be negative; got {least}. Pass ||g_i - g_j||, not similarities."
        )
    return largest


def _check_labels(labels: Tensor | None, given: Tensor, batched: bool) -> Tensor | None:
    if labels is None:
        return None
    labels = _check_per_row("labels", labels, given, batched)
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, one class per row; got {labels.dtype}.")
    return labels


def _check_weights(weights: Tensor | None, given: Tensor, batched: bool) -> Tensor | None:
    if weights is None:
        return None
    weights = _check_per_row("weights", weights, given, batched).double()
    largest = largest_value("weights", weights)
    least = float(weights.min())
    if least <= 0:
        raise ValueError(
            f"weights must be positive; got {least}. Leave out rows that do not count."
        )
    return (weights / 2.0 ** math.frexp(largest)[1]).to(given.dtype)  # in (0, 1]


def _check_per_row(name: str, values: Tensor, given: Tensor, batched: bool) -> Tensor:
    check(name, values, tensor())
    shape = given.shape[:2] if batched else given.shape[1:2]
    if values.shape != shape:
        raise ValueError(
            f"{name} must have one entry per row, shape {tuple(shape)}; got {tuple(values.shape)}."
        )
    if values.device != given.device:
        raise ValueError(
            f"{name} must be on the device of the rows, {given.device}; got {values.device}."
        )
    return values.detach() if batched else values.detach().unsqueeze(0)
