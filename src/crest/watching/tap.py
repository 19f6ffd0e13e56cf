"""Seeing outputs and gradients inside a compiled graph.

Python hooks break a full graph; a custom operator with a formula for its gradient does not. The
forward hook puts one on the output of the model while it is traced.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["register_tap", "tapped_output", "unregister_tap"]

_LOGITS = 1 << 30  # added to the number of a model where its output is a mapping


class Tappable(Protocol):
    """What a tap tells."""

    def tap_forward(
        self, call: int, output: Tensor, inputs: list[Tensor], *, names_logits: bool
    ) -> bool:
        """Hear of an output, and say whether to hear of its gradient."""
        ...

    def tap_backward(self, call: int, gradient: Tensor) -> None:
        """Hear of the gradient of a call."""
        ...


_NUMBERS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_WATCHES: list[weakref.WeakSet[Any]] = []  # of each model
_CALLS = itertools.count(1)


def register_tap(model: nn.Module, watch: Tappable) -> int:
    """Make a watch known to compiled graphs, which hold a number alone.

    A graph outlives the watch that it was traced under. So the number is of the model, and those
    that watch it later hear from the same graph.

    Args:
        model: Is held weakly.
        watch: Is held weakly.

    Returns:
        The number of the model.
    """
    number = _NUMBERS.setdefault(model, len(_WATCHES))
    if number == len(_WATCHES):
        _WATCHES.append(weakref.WeakSet())
    _WATCHES[number].add(watch)
    return number


def unregister_tap(number: int, watch: Tappable) -> None:
    """Let a watch hear no more.

    Args:
        number: Of the model.
        watch: One that was registered.
    """
    _WATCHES[number].discard(watch)


def tapped_output(number: int, inputs: list[Tensor], output: Any) -> Any:
    """Pass an output through the tap, while a model is traced.

    Args:
        number: Of the model.
        inputs: Tensors that the model was called with.
        output: A tensor, or a mapping with `logits`.

    Returns:
        The output, tapped; None for any other, which cannot be seen.
    """
    if not torch.is_grad_enabled():
        return None
    detached = [given.detach() for given in inputs]
    if isinstance(output, Tensor):
        return _tap(output, detached, number)[0]
    if isinstance(output, dict) and "logits" in output:
        output["logits"] = _tap(output["logits"], detached, number + _LOGITS)[0]
        return output
    return None


@torch.library.custom_op("crest::tap", mutates_args=())
def _tap(output: Tensor, inputs: list[Tensor], number: int) -> tuple[Tensor, Tensor]:
    call, heard = next(_CALLS), False
    for watch in list(_WATCHES[number % _LOGITS]):
        heard |= watch.tap_forward(call, output, inputs, names_logits=number >= _LOGITS)
    return output.clone(), torch.tensor(call if heard else 0)


@_tap.register_fake
def _(output: Tensor, inputs: list[Tensor], number: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(output), torch.empty((), dtype=torch.int64)


@torch.library.custom_op("crest::tap_back", mutates_args=())
def _tap_back(gradient: Tensor, call: Tensor, number: int) -> Tensor:
    heard = int(call)
    for watch in list(_WATCHES[number % _LOGITS]) if heard else []:
        watch.tap_backward(heard, gradient)
    return gradient.clone()


@_tap_back.register_fake
def _(gradient: Tensor, call: Tensor, number: int) -> Tensor:
    return torch.empty_like(gradient)


def _save(ctx: Any, inputs: Any, output: Any) -> None:  # torch asks for these names
    ctx.save_for_backward(output[1])
    ctx.number = inputs[2]
    ctx.num_inputs = len(inputs[1])


def _backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
    (call,) = ctx.saved_tensors
    return _tap_back(gradient, call, ctx.number), [None] * ctx.num_inputs, None


_tap.register_autograd(_backward, setup_context=_save)
