"""One loss for each example, whatever form the user's loss has."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["NotPerExampleError", "PerExampleLoss"]


class NotPerExampleError(ValueError):
    """The loss is not one per example."""


_MODELS = {"model", "net", "network", "module"}
_OUTPUTS = {
    *("output", "outputs", "out", "logits", "logit", "input", "inputs", "scores", "probs"),
    *("prediction", "predictions", "pred", "preds", "y_pred", "y_hat", "yhat", "predicted"),
}
_RULE = (
    "crest looks at the model in eval mode. loss_fn(output, target) is called with what the model "
    "returns in that mode: where that is less than in training, it must take both. A "
    "loss_fn(model, batch) is told by the name of its first argument, model."
)


class PerExampleLoss:
    """Calls a model and a loss on a batch, and sees that there is one loss per example.

    Note:
        A loss whose first argument has another name than is usual for a model or its output, or
        none, as behind a decorator, is called with outputs; if that fails, with the model and the
        batch.

    Args:
        model: The model.
        loss_fn: Either `loss_fn(output, target)` for batches `(inputs, targets)`, or, if its first
            argument is called `model`, `net`, `network` or `module`, `loss_fn(model, batch)`.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Tensor]) -> None:
        self._model = model
        self._loss_fn = loss_fn
        name = _first_argument(loss_fn)
        self._takes_model: bool | None = None  # not known
        if name in _MODELS:
            self._takes_model = True
        elif name in _OUTPUTS:
            self._takes_model = False

    @property
    def takes_model(self) -> bool:
        """Whether the loss is called as `loss_fn(model, batch)`, as far as is known."""
        return bool(self._takes_model)

    def __call__(self, batch: Any) -> Tensor:
        """Compute the losses of a batch.

        What model and loss raise themselves is passed on, with a note.

        Args:
            batch: A collated batch of k examples, on the device of the model.

        Returns:
            Shape (k,).

        Raises:
            NotPerExampleError: If the loss is not one per example.
            OutOfMemoryError: As it came.
            ValueError: If the batch does not fit the loss.
        """
        is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not is_pair and self._takes_model is False:
            raise ValueError(
                "loss_fn(output, target) needs batches (inputs, targets); got a "
                f"{type(batch).__name__}{_length(batch)}. Write loss_fn(model, batch) instead."
            )
        try:
            losses = self._call(batch, is_pair)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _explain(error)
            raise
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

    def _call(self, batch: Any, is_pair: bool) -> Any:
        if self._takes_model is None and is_pair:
            try:
                losses = self._loss_fn(self._model(batch[0]), batch[1])
                self._takes_model = False
                return losses
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                try:
                    losses = self._loss_fn(self._model, batch)
                except Exception:
                    raise error from None
                self._takes_model = True
                return losses
        if self._takes_model is False:
            return self._loss_fn(self._model(batch[0]), batch[1])
        return self._loss_fn(self._model, batch)


def _first_argument(function: Callable[..., Any]) -> str | None:
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        first = next(iter(inspect.signature(target).parameters.values()), None)
    except (TypeError, ValueError):  # a builtin without a signature
        return None
    if first is None or first.kind is first.VAR_POSITIONAL:
        return None
    return first.name


def _explain(error: Exception) -> None:
    """Add the rule to what a loss or model has raised."""
    if sys.version_info >= (3, 11):
        if _RULE not in getattr(error, "__notes__", ()):
            error.add_note(_RULE)
    elif error.args and isinstance(error.args[0], str) and _RULE not in error.args[0]:
        error.args = (f"{error.args[0]}\n{_RULE}", *error.args[1:])


def _lengths(batch: Any) -> Iterator[int]:
    """Give the lengths of all parts of a batch: one of them is the number of its examples."""
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, (tuple, list, Mapping)):
        parts = list(batch.values()) if isinstance(batch, Mapping) else batch
        # Not of a tuple of tensors, a row for each example, but of one of examples.
        if not isinstance(batch, Mapping) and not any(map(_has_rows, parts)):
            yield len(batch)
        for value in parts:
            yield from _lengths(value)


def _has_rows(part: Any) -> bool:
    return isinstance(part, (Tensor, np.ndarray)) and part.ndim > 0


def _length(batch: Any) -> str:
    return f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
