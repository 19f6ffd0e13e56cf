"""All data sets by name, and which reader each takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from crest.checks import check_choice
from crest.lab.data.cifar_files import load_cifar_files
from crest.lab.data.idx_files import load_idx_files
from crest.lab.data.image_data import ImageData
from crest.lab.data.image_folders import load_image_folders
from crest.lab.data.protocol import LabelledData
from crest.lab.data.text_files import load_text_files
from crest.lab.data.tiny_imagenet_files import load_tiny_imagenet_files
from crest.lab.optional import require

__all__ = ["DATASETS", "TEXT_DATASETS", "load_dataset"]

_DIGITS_SEED = 0  # of the split into train and test

_FASHION = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot"

_load_mnist = partial(
    load_idx_files,
    folder="MNIST",
    classes=tuple("0123456789"),
    flip=False,
    source="https://ossci-datasets.s3.amazonaws.com/mnist/",
)
_load_fashion_mnist = partial(
    load_idx_files,
    folder="FashionMNIST",
    classes=tuple(_FASHION.split()),
    flip=True,
    source="https://github.com/zalandoresearch/fashion-mnist",
)


def load_dataset(
    name: str,
    data_dir: str | Path = "data",
    *,
    image_size: int = 64,
    network: str | None = None,
) -> LabelledData:
    """Read a data set into memory.

    Args:
        name: One of `DATASETS`. `"digits"` ships inside scikit-learn and reads no folder.
        data_dir: Folder of the files; each reader says what it expects there.
        image_size: Height and width that `"images"` and `"tinyimagenet"` are resized to, in pixels.
        network: What is to be trained: a pre-trained one reads texts in pieces of its own.

    Returns:
        Train and test images or texts, labels and class names.

    Raises:
        FileNotFoundError: If files are missing; says which and how to get them.
        ImportError: If an optional package is missing.
        ValueError: If the name is unknown, or a file is damaged.
    """
    check_choice("data", name, DATASETS)
    folder = Path(data_dir).expanduser()
    if name in TEXT_DATASETS:
        return load_text_files(name, folder, network)
    if name in _RESIZED:
        return _RESIZED[name](name, folder, image_size)
    return _LOADERS[name](name, folder)


def _load_digits(name: str, data_dir: Path) -> ImageData:
    """Take scikit-learn's 1797 digits of 8 x 8 pixels; 80 % of each class train, 20 % test."""
    datasets = require("sklearn.datasets", "the data set digits")
    model_selection = require("sklearn.model_selection", "the data set digits")
    digits = datasets.load_digits()
    parts = model_selection.train_test_split(
        digits.images, digits.target, test_size=0.2, stratify=digits.target,
        random_state=_DIGITS_SEED,
    )  # fmt: skip
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return ImageData(
        name=name,
        # Pixels come as 0 to 16.
        train_images=(train_images * 255 / 16).round().to(torch.uint8).unsqueeze(1),
        train_labels=train_labels.long(),
        test_images=(test_images * 255 / 16).round().to(torch.uint8).unsqueeze(1),
        test_labels=test_labels.long(),
        classes=tuple("0123456789"),
        flip=False,
    )


_LOADERS: dict[str, Callable[[str, Path], ImageData]] = {
    "digits": _load_digits,
    "mnist": _load_mnist,
    "fashion_mnist": _load_fashion_mnist,
    "cifar10": load_cifar_files,
    "cifar100": load_cifar_files,
}

_RESIZED: dict[str, Callable[[str, Path, int], ImageData]] = {
    "tinyimagenet": load_tiny_imagenet_files,
    "images": load_image_folders,
}

TEXT_DATASETS = ("snli", "snli_part", "sst2")

DATASETS: tuple[str, ...] = (*_LOADERS, *_RESIZED, *TEXT_DATASETS)
