"""Batches whose losses and gradients are computed and compared together, a dozen at a time.

A small tensor costs as much as one a dozen times as large. So once a loop has fitted its loss for
some batches, calls of the model that took a whole batch wait for each other.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from crest.watching.calls import Call, HandedOut
from crest.watching.guard import compare_together
from crest.watching.replay import CannotReplay, Replay

__all__ = ["Bundle", "Fit"]

_SIZE = 16  # batches that wait for each other
_MOST_NUMBERS = 1 << 17  # of an output that is kept meanwhile, half a MiB


class Fit:
    """A batch that a gradient was found to be of.

    Args:
        one: The batch.
        start: Its first row in the gradient.
        losses: Shape (k,).
        errors: Their derivatives by the output, shape (k, ...).
        scale: Factor between these and the gradient.
    """

    def __init__(
        self, one: HandedOut, start: int, losses: Tensor, errors: Tensor, scale: float
    ) -> None:
        self.one, self.start = one, start
        self.losses, self.errors, self.scale = losses, errors, scale


class Bundle:
    """Calls of the model that are known to be of whole batches, and wait for each other.

    Args:
        replay: Computes losses and derivatives from an output.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._calls: list[Call] = []
        self._batches: list[HandedOut] = []

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def is_full(self) -> bool:
        """Whether it is time to take them."""
        return len(self) >= _SIZE

    def add(self, call: Call, one: HandedOut) -> bool:
        """Let a call wait, if it is like those that do: one small output, one gradient, one target.

        Args:
            call: A forward pass of all rows of a batch.
            one: The batch, which is kept alive by its targets alone.

        Returns:
            Whether it waits.
        """
        if self._replay.takes_model or call.was_changed or not call.is_one_tensor:
            return False
        (output,), gradients, target = call.leaves, call.gradients[0], one.batch[1]
        m = one.size
        if len(gradients) != 1 or not isinstance(target, Tensor) or not target.ndim:
            return False
        if output.shape[0] != m or target.shape[0] != m or output.numel() > _MOST_NUMBERS:
            return False
        if self._calls:
            first, its = self._calls[0].leaves[0], self._batches[0].batch[1]
            for mine, theirs in ((output, first), (target, its)):
                if (mine.shape, mine.dtype, mine.device) != (
                    theirs.shape,
                    theirs.dtype,
                    theirs.device,
                ):
                    return False
        # The loop may write over them: a CUDA graph does at its next step.
        output = output.clone()
        call.leaves, call.versions, call.inputs = [output], [output._version], []
        one.batch = (None, target.clone())
        self._calls.append(call)
        self._batches.append(one)
        return True

    def take(self) -> list[tuple[Call, HandedOut, Fit | None]]:
        """Compute and compare, and let none wait any more.

        Returns:
            Each call, its batch, and what was found if the gradient is that of the batch. Waits for
            the device once.
        """
        calls, self._calls = self._calls, []
        batches, self._batches = self._batches, []
        nothing: list[tuple[Call, HandedOut, Fit | None]] = [
            (call, one, None) for call, one in zip(calls, batches, strict=True)
        ]
        if not calls:
            return nothing
        output = torch.cat([call.leaves[0] for call in calls])
        together = dataclasses.replace(calls[0], leaves=[output], versions=[output._version])
        try:
            losses, (errors,) = self._replay(
                together, (None, torch.cat([one.batch[1] for one in batches]))
            )
        except CannotReplay:
            return nothing
        if errors is None:
            return nothing
        count = len(calls)
        parts = errors.unflatten(0, (count, -1))
        gradients = torch.stack([call.gradients[0][0] for call in calls])
        weights = torch.stack([one.weights for one in batches]).to(losses.device)
        fits, scales = compare_together(gradients, parts, weights, half=calls[0].is_half)
        return [
            (call, one, Fit(one, 0, own, part, scale) if fit else None)
            for call, one, own, part, fit, scale in zip(
                calls, batches, losses.unflatten(0, (count, -1)), parts, fits, scales, strict=True
            )
        ]
