"""Weights: attached to the batches of any loader, and averaged with in the loop."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor

from crest.checks import check, tensor
from crest.containers import attributes_of, remade, shallow

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
        on the device of the batch. Types with fields or attributes keep them: the weights of a
        namedtuple are its field `sample_weight`.

    Raises:
        TypeError: If the batch is neither, and `attach` is None.
        ValueError: If it has a `sample_weight` or `sample_index` of its own.
    """
    weights = weights.to(_device(batch))
    if attach is not None:
        return attach(batch, weights, indices)
    if type(batch) is tuple or type(batch) is list:
        return (*batch, weights)
    if isinstance(batch, tuple) and hasattr(type(batch), "_fields"):
        _refuse_own(cast(Any, batch)._fields)
        return _widened(type(batch), (*batch, weights), attributes_of(batch) or {})
    if isinstance(batch, (tuple, list)):
        try:
            return remade(batch, (*batch, weights))
        except TypeError:
            pass  # of a fixed number of parts
    if isinstance(batch, MutableMapping):
        _refuse_own(batch)
        batch = shallow(batch)
        batch["sample_weight"] = weights
        batch["sample_index"] = indices.to(weights.device)
        return batch
    raise TypeError(
        "batches must be tuples, lists or dicts to take weights; got "
        f"{type(batch).__name__}. Pass attach=, a function of (batch, weights, indices)."
    )


def _refuse_own(names: Collection[Any]) -> None:
    for name in ("sample_weight", "sample_index"):
        if name in names:
            raise ValueError(
                f"batches must leave the name {name} to the loader, which hands out its own under "
                f"it; got batches with a {name}. Rename it in the dataset or collate_fn, or pass "
                "attach=, a function of (batch, weights, indices)."
            )


@functools.cache
def _wide_type(kind: Any) -> Any:
    """Make the namedtuple that `kind` is with one field more; it is still a `kind`."""
    make: Any = collections.namedtuple
    wide = make(kind.__name__, (*kind._fields, "sample_weight"))
    return type(kind.__name__, (wide, kind), {"__reduce__": _reduce, "__module__": __name__})


def _widened(kind: Any, parts: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    made = tuple.__new__(_wide_type(kind), parts)
    vars(made).update(attributes)
    return made


def _reduce(batch: Any) -> Any:
    """Pickle a batch by the type that a module has, not by the one that is made here."""
    return _widened, (type(batch).__mro__[2], tuple(batch), vars(batch))


def _device(batch: Any) -> torch.device:
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, (tuple, list, Mapping)):
        for value in values:
            if isinstance(value, Tensor):
                return value.device
    return torch.device("cpu")
