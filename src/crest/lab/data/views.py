"""Augmented views of images: a dataset for any DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from crest.lab.data.image_data import ImageData

__all__ = ["ImageViews", "draw_moves", "move", "shift_and_flip"]


class ImageViews(Dataset[tuple[Tensor, int]]):
    """Train images, normalized, and shifted and mirrored at random if asked; test images plain.

    All images stay on the device as bytes, 150 MB for CIFAR. A view is the image padded by an
    eighth of its size with black (4 pixels of 32), cropped back at a random place, and mirrored
    half of the time if the data set allows it. Random numbers come from torch's global CPU
    generator, so that views under a seed are the same on every device.

    Args:
        data: The data set.
        device: Where images are kept and views are made.
        augment: Whether to shift and mirror.
    """

    def __init__(
        self, data: ImageData, device: torch.device | str = "cpu", *, augment: bool = True
    ) -> None:
        self._device = torch.device(device)
        self._images = data.train_images.to(self._device)
        # Python integers: a collated tensor on the device would be read back one by one.
        self._labels: list[int] = data.train_labels.tolist()
        self._test_images = data.test_images.to(self._device)
        self._test_labels = data.test_labels.to(self._device)
        mean, std = data.moments
        # On the device from the start: a step that is captured copies nothing to it.
        self._scale = (1 / (255 * std)).to(self._device)[:, None, None]
        self._shift = (mean / std).to(self._device)[:, None, None]
        self._padding = data.image_size // 8 if augment else 0
        self._flip = augment and data.flip

    @property
    def device(self) -> torch.device:
        """Where images are kept."""
        return self._device

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a view of one image, float32 of shape (channels, size, size), and its class."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return views of several images, made together.

        Args:
            indices: Of the images, k of them.

        Returns:
            k pairs as from `__getitem__`.
        """
        rows = torch.as_tensor(indices, device=self._device)
        images = self._images[rows]
        if self._padding:
            images = shift_and_flip(images, self._padding, flip=self._flip)
        views = self.normalize(images)
        return list(zip(views.unbind(0), [self._labels[i] for i in indices], strict=True))

    def plain_batches(self, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give some train images, normalized and not augmented, and their classes.

        Args:
            indices: Of the images.
            size: Images at a time.

        Yields:
            As `test_batches`.
        """
        for rows in torch.as_tensor(indices).split(size):
            labels = torch.tensor([self._labels[row] for row in rows.tolist()])
            images = self._images[rows.to(self._device)]
            yield self.normalize(images), labels.to(self._device)

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give all test images, normalized, and their classes.

        Args:
            size: Images at a time.

        Yields:
            Images, shape (k, channels, size, size), and classes, shape (k,), on the device.
        """
        for images, labels in zip(
            self._test_images.split(size), self._test_labels.split(size), strict=True
        ):
            yield self.normalize(images), labels

    def normalize(self, images: Tensor) -> Tensor:
        """Give the train pixels mean 0 and standard deviation 1 in each channel.

        Args:
            images: uint8, shape (k, channels, size, size).

        Returns:
            float32, the same shape.
        """
        return images.float().mul_(self._scale).sub_(self._shift)


def shift_and_flip(images: Tensor, padding: int, *, flip: bool) -> Tensor:
    """Pad with zeros and crop back, each image at its own place, and mirror at random.

    Args:
        images: Shape (k, channels, size, size).
        padding: Pixels on each side; shifts are uniform in [-padding, padding].
        flip: Whether to mirror half of the images left to right.

    Returns:
        The same shape.
    """
    # Only the few numbers drawn travel to the device: a large copy would wait for it.
    offsets, mirrored = draw_moves(len(images), padding, flip=flip)
    return move(images, padding, offsets.to(images.device), mirrored.to(images.device))


def draw_moves(count: int, padding: int, *, flip: bool) -> tuple[Tensor, Tensor]:
    """Draw where images are cropped, and which are mirrored, from torch's global CPU generator.

    Args:
        count: Images, k.
        padding: Pixels on each side.
        flip: Whether to mirror half of the images.

    Returns:
        First row and column of each crop, in [0, 2 * padding], shape (2, k, 1); and what is
        mirrored, bool, shape (k, 1).
    """
    offsets = torch.randint(2 * padding + 1, (2, count, 1))
    return offsets, torch.rand(count, 1) < 0.5 if flip else torch.zeros(count, 1, dtype=torch.bool)


def move(images: Tensor, padding: int, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """Pad with zeros, crop and mirror as told.

    Args:
        images: Shape (k, channels, size, size).
        padding: Pixels on each side.
        offsets: See `draw_moves`, on the device of the images.
        mirrored: The same.

    Returns:
        The same shape as the images.
    """
    k, channels, size, _ = images.shape
    rows, columns = offsets + torch.arange(size, device=images.device)  # (k, size) each, padded
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded_size = size + 2 * padding
    places = (rows[:, :, None] * padded_size + columns[:, None, :]).flatten(1)  # (k, size * size)
    padded = functional.pad(images, (padding,) * 4).flatten(2)
    places = places[:, None, :].expand(-1, channels, -1)
    return padded.gather(2, places).view(k, channels, size, size)
