"""Facility location over one large set, in memory linear in its rows: exact, or stochastic.

Distances are rebuilt where they are needed. Exact greedy needs those of the rows that a pick comes
closer to, some 2 + ln(m) times each in all; stochastic greedy those of ln(10) r / m random
candidates per pick (Mirzasoleiman et al., Lazier than lazy greedy, AAAI 2015), ln(10) r^2 in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from crest.selection.distances import (
    CANCELLED,
    MAX_FEATURES_OF_DIFFERENCES,
)
from crest.selection.grid import grid_shift
from crest.selection.kernels.backend import compiled_for

__all__ = ["pick_from_large_set"]

_ENTRIES_AT_ONCE = 2**22
_CANDIDATES_PER_SHARE = math.log(10)  # times r / m: loses 1/10 of the best on average


class _Rows(Protocol):
    """What greedy asks of the set: see `_Plain`, and `Rebuilt` of the compiled kernels."""

    owner: Tensor

    def first_gains(self) -> Tensor: ...
    def come_closer(self, pick: int, step: int) -> int: ...
    def lower(self, gains: Tensor, count: int) -> None: ...
    def left_with(self, candidates: Tensor) -> Tensor: ...


def pick_from_large_set(
    given: Tensor,
    batch_size: int,
    are_features: bool,
    weights: Tensor | None,
    stochastic: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Pick from P subsets, one after the other.

    Args:
        given: Features (P, r, d) or distances (P, r, r).
        batch_size: m.
        are_features: Which of the two `given` is.
        weights: Of the rows, in (0, 1], shape (P, r), or None.
        stochastic: Whether to look at random candidates only.
        generator: Chooses them; torch's default if None.

    Returns:
        Indices and cluster sizes, (P, m).
    """
    subsets = []
    for p in range(len(given)):
        every_weight = given.new_ones(given.shape[1]) if weights is None else weights[p]
        rows = _rows(given[p], are_features, every_weight)
        picks = _stochastic(rows, batch_size, generator) if stochastic else _exact(rows, batch_size)
        indices = torch.tensor(picks, device=given.device)
        rows.owner[indices] = torch.arange(batch_size, device=given.device)
        subsets.append((indices, rows.owner.bincount(minlength=batch_size)))
    all_indices, all_sizes = zip(*subsets, strict=True)
    return torch.stack(all_indices), torch.stack(all_sizes)


def _exact(rows: _Rows, batch_size: int) -> list[int]:
    gains = rows.first_gains()
    picks: list[int] = []
    for step in range(batch_size):
        picks.append(int(gains.argmax()))
        rows.lower(gains, rows.come_closer(picks[-1], step))
        gains[picks[-1]] = -1
    return picks


def _stochastic(rows: _Rows, batch_size: int, generator: torch.Generator | None) -> list[int]:
    device = rows.owner.device
    remaining = torch.arange(len(rows.owner), device=device)
    sample_size = math.ceil(len(remaining) / batch_size * _CANDIDATES_PER_SHARE)
    picks: list[int] = []
    for step in range(batch_size):
        candidates = remaining
        if sample_size < len(remaining):
            drawn = torch.randint(
                len(remaining),
                (sample_size,),
                generator=generator,
                device=None if generator is None else generator.device,
            )
            candidates = remaining[drawn.to(device)].unique()  # sorted: ties to the lowest row
        picks.append(int(candidates[rows.left_with(candidates).argmin()]))
        rows.come_closer(picks[-1], step)
        remaining = remaining[remaining != picks[-1]]
    return picks


