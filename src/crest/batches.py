"""Weights: attached to the batches of any loader, and averaged with in the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from crest.checks import check, tensor

__all__ = ["Attach", "weighted_mean", "with_weights"]

_TENSOR = tensor()

Attach = Callable[[Any, Tensor, Tensor], Any]


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Average per-example losses with the weights of a batch.

    The sum is divided by m, not by the sum of the weights: both agree, as weights have mean 1.

    Args:
        losses: One loss per example, shape (m,).
        weights: Weights from the loader, shape (m,).

    Returns:
        Scalar to call `backward()` on.

    Raises:
        TypeError: If either is no tensor.
        ValueError: If the shapes differ, or the losses are a scalar, none at all, or no
            floating-point numbers.

    Example:
        >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.5, 0.5]))
        tensor(1.5000)
    """
    check("losses", losses, _TENSOR)
    check("weights", weights, _TENSOR)
    if losses.ndim == 0:
        raise ValueError(
            "losses must be one per example, not their mean; got a scalar. "
            'Set reduction="none" in the loss.'
        )
    if losses.shape != weights.shape:
        raise ValueError(
            f"losses must have the shape of the weights, {tuple(weights.shape)}; "
            f"got {tuple(losses.shape)}."
        )
    if losses.numel() == 0 or not losses.is_floating_point():
        raise ValueError(
            "losses must be floating-point numbers, one at least; got "
            f"{losses.dtype} of shape {tuple(losses.shape)}."
        )
    return (losses * weights.to(losses)).mean()


def with_weights(batch: Any, weights: Tensor, indices: Tensor, attach: Attach | None) -> Any:
    """Dress a collated batch for the loop.

    Args:
        batch: As the user's collate_fn makes it.
        weights: Of its examples, shape (m,).
        indices: Which examples they are, int64, shape (m,).
        attach: The user's own way to do it.

    Returns:
        A tuple with the weights behind it, or a mapping with `sample_weight` and `sample_index`,
        on the device of the batch.

    Raises:
        TypeError: If the batch is neither, and `attach` is None.
    """
    weights = weights.to(_device(batch))
    if attach is not None:
        return attach(batch, weights, indices)
    if isinstance(batch, (tuple, list)):
        return (*batch, weights)
    if isinstance(batch, MutableMapping):
        batch = copy.copy(batch)
        batch["sample_weight"] = weights
        batch["sample_index"] = indices.to(weights.device)
        return batch
    raise TypeError(
        "batches must be tuples, lists or dicts to take weights; got "
        f"{type(batch).__name__}. Pass attach=, a function of (batch, weights, indices)."
    )


def _device(batch: Any) -> torch.device:
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, (tuple, list, Mapping)):
        for value in values:
            if isinstance(value, Tensor):
                return value.device
    return torch.device("cpu")
