"""Distances on a grid, so that their sums are exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["grid_shift", "on_grid"]


def on_grid(distances: Tensor, largest: Tensor) -> Tensor:
    """Round to multiples of a power of two, so fine that sums of r distances are exact in float64.

    Sums then do not depend on their order: equal rows have equal gains, and any version, block size
    and number of threads picks the same rows. For r = 500 the grid is finer than 2^-42 C; a float32
    distance above 2^-19 C lies on it already.

    Args:
        distances: Shape (P, r, r).
        largest: C of each subset or more, shape (P,).

    Returns:
        Rounded distances, same dtype.
    """
    _, exponent = torch.frexp(largest.double())
    exponent = exponent + distances.shape[-1].bit_length()
    # Float64 has 53 bits: added to 2^exponent, a smaller number rounds to units of 2^(exponent-52).
    shift = torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent).view(-1, 1, 1)
    return ((distances.double() + shift) - shift).to(distances.dtype)


def grid_shift(largest: float, num_rows: int, dtype: torch.dtype) -> tuple[float, float]:
    """Give what `on_grid` adds and subtracts, for kernels that stay in the dtype of the distances.

    Args:
        largest: C or more.
        num_rows: r.
        dtype: Float32 or float64.

    Returns:
        The power of two above `largest`; and the shift: a distance v below it becomes
        (v + shift) - shift, and one above lies on the grid.
    """
    exponent = math.frexp(largest)[1]
    mantissa = 23 if dtype == torch.float32 else 52
    return 2.0**exponent, 2.0 ** (exponent + num_rows.bit_length() + mantissa - 52)