def _rows(given: Tensor, are_features: bool, weights: Tensor) -> _Rows:
    if not are_features:
        empty, _ = grid_shift(float(given.max()), len(given), given.dtype)
        return _Plain(lambda rows: given[rows], weights, empty)
    sides = given.amax(0).double() - given.amin(0).double()
    largest = float(torch.linalg.vector_norm(sides)) * (1 + 1e-6)  # no distance is above
    empty, shift = grid_shift(largest, len(given), given.dtype)
    compiled = compiled_for(given.device)
    if given.shape[1] > MAX_FEATURES_OF_DIFFERENCES:
        return _Plain(_products(given), weights, empty)
    if compiled is not None:
        rebuilt: _Rows = compiled.Rebuilt(given, weights, empty, shift)
        return rebuilt
    return _Plain(_differences(given), weights, empty)


def _differences(features: Tensor) -> Callable[[Tensor], Tensor]:
    def distances(rows: Tensor) -> Tensor:
        squares = features.new_zeros(len(rows), len(features))
        for column in features.unbind(1):
            difference = column[rows].unsqueeze(1) - column
            squares += difference * difference
        return squares.double().sqrt_().to(features.dtype)

    return distances


def _products(features: Tensor) -> Callable[[Tensor], Tensor]:
    doubles = features.double()
    centred = doubles - doubles.mean(0)  # not in place: float64 is no copy
    norms = centred.square().sum(1)

    def distances(rows: Tensor) -> Tensor:
        both = norms[rows].unsqueeze(1) + norms
        squares = torch.addmm(both, centred[rows], centred.T, alpha=-2)
        squares.masked_fill_(squares <= CANCELLED * both, 0)
        squares[torch.arange(len(rows)), rows] = 0
        return squares.sqrt_().to(features.dtype)

    return distances


class _Plain:
    """Gains of all candidates, in torch.

    Args:
        distances: Gives those of some rows to all: (k,) -> (k, r).
        weights: Of the rows, in (0, 1], shape (r,).
        empty: Power of two above the largest distance; what a row is away from no pick.
    """

    def __init__(
        self, distances: Callable[[Tensor], Tensor], weights: Tensor, empty: float
    ) -> None:
        self._distances = distances
        self._weights = weights
        self._shift = empty * 2.0 ** len(weights).bit_length()  # see `grid.on_grid`
        self._nearest = torch.full_like(weights, empty)
        self._closer = torch.arange(len(weights), device=weights.device)
        self._olds = self._nearest
        self._news = torch.zeros_like(weights)
        self.owner = torch.zeros_like(self._closer)

    def first_gains(self) -> Tensor:
        gains = torch.zeros_like(self._nearest, dtype=torch.float64)
        self.lower(gains, len(gains))  # as if each row came from C to 0: minus what it offers
        return gains.neg_()

    def come_closer(self, pick: int, step: int) -> int:
        to_pick = self._distances(self.owner.new_tensor([pick]))[0] * self._weights
        to_pick = self._on_grid(to_pick)
        self._closer = (to_pick < self._nearest).nonzero().squeeze(1)
        self._olds, self._news = self._nearest[self._closer], to_pick[self._closer]
        self._nearest = torch.minimum(self._nearest, to_pick)
        self.owner[self._closer] = step
        return len(self._closer)

    def lower(self, gains: Tensor, count: int) -> None:
        for some in torch.arange(count, device=gains.device).split(self._at_once()):
            rows, olds, news = self._closer[some], self._olds[some, None], self._news[some, None]
            offered = self._on_grid(self._distances(rows) * self._weights[rows, None])
            offered = torch.minimum(torch.maximum(offered, news), olds)
            gains -= olds.double().sum() - offered.sum(0, dtype=torch.float64)

    def left_with(self, candidates: Tensor) -> Tensor:
        parts = []
        for some in candidates.split(self._at_once()):
            to_candidate = self._on_grid(self._distances(some) * self._weights)
            least = torch.minimum(to_candidate, self._nearest)
            parts.append(least.sum(1, dtype=torch.float64))
        return torch.cat(parts)

    def _on_grid(self, distances: Tensor) -> Tensor:
        return ((distances.double() + self._shift) - self._shift).to(distances.dtype)

    def _at_once(self) -> int:
        return max(1, _ENTRIES_AT_ONCE // len(self._weights))
