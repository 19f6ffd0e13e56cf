"""Seeing outputs and gradients inside a compiled graph.

Python hooks break a full graph; a custom operator with a formula for its gradient does not. The
forward hook puts one on the output of the model while it is traced.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["register_tap", "tapped_output"]

_LOGITS = 1 << 30  # added to a watch's number where its output is a mapping


class Tappable(Protocol):
    """What a tap tells."""

    def tap_forward(self, output: Tensor, inputs: list[Tensor], *, names_logits: bool) -> int:
        """Hear of an output, and give the call a number; 0 to hear no more of it."""
        ...

    def tap_backward(self, number: int, gradient: Tensor) -> None:
        """Hear of the gradient of a call."""
        ...


_WATCHES: list[weakref.ref[Any]] = []


def register_tap(watch: Tappable) -> int:
    """Make a watch known to compiled graphs, which hold its number alone.

    Args:
        watch: Is held weakly.

    Returns:
        Its number.
    """
    _WATCHES.append(weakref.ref(watch))
    return len(_WATCHES) - 1


def tapped_output(number: int, inputs: list[Tensor], output: Any) -> Any:
    """Pass an output through the tap, while a model is traced.

    Args:
        number: Of the watch.
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


def _watch(number: int) -> Any:
    return _WATCHES[number % _LOGITS]()


@torch.library.custom_op("crest::tap", mutates_args=())
def _tap(output: Tensor, inputs: list[Tensor], number: int) -> tuple[Tensor, Tensor]:
    watch = _watch(number)
    call = 0
    if watch is not None:
        call = watch.tap_forward(output, inputs, names_logits=number >= _LOGITS)
    return output.clone(), torch.tensor(call)


@_tap.register_fake
def _(output: Tensor, inputs: list[Tensor], number: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(output), torch.empty((), dtype=torch.int64)


@torch.library.custom_op("crest::tap_back", mutates_args=())
def _tap_back(gradient: Tensor, call: Tensor, number: int) -> Tensor:
    watch = _watch(number)
    if watch is not None:
        watch.tap_backward(int(call), gradient)
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
