"""Matching pursuit: few gradients whose weighted sum is that of all, with weights of at least 0."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["WeightedRows", "matching_pursuit"]

_ROUNDING = 1e-6  # of the best first fit: below it, what is left of the sum is float32 rounding
_ROWS_AT_ONCE = 8192  # in float64


class WeightedRows(NamedTuple):
    """Rows whose weighted sum stands for the sum of all.

    Attributes:
        indices: Distinct rows, ascending, int64, shape (k,).
        weights: In the scale of the sum, at least 0, float64, shape (k,).
    """

    indices: Tensor
    weights: Tensor


def matching_pursuit(
    gradients: Tensor, size: int, *, inputs: Tensor | None = None, ridge: float = 0.5
) -> WeightedRows:
    """Pick rows and weights x >= 0 for which sum_j x_j g_j is close to sum_i g_i.

    Orthogonal matching pursuit on ||sum_i g_i - sum_j x_j g_j||^2 + ridge ||x||^2: each step adds
    the row that fits best to what is left, then weighs all picked rows anew by non-negative least
    squares on [A; sqrt(ridge) I], the columns of A being the picked rows (Lawson and Hanson's
    active set, stopped at k rows). A row whose weight turns negative leaves and does not return.

    A step costs O(n d + k^2), since the inverse of A^T A + ridge I is kept up to date by rank-one
    terms, both when a row comes and when one leaves; memory is linear in n beside k^2.

    Args:
        gradients: Rows g_i, any floating dtype, shape (n, d). With `inputs`: derivatives e_i by the
            output of a linear head.
        size: Rows to pick, k with 1 <= k <= n.
        inputs: Inputs h_i of the head, shape (n, d'). The rows are then the gradients by weight
            and bias, e_i (x) [h_i, 1], which are never formed.
        ridge: Price of large weights, > 0, in the unit of a squared gradient. GRAD-MATCH takes 0.5.

    Returns:
        Exactly k rows with their weights. Where fewer rows already bring the objective to its
        minimum, the best fitting others complete them with weight 0.

    Raises:
        ValueError: If gradients or inputs are not finite rows, differ in number, or `size` or
            `ridge` is out of its range.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
        >>> indices, weights = matching_pursuit(gradients, 2, ridge=1e-9)
        >>> indices.tolist(), [round(weight, 3) for weight in weights.tolist()]
        ([1, 3], [1.0, 1.667])
    """
    _check(gradients, inputs, size, ridge)
    rows = _Rows(gradients, inputs)
    total = rows.weighted_sum(None, None)
    fits = rows.products(total)
    threshold = _ROUNDING * float(fits.max())
    active = _ActiveSet(size, ridge, fits.device)
    gone = torch.zeros_like(fits, dtype=torch.bool)
    while active.count < size:
        best = int(fits.argmax())
        if not float(fits[best]) > threshold:
            break
        gone[best] = True
        active.add(best, *rows.exact_products(best, active.picks, total))
        active.drop_negative()
        fits = rows.products(total - rows.weighted_sum(active.picks, active.weights))
        fits.masked_fill_(gone, -math.inf)

    picks, weights = active.picks, active.weights
    if len(picks) < size:
        fits = rows.products(total).index_fill_(0, picks, -math.inf)
        others = fits.argsort(descending=True, stable=True)[: size - len(picks)]
        picks = torch.cat([picks, others])
        weights = torch.cat([weights, weights.new_zeros(len(others))])
    order = picks.argsort()
    return WeightedRows(picks[order], weights[order])


class _Rows:
    """Gradients as products e_i (x) h_i; those that are given whole have h_i = 1."""

    def __init__(self, gradients: Tensor, inputs: Tensor | None) -> None:
        dtype = torch.promote_types(gradients.dtype, torch.float32)
        self._errors = gradients.detach().to(dtype)
        ones = self._errors.new_ones(len(gradients), 1)
        self._inputs = ones
        if inputs is not None:
            self._inputs = torch.cat([inputs.detach().to(dtype), ones], dim=1)

    def products(self, vector: Tensor) -> Tensor:
        """Multiply every row by a vector, (c, d'): shape (n,)."""
        vector = vector.to(self._errors.dtype)
        if self._inputs.shape[1] < self._errors.shape[1]:
            return ((self._errors @ vector) * self._inputs).sum(1)
        return ((self._inputs @ vector.T) * self._errors).sum(1)  # the smaller one is written

    def weighted_sum(self, picks: Tensor | None, weights: Tensor | None) -> Tensor:
        """Sum up some rows with their weights, or all rows with weight 1: (c, d'), float64."""
        if picks is None or weights is None:
            parts = zip(
                self._errors.split(_ROWS_AT_ONCE), self._inputs.split(_ROWS_AT_ONCE), strict=True
            )
            return torch.stack(
                [errors.double().T @ inputs.double() for errors, inputs in parts]
            ).sum(0)
        errors = self._errors[picks].double() * weights.unsqueeze(1)
        return errors.T @ self._inputs[picks].double()

    def exact_products(self, row: int, picks: Tensor, total: Tensor) -> tuple[Tensor, float, float]:
        """Multiply a row by some others, by itself and by the sum of all, in float64."""
        errors, inputs = self._errors[row].double(), self._inputs[row].double()
        others = self._errors[picks].double() @ errors
        others *= self._inputs[picks].double() @ inputs
        itself = float(errors.square().sum() * inputs.square().sum())
        return others, itself, float(errors @ total @ inputs)


class _ActiveSet:
    """Picked rows, their least-squares weights, and the inverse of A^T A + ridge I between them."""

    def __init__(self, size: int, ridge: float, device: torch.device) -> None:
        self.count = 0
        self._ridge = ridge
        self._picks = torch.zeros(size, dtype=torch.int64, device=device)
        self._inverse = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._weights = torch.zeros(size, dtype=torch.float64, device=device)  # never negative
        self._solution = torch.zeros_like(self._weights)  # least squares without that bound

    @property
    def picks(self) -> Tensor:
        return self._picks[: self.count]

    @property
    def weights(self) -> Tensor:
        return self._weights[: self.count]

    def add(self, row: int, products: Tensor, square: float, with_total: float) -> None:
        """Border the inverse by one row, and solve anew."""
        s = self.count
        inverse = self._inverse[:s, :s]
        coupling = inverse @ products
        remainder = square + self._ridge - float(coupling @ products)  # at least the ridge
        weight = (with_total - float(products @ self._solution[:s])) / remainder
        inverse.addr_(coupling, coupling, alpha=1 / remainder)
        self._inverse[s, :s] = self._inverse[:s, s] = -coupling / remainder
        self._inverse[s, s] = 1 / remainder
        self._solution[:s] -= weight * coupling
        self._solution[s] = weight
        self._weights[s] = 0
        self._picks[s] = row
        self.count += 1

    def drop_negative(self) -> None:
        """Move the weights towards the solution until all of it is positive, as NNLS does."""
        while self.count:
            weights, solution = self.weights, self._solution[: self.count]
            if float(solution.min()) > 0:
                weights.copy_(solution)
                return
            way = weights / (weights - solution).clamp(min=1e-300)
            way.masked_fill_(solution > 0, math.inf)
            first = int(way.argmin())  # to reach 0
            weights.add_(solution - weights, alpha=float(way[first])).clamp_(min=0)
            self._drop(first)

    def _drop(self, position: int) -> None:
        last = self.count - 1
        for values in (self._picks, self._weights, self._solution, self._inverse, self._inverse.T):
            values[[position, last]] = values[[last, position]]
        column = self._inverse[:last, last]
        pivot = float(self._inverse[last, last])
        self._solution[:last] -= column * (float(self._solution[last]) / pivot)
        self._inverse[:last, :last].addr_(column, column, alpha=-1 / pivot)
        self.count = last


def _check(gradients: Tensor, inputs: Tensor | None, size: int, ridge: float) -> None:
    for name, values in (("gradients", gradients), ("inputs", inputs)):
        if values is None:
            continue
        if values.ndim != 2 or len(values) == 0 or not values.is_floating_point():
            raise ValueError(
                f"{name} must be floating-point rows of shape (n, d); got {values.dtype} of shape "
                f"{tuple(values.shape)}."
            )
        if not torch.isfinite(values).all():
            raise ValueError(
                f"{name} must be finite; got a nan or infinite value. Lower lr, or leave out the "
                "examples it belongs to."
            )
    if inputs is not None and len(inputs) != len(gradients):
        raise ValueError(
            "inputs must have one row for each row of gradients, "
            f"{len(gradients)}; got {len(inputs)}."
        )
    if not 1 <= size <= len(gradients):
        raise ValueError(f"size must be in [1, {len(gradients)}], the rows; got {size}.")
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0; got {ridge}. Take a small one to come near 0.")
