"""What training has shown of each example last."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LastSeen"]


class LastSeen:
    """The last value of each example, such as its loss, as training tells it.

    What is told stays on its device until it is asked for, so that no step waits for the device.

    Attributes:
        values: NaN for an example that nothing was told of; float32, shape (n, ...).

    Args:
        num_examples: n.
        what: What the values are, for messages.
    """

    def __init__(self, num_examples: int, what: str) -> None:
        self.values = torch.full((num_examples,), torch.nan, dtype=torch.float32)
        self._what = what
        self._told: list[tuple[Tensor, Tensor]] = []

    @property
    def known(self) -> Tensor:
        """Of which examples something was taken in, bool, shape (n,)."""
        return ~self.values.reshape(len(self.values), -1).isnan().any(1)

    def tell(self, indices: Tensor, values: Tensor) -> None:
        """Hear of a mini-batch.

        Args:
            indices: Example indices, int64, on any device, shape (m,).
            values: One for each, detached, on any device, shape (m, ...).

        Raises:
            ValueError: If the shape of a value is not that of earlier ones.
        """
        shape = self._told[-1][1].shape[1:] if self._told else self.values.shape[1:]
        if values.shape[1:] != shape and (self._told or self.known.any()):
            raise ValueError(
                f"observed {self._what} must all have the shape {tuple(shape)}; "
                f"got {tuple(values.shape[1:])}. Pad all batches to one length, or observe pooled "
                "outputs."
            )
        self._told.append((indices, values))

    def take_in(self) -> bool:
        """Bring `values` up to date.

        Returns:
            Whether there was something new.

        Raises:
            ValueError: If a value is not finite, or an index is of no example.
        """
        if not self._told:
            return False
        sizes = [len(indices) for indices, _ in self._told]
        indices = torch.cat([some.cpu() for some, _ in self._told])
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= len(self.values):
            raise ValueError(
                f"observed indices must be in [0, {len(self.values) - 1}]; got {low} to {high}."
            )
        values = torch.cat([some for _, some in self._told]).float().cpu()
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            raise ValueError(
                f"observed {self._what} must be finite; got {float(values[tuple(bad[0])])} for "
                f"example {int(indices[bad[0, 0]])}. Lower lr or set a warmup."
            )
        if values.shape[1:] != self.values.shape[1:]:  # the first ones
            self.values = self.values.new_full((len(self.values), *values.shape[1:]), torch.nan)
        for some, one in zip(indices.split(sizes), values.split(sizes), strict=True):
            self.values[some] = one  # in order: the last one of an example counts
        self._told.clear()
        return True

    def replace(self, values: Tensor) -> None:
        """Forget everything for new values of all examples, shape (n, ...)."""
        self.values = values.float().clone()
        self._told.clear()
