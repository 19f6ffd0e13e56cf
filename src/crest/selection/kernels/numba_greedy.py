"""Facility location and distances on a CPU, compiled by numba: the plain versions' picks, faster.

A pick changes gains only through the rows that it comes closer to, so each candidate's gain is kept
up to date instead of computed anew: where row i comes closer, from `old` to `new`,

    gain[c] -= max(old - max(D[i, c], new), 0)

A row comes closer about ln(m) times in all, so that all picks cost some 5 r^2 instead of m r^2.
Distances lie on a grid (see `grid.on_grid`), which makes sums in float64 exact: no
drift, and the order of summation is free.

Kernels release the GIL and share the work out to plain Python threads. Threads of numba itself
would survive neither a fork of the process nor two callers at once.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Rebuilt", "distances_of_differences", "distances_of_products", "greedy"]

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")

_COLUMNS_AT_ONCE = 1024  # of four rows, which then stay in the nearest cache
_GAINS_AT_ONCE = 64  # few, to be looked through one by one
_ROWS_AT_ONCE = 96  # of a Gram matrix, whose upper triangle is mirrored
_WORTH_A_THREAD = 2**18  # entries of a distance matrix

# No NaN and no negative zero reach a kernel. Nothing else is promised to the compiler:
# (v + grid) - grid must round, and the order of a distance's terms is that of the plain version.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"nnan", "nsz"}}


def _inline(function: Function) -> Function:
    return cast("Function", numba.njit(function, **_OPTIONS))


def _kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[[Any], Callable[..., Any]]]:
    """Make a function that compiles a kernel for one dtype, once per machine: numba keeps a cache.

    Args:
        signature: With `f` for the floats, and `u` for unsigned integers as wide.

    Returns:
        A decorator, whose result gives the kernel for a dtype.
    """

    def compile_later(function: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
        @functools.cache
        def for_dtype(dtype: Any) -> Callable[..., Any]:
            typed = [re.sub(r"\b([fu])\b", rf"\g<1>{dtype.itemsize}", signature)]
            compiled: Callable[..., Any]
            try:
                compiled = numba.njit(typed, cache=True, nogil=True, **_OPTIONS)(function)
            except RuntimeError:  # no folder for the cache: package and home are read-only
                compiled = numba.njit(typed, nogil=True, **_OPTIONS)(function)
            return compiled

        return for_dtype

    return compile_later


@_inline
def _row_distances(columns: Array, row: int, start: int, out: Array) -> None:
    """Write one row's distances to the examples from `start` on.

    `columns` are the features, transposed, (d', r), with zeros up to an even number.
    """
    n = len(out)
    for k in range(0, len(columns) - 3, 4):
        f0, f1 = columns[k, start : start + n], columns[k + 1, start : start + n]
        f2, f3 = columns[k + 2, start : start + n], columns[k + 3, start : start + n]
        x0, x1, x2, x3 = (
            columns[k, row],
            columns[k + 1, row],
            columns[k + 2, row],
            columns[k + 3, row],
        )
        if k == 0:
            for c in range(n):
                d0, d1, d2, d3 = f0[c] - x0, f1[c] - x1, f2[c] - x2, f3[c] - x3
                out[c] = ((d0 * d0 + d1 * d1) + d2 * d2) + d3 * d3
        else:
            for c in range(n):
                d0, d1, d2, d3 = f0[c] - x0, f1[c] - x1, f2[c] - x2, f3[c] - x3
                out[c] = (((out[c] + d0 * d0) + d1 * d1) + d2 * d2) + d3 * d3
    k = len(columns) - 2
    f0, f1 = columns[k, start : start + n], columns[k + 1, start : start + n]
    x0, x1 = columns[k, row], columns[k + 1, row]
    if k == 0:
        for c in range(n):
            d0, d1 = f0[c] - x0, f1[c] - x1
            out[c] = np.sqrt(d0 * d0 + d1 * d1)
    elif k % 4 == 0:
        for c in range(n):
            d0, d1 = f0[c] - x0, f1[c] - x1
            out[c] = np.sqrt((out[c] + d0 * d0) + d1 * d1)
    else:
        for c in range(n):
            out[c] = np.sqrt(out[c])


@_inline
def _largest(bits: Array) -> Any:
    """Floats that are not negative sort as their bits do, and integers have a vector maximum."""
    largest = bits[0]
    for c in range(len(bits)):
        largest = max(largest, bits[c])
    return largest


@_inline
def _first_of_largest(bits: Array) -> int:
    """Find the largest value block by block, for its place is then sought in one block only."""
    most, first = bits[0], 0
    for begin in range(0, len(bits), _GAINS_AT_ONCE):
        some_most = _largest(bits[begin : begin + _GAINS_AT_ONCE])
        if some_most > most:
            most, first = some_most, begin
    while bits[first] != most:
        first += 1
    return first


@_inline
def _lower_four(
    gains: Array, distances: Array, closer: Array, olds: Array, news: Array, k: int
) -> None:
    """Take from all gains what four rows, which come closer, no longer offer."""
    row0, row1, row2, row3 = closer[k], closer[k + 1], closer[k + 2], closer[k + 3]
    old0, old1, old2, old3 = olds[k], olds[k + 1], olds[k + 2], olds[k + 3]
    new0, new1, new2, new3 = news[k], news[k + 1], news[k + 2], news[k + 3]
    # old - max(D, new), or 0 where D is larger than old, is old - t with t = D in [new, old].
    all_old = (np.float64(old0) + old1) + (np.float64(old2) + old3)
    for c in range(len(gains)):
        t0 = np.float64(min(max(distances[row0, c], new0), old0))
        t1 = np.float64(min(max(distances[row1, c], new1), old1))
        t2 = np.float64(min(max(distances[row2, c], new2), old2))
        t3 = np.float64(min(max(distances[row3, c], new3), old3))
        gains[c] -= all_old - ((t0 + t1) + (t2 + t3))


@_inline
def _count_four(
    counted: Array,
    scale: float,
    distances: Array,
    closer: Array,
    olds: Array,
    news: Array,
    k: int,
) -> None:
    """Add the t of `_lower_four`, scaled to integers, of which a vector holds twice as many."""
    row0, row1, row2, row3 = closer[k], closer[k + 1], closer[k + 2], closer[k + 3]
    old0, old1, old2, old3 = olds[k], olds[k + 1], olds[k + 2], olds[k + 3]
    new0, new1, new2, new3 = news[k], news[k + 1], news[k + 2], news[k + 3]
    for c in range(len(counted)):
        t0 = np.int32(scale * min(max(distances[row0, c], new0), old0))
        t1 = np.int32(scale * min(max(distances[row1, c], new1), old1))
        t2 = np.int32(scale * min(max(distances[row2, c], new2), old2))
        t3 = np.int32(scale * min(max(distances[row3, c], new3), old3))
        counted[c] += (t0 + t1) + (t2 + t3)


@_inline
def _lower_counted(gains: Array, counted: Array, unit: float, all_old: float) -> None:
    """Do as `_lower_four` for all rows that `_count_four` has counted, and begin anew."""
    for c in range(len(gains)):
        gains[c] -= all_old - unit * counted[c]
        counted[c] = 0


@_inline
def _lower(
    gains: Array,
    distances: Array,
    closer: Array,
    olds: Array,
    news: Array,
    count: int,
    least: float,
    counted: Array,
) -> None:
    """Take from all gains what the rows that come closer no longer offer.

    A multiple of four rows, `count`; `least` is the least of `news`. `counted` is zeros, and is
    left so.
    """
    # No t is below `least`, so that each is a multiple of the unit, the last bit of `least`. Where
    # all olds together are below 2^31 units, so are all t, and their sums in int32 are exact.
    exponent = math.frexp(least)[1]
    limit = 128 * np.float64(least)
    if exponent < -100 or distances.itemsize > 4:
        limit = 0.0  # the scale would overflow; or the unit is that of a double
    unit, scale = 2.0 ** (exponent - 24), distances.dtype.type(2.0 ** (24 - exponent))
    all_old = 0.0
    for k in range(0, count, 4):
        more = (np.float64(olds[k]) + olds[k + 1]) + (np.float64(olds[k + 2]) + olds[k + 3])
        if more > limit:
            _lower_four(gains, distances, closer, olds, news, k)
            continue
        if all_old + more > limit:
            _lower_counted(gains, counted, unit, all_old)
            all_old = 0.0
        _count_four(counted, scale, distances, closer, olds, news, k)
        all_old += more
    if all_old > 0:
        _lower_counted(gains, counted, unit, all_old)


@_inline
def _clamp(row: Array, new: float, old: float, out: Array) -> None:
    """Write the t of `_lower_four`. In a loop of its own it fills whole vectors."""
    for c in range(len(row)):
        out[c] = min(max(row[c], new), old)


@_inline
def _lower_clamped(gains: Array, clamped: tuple[Array, ...], olds: Array) -> None:
    """Do as `_lower_four` for rows that `_clamp` has written."""
    t0, t1, t2, t3 = clamped
    all_old = (np.float64(olds[0]) + olds[1]) + (np.float64(olds[2]) + olds[3])
    for c in range(len(gains)):
        gains[c] -= all_old - ((np.float64(t0[c]) + t1[c]) + (np.float64(t2[c]) + t3[c]))


@_inline
def _lower_by_one(gains: Array, row: Array, new: float, old: float) -> None:
    for c in range(len(gains)):
        gains[c] -= np.float64(old) - min(max(row[c], new), old)


@_inline
def _take_in(rows: Array, bits: Array, gains: Array) -> tuple[Any, Any]:
    """Count what a few rows are away from each candidate, and find their extremes.

    Returns:
        Bits of the largest value; and of the least that is not zero, minus one.
    """
    one = bits.dtype.type(1)
    most, least = bits[0, 0], bits.dtype.type(bits[0, 0] - one)  # zero becomes the largest
    for i in range(0, len(rows), 4):
        few = bits[i : i + 4].ravel()  # first in one go, as memory is read best
        for c in range(len(few)):
            most = max(most, few[c])
            least = min(least, bits.dtype.type(few[c] - one))
        if i + 4 <= len(rows):
            row0, row1, row2, row3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
            for c in range(len(gains)):
                v0, v1 = np.float64(row0[c]), np.float64(row1[c])
                v2, v3 = np.float64(row2[c]), np.float64(row3[c])
                gains[c] -= (v0 + v1) + (v2 + v3)
        else:
            for row in rows[i:]:
                for c in range(len(gains)):
                    gains[c] -= row[c]
    return most, least


@_inline
def _weigh_and_round(values: Array, weight: float, grid: float) -> None:
    for c in range(len(values)):
        v = weight * values[c]
        rounded = (v + grid) - grid
        values[c] = rounded if v < grid else v


@_inline
def _bring_to_grid(rows: Array, weights: Array, grid: float, gains: Array) -> None:
    """Weigh distances and round them to the grid, and count anew what they are away."""
    gains[:] = 0
    for i in range(len(rows)):
        row = rows[i]
        _weigh_and_round(row, weights[i] if len(weights) > 0 else row.dtype.type(1), grid)
        for c in range(len(row)):
            gains[c] -= row[c]


@_inline
def _greedy(
    distances: Array, gains: Array, weighted: bool, exponent: int, picks: Array, sizes: Array
) -> None:
    """Pick from one subset, whose distances are on the grid; `gains` hold minus their sums."""
    r = len(distances)
    empty = distances.dtype.type(2.0**exponent)  # stands for C of Eq. (5), which is less
    gains += r * np.float64(empty)
    gain_bits = gains.view(np.int64)
    nearest = np.full(r, empty)
    owner = np.zeros(r, np.int64)
    column = np.empty(r, distances.dtype)
    is_closer = np.zeros(-(-r // 8) * 8, np.uint8)
    words = is_closer.view(np.uint64)
    closer = np.empty(r + 8, np.int64)
    olds = np.empty(r + 3, distances.dtype)
    news = np.empty(r + 3, distances.dtype)
    counted = np.zeros(r, np.int32)
    for step in range(len(picks)):
        pick = _first_of_largest(gain_bits)
        picks[step] = pick
        sizes[step] = 0
        if weighted:
            column[:] = distances[:, pick]
            to_pick = column
        else:
            to_pick = distances[pick]
        for i in range(r):
            is_closer[i] = to_pick[i] < nearest[i]
        is_closer[pick] = 0  # it comes down to 0, and is lowered on its own
        count = 0
        for word in range(len(words)):
            if words[word] == 0:  # as most are
                continue
            for i in range(8 * word, 8 * word + 8):  # without a branch that is hard to foresee
                closer[count] = i
                count += is_closer[i]
        least = empty
        for k in range(count):
            i = closer[k]
            olds[k], news[k] = nearest[i], to_pick[i]
            least = min(least, to_pick[i])
            nearest[i] = to_pick[i]
            owner[i] = step
        old, new = nearest[pick], to_pick[pick]
        nearest[pick] = min(new, old)
        owner[pick] = step  # even where an earlier pick equals it
        if step + 1 == len(picks):
            break
        while count % 4 > 0:  # rows that lose nothing
            closer[count], olds[count], news[count] = pick, least, least
            count += 1
        _lower(gains, distances, closer, olds, news, count, least, counted)
        _lower_by_one(gains, distances[pick], new, old)
        gains[pick] = -1  # and stays there: where every row is at least as near, nothing is lost
    for i in range(r):
        sizes[owner[i]] += 1


@_inline
def _exponent(largest: int, itemsize: int) -> int:
    """Give the least power of two above a number, from its bits."""
    mantissa, bias = (23, 126) if itemsize == 4 else (52, 1022)
    return int(np.int64(np.uint64(largest) >> np.uint64(mantissa)) - bias)


@_inline
def _grid(exponent: int, r_bits: int, itemsize: int) -> float:
    return 2.0 ** (exponent + r_bits - (29 if itemsize == 4 else 0))


@_inline
def _all_on_grid(least: Any, exponent: int, r_bits: int, itemsize: int) -> bool:
    """Tell from the bits of the least distance, minus one, whether rounding changes none."""
    # A float that is not below the grid's number has no finer bits.
    mantissa, bias = (23, 127) if itemsize == 4 else (52, 1023)
    biased = exponent + r_bits - (29 if itemsize == 4 else 0) + bias
    return biased > 0 and np.uint64(least) >= (
        np.uint64(biased) << np.uint64(mantissa)
    ) - np.uint64(1)


@_kernel("void(f[:,:,::1], f[:,::1], f[:,::1], u[:,::1], i8, i8[:,::1], i8[:,::1])")
def _greedy_of_features(
    columns: Array,
    weights: Array,
    room: Array,
    room_bits: Array,
    r_bits: int,
    picks: Array,
    sizes: Array,
) -> None:
    r = len(room)
    gains = np.empty(r)
    for p in range(len(columns)):
        gains[:] = 0
        most = room_bits.dtype.type(0)
        least = room_bits.dtype.type(most - room_bits.dtype.type(1))
        for begin in range(0, r, 4):  # while they are in the cache
            end = min(begin + 4, r)
            for i in range(begin, end):
                _row_distances(columns[p], i, 0, room[i])
            some_most, some_least = _take_in(room[begin:end], room_bits[begin:end], gains)
            most, least = max(most, some_most), min(least, some_least)
        exponent = _exponent(most, room.itemsize)
        weight = weights[p if len(weights) > 1 else 0]
        weighted = len(weight) > 0
        if weighted or not _all_on_grid(least, exponent, r_bits, room.itemsize):
            grid = room.dtype.type(_grid(exponent, r_bits, room.itemsize))
            _bring_to_grid(room, weight, grid, gains)
        _greedy(room, gains, weighted, exponent, picks[p], sizes[p])


@_kernel("b1(f[:,:,::1], u[:,:,::1], f[:,::1], i8, i8[:,::1], i8[:,::1])")
def _greedy_of_distances(
    distances: Array, bits: Array, weights: Array, r_bits: int, picks: Array, sizes: Array
) -> bool:
    r = distances.shape[1]
    gains = np.empty(r)
    room = np.empty((0, r), distances.dtype)
    for p in range(len(distances)):
        gains[:] = 0
        most, least = _take_in(distances[p], bits[p], gains)
        exponent = _exponent(most, room.itemsize)
        if exponent > (126 if room.itemsize == 4 else 1022):
            return False  # the bits of negative, infinite and nan values are above all others
        weight = weights[p if len(weights) > 1 else 0]
        weighted = len(weight) > 0
        if weighted or not _all_on_grid(least, exponent, r_bits, room.itemsize):
            if len(room) == 0:
                room = np.empty((r, r), distances.dtype)
            grid = room.dtype.type(_grid(exponent, r_bits, room.itemsize))
            room[:] = distances[p]
            _bring_to_grid(room, weight, grid, gains)
            _greedy(room, gains, weighted, exponent, picks[p], sizes[p])
        else:
            _greedy(distances[p], gains, weighted, exponent, picks[p], sizes[p])
    return True


def greedy(
    given: Tensor, batch_size: int, *, are_features: bool, weights: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Pick from P subsets at once, as `facility_location` does.

    Args:
        given: Features (P, r, d), d few, or distances (P, r, r); float32 or float64.
        batch_size: m.
        are_features: Which of the two `given` is.
        weights: Of the rows, in (0, 1], shape (P, r), same dtype; or None.

    Returns:
        Indices and cluster sizes, (P, m); or None if a distance is negative or not finite, -0.0
        being negative.
    """
    num_subsets, r, _ = given.shape
    source = _transposed(given) if are_features else given.contiguous().numpy()
    scale = np.zeros((1, 0), source.dtype) if weights is None else weights.contiguous().numpy()
    indices = np.empty((num_subsets, batch_size), np.int64)
    sizes = np.empty_like(indices)

    kernel = (_greedy_of_features if are_features else _greedy_of_distances)(source.dtype)
    integer = np.uint32 if source.itemsize == 4 else np.uint64

    def run(some: slice) -> bool:
        weight = scale if weights is None else scale[some]
        rest = (r.bit_length(), indices[some], sizes[some])
        if are_features:
            room = np.empty((r, r), source.dtype)  # one matrix per thread, which stays in its cache
            kernel(source[some], weight, room, room.view(integer), *rest)
            return True
        return bool(kernel(source[some], source[some].view(integer), weight, *rest))

    if not all(_in_threads(run, num_subsets, num_subsets * r * r)):
        return None
    return torch.from_numpy(indices), torch.from_numpy(sizes)


@_kernel("void(f[:,:,::1], f[:,:,::1], i8, i8)")
def _fill(columns: Array, out: Array, start: int, stop: int) -> None:
    r = out.shape[1]
    for k in range(start, stop):
        _row_distances(columns[k // r], k % r, 0, out[k // r, k % r])


def distances_of_differences(features: Tensor) -> Tensor:
    """Measure the distance of each pair of rows from their differences.

    Args:
        features: (P, r, d), d few; float32 or float64.

    Returns:
        (P, r, r), same dtype.
    """
    columns = _transposed(features)
    num_subsets, r, _ = features.shape
    out = features.new_empty(num_subsets, r, r)
    matrix = out.numpy()
    fill = _fill(matrix.dtype)

    def run(some: slice) -> None:
        fill(columns, matrix, some.start, some.stop)

    _in_threads(run, num_subsets * r, num_subsets * r * r)
    return out


@_inline
def _sum_of_least(values: Array, nearest: Array) -> float:
    total = 0.0
    for c in range(len(values)):
        total += min(values[c], nearest[c])
    return total


@_kernel("i8(f[:,::1], f[::1], f, i8, i8, f[::1], i8[::1], i8[::1], f[::1], f[::1])")
def _come_closer(
    columns: Array,
    weights: Array,
    grid: float,
    pick: int,
    step: int,
    nearest: Array,
    owner: Array,
    closer: Array,
    olds: Array,
    news: Array,
) -> int:
    to_pick = np.empty_like(nearest)
    _row_distances(columns, pick, 0, to_pick)
    to_pick *= weights
    _weigh_and_round(to_pick, nearest.dtype.type(1), grid)
    count = 0
    for i in range(len(nearest)):
        if to_pick[i] < nearest[i]:
            closer[count], olds[count], news[count] = i, nearest[i], to_pick[i]
            nearest[i] = to_pick[i]
            owner[i] = step
            count += 1
    return count


@_kernel("void(f[:,::1], f[::1], f, i8[::1], f[::1], f[::1], i8, f8[::1], i8, i8)")
def _lower_rebuilt(
    columns: Array,
    weights: Array,
    grid: float,
    closer: Array,
    olds: Array,
    news: Array,
    count: int,
    gains: Array,
    start: int,
    stop: int,
) -> None:
    # One array per row: slices of a matrix would lose the unit stride that vectors need.
    room = (
        np.empty(_COLUMNS_AT_ONCE, columns.dtype),
        np.empty(_COLUMNS_AT_ONCE, columns.dtype),
        np.empty(_COLUMNS_AT_ONCE, columns.dtype),
        np.empty(_COLUMNS_AT_ONCE, columns.dtype),
    )
    for begin in range(start, stop, _COLUMNS_AT_ONCE):
        end = min(begin + _COLUMNS_AT_ONCE, stop)
        n = end - begin
        rows = (room[0][:n], room[1][:n], room[2][:n], room[3][:n])
        for k in range(0, count - 3, 4):
            for j in range(4):
                row = closer[k + j]
                _row_distances(columns, row, begin, rows[j])
                _weigh_and_round(rows[j], weights[row], grid)
                _clamp(rows[j], news[k + j], olds[k + j], rows[j])
            _lower_clamped(gains[begin:end], rows, olds[k : k + 4])
        for k in range(count - count % 4, count):
            row = closer[k]
            _row_distances(columns, row, begin, rows[0])
            _weigh_and_round(rows[0], weights[row], grid)
            _lower_by_one(gains[begin:end], rows[0], news[k], olds[k])


@_kernel("void(f[:,::1], f[::1], f, i8[::1], f[::1], f8[::1], i8, i8)")
def _sum_left(
    columns: Array,
    weights: Array,
    grid: float,
    candidates: Array,
    nearest: Array,
    left: Array,
    start: int,
    stop: int,
) -> None:
    room = np.empty(_COLUMNS_AT_ONCE, columns.dtype)
    for k in range(start, stop):
        left[k] = 0
    for begin in range(0, len(nearest), _COLUMNS_AT_ONCE):
        end = min(begin + _COLUMNS_AT_ONCE, len(nearest))
        row = room[: end - begin]
        for k in range(start, stop):
            _row_distances(columns, candidates[k], begin, row)
            for c in range(end - begin):
                row[c] *= weights[begin + c]
            _weigh_and_round(row, row.dtype.type(1), grid)
            left[k] += _sum_of_least(row, nearest[begin:end])


class Rebuilt:
    """The gains of all candidates of one large set, whose distances are rebuilt where needed.

    Args:
        features: (r, d), d few; float32 or float64.
        weights: Of the rows, in (0, 1], shape (r,), same dtype.
        empty: Power of two above the largest distance; what a row is away from no pick.
        grid: See `grid.grid_shift`.
    """

    def __init__(self, features: Tensor, weights: Tensor, empty: float, grid: float) -> None:
        r = len(features)
        self._columns = _transposed(features.unsqueeze(0))[0]
        self._dtype = self._columns.dtype
        self._weights = weights.contiguous().numpy()
        self._grid = self._dtype.type(grid)
        self._nearest = np.full(r, empty, self._dtype)
        self._closer = np.arange(r)
        self._olds = self._nearest.copy()
        self._news = np.zeros(r, self._dtype)
        self.owner = torch.zeros(r, dtype=torch.int64)

    def first_gains(self) -> Tensor:
        """Give each candidate's gain over no pick.

        Returns:
            Float64, (r,).
        """
        gains = torch.zeros(len(self._nearest), dtype=torch.float64)
        self.lower(gains, len(gains))  # as if each row came from C to 0: minus what it offers
        return gains.neg_()

    def come_closer(self, pick: int, step: int) -> int:
        """Bring rows to a pick that is nearer than those before.

        Args:
            pick: The row.
            step: Its place in the order of picking.

        Returns:
            How many rows come closer.
        """
        count: int = _come_closer(self._dtype)(
            self._columns,
            self._weights,
            self._grid,
            pick,
            step,
            self._nearest,
            self.owner.numpy(),
            self._closer,
            self._olds,
            self._news,
        )
        return count

    def lower(self, gains: Tensor, count: int) -> None:
        """Take from the gains what the rows that came closer no longer offer.

        Args:
            gains: Changed in place, (r,).
            count: As `come_closer` gave it.
        """
        array = gains.numpy()
        lower = _lower_rebuilt(self._dtype)

        def run(some: slice) -> None:
            lower(
                self._columns,
                self._weights,
                self._grid,
                self._closer,
                self._olds,
                self._news,
                count,
                array,
                some.start,
                some.stop,
            )

        _in_threads(run, len(gains), count * len(gains))

    def left_with(self, candidates: Tensor) -> Tensor:
        """Measure the sum of Eq. (5) with each of some candidates added.

        Args:
            candidates: Rows, (s,).

        Returns:
            Float64, (s,).
        """
        rows = candidates.numpy()
        left = np.empty(len(rows))
        sum_left = _sum_left(self._dtype)

        def run(some: slice) -> None:
            sum_left(
                self._columns,
                self._weights,
                self._grid,
                rows,
                self._nearest,
                left,
                some.start,
                some.stop,
            )

        _in_threads(run, len(rows), len(rows) * len(self._nearest))
        return torch.from_numpy(left)


@_kernel("void(f8[:,::1], f8[:,::1], b1, f8, f[:,::1])")
def _distances_of_gram(
    gram: Array, inputs: Array, with_inputs: bool, cancelled: float, out: Array
) -> None:
    r = len(gram)
    norms = np.empty(r)
    for i in range(r):
        norms[i] = gram[i, i] * inputs[i, i] if with_inputs else gram[i, i]
    for begin in range(0, r, _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, r)
        for i in range(begin, end):
            for j in range(i):
                both = norms[i] + norms[j]
                inner = gram[i, j] * inputs[i, j] if with_inputs else gram[i, j]
                square = both - 2 * inner
                out[i, j] = np.sqrt(square if square > cancelled * both else 0.0)
            out[i, i] = 0
        for j in range(end):
            for i in range(max(begin, j + 1), end):
                out[j, i] = out[i, j]


def distances_of_products(
    features: Tensor, inputs: Tensor | None, cancelled: float, dtype: torch.dtype
) -> Tensor:
    """Measure distances from Gram matrices, of which only the lower triangle is computed.

    Args:
        features: (P, r, d).
        inputs: Factors of the features where these are errors, (P, r, d'), or None.
        cancelled: Share of both squared norms below which a squared distance is rounding.
        dtype: Of the result.

    Returns:
        (P, r, r).
    """
    num_subsets, r, _ = features.shape
    together = min(num_subsets, torch.get_num_threads())  # products run one by one in all threads
    out = torch.empty(num_subsets, r, r, dtype=dtype)
    matrix = out.numpy()
    to_distances = _distances_of_gram(matrix.dtype)
    gram = torch.empty(together, r, r, dtype=torch.float64)
    second = gram if inputs is None else torch.empty_like(gram)
    grams, seconds = gram.numpy(), second.numpy()
    for first in range(0, num_subsets, together):
        count = min(together, num_subsets - first)
        for k in range(count):
            _lower_gram(features[first + k], gram[k])
            if inputs is not None:
                _lower_gram(inputs[first + k], second[k])

        def run(some: slice, first: int = first) -> None:
            for k in range(some.start, some.stop):
                to_distances(
                    grams[k],
                    seconds[k],
                    inputs is not None,
                    cancelled,
                    matrix[first + k],
                )

        _in_threads(run, count, count * r * r)
    return out


def _lower_gram(rows: Tensor, out: Tensor) -> None:
    rows = rows.double()
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        end = begin + _ROWS_AT_ONCE
        torch.mm(rows[begin:end], rows[:end].T, out=out[begin:end, :end])


def _transposed(features: Tensor) -> Array:
    """Lay features out as the kernels read them.

    Args:
        features: (P, r, d).

    Returns:
        (P, d', r), d' the next even number, filled up with zeros.
    """
    rows = features.numpy()
    num_subsets, r, d = rows.shape
    columns = np.zeros((num_subsets, d + d % 2, r), rows.dtype)
    columns[:, :d] = rows.transpose(0, 2, 1)
    return columns


def _in_threads(run: Callable[[slice], Result], count: int, entries: int) -> list[Result]:
    """Share work out to as many threads as torch would use.

    Args:
        run: Does the pieces of a slice. It must not call torch, which would set up threads of its
            own in each new thread.
        count: Pieces of work.
        entries: Of distance matrices in all of them: few are not worth a thread.

    Returns:
        What each call of `run` returned.
    """
    threads = min(torch.get_num_threads(), count, max(1, entries // _WORTH_A_THREAD))
    if threads == 1:
        return [run(slice(0, count))]
    bounds = [count * k // threads for k in range(threads + 1)]
    pool = _pool(threads - 1, os.getpid())
    slices = [slice(*both) for both in pairwise(bounds)]
    others = [pool.submit(run, some) for some in slices[1:]]
    try:
        first = run(slices[0])
    finally:
        wait(others)  # they write into arrays of the caller
    return [first, *(other.result() for other in others)]


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Keep threads from call to call. They stay behind in a fork, whose `process` is another."""
    return ThreadPoolExecutor(threads)
