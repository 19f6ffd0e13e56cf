"""Images and labels of a data set in memory, as read from disk."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from crest.lab.data.views import ImageViews
from crest.lab.networks.vision import build_network

__all__ = ["ImageData", "digits_of", "spread"]


@dataclass(frozen=True)
class ImageData:
    """Square images with one class each, in a train and a test part.

    Args:
        name: Name on the command line.
        train_images: Pixels 0 to 255, uint8, shape (n, channels, size, size).
        train_labels: Classes from 0, int64, shape (n,).
        test_images: As `train_images`, any number of them.
        test_labels: As `train_labels`.
        classes: Name of each class.
        flip: Whether a mirrored image is still an image of its class: not so for digits.

    Raises:
        ValueError: If shapes do not match, a part is empty or a label names no class.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    flip: bool

    def __post_init__(self) -> None:
        parts = [
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ]
        for part, images, labels in parts:
            if len(images) == 0:
                raise ValueError(f"{self.name} must hold {part} images; got none.")
            if len(images) != len(labels):
                raise ValueError(
                    f"{self.name} must have one label for each {part} image; "
                    f"got {len(images)} images and {len(labels)} labels."
                )
            if images.ndim != 4 or images.shape[1:] != self.train_images.shape[1:]:
                raise ValueError(
                    f"{self.name} must have images of one shape; got "
                    f"{tuple(self.train_images.shape[1:])} in train and "
                    f"{tuple(images.shape[1:])} in {part}."
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"{self.name} must have {part} labels in [0, {len(self.classes) - 1}]; "
                    f"got {low} to {high}."
                )

    @property
    def num_train(self) -> int:
        """Number of train images, n."""
        return len(self.train_images)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image."""
        return self.train_images.shape[2]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the train pixels / 255, each of shape (channels,)."""
        total = torch.zeros(self.in_channels, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for some in self.train_images.split(1024):  # bounds the memory and error of the floats
            pixels = some.float().div_(255)
            total += pixels.sum((0, 2, 3))
            squares += pixels.square_().sum((0, 2, 3))
        count = self.train_images[:, 0].numel()
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        # A channel of one value only would be divided by zero.
        return mean.float(), std.clamp_min(1 / 255).float()

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any pixel or label."""
        return digits_of(self.train_images, self.train_labels, self.test_images, self.test_labels)

    def build_network(self, name: str) -> nn.Module:
        """Make a network for these images, see `lab.networks.vision.build_network`."""
        return build_network(name, self.in_channels, self.image_size, len(self.classes))

    def make_views(self, device: torch.device | str, *, augment: bool) -> ImageViews:
        """Put the images on a device, see `lab.data.views.ImageViews`."""
        return ImageViews(self, device, augment=augment)

    def every(self, num_train: int, num_test: int) -> ImageData:
        """Keep so many images of each part, evenly spread; all if there are no more.

        Args:
            num_train: Train images, >= 1.
            num_test: Test images, >= 1.

        Returns:
            The smaller data set.
        """
        train, test = (
            spread(len(labels), kept)
            for labels, kept in ((self.train_labels, num_train), (self.test_labels, num_test))
        )
        return dataclasses.replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            test_images=self.test_images[test],
            test_labels=self.test_labels[test],
        )

    def halve(self) -> ImageData:
        """Average each two by two pixels; of an odd size the last row and column are left out.

        Returns:
            The data set at half the resolution.

        Raises:
            ValueError: If images are of one pixel.
        """
        if self.image_size < 2:
            raise ValueError("images must have two pixels or more on a side to be halved; got 1.")
        train, test = (
            functional.avg_pool2d(images.float(), 2).round().to(torch.uint8)
            for images in (self.train_images, self.test_images)
        )
        return dataclasses.replace(self, train_images=train, test_images=test)


def digits_of(*tensors: Tensor) -> str:
    """Make a fingerprint of tensors.

    Args:
        *tensors: On the CPU.

    Returns:
        Twelve hexadecimal digits that change with any shape or value.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:12]


def spread(length: int, kept: int) -> Tensor:
    """Choose rows at even distances.

    Args:
        length: Of what is chosen from.
        kept: Rows to choose, at least one.

    Returns:
        Rows in order, all of them if there are no more than `kept`.

    Example:
        >>> spread(10, 4)
        tensor([0, 2, 5, 7])
    """
    if kept >= length:
        return torch.arange(length)
    return torch.arange(kept) * length // kept
