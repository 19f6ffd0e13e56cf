"""What the loop tells of a batch, checked where it comes in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crest.checks import check, optional, tensor
from crest.data_checks import check_indices

__all__ = ["check_told"]

_TENSOR = tensor()
_OUTPUTS = optional(_TENSOR)


def check_told(losses: Any, outputs: Any, indices: Any, last: Tensor | None) -> Tensor:
    """Refuse what is not told of the examples of a batch, without waiting for a device.

    Args:
        losses: What was given as one loss per example.
        outputs: What was given as outputs.
        indices: What was given as examples, or None for those of the last batch.
        last: Examples of the batch that was handed out last, None before the first.

    Returns:
        Which examples the losses are of, int64, shape (m,).

    Raises:
        TypeError: If one of them is no tensor.
        ValueError: If there was no batch yet, or shapes or values do not fit.
    """
    check("losses", losses, _TENSOR)
    check("outputs", outputs, _OUTPUTS)
    if indices is not None:
        check_indices("indices", indices)
    if last is None:
        raise ValueError("observe needs a batch that was handed out; got none so far.")
    whose = "the batch that was handed out last" if indices is None else "indices"
    told: Tensor = last if indices is None else indices
    if losses.shape != told.shape:
        raise ValueError(
            f"losses must be one per example of {whose}, shape {tuple(told.shape)}; got "
            f"{tuple(losses.shape)}."
        )
    if not losses.is_floating_point():
        raise ValueError(f"losses must be floating-point numbers; got {losses.dtype}.")
    return told.long()
