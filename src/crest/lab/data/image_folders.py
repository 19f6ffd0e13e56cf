"""Reads the user's own images, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crest.lab.data.image_data import ImageData
from crest.lab.optional import require

__all__ = ["load_image_folders", "read_images"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_image_folders(name: str, data_dir: Path, image_size: int = 64) -> ImageData:
    """Read DIR/train/CLASS/* and DIR/test/CLASS/* (or DIR/val), colour images of any size.

    Args:
        name: Name on the command line.
        data_dir: DIR.
        image_size: Height and width that every image is resized to, in pixels, >= 4.

    Returns:
        The data set, images of shape (n, 3, image_size, image_size), classes sorted by name.

    Raises:
        FileNotFoundError: If a folder is missing; shows the layout that is expected.
        ValueError: If a file is no readable image, or a test class has no train images.
    """
    if image_size < 4:
        raise ValueError(f"image_size must be >= 4 pixels; got {image_size}.")
    train_dir = data_dir / "train"
    test_dir = next(
        (data_dir / part for part in ("test", "val") if (data_dir / part).is_dir()), None
    )
    classes = _class_names(train_dir)
    if not classes or test_dir is None:
        raise FileNotFoundError(
            f"{name} needs one folder of images per class, {train_dir}/CLASS/*.png and "
            f"{data_dir / 'test'}/CLASS/*.png (or val, any image format); looked in {data_dir}. "
            "Name the folder that holds train and test with --data-dir."
        )
    unknown = sorted(set(_class_names(test_dir)) - set(classes))
    if unknown:
        raise ValueError(
            f"every class in {test_dir} must have a folder in {train_dir}; got {unknown[0]!r}."
        )
    train_images, train_labels = _read_part(train_dir, classes, image_size)
    test_images, test_labels = _read_part(test_dir, classes, image_size)
    return ImageData(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=classes,
        flip=True,
    )


def _class_names(part: Path) -> tuple[str, ...]:
    if not part.is_dir():
        return ()
    return tuple(sorted(path.name for path in part.iterdir() if path.is_dir()))


def _read_part(part: Path, classes: tuple[str, ...], image_size: int) -> tuple[Tensor, Tensor]:
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted((part / name).rglob("*"))
        for path in files:
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                paths.append(path)
                labels.append(label)
    if not paths:
        raise FileNotFoundError(
            f"{part} must hold images ({' '.join(sorted(_SUFFIXES))}) in its class folders; "
            "got none."
        )
    return read_images(paths, image_size), torch.tensor(labels)


def read_images(paths: Sequence[Path], image_size: int) -> Tensor:
    """Read colour images of any size.

    Args:
        paths: Files, at least one.
        image_size: Height and width that every image is resized to, in pixels.

    Returns:
        uint8, shape (n, 3, image_size, image_size).

    Raises:
        ValueError: If a file is no readable image.
    """
    pillow = require("PIL.Image", "reading image folders")
    return torch.stack([_read_image(pillow, path, image_size) for path in paths])


def _read_image(pillow: Any, path: Path, image_size: int) -> Tensor:
    try:
        with pillow.open(path) as image:
            small = image.convert("RGB").resize(
                (image_size, image_size), pillow.Resampling.BILINEAR
            )
    except Exception as error:  # damaged bytes can raise anything at all
        raise ValueError(
            f"{path} must be a readable image: {error}. Replace or delete it."
        ) from error
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
