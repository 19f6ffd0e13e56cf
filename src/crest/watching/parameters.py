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
    """

    def __init__(self, model: nn.Module) -> None:
        self.untrained = 0
        self._model = model
        self._trainable: list[Tensor] = []
        self._version = -1  # of the parameters at the last look
        self._values = torch.empty(0)  # of the smallest of them

    def look(self) -> None:
        """See whether a step was taken.

        Optimizers change a parameter's version, or, if they write to `.data`, its values alone.
        """
        version = _version(self._trainable)
        if version == self._version or not self._trainable:
            # There may be others by now. To list them takes as long as a small layer.
            trainable = [p for p in self._model.parameters() if p.requires_grad]
            self._trainable = sorted(trainable, key=Tensor.numel)
            version = _version(self._trainable)
        smallest = self._trainable[0].detach() if self._trainable else torch.empty(0)
        if version != self._version or not torch.equal(smallest, self._values):
            self.untrained = 0
        self._version, self._values = version, smallest.clone()

    def begin_anew(self) -> None:
        """Forget what was seen, as after `load_state_dict`."""
        self._version, self.untrained = -1, 0


def _version(parameters: list[Tensor]) -> int:
    return sum(parameter._version for parameter in parameters)
