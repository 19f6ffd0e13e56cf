"""The derivative of each loss by the outputs that it was computed from, as training shows it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["output_gradients"]


def output_gradients(losses: Tensor, outputs: Tensor | None, strategy: str) -> Tensor:
    """Differentiate each loss by its outputs, and leave the graph for `backward()`.

    Args:
        losses: Shape (m,).
        outputs: Shape (m, ...).
        strategy: Name of what needs them, for the message.

    Returns:
        Shape (m, ...), p - y for cross-entropy.

    Raises:
        RuntimeError: If the backward pass itself fails.
        ValueError: If the losses were not computed from these outputs.
    """
    errors, given = None, "none" if outputs is None else type(outputs).__name__
    if isinstance(outputs, Tensor):
        given = str(tuple(outputs.shape))
        if losses.requires_grad and outputs.requires_grad and len(outputs) == len(losses):
            try:
                (errors,) = torch.autograd.grad(
                    losses.sum(), [outputs], retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                if "second time" not in str(error):  # else the graph is gone
                    raise
    if errors is None:
        raise ValueError(
            f"{strategy} needs the outputs that the losses were computed from, a tensor "
            f"with one row per example; got {given}. Write loader.observe(losses, outputs) before "
            "backward()."
        )
    return errors
