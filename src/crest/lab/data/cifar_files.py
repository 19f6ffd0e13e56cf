"""Reads CIFAR-10 and CIFAR-100 from the official python version."""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crest.lab.data.image_data import ImageData

__all__ = ["load_cifar_files"]


@dataclass(frozen=True)
class _Layout:
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    meta: str
    names: str
    classes: int


_LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        labels="labels",
        meta="batches.meta",
        names="label_names",
        classes=10,
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        labels="fine_labels",
        meta="meta",
        names="fine_label_names",
        classes=100,
    ),
}


def load_cifar_files(name: str, data_dir: Path) -> ImageData:
    """Read the pickled batches of CIFAR-10 or CIFAR-100.

    Args:
        name: `"cifar10"` or `"cifar100"`.
        data_dir: The unpacked folder or its parent.

    Returns:
        The data set, images of shape (n, 3, 32, 32).

    Raises:
        FileNotFoundError: If files are missing; says which and how to get them.
        ValueError: If a file is damaged or holds anything but arrays and primitives; names it.
    """
    layout = _LAYOUTS[name]
    files = (*layout.train, layout.test, layout.meta)
    places = [data_dir / layout.folder, data_dir]
    place = max(places, key=lambda place: sum((place / file).is_file() for file in files))
    missing = [file for file in files if not (place / file).is_file()]
    if missing:
        everywhere = len(missing) == len(files)
        looked = " and ".join(map(str, places)) if everywhere else str(place)
        archive = layout.folder.replace("-batches-py", "-python") + ".tar.gz"
        raise FileNotFoundError(
            f"{name} needs the files {', '.join(missing)}; looked in {looked}. Get "
            f"https://www.cs.toronto.edu/~kriz/{archive}, unpack it, and name the folder that "
            f"holds {layout.folder} with --data-dir."
        )
    train = [_read_batch(place / file, layout) for file in layout.train]
    test_images, test_labels = _read_batch(place / layout.test, layout)
    return ImageData(
        name=name,
        train_images=torch.cat([images for images, _ in train]),
        train_labels=torch.cat([labels for _, labels in train]),
        test_images=test_images,
        test_labels=test_labels,
        classes=_read_names(place / layout.meta, layout),
        flip=True,
    )


def _read_batch(path: Path, layout: _Layout) -> tuple[Tensor, Tensor]:
    content = _unpickle(path)
    images = _entry(content, "data", path)
    labels = _entry(content, layout.labels, path)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        raise ValueError(f"{path} is damaged: data must be an array of bytes, shape (n, 3072).")
    integers = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not integers or len(labels) != len(images) or images.shape[1] != 3 * 32 * 32:
        raise ValueError(
            f"{path} is damaged: it must hold images of 3072 bytes and one integer label for "
            f"each; got data of shape {images.shape}."
        )
    if any(not 0 <= label < layout.classes for label in labels):
        raise ValueError(f"{path} is damaged: labels must be in [0, {layout.classes - 1}].")
    return torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


def _read_names(path: Path, layout: _Layout) -> tuple[str, ...]:
    names = _entry(_unpickle(path), layout.names, path)
    if not isinstance(names, list) or len(names) != layout.classes:
        raise ValueError(f"{path} is damaged: it must name {layout.classes} classes.")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _entry(content: Any, key: str, path: Path) -> Any:
    """Look a key up, which Python 2 wrote as bytes."""
    if isinstance(content, Mapping):
        for spelling in (key.encode(), key):
            if spelling in content:
                return content[spelling]
    raise ValueError(f"{path} is damaged: it must hold a dict with the key {key!r}.")


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # damaged bytes can raise anything at all
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged: {reason}. Unpack the archive again.") from error


class _PlainUnpickler(pickle.Unpickler):
    """Makes arrays and primitives, and refuses whatever could run code."""

    # The function that rebuilds arrays, under the module names of old and new numpy.
    _rebuild: Any = np.empty(0).__reduce__()[0]
    _allowed: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _rebuild,
        ("numpy._core.multiarray", "_reconstruct"): _rebuild,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no data")
        return self._allowed[module, name]
