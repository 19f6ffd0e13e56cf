"""Labels made wrong on purpose, to see what a method does with them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from crest.lab.data.protocol import LabelledData

__all__ = ["make_wrong", "with_wrong_labels"]

Data = TypeVar("Data", bound=LabelledData)


def make_wrong(labels: Tensor, num_classes: int, share: float, *, moved: bool = False) -> Tensor:
    """Make a share of labels wrong, the same ones at each call.

    Args:
        labels: Classes from 0, int64, shape (n,).
        num_classes: C, >= 2.
        share: Chance of each label to be made wrong, in [0, 1].
        moved: Whether a wrong label is the next class; else any other, each as likely.

    Returns:
        int64, shape (n,).
    """
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(labels), generator=generator) < share
    shift = torch.randint(1, num_classes, (len(labels),), generator=generator)
    return torch.where(wrong, (labels + (1 if moved else shift)) % num_classes, labels)


def with_wrong_labels(data: Data, share: float) -> Data:
    """Make a share of the train labels any other class.

    Args:
        data: Images or texts of two classes or more.
        share: In [0, 1].

    Returns:
        The data with other train labels; test labels are left alone.
    """
    fields = cast(Any, data)
    labels = make_wrong(fields.train_labels, len(data.classes), share)
    return cast(Data, dataclasses.replace(fields, train_labels=labels))
