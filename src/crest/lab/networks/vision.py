"""Networks for images, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from crest.checks import check_choice
from crest.lab.networks.residual import BasicBlock, Bottleneck, ResidualNetwork

__all__ = ["NETWORKS", "build_network"]


def build_network(name: str, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Make a network with weights from torch's global generator.

    Args:
        name: One of `NETWORKS`. The paper takes `"resnet20"` (0.27 million parameters) for
            CIFAR-10, `"resnet18"` (11 million) for CIFAR-100 and `"resnet50"` (23 million) for
            TinyImageNet.
        in_channels: Channels of an image.
        image_size: Height and width in pixels.
        num_classes: Outputs c.

    Returns:
        A module from images (m, in_channels, image_size, image_size) to logits (m, c), whose last
        layer is linear.

    Raises:
        ValueError: If the name is unknown, or images are too small for the network.

    Example:
        >>> network = build_network("resnet20", in_channels=3, image_size=32, num_classes=10)
        >>> sum(parameter.numel() for parameter in network.parameters())
        269722
    """
    check_choice("network", name, NETWORKS)
    return NETWORKS[name](in_channels, image_size, num_classes)


def _mlp(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def _cnn(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    if image_size < 4:
        raise ValueError(f"cnn needs images of 4 pixels or more on a side; got {image_size}.")
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (image_size // 4) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def _small_resnet(depth: int, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """CIFAR style: three stages of 16, 32 and 64 channels, option A shortcuts."""
    block = partial(BasicBlock, padded_shortcut=True)
    return ResidualNetwork(block, 1, [depth] * 3, [16, 32, 64], in_channels, num_classes)


def _resnet18(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    depths, widths = [2, 2, 2, 2], [64, 128, 256, 512]
    return ResidualNetwork(
        BasicBlock, BasicBlock.expansion, depths, widths, in_channels, num_classes
    )


def _resnet50(in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    depths, widths = [3, 4, 6, 3], [64, 128, 256, 512]
    return ResidualNetwork(
        Bottleneck,
        Bottleneck.expansion,
        depths,
        widths,
        in_channels,
        num_classes,
        stem_stride=2,
    )


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet8": partial(_small_resnet, 1),
    "resnet20": partial(_small_resnet, 3),
    "resnet18": _resnet18,
    "resnet50": _resnet50,
}
