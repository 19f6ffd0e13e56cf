"""What one pass over some examples tells: losses and last-layer gradients, Sec. 3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LastLayerGradients"]


@dataclass(frozen=True)
class LastLayerGradients:
    """What one pass over k examples tells.

    `...` stands for the positions of a head that is applied at several places of one example (the
    tokens of a text); it is empty for a classifier.

    Attributes:
        losses: Loss of each example, float32, shape (k,).
        errors: Derivative of each example's loss by the output of the head, shape (k, ..., c):
            p - y for cross-entropy. Feature `"logits"`.
        inputs: Input of the head, h, shape (k, ..., d).
        input_gradients: Derivative by the input of the head, dL/dh, shape (k, ..., d), the paper's
            wording. Feature `"input"`.
        bias: Whether gradients by the bias of the head count: not where it has none, or a frozen
            one beside a trained weight. The weight counts in any case. Gradients by a linear head
            have d' = d + 1 columns with the bias, else d' = d.
    """

    losses: Tensor
    errors: Tensor
    inputs: Tensor
    input_gradients: Tensor
    bias: bool = True

    def weight_gradients(self) -> Tensor:
        """Form the gradients by weight and bias of a linear head, the feature `"weight"`.

        The gradient of an example is the sum over its positions of e (x) [h, 1], or e (x) h without
        a bias.

        Returns:
            Shape (k, c * d').
        """
        errors, inputs = self._by_position()
        return torch.einsum("ktc,ktd->kcd", errors, inputs).flatten(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Add up the gradients by weight and bias of a linear head, without forming them.

        Args:
            weights: One factor for each example, shape (k,).

        Returns:
            Shape (c, d').
        """
        errors, inputs = self._by_position()
        return torch.einsum("k,ktc,ktd->cd", weights.to(errors), errors, inputs)

    def squared_norms(self) -> Tensor:
        """Measure ||g_i||^2 of the gradients by weight and bias of a linear head.

        Returns:
            Shape (k,).
        """
        errors, inputs = self._by_position()
        if errors.shape[1] ** 2 > errors.shape[2] * inputs.shape[2]:  # many positions
            return self.weight_gradients().square().sum(1)
        return ((errors @ errors.mT) * (inputs @ inputs.mT)).sum((1, 2))

    def inputs_with_bias(self) -> Tensor:
        """Give what e is multiplied with in each gradient: h, with a 1 behind it for the bias.

        Returns:
            Shape (k, ..., d').
        """
        if not self.bias:
            return self.inputs
        return torch.cat([self.inputs, self.inputs.new_ones(*self.inputs.shape[:-1], 1)], dim=-1)

    def _by_position(self) -> tuple[Tensor, Tensor]:
        """Give e and h, with a 1 for the bias, at each position: (k, t, c) and (k, t, d')."""
        errors = self.errors.reshape(len(self.errors), -1, self.errors.shape[-1])
        inputs = self.inputs_with_bias()
        return errors, inputs.reshape(len(inputs), -1, inputs.shape[-1])

    def to(self, device: torch.device | str) -> LastLayerGradients:
        """Move all tensors to a device."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("losses", "errors", "inputs", "input_gradients")
        }
        return LastLayerGradients(**moved, bias=self.bias)

    @staticmethod
    def concatenate(parts: list[LastLayerGradients]) -> LastLayerGradients:
        """Join the results of several passes, in order.

        Positions that a shorter part lacks are filled with zero gradient.

        Args:
            parts: At least one.

        Returns:
            All examples of all parts.
        """
        if len(parts) == 1:
            return parts[0]
        whole = {
            name: _concatenate([getattr(part, name) for part in parts])
            for name in ("losses", "errors", "inputs", "input_gradients")
        }
        return LastLayerGradients(**whole, bias=parts[0].bias)


def _concatenate(parts: list[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    if all(list(part.shape[1:]) == shape for part in parts):
        return torch.cat(parts)
    padded = []
    for part in parts:
        full = part.new_zeros(len(part), *shape)
        full[tuple(slice(size) for size in part.shape)] = part
        padded.append(full)
    return torch.cat(padded)
