"""The class of each example: as it was told, or as an item of the data set has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crest.pool import UNKNOWN_CLASS

__all__ = ["known_labels", "label_of"]


def known_labels(labels: Tensor | None, num_examples: int) -> Tensor:
    """Give the class of each example as far as it was told.

    Args:
        labels: As told, int, shape (n,); None if they were not.
        num_examples: n.

    Returns:
        Classes, or `pool.UNKNOWN_CLASS`, int64, shape (n,), for a view to fill in.
    """
    known = torch.full((num_examples,), UNKNOWN_CLASS)
    return known if labels is None else known.copy_(labels)


def label_of(item: Any) -> int:
    """Find the class of an item.

    Args:
        item: Of a data set.

    Returns:
        The second of a pair or the label of a mapping, `pool.UNKNOWN_CLASS` if there is none.
    """
    label: Any = None
    if isinstance(item, (tuple, list)) and len(item) == 2:
        label = item[1]
    elif isinstance(item, Mapping):
        label = item.get("labels", item.get("label"))
    on_device = isinstance(label, Tensor) and label.device.type != "cpu"  # would be waited for
    if isinstance(label, (Tensor, np.ndarray, np.generic)) and not on_device:
        label = label.item() if math.prod(label.shape) == 1 else None
    return int(label) if isinstance(label, int) else UNKNOWN_CLASS
