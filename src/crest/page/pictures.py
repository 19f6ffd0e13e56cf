"""Turns examples into what a page can show: pictures, texts, and rows of numbers."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Pictures"]

_LONGEST = 48  # pixels of a side that are kept
_SMALLEST = 5  # pixels of a side, for numbers in two dimensions to be a picture
_LETTERS = 600  # of a text
_NUMBERS = 24  # of a row
_IMAGE_KEYS = ("image", "img", "pixel_values", "images")
_TEXT_KEYS = ("text", "sentence", "content", "question", "premise", "prompt")


class Pictures:
    """Collects items of a data set, and gives each as a page shows it.

    Pixels that are no bytes are scaled, all pictures alike, so that the least of a channel is
    black.
    """

    def __init__(self) -> None:
        self._images: dict[int, Tensor] = {}  # (channels, height, width), float32 or uint8
        self._others: dict[int, dict[str, Any]] = {}

    def add(self, index: int, item: Any) -> None:
        """Take an item.

        Args:
            index: Of the example.
            item: What the data set gave, or what of it shall be shown.
        """
        shown = _shown_part(item)
        text = _as_text(shown)
        image = None if text is not None else _as_image(shown)
        if image is not None:
            self._images[index] = image
        else:
            self._others[index] = text or _as_numbers(shown) or _as_word(shown)

    def fail(self, index: int, why: str) -> None:
        """Take an example that cannot be drawn.

        Args:
            index: Of the example.
            why: In words.
        """
        self._others[index] = {"kind": "none", "text": f"cannot be drawn: {why[:200]}"}

    def encoded(self, most_bytes: int) -> dict[int, dict[str, Any]]:
        """Give all, pictures as PNG.

        Args:
            most_bytes: Of all pictures together; those beyond are left out, and say so.

        Returns:
            By index: `kind` is `"image"` with `png` and `size`, `"text"` with `text`, `"numbers"`
            with `values` and `count`, or `"none"` with `text`.
        """
        found = dict(self._others)
        low, high = self._extremes()
        spent = 0
        for index, image in self._images.items():
            scaled = image if image.dtype == torch.uint8 else _scaled(image, low, high)
            png = base64.b64encode(_png(_shrunk(scaled))).decode()
            spent += len(png)
            if spent > most_bytes:
                found[index] = {"kind": "none", "text": "left out, to keep the page small"}
            else:
                found[index] = {"kind": "image", "png": png, "size": list(image.shape[1:])}
        return found

    def _extremes(self) -> tuple[Tensor, Tensor]:
        """Find the least and the most of each channel, but for a few outliers."""
        floats = [one for one in self._images.values() if one.dtype != torch.uint8]
        lows = [one.amin((1, 2)) for one in floats]
        highs = [one.amax((1, 2)) for one in floats]
        widths = {len(low) for low in lows}
        if len(widths) != 1:  # none, or of several kinds: each by itself
            return torch.empty(0), torch.empty(0)
        return torch.stack(lows).quantile(0.02, dim=0), torch.stack(highs).quantile(0.98, dim=0)


def _shown_part(item: Any) -> Any:
    """Take the inputs of an item."""
    if isinstance(item, Mapping):
        for key in (*_IMAGE_KEYS, *_TEXT_KEYS):
            if key in item:
                return item[key]
        return next(iter(item.values()), None)
    if isinstance(item, (tuple, list)) and item and not _is_number(item[0]):
        return item[0]
    return item


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.generic))


def _as_text(value: Any) -> dict[str, Any] | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        return None
    short = value if len(value) <= _LETTERS else f"{value[:_LETTERS]} ..."
    return {"kind": "text", "text": short}


def _as_word(value: Any) -> dict[str, Any]:
    return {"kind": "text", "text": repr(value)[:_LETTERS]}


def _as_tensor(value: Any) -> Tensor | None:
    if hasattr(value, "convert") and hasattr(value, "size"):  # an image of PIL
        value = np.array(value.convert("RGB")).transpose(2, 0, 1)
    try:
        tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if tensor.is_complex() else tensor.detach().cpu()


def _as_image(value: Any) -> Tensor | None:
    tensor = _as_tensor(value)
    if tensor is None:
        return None
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4) and tensor.shape[2] in (1, 3, 4):
        tensor = tensor.movedim(2, 0)
    is_picture = tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4)
    if not is_picture or min(tensor.shape[1:]) < _SMALLEST:
        return None
    tensor = tensor[:3]
    return tensor if tensor.dtype == torch.uint8 else tensor.float().nan_to_num()


def _as_numbers(value: Any) -> dict[str, Any] | None:
    tensor = _as_tensor(value)
    if tensor is None:
        return None
    flat = tensor.flatten()
    values = [float(f"{number:.4g}") for number in flat[:_NUMBERS].double().tolist()]
    return {"kind": "numbers", "values": values, "count": len(flat)}


def _scaled(image: Tensor, low: Tensor, high: Tensor) -> Tensor:
    if not len(low):
        low, high = image.amin((1, 2)), image.amax((1, 2))
    if float(image.min()) >= 0 and float(image.max()) <= 1:
        low, high = torch.zeros(len(low)), torch.ones(len(low))
    width = (high - low).clamp(min=1e-12)
    scaled = 255 * (image - low[:, None, None]) / width[:, None, None]
    return scaled.round().clamp(0, 255).byte()


def _shrunk(image: Tensor) -> Tensor:
    longest = max(image.shape[1:])
    if longest <= _LONGEST:
        return image
    size = [max(round(side * _LONGEST / longest), 1) for side in image.shape[1:]]
    return functional.interpolate(image[None].float(), size, mode="area")[0].round().byte()


def _png(image: Tensor) -> bytes:
    """Encode bytes of shape (1 or 3, height, width) as PNG (ISO 15948), without filters."""
    channels, height, width = image.shape
    if channels == 2:
        image = image[:1]
    rows = image.movedim(0, 2).contiguous().numpy().reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    colour = 0 if channels < 3 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
