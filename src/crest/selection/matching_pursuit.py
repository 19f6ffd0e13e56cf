"""Matching pursuit: few gradients whose weighted sum is that of all, with weights of at least 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crest.checks import boolean, check, number, tensor, whole

__all__ = ["WeightedRows", "matching_pursuit"]

_RIDGE = number(0, above=True, hint="Take a small one to come near 0.")

_ROWS_AT_ONCE = 8192  # in float64
_SMALL_RIDGE = 1e-6  # of the largest squared gradient: below it 1 / ridge takes too many digits
_SPANNED = 1e-6  # of a squared gradient: one that the picked rows leave less of depends on them
_ROUNDING = 1e-12  # of the best first fit: below it, what is left of the sum is rounding


class WeightedRows(NamedTuple):
    """Rows whose weighted sum stands for the sum of all.

    Attributes:
        indices: Distinct rows, ascending, int64, shape (k,).
        weights: In the scale of the sum, at least 0, float64, shape (k,).
    """

    indices: Tensor
    weights: Tensor


def matching_pursuit(
    gradients: Tensor,
    size: int,
    *,
    inputs: Tensor | None = None,
    bias: bool = True,
    ridge: float = 0.5,
) -> WeightedRows:
    """Pick rows and weights x >= 0 for which sum_j x_j g_j is close to sum_i g_i.

    Orthogonal matching pursuit on ||sum_i g_i - sum_j x_j g_j||^2 + ridge ||x||^2: each step adds
    the row that fits best to what is left, then weighs all picked rows anew by non-negative least
    squares on [A; sqrt(ridge) I], the columns of A being the picked rows (Lawson and Hanson's
    active set, stopped at k rows). A row whose weight turns negative leaves and does not return.

    A step costs O(n d + k^2), since the inverse of A^T A + ridge I is kept up to date by rank-one
    terms, both when a row comes and when one leaves; memory is linear in n beside k^2. Where
    gradients have fewer dimensions than there are picks, and the ridge is not tiny, it is the
    inverse of A A^T + ridge I that is kept: the same least squares for d^2 in place of k^2.

    Args:
        gradients: Rows g_i, any floating dtype, shape (n, d). With `inputs`: derivatives e_i by the
            output of a linear head.
        size: Rows to pick, k with 1 <= k <= n.
        inputs: Inputs h_i of the head, shape (n, d'). The rows are then the gradients by weight
            and bias, e_i (x) [h_i, 1], which are never formed.
        bias: Whether the head has a bias. Without one the rows are e_i (x) h_i.
        ridge: Price of large weights, > 0, in the unit of a squared gradient. GRAD-MATCH takes 0.5.

    Returns:
        Exactly k rows with their weights. Where fewer rows already match the sum to rounding, the
        best fitting others complete them with weight 0; so they do where the ridge is below a
        millionth of a squared gradient and all other rows depend, nearly, on those picked.

    Raises:
        TypeError: If an argument is of a wrong kind.
        ValueError: If gradients or inputs are not finite rows, differ in number, or `size` or
            `ridge` is out of its range.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
        >>> indices, weights = matching_pursuit(gradients, 2, ridge=1e-9)
        >>> indices.tolist(), [round(weight, 3) for weight in weights.tolist()]
        ([1, 3], [1.0, 1.667])
    """
    size, bias, ridge = _check(gradients, inputs, size, bias, ridge)
    rows = _Rows(gradients, inputs, bias)
    total = rows.sum()
    fits = rows.products(total)
    few_dimensions = total.numel() < size and ridge > _SMALL_RIDGE * rows.largest_square()
    threshold = _ROUNDING * float(fits.max())
    active = (_FewDimensions if few_dimensions else _FewPicks)(rows, total, size, ridge)
    gone = torch.zeros_like(fits, dtype=torch.bool)
    while active.count < size:
        best = int(fits.argmax())
        if not float(fits[best]) > threshold:
            break
        gone[best] = True
        if not active.add(best):
            fits[best] = -math.inf
            continue
        active.drop_negative()
        fits = rows.products(total - active.weighted_sum())
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

    def __init__(self, gradients: Tensor, inputs: Tensor | None, bias: bool) -> None:
        dtype = torch.promote_types(gradients.dtype, torch.float32)
        self._errors = gradients.detach().to(dtype)
        ones = self._errors.new_ones(len(gradients), 1)
        self._inputs = ones
        if inputs is not None:
            self._inputs = inputs.detach().to(dtype)
            if bias:
                self._inputs = torch.cat([self._inputs, ones], dim=1)

    def products(self, vector: Tensor) -> Tensor:
        """Multiply every row by a vector, (c, d'): shape (n,)."""
        vector = vector.to(self._errors.dtype)
        if self._inputs.shape[1] < self._errors.shape[1]:
            return ((self._errors @ vector) * self._inputs).sum(1)
        return ((self._inputs @ vector.T) * self._errors).sum(1)  # the smaller one is written

    def sum(self) -> Tensor:
        """Sum up all rows: (c, d'), float64."""
        parts = zip(
            self._errors.split(_ROWS_AT_ONCE), self._inputs.split(_ROWS_AT_ONCE), strict=True
        )
        return torch.stack([errors.double().T @ inputs.double() for errors, inputs in parts]).sum(0)

    def largest_square(self) -> float:
        """Largest squared norm of a row."""
        return float((self._errors.square().sum(1) * self._inputs.square().sum(1)).max())

    def exact(self, rows: Tensor | int) -> tuple[Tensor, Tensor]:
        """Give both factors of some rows, or of one, in float64."""
        return self._errors[rows].double(), self._inputs[rows].double()


class _ActiveSet(ABC):
    """Picked rows and their non-negative least-squares weights."""

    def __init__(self, rows: _Rows, total: Tensor, size: int) -> None:
        self.count = 0
        self._rows = rows
        self._total = total
        self._picks = torch.zeros(size, dtype=torch.int64, device=total.device)
        self._weights = total.new_zeros(size)  # never negative
        self._solution = total.new_zeros(size)  # least squares without that bound

    @property
    def picks(self) -> Tensor:
        return self._picks[: self.count]

    @property
    def weights(self) -> Tensor:
        return self._weights[: self.count]

    def add(self, row: int) -> bool:
        """Take one more row in, with weight 0, and solve; unless it depends on the others."""
        self._picks[self.count] = row
        self._weights[self.count] = 0
        self.count += 1
        solved = self._solve_with_last()
        self.count -= not solved
        return solved

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
            for values in self._by_pick():
                values[[first, self.count - 1]] = values[[self.count - 1, first]]
            self.count -= 1
            self._solve_without_last()

    def weighted_sum(self) -> Tensor:
        """Sum up the picked rows with their weights: (c, d'), float64."""
        errors, inputs = self._factors()
        return (errors * self.weights.unsqueeze(1)).T @ inputs

    @abstractmethod
    def _factors(self) -> tuple[Tensor, Tensor]:
        """Both factors of the picked rows, in float64."""

    @abstractmethod
    def _by_pick(self) -> tuple[Tensor, ...]:
        """Give all that has one row for each pick."""

    @abstractmethod
    def _solve_with_last(self) -> bool:
        """Bring the solution up to date after the last row came, if that can be done exactly."""

    @abstractmethod
    def _solve_without_last(self) -> None:
        """Bring the solution up to date after the row behind the last one left."""


class _FewPicks(_ActiveSet):
    """Keeps the inverse of A^T A + ridge I, of one row and column for each pick."""

    def __init__(self, rows: _Rows, total: Tensor, size: int, ridge: float) -> None:
        super().__init__(rows, total, size)
        self._ridge = ridge
        self._inverse = total.new_zeros(size, size)

    def _factors(self) -> tuple[Tensor, Tensor]:
        return self._rows.exact(self.picks)

    def _by_pick(self) -> tuple[Tensor, ...]:
        return self._picks, self._weights, self._solution, self._inverse, self._inverse.T

    def _solve_with_last(self) -> bool:
        last = self.count - 1
        errors, inputs = self._rows.exact(int(self._picks[last]))
        others = self._rows.exact(self._picks[:last])
        products = (others[0] @ errors) * (others[1] @ inputs)
        square = float(errors.square().sum() * inputs.square().sum())
        inverse = self._inverse[:last, :last]
        coupling = inverse @ products
        remainder = square + self._ridge - float(coupling @ products)  # at least the ridge
        if remainder < _SPANNED * square:
            return False
        with_total = float(errors @ self._total @ inputs)
        weight = (with_total - float(products @ self._solution[:last])) / remainder
        inverse.addr_(coupling, coupling, alpha=1 / remainder)
        self._inverse[last, :last] = self._inverse[:last, last] = -coupling / remainder
        self._inverse[last, last] = 1 / remainder
        self._solution[:last] -= weight * coupling
        self._solution[last] = weight
        return True

    def _solve_without_last(self) -> None:
        left = self.count
        column = self._inverse[:left, left]
        pivot = float(self._inverse[left, left])
        self._solution[:left] -= column * (float(self._solution[left]) / pivot)
        self._inverse[:left, :left].addr_(column, column, alpha=-1 / pivot)


class _FewDimensions(_ActiveSet):
    """Keeps the inverse of A A^T + ridge I, of one row and column for each dimension.

    The solution is A^T z with z = (A A^T + ridge I)^-1 b, b the sum of all rows.
    """

    def __init__(self, rows: _Rows, total: Tensor, size: int, ridge: float) -> None:
        super().__init__(rows, total, size)
        self._inverse = torch.eye(total.numel(), dtype=total.dtype, device=total.device) / ridge
        self._errors = total.new_zeros(size, total.shape[0])
        self._inputs = total.new_zeros(size, total.shape[1])

    def _factors(self) -> tuple[Tensor, Tensor]:
        return self._errors[: self.count], self._inputs[: self.count]

    def _by_pick(self) -> tuple[Tensor, ...]:
        return self._picks, self._weights, self._solution, self._errors, self._inputs

    def _solve_with_last(self) -> bool:
        last = self.count - 1
        self._errors[last], self._inputs[last] = self._rows.exact(int(self._picks[last]))
        self._change(last, 1.0)
        return True

    def _solve_without_last(self) -> None:
        self._change(self.count, -1.0)

    def _change(self, position: int, sign: float) -> None:
        gradient = torch.outer(self._errors[position], self._inputs[position]).flatten()
        coupling = self._inverse @ gradient
        pivot = 1 + sign * float(gradient @ coupling)
        self._inverse.addr_(coupling, coupling, alpha=-sign / pivot)
        z = (self._inverse @ self._total.flatten()).view_as(self._total)
        errors, inputs = self._factors()
        self._solution[: self.count] = ((errors @ z) * inputs).sum(1)


def _check(
    gradients: Any, inputs: Any, size: Any, bias: Any, ridge: Any
) -> tuple[int, bool, float]:
    for name, values in (("gradients", gradients), ("inputs", inputs)):
        if values is None and name == "inputs":
            continue
        check(name, values, tensor())
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
    n = len(gradients)
    return (
        check("size", size, whole(1, n, f"in [1, {n}], the rows")),
        check("bias", bias, boolean()),
        check("ridge", ridge, _RIDGE),
    )
