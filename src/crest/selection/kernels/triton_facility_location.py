# mypy: disable-error-code="no-untyped-def"
"""Facility location on a GPU, by Triton: one program per subset, all of its picks inside.

As in `numba_greedy`, each candidate's gain is kept up to date: where row i comes closer, from `old`
to `new`,

    gain[c] -= old - min(max(D[i, c], new), old)

so that all picks take some 5 r^2 distances instead of m r^2. Distances lie on a grid (see
`grid.on_grid`), which makes sums in float64 exact: a program may add them in any order, and equal
gains are equal to the bit. Distances themselves are compared in float32. Those of few features are
computed again where they are needed, in the order of the plain version; those of many are read from
the matrix that `distances.py` makes from Gram matrices.

The program also runs on a CPU, in Triton's interpreter (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["greedy", "picks_right", "takes"]

_MAX_ROWS, _MAX_PICKS = 1024, 512  # of one program, whose gains and nearest picks stay on the chip
_AT_ONCE = 4096  # distances
_ROWS_OF_FOUR_WARPS = 256  # more rows are shared out to eight
_KNOWN = torch.tensor([37, 16, 6, 4, 10, 25, 22, 17])  # of `picks_right`

_jit: Callable[[Callable[..., Any]], Any] = triton.jit


@_jit
def _distances(source, rows, candidates, r, d, ARE_FEATURES: tl.constexpr):
    """Measure what rows are away from candidates, in shapes that are broadcast."""
    if ARE_FEATURES:  # (d, r)
        difference = tl.load(source + rows) - tl.load(source + candidates)
        squares = difference * difference
        for k in range(1, d):
            difference = tl.load(source + k * r + rows) - tl.load(source + k * r + candidates)
            squares += difference * difference
        distances = tl.sqrt_rn(squares)
    else:  # (r, r)
        distances = tl.load(source + rows * r + candidates)
    return distances


@_jit
def _on_grid(distances, weights, rows, shift, WEIGHTED: tl.constexpr):
    """Weigh distances by their rows and round them, see `grid.on_grid`."""
    if WEIGHTED:
        distances = distances * tl.load(weights + rows)
    return ((distances.to(tl.float64) + shift) - shift).to(tl.float32)


@_jit
def _pick(
    source,
    weights,
    closer_rows,
    closer_levels,
    picks,
    owners,
    r,
    d,
    batch_size,
    r_bits,
    ARE_FEATURES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    R: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Pick from the subset of this program.

    R is a power of two, r or more; what is beyond r repeats the last row and is never picked.
    `closer_rows` (R,) and `closer_levels` (2, R) are room for the rows that come closer.
    """
    p = tl.program_id(0).to(tl.int64)
    source += p * r * d
    weights += p * r
    closer_rows += p * R
    closer_levels += p * 2 * R
    picks += p * batch_size
    owners += p * r

    every = tl.arange(0, R)
    inside = every < r
    candidates = tl.minimum(every, r - 1)
    some = tl.arange(0, ROWS)

    most = tl.zeros((R,), tl.float32)
    for begin in range(0, r, ROWS):
        rows = tl.minimum(begin + some, r - 1)[:, None]
        tile = _distances(source, rows, candidates[None, :], r, d, ARE_FEATURES)
        most = tl.maximum(most, tl.max(tile, axis=0))
    largest = tl.max(most, axis=0)  # C
    # The power of two above it, from its bits; and what rounds to the grid, as a float64.
    exponent = ((largest.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >> 23) - 126
    shift = ((exponent + r_bits + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)

    away = tl.zeros((R,), tl.float64)
    for begin in range(0, r, ROWS):
        rows = tl.minimum(begin + some, r - 1)[:, None]
        tile = _distances(source, rows, candidates[None, :], r, d, ARE_FEATURES)
        tile = _on_grid(tile, weights, rows, shift, WEIGHTED)
        is_row = (begin + some < r)[:, None]
        away += tl.sum(tl.where(is_row, tile, 0.0).to(tl.float64), axis=0)
    gains = tl.where(inside, r * largest.to(tl.float64) - away, -1.0)
    nearest = tl.zeros((R,), tl.float32) + largest  # C while there is no pick
    owner = tl.zeros((R,), tl.int32)

    for step in range(0, batch_size):
        pick = tl.argmax(gains, axis=0, tie_break_left=True)
        tl.store(picks + step, pick)
        to_pick = _distances(source, candidates, pick, r, d, ARE_FEATURES)
        to_pick = _on_grid(to_pick, weights, candidates, shift, WEIGHTED)
        closer = (to_pick < nearest) & inside
        owner = tl.where(closer | (every == pick), step, owner)  # a pick is its own in any case
        count = tl.sum(closer.to(tl.int32), axis=0)
        place = tl.cumsum(closer.to(tl.int32), axis=0) - 1
        tl.store(closer_rows + place, every, mask=closer)
        tl.store(closer_levels + place, nearest, mask=closer)
        tl.store(closer_levels + R + place, to_pick, mask=closer)
        nearest = tl.where(closer, to_pick, nearest)
        tl.debug_barrier()  # other threads read what these have written
        for begin in range(0, count, ROWS):
            is_row = begin + some < count
            rows = tl.load(closer_rows + begin + some, mask=is_row, other=0)[:, None]
            old = tl.load(closer_levels + begin + some, mask=is_row, other=0.0)[:, None]
            new = tl.load(closer_levels + R + begin + some, mask=is_row, other=0.0)[:, None]
            tile = _distances(source, rows, candidates[None, :], r, d, ARE_FEATURES)
            tile = _on_grid(tile, weights, rows, shift, WEIGHTED)
            left = tl.minimum(tl.maximum(tile, new), old)
            gains -= tl.sum(old.to(tl.float64) - left.to(tl.float64), axis=0)
        tl.debug_barrier()  # before the next pick writes there
        gains = tl.where(every == pick, -1.0, gains)  # all others are 0 or more
    tl.store(owners + every, owner, mask=inside)


def picks_right(device: torch.device) -> bool:
    """Pick from a small lattice full of ties, of which the picks are known.

    Args:
        device: Where to pick.

    Returns:
        Whether the picks are those of the plain version.
    """
    rows = torch.arange(40, device=device)
    features = torch.stack([rows * 7 % 11, rows * 5 % 7, rows % 3], dim=1).float()[None]
    matrix = (features[0, :, None] - features[0]).square().sum(-1).sqrt()[None]
    known = _KNOWN.to(device)
    return all(
        torch.equal(greedy(given, len(known), are_features=few, weights=None)[0][0], known)
        for given, few in ((features, True), (matrix, False))
    )


def takes(given: Tensor, batch_size: int) -> bool:
    """Tell whether one program has room for such subsets.

    Args:
        given: Features (P, r, d) or distances (P, r, r).
        batch_size: m.

    Returns:
        Whether `greedy` may be asked: for float32, r up to 1024 and m up to 512.
    """
    fits = given.shape[1] <= _MAX_ROWS and batch_size <= _MAX_PICKS
    return fits and given.dtype == torch.float32


def greedy(
    given: Tensor, batch_size: int, *, are_features: bool, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Pick from P subsets at once, as `facility_location` does, without a wait for the device.

    Args:
        given: Features (P, r, d), d few, or distances (P, r, r) that are finite and not negative;
            float32.
        batch_size: m.
        are_features: Which of the two `given` is.
        weights: Of the rows, in (0, 1], shape (P, r), float32; or None.

    Returns:
        Indices and cluster sizes, (P, m).
    """
    num_subsets, r, d = given.shape
    source = given.mT.contiguous() if are_features else given.contiguous()
    padded = max(triton.next_power_of_2(r), 16)
    owners = torch.empty(num_subsets, r, dtype=torch.int32, device=given.device)
    indices = owners.new_empty(num_subsets, batch_size, dtype=torch.int64)
    _pick[(num_subsets,)](
        source,
        source if weights is None else weights.contiguous(),
        owners.new_empty(num_subsets, padded),
        source.new_empty(num_subsets, 2, padded),
        indices,
        owners,
        r,
        d,
        batch_size,
        r.bit_length(),
        ARE_FEATURES=are_features,
        WEIGHTED=weights is not None,
        R=padded,
        ROWS=min(_AT_ONCE // padded, padded),
        num_warps=4 if padded <= _ROWS_OF_FOUR_WARPS else 8,
        enable_fp_fusion=False,  # a fused multiply-add would round otherwise than the plain version
    )
    sizes = torch.zeros_like(indices).scatter_add_(
        1, owners.long(), owners.new_ones(num_subsets, r, dtype=torch.int64)
    )
    return indices, sizes
