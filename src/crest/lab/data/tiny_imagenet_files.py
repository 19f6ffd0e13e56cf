"""Reads TinyImageNet from its own folder."""

from __future__ import annotations

from pathlib import Path

import torch

from crest.lab.data.image_data import ImageData
from crest.lab.data.image_folders import read_images

__all__ = ["load_tiny_imagenet_files"]

_FOLDER = "tiny-imagenet-200"


def load_tiny_imagenet_files(name: str, data_dir: Path, image_size: int = 64) -> ImageData:
    """Read the 100,000 train images, and the 10,000 validation images as the test part.

    The labels of the official test images were never published.

    Args:
        name: Name on the command line.
        data_dir: The folder tiny-imagenet-200 or its parent.
        image_size: Height and width that images of 64 x 64 pixels are resized to.

    Returns:
        The data set, images of shape (n, 3, image_size, image_size), classes in the order of
        wnids.txt.

    Raises:
        FileNotFoundError: If files are missing; says which and where they come from.
        ValueError: If an image is damaged, or an annotation names no class; says which.
    """
    folder = data_dir / _FOLDER
    if not folder.is_dir() and (data_dir / "wnids.txt").is_file():
        folder = data_dir
    needed = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")
    missing = [part for part in needed if not (folder / part).exists()]
    if missing:
        raise FileNotFoundError(
            f"{name} needs {', '.join(missing)}; looked in {folder}. They come from "
            f"http://cs231n.stanford.edu/{_FOLDER}.zip; unpack it and name the folder that holds "
            f"{_FOLDER} with --data-dir."
        )
    classes = (folder / "wnids.txt").read_text(encoding="utf-8").split()
    labels = {wnid: label for label, wnid in enumerate(classes)}
    train = [
        (path, label)
        for wnid, label in labels.items()
        for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
    ]
    if not train:
        raise FileNotFoundError(
            f"{folder / 'train'} must hold images as WNID/images/*.JPEG; got none."
        )
    test = []
    annotations = (folder / "val" / "val_annotations.txt").read_text(encoding="utf-8")
    for line in annotations.splitlines():
        file, wnid, *_ = line.split("\t")
        if wnid not in labels:
            raise ValueError(
                f"every image in {folder}/val must be of a class in wnids.txt; {file} is {wnid!r}."
            )
        test.append((folder / "val" / "images" / file, labels[wnid]))
    return ImageData(
        name=name,
        train_images=read_images([path for path, _ in train], image_size),
        train_labels=torch.tensor([label for _, label in train]),
        test_images=read_images([path for path, _ in test], image_size),
        test_labels=torch.tensor([label for _, label in test]),
        classes=tuple(classes),
        flip=True,
    )
