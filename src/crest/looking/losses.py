"""One loss for each example, whatever form the user's loss has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["NotPerExampleError", "PerExampleLoss"]


class NotPerExampleError(ValueError):
    """The loss is not one per example."""


class PerExampleLoss:
    """Calls a model and a loss on a batch, and sees that there is one loss per example.

    Args:
        model: The model.
        loss_fn: Either `loss_fn(output, target)` for batches `(inputs, targets)`, or, if its first
            argument is called `model`, `loss_fn(model, batch)`.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Tensor]) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self._takes_model = _first_argument(loss_fn) == "model"

    def __call__(self, batch: Any) -> Tensor:
        """Compute the losses of a batch.

        Args:
            batch: A collated batch of k examples, on the device of the model.

        Returns:
            Shape (k,).

        Raises:
            NotPerExampleError: If the loss is not one per example.
            ValueError: If the batch does not fit the loss.
        """
        if self._takes_model:
            losses = self._loss_fn(self._model, batch)
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            losses = self._loss_fn(self._model(batch[0]), batch[1])
        else:
            raise ValueError(
                "loss_fn(output, target) needs batches (inputs, targets); got a "
                f"{type(batch).__name__}{_length(batch)}. Write loss_fn(model, batch) instead."
            )
        lengths = set(_lengths(batch))
        if not isinstance(losses, Tensor):
            raise NotPerExampleError(
                f"loss_fn must return a tensor of one loss per example; got {type(losses).__name__}"
            )
        if losses.ndim == 0:
            raise NotPerExampleError(
                "loss_fn must return one loss per example, not their mean; got a scalar. "
                'Set reduction="none".'
            )
        if losses.ndim != 1 or (lengths and len(losses) not in lengths):
            raise NotPerExampleError(
                f"loss_fn must return one loss per example, shape "
                f"({'k' if len(lengths) != 1 else lengths.pop()},); "
                f"got {tuple(losses.shape)}. Take the mean over the other dimensions."
            )
        return losses


def _first_argument(function: Callable[..., Any]) -> str | None:
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        return next(iter(inspect.signature(target).parameters), None)
    except (TypeError, ValueError):  # a builtin without a signature
        return None


def _lengths(batch: Any) -> Iterator[int]:
    """Give the lengths of all tensors of a batch: one of them is the number of its examples."""
    if isinstance(batch, Tensor):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, (tuple, list, Mapping)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _lengths(value)


def _length(batch: Any) -> str:
    return f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
