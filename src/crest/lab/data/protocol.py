"""What training asks of a data set, be it images or text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["LabelledData", "Views"]


class Views(Protocol):
    """Train examples as the network takes them, a dataset for any DataLoader."""

    def __len__(self) -> int:
        """Return the number of train examples."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one train example and its class."""
        ...

    def plain_batches(self, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give some train examples as they are and their classes, as `test_batches` does."""
        ...

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give all test examples and their classes, `size` at a time, on the device."""
        ...


class LabelledData(Protocol):
    """A train and a test part with one class for each example."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class."""
        ...

    @property
    def num_train(self) -> int:
        """Number of train examples, n."""
        ...

    @property
    def train_labels(self) -> Tensor:
        """Class of each train example from 0, int64, shape (n,)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any input or label."""
        ...

    def build_network(self, name: str) -> nn.Module:
        """Make a network by name, with weights from torch's global generator."""
        ...

    def make_views(self, device: torch.device | str, *, augment: bool) -> Views:
        """Put the examples on a device, with random views if asked and if there are such."""
        ...

    def every(self, num_train: int, num_test: int) -> Any:
        """Keep so many examples of each part, evenly spread; all if there are no more."""
        ...
