"""Reads MNIST and Fashion-MNIST from idx files."""

from __future__ import annotations

import gzip
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crest.lab.data.image_data import ImageData

__all__ = ["load_idx_files"]

_PARTS = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_UBYTE = 8  # type code in the third byte of an idx file


def load_idx_files(
    name: str, data_dir: Path, *, folder: str, classes: tuple[str, ...], flip: bool, source: str
) -> ImageData:
    """Read the four idx files of a data set, plain, gzip or xz.

    Args:
        name: Name on the command line.
        data_dir: Folder that holds the files, or `folder`/raw as torchvision makes it.
        folder: Name of torchvision's folder.
        classes: Name of each class.
        flip: As in `ImageData`.
        source: Where to get the files.

    Returns:
        The data set, images of shape (n, 1, 28, 28).

    Raises:
        FileNotFoundError: If a file is in none of the places; says which and how to get it.
        ValueError: If a file is damaged; names it.
    """
    places = [data_dir / folder / "raw", data_dir / folder, data_dir / "raw", data_dir]
    for place in places:
        found = {part: _find(place, file) for part, file in _PARTS.items()}
        if any(found.values()):
            break
    missing = [file for part, file in _PARTS.items() if found[part] is None]
    if missing:
        looked = f"{place}" if len(missing) < 4 else ", ".join(str(place) for place in places)
        raise FileNotFoundError(
            f"{name} needs the files {', '.join(missing)} (plain, .gz or .xz); looked in "
            f"{looked}. Get them from {source} and put them in {data_dir / folder / 'raw'}, or "
            "name their folder with --data-dir."
        )
    tensors = {part: _read(path) for part, path in found.items() if path is not None}
    for part, tensor in tensors.items():
        dimensions = 3 if part.endswith("images") else 1
        if tensor.ndim != dimensions:
            raise ValueError(
                f"{found[part]} must have {dimensions} dimension(s); got {tensor.ndim}. "
                f"Get it again from {source}."
            )
    return ImageData(
        name=name,
        train_images=tensors["train_images"].unsqueeze(1),
        train_labels=tensors["train_labels"].long(),
        test_images=tensors["test_images"].unsqueeze(1),
        test_labels=tensors["test_labels"].long(),
        classes=classes,
        flip=flip,
    )


def _find(place: Path, file: str) -> Path | None:
    """Find a file under its name, or with a dot before `idx`, in any compression."""
    for spelling in (file, file.replace("-idx", ".idx")):
        for suffix in _OPENERS:
            path = place / (spelling + suffix)
            if path.is_file():
                return path
    return None


def _read(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes: two zeros, type, dimensions, sizes, values."""
    opener = _OPENERS[path.suffix if path.suffix in _OPENERS else ""]
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}. Get it again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UBYTE:
        raise ValueError(
            f"{path} is damaged: it must begin like an idx file of bytes, 00 00 08; "
            f"got {content[:3].hex(' ') or 'nothing'}. Get it again."
        )
    start = 4 + 4 * content[3]
    sizes = np.frombuffer(content[4:start].ljust(4 * content[3], b"\0"), dtype=">u4").tolist()
    if len(content) - start != math.prod(sizes):
        raise ValueError(
            f"{path} is damaged: {math.prod(sizes)} values must follow its header; "
            f"got {max(len(content) - start, 0)}. Get it again."
        )
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    return torch.from_numpy(values.reshape(sizes).copy())
