"""Residual networks for small images (He et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BasicBlock", "Bottleneck", "ResidualNetwork"]


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolve and normalize; the normalization brings the bias."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class _PaddedShortcut(nn.Module):
    """Option A: take every other pixel and fill new channels with zeros, no parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self._before = new_channels // 2
        self._after = new_channels - self._before
        self._stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs[:, :, :: self._stride, :: self._stride]
        return functional.pad(inputs, (0, 0, 0, 0, self._before, self._after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Args:
        in_channels: Channels that come in.
        width: Channels inside and out.
        stride: Of the first convolution.
        padded_shortcut: Option A in place of a 1 x 1 convolution where the shape changes.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, *, padded_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.first = _convolution(in_channels, width, 3, stride)
        self.second = _convolution(width, width, 3)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = (
                _PaddedShortcut(width - in_channels, stride)
                if padded_shortcut
                else _convolution(in_channels, width, 1, stride)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (m, in_channels, s, s) to (m, width, s / stride, s / stride)."""
        hidden = functional.relu(self.first(inputs))
        return functional.relu(self.second(hidden) + self.shortcut(inputs))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two 1 x 1 ones beside a shortcut.

    Args:
        in_channels: Channels that come in.
        width: Channels inside; four times as many go out.
        stride: Of the 3 x 3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.first = _convolution(in_channels, width, 1)
        self.second = _convolution(width, width, 3, stride)
        self.third = _convolution(width, out_channels, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _convolution(in_channels, out_channels, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (m, in_channels, s, s) to (m, 4 width, s / stride, s / stride)."""
        hidden = functional.relu(self.first(inputs))
        hidden = functional.relu(self.second(hidden))
        return functional.relu(self.third(hidden) + self.shortcut(inputs))


class ResidualNetwork(nn.Module):
    """Stages of blocks between a 3 x 3 stem without pooling and a linear head.

    Args:
        block: Makes a block from channels in, width and stride.
        expansion: Channels out of a block over its width.
        depths: Blocks in each stage.
        widths: Width of each stage; the first also of the stem. Each stage but the first halves
            the image.
        in_channels: Channels of an image.
        num_classes: Outputs c.
        stem_stride: 2 halves the image in the stem already, for 64 x 64 pixels.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        expansion: int,
        depths: Sequence[int],
        widths: Sequence[int],
        in_channels: int,
        num_classes: int,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, widths[0], 3, stem_stride)
        channels = widths[0]
        blocks: list[nn.Module] = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(block(channels, width, stride))
                channels = expansion * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images (m, in_channels, s, s) to logits (m, c)."""
        hidden = self.blocks(functional.relu(self.stem(images)))
        logits: Tensor = self.head(torch.mean(hidden, dim=(2, 3)))
        return logits
