"""When the parameters change: whether training keeps up with the batches that were handed out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ParameterWatch"]


class ParameterWatch:
    """Counts batches handed out since the parameters last changed.

    Attributes:
        untrained: How many.

    Args:
        model: The model that is trained.
        batches_per_step: Batches accumulated for one optimizer step, as the loader was told.
    """

    def __init__(self, model: nn.Module, batches_per_step: int = 1) -> None:
        self.untrained = 0
        self._model = model
        self._batches_per_step = batches_per_step
        self._changes: list[int] = []  # the last positions in the epoch, its start among them
        self._trainable: list[Tensor] = []
        self._version = -1  # of the parameters at the last look
        self._values = torch.empty(0)  # of the smallest of them

    def look(self, position: int) -> None:
        """See whether a step was taken.

        Optimizers change a parameter's version, or, if they write to `.data`, its values alone.

        Args:
            position: Batches of the epoch handed out before.

        Raises:
            ValueError: If the loop takes more steps than the loader was told of.
        """
        if not position:
            self._changes = [0]
        version = _version(self._trainable)
        if version == self._version or not self._trainable:
            # There may be others by now. To list them takes as long as a small layer.
            trainable = [p for p in self._model.parameters() if p.requires_grad]
            self._trainable = sorted(trainable, key=Tensor.numel)
            version = _version(self._trainable)
        smallest = self._trainable[0].detach() if self._trainable else torch.empty(0)
        if version != self._version or not torch.equal(smallest, self._values):
            self.untrained = 0
            if position and self._batches_per_step > 1 and self._version >= 0:
                self._check_group(position, smallest)
        self._version, self._values = version, smallest.clone()

    def begin_anew(self) -> None:
        """Forget what was seen, as after `load_state_dict`."""
        self._version, self.untrained, self._changes = -1, 0, []

    def _check_group(self, position: int, smallest: Tensor) -> None:
        """Refuse two steps within one group; one may be of a group that was fetched before."""
        if torch.equal(smallest, self._values):
            return  # written to and put back, as an optimizer that looks ahead does
        self._changes = [*self._changes[-2:], position]
        size = self._batches_per_step
        if len(self._changes) == 3 and position - self._changes[0] <= size:
            raise ValueError(
                "accumulation_steps must be the batches that the loop accumulates for an optimizer "
                f"step; got {size}, but within {size} batches the parameters changed twice. Call "
                f"optimizer.step() once in {size} batches, or make the loader with the "
                "accumulation_steps of the loop."
            )


def _version(parameters: list[Tensor]) -> int:
    return sum(parameter._version for parameter in parameters)
