"""Losses and their derivatives by a recorded output: the user's loss, without a second forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crest.watching.calls import HALF, Call

__all__ = ["CannotReplay", "Replay"]


class CannotReplay(Exception):
    """The loss cannot be computed from the output of the model; the text says why."""


class Replay:
    """Computes what training computed, from the output that training saw.

    Attributes:
        takes_model: As the argument.

    Args:
        model: The model.
        loss_fn: One loss per example.
        takes_model: Whether it is `loss_fn(model, batch)`, or else `loss_fn(output, target)`.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable[..., Tensor], *, takes_model: bool
    ) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self.takes_model = takes_model

    def __call__(self, call: Call, batch: Any) -> tuple[Tensor, list[Tensor | None]]:
        """Compute losses, and their derivatives by the outputs.

        Args:
            call: A forward pass.
            batch: Of as many examples as it has rows.

        Returns:
            Losses, shape (k,), detached, and for each of `call.where` the derivative of each loss
            by it, None where the loss does not use it.

        Raises:
            CannotReplay: If the loss needs more than the output, or is not one per example.
        """
        leaves = list(call.leaves)
        for i in call.where:
            given = leaves[i]
            given = given.float() if given.dtype in HALF else given
            leaves[i] = given.detach().requires_grad_()
        output = call.output(leaves)
        device = leaves[call.where[0]].device.type
        try:
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                losses = self._losses(output, batch)
                k = call.num_rows
                if losses.shape != (k,):
                    raise CannotReplay(f"losses of shape {tuple(losses.shape)} for {k} rows")
                wanted = [leaves[i] for i in call.where]
                return losses.detach(), list(
                    torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
                )
        except CannotReplay:
            raise
        except Exception as error:  # whatever the user's loss may raise on another batch
            raise CannotReplay(f"{type(error).__name__}: {error}"[:200]) from error

    def _losses(self, output: Any, batch: Any) -> Tensor:
        if not self.takes_model:
            return self._loss_fn(output, batch[1])
        stand_in = _StandIn(self._model, output)
        losses = self._loss_fn(stand_in, batch)
        if stand_in.calls != 1:
            raise CannotReplay(f"loss_fn calls the model {stand_in.calls} times")
        return losses


class _StandIn:
    """Takes the place of the model in loss_fn(model, batch): any call returns the output."""

    def __init__(self, model: nn.Module, output: Any) -> None:
        self._model = model
        self._output = output
        self.calls = 0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        return self._output

    forward = __call__

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        if isinstance(value, nn.Module):
            raise CannotReplay(f"loss_fn reaches into model.{name}")
        return value
