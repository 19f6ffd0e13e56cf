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
        self._version = -1  # of the parameters at the last look
        self._smallest = torch.empty(0)  # the values of one of them

    def look(self) -> None:
        """See whether a step was taken.

        Optimizers change a parameter's version, or, if they write to `.data`, its values alone.
        """
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        version = sum(parameter._version for parameter in trainable)
        smallest = min(trainable, key=Tensor.numel, default=torch.empty(0)).detach()
        if version != self._version or not torch.equal(smallest, self._smallest):
            self.untrained = 0
        self._version, self._smallest = version, smallest.clone()

    def begin_anew(self) -> None:
        """Forget what was seen, as after `load_state_dict`."""
        self._version, self.untrained = -1, 0
