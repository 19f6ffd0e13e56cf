"""Texts and labels of a data set in memory, as rows of token numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from crest.lab.data.image_data import digits_of, spread
from crest.lab.networks.text import build_text_network

__all__ = ["TextData"]


@dataclass(frozen=True)
class TextData:
    """Texts with one class each, in a train and a test part.

    Args:
        name: Name on the command line.
        train_tokens: Token numbers, int32, shape (n, length), short texts padded on the right.
        train_labels: Classes from 0, int64, shape (n,).
        test_tokens: As `train_tokens`, any number and length.
        test_labels: As `train_labels`.
        classes: Name of each class.
        vocabulary_size: Token numbers are below this.
        padding: The token that fills.
        separator: The token between the two sentences of a pair.
        weights: Folder of the pre-trained network whose tokens these are; None for words.
    """

    name: str
    train_tokens: Tensor
    train_labels: Tensor
    test_tokens: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    vocabulary_size: int
    padding: int
    separator: int
    weights: Path | None = None

    @property
    def num_train(self) -> int:
        """Number of train texts, n."""
        return len(self.train_labels)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any token or label."""
        return digits_of(self.train_tokens, self.train_labels, self.test_tokens, self.test_labels)

    def build_network(self, name: str) -> nn.Module:
        """Make a network for these texts, see `lab.networks.text.build_text_network`."""
        return build_text_network(
            name,
            num_classes=len(self.classes),
            vocabulary_size=self.vocabulary_size,
            padding=self.padding,
            separator=self.separator,
            weights=self.weights,
        )

    def make_views(self, device: torch.device | str, *, augment: bool) -> _TextViews:
        """Put the texts on a device; there are no random views of them."""
        return _TextViews(self, torch.device(device))

    def every(self, num_train: int, num_test: int) -> TextData:
        """Keep so many texts of each part, evenly spread; all if there are no more.

        Args:
            num_train: Train texts, >= 1.
            num_test: Test texts, >= 1.

        Returns:
            The smaller data set, in the same vocabulary.
        """
        train, test = (
            spread(len(labels), kept)
            for labels, kept in ((self.train_labels, num_train), (self.test_labels, num_test))
        )
        return dataclasses.replace(
            self,
            train_tokens=self.train_tokens[train],
            train_labels=self.train_labels[train],
            test_tokens=self.test_tokens[test],
            test_labels=self.test_labels[test],
        )


class _TextViews(Dataset[tuple[Tensor, int]]):
    """Train texts as they are, kept on the device."""

    def __init__(self, data: TextData, device: torch.device) -> None:
        self._tokens = data.train_tokens.to(device)
        # Python integers: a collated tensor on the device would be read back one by one.
        self._labels: list[int] = data.train_labels.tolist()
        self._test_tokens = data.test_tokens.to(device)
        self._test_labels = data.test_labels.to(device)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._tokens[index], self._labels[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        rows = torch.as_tensor(indices, device=self._tokens.device)
        labels = [self._labels[index] for index in indices]
        return list(zip(self._tokens[rows].unbind(0), labels, strict=True))

    def plain_batches(self, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.as_tensor(indices).split(size):
            labels = torch.tensor([self._labels[row] for row in rows.tolist()])
            yield self._tokens[rows.to(self._tokens.device)], labels.to(self._tokens.device)

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self._test_tokens.split(size), self._test_labels.split(size), strict=True)
