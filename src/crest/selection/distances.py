"""Distances of last-layer gradients, ||g_i - g_j|| of Eq. (5), full gradients never formed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crest.checks import boolean, check, tensor
from crest.selection.kernels.backend import compiled_for

__all__ = ["last_layer_distances", "pairwise_distances"]

# Up to this many features distances are sums of squared differences, always in the same order:
# exact zeros for equal rows, and faster than a matrix product. Above it they come from Gram
# matrices in float64, since ||a||^2 + ||b||^2 - 2 <a, b> cancels: float32 would leave equal rows
# 3e-4 of their norm apart. Nor does the user's matmul precision (TF32, bfloat16) reach float64.
MAX_FEATURES_OF_DIFFERENCES = 32

# A squared distance below this share of ||a||^2 + ||b||^2 is rounding: it counts as zero. The
# distance is then below 5e-7 of the norms, near the rounding of float32 inputs.
CANCELLED = 1e-13


def pairwise_distances(features: Tensor) -> Tensor:
    """Measure the Euclidean distance of each pair of rows.

    The result is symmetric, its diagonal is 0, and so is the distance of equal rows.

    Args:
        features: One row per example, any floating dtype, shape (..., r, d).

    Returns:
        Shape (..., r, r); float64 for float64 features, else float32.

    Raises:
        TypeError: If `features` is no tensor.
        ValueError: If `features` are not rows of finite floating-point numbers.

    Example:
        >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[0., 5.],
                [5., 0.]])
    """
    _check_rows("features", features)
    scaled, scale = scale_down(features, largest_value("features", features))
    distances = distances_of_scaled(scaled)
    return distances if scale == 1 else distances.div_(scale)


def last_layer_distances(errors: Tensor, inputs: Tensor, *, bias: bool = True) -> Tensor:
    """Measure distances of full last-layer gradients without forming them.

    The gradient by weight and bias of a linear head is e (x) [h, 1], so that an inner product of
    two gradients is <e_i, e_j> (<h_i, h_j> + 1): two small Gram matrices give all distances.

    Args:
        errors: Derivatives e of each loss by the head's output, p - y for cross-entropy, any
            floating dtype, shape (..., r, c).
        inputs: Inputs h of the head, same device, shape (..., r, d).
        bias: Whether the head has a bias. Without one the gradient is e (x) h.

    Returns:
        Distances, symmetric with diagonal 0, shape (..., r, r); float64 if either input is, else
        float32.

    Raises:
        TypeError: If an argument is of a wrong kind.
        ValueError: If either is not rows of finite floating-point numbers, or shapes or devices of
            the two differ.

    Example:
        >>> errors = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> last_layer_distances(errors, inputs=torch.tensor([[1.0], [2.0]]))
        tensor([[0., 2.],
                [2., 0.]])
    """
    _check_rows("errors", errors)
    _check_rows("inputs", inputs)
    bias = check("bias", bias, boolean())
    if errors.shape[:-1] != inputs.shape[:-1]:
        raise ValueError(
            "errors and inputs must have one row each per example; got shapes "
            f"{tuple(errors.shape)} and {tuple(inputs.shape)}."
        )
    if errors.device != inputs.device:
        raise ValueError(
            "errors and inputs must be on one device; got "
            f"{errors.device} and {inputs.device}. Move one of them."
        )
    largest_value("inputs", inputs)
    errors, scale = scale_down(errors, largest_value("errors", errors))
    distances = products_of_scaled(errors, inputs, bias=bias)
    return distances if scale == 1 else distances.div_(scale)


def largest_value(name: str, values: Tensor) -> float:
    """Find the largest absolute value, and that all are finite.

    Args:
        name: What the values are called in the error.
        values: Any floating dtype, any shape, not empty.

    Returns:
        The largest absolute value.

    Raises:
        ValueError: If a value is infinite or not a number.
    """
    values = values.detach()
    if values.device.type == "cpu" and values.dtype in {torch.float32, torch.float64}:
        # Not by torch: its threads would go on spinning where the kernels want the cores.
        array = values.numpy()
        least, most = float(array.min()), float(array.max())
    else:
        least, most = (float(extreme) for extreme in torch.aminmax(values))
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(
            f"{name} must be finite; got a nan or infinite value. "
            "Lower lr, or leave out the examples it belongs to."
        )
    return max(-least, most)


def scale_down(features: Tensor, largest: float) -> tuple[Tensor, float]:
    """Bring the largest value near 1 by a power of two, so that no square overflows or vanishes.

    Args:
        features: Any floating dtype, any shape.
        largest: Their largest absolute value.

    Returns:
        Scaled features, float64 if they were, else float32; and the power of two, 1 where the
        values need none.
    """
    features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    if 2.0**-20 <= largest <= 2.0**20:
        return features, 1.0
    limit = 126 if features.dtype == torch.float32 else 1022
    scale = 2.0 ** -max(-limit, min(limit, math.frexp(largest)[1]))
    return features * scale, scale


def distances_of_scaled(features: Tensor) -> Tensor:
    """Measure distances of rows whose squares are sure not to overflow.

    Args:
        features: Float32 or float64, shape (..., r, d).

    Returns:
        Same dtype, shape (..., r, r).
    """
    if features.shape[-1] > MAX_FEATURES_OF_DIFFERENCES:
        centred = features.double()
        centred = centred - centred.mean(-2, keepdim=True)  # a common offset would only cancel
        return _distances_of_products(centred, None, features.dtype)
    compiled = compiled_for(features.device)
    if compiled is not None:
        distances: Tensor = compiled.distances_of_differences(
            features.reshape(-1, *features.shape[-2:])
        )
        return distances.view(*features.shape[:-1], features.shape[-2])
    squares = features.new_zeros(*features.shape[:-1], features.shape[-2])
    for column in features.unbind(-1):
        difference = column.unsqueeze(-1) - column.unsqueeze(-2)
        squares += difference * difference
    # Through float64: torch's square root of float32 is not correctly rounded on every CPU.
    return squares.double().sqrt_().to(features.dtype)


def products_of_scaled(errors: Tensor, inputs: Tensor, *, bias: bool) -> Tensor:
    """Measure distances as `last_layer_distances` does, of errors that are scaled already.

    Args:
        errors: Shape (..., r, c), float32 or float64.
        inputs: Shape (..., r, d), same device.
        bias: Whether the head has one.

    Returns:
        Shape (..., r, r).
    """
    inputs = inputs.detach()
    if bias:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)
    dtype = torch.promote_types(errors.dtype, inputs.dtype)
    return _distances_of_products(errors, inputs, dtype)


def _distances_of_products(features: Tensor, inputs: Tensor | None, dtype: torch.dtype) -> Tensor:
    compiled = compiled_for(features.device)
    if compiled is not None:
        distances: Tensor = compiled.distances_of_products(
            features.reshape(-1, *features.shape[-2:]),
            None if inputs is None else inputs.reshape(-1, *inputs.shape[-2:]),
            CANCELLED,
            dtype,
        )
        return distances.view(*features.shape[:-1], features.shape[-2])
    gram = _gram(features) if inputs is None else _gram(features) * _gram(inputs)
    norms = gram.diagonal(dim1=-2, dim2=-1)
    both = norms.unsqueeze(-1) + norms.unsqueeze(-2)
    squares = both - gram - gram.mT  # symmetric to the bit, as the product need not be
    squares.masked_fill_(squares <= CANCELLED * both, 0)
    return squares.sqrt_().to(dtype)


def _gram(features: Tensor) -> Tensor:
    features = features.double()
    return features @ features.mT


def _check_rows(name: str, rows: Any) -> None:
    check(name, rows, tensor())
    if rows.ndim < 2 or 0 in rows.shape or not rows.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point rows of shape (..., r, d), none of it empty; "
            f"got {rows.dtype} of shape {tuple(rows.shape)}."
        )
