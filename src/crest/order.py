"""What the user's own loader would hand out: its examples, its order, its batch size."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from crest.checks import check, instance

__all__ = [
    "check_length",
    "check_loader",
    "check_sampler",
    "default_batch_size",
    "draw_user_order",
    "epoch_length",
]

_LOADER = instance(DataLoader, text="a torch.utils.data.DataLoader")


def draw_user_order(loader: DataLoader[Any]) -> list[Tensor]:
    """Draw the batches of an epoch as `for batch in loader` would.

    Args:
        loader: The user's loader.

    Returns:
        Example indices of each batch, int64.
    """
    # iter(loader) draws a seed for its workers before the sampler draws its own.
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    return [torch.tensor(indices) for indices in cast(Any, loader.batch_sampler)]


def check_loader(train_loader: DataLoader[Any]) -> int:
    """Refuse a loader that cannot be read.

    Args:
        train_loader: The user's loader.

    Returns:
        The number of examples.

    Raises:
        TypeError: If it is no DataLoader, or its dataset is iterable-style.
        ValueError: If there is no example, or the loader does not batch.
    """
    check("train_loader", train_loader, _LOADER, "Write DataLoader(dataset, batch_size=...).")
    dataset = train_loader.dataset
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "the dataset must be map-style, with examples by index; got an IterableDataset, "
            f"{type(dataset).__name__}. Load it into a list or an indexed file first."
        )
    length = len(cast(Any, dataset))
    if length == 0:
        raise ValueError("the dataset must hold at least one example; got an empty one.")
    if train_loader.batch_sampler is None:
        raise ValueError(
            "train_loader must batch its examples; got one with batch_size=None. "
            "Set batch_size in the DataLoader."
        )
    return length


def check_length(train_loader: DataLoader[Any], length: int) -> None:
    """Refuse a dataset that has grown or shrunk.

    Args:
        train_loader: The user's loader.
        length: Examples that it had.

    Raises:
        ValueError: If it has another number of them.
    """
    now = len(cast(Any, train_loader.dataset))
    if now != length:
        raise ValueError(
            f"the dataset must keep its length, {length}; it has {now} now. Make a new loader for "
            "other data."
        )


def default_batch_size(loader: DataLoader[Any]) -> int:
    """Read m off the user's loader.

    Args:
        loader: The user's loader.

    Returns:
        m.

    Raises:
        ValueError: If its batch sampler is one of the user's own.
    """
    sampler = loader.batch_sampler
    if type(sampler) is not BatchSampler:
        raise ValueError(
            "batch_size must be given for a loader with a batch sampler of its own, "
            f"{type(sampler).__name__}, in whose place the strategy chooses examples; got None."
        )
    return sampler.batch_size


def epoch_length(full_length: int, budget: float, accumulation_steps: int) -> int:
    """Count the batches of a short epoch: whole groups of accumulation, at least one.

    Args:
        full_length: Batches of an epoch of the user's loader.
        budget: Share of them, in (0, 1]; 1 takes them all.
        accumulation_steps: Batches of a group.

    Returns:
        At least 1.
    """
    if budget == 1:
        return full_length
    steps = math.floor(budget * full_length / accumulation_steps + 0.5)
    return max(steps, 1) * accumulation_steps


def check_sampler(loader: DataLoader[Any]) -> None:
    """Refuse a sampler that chooses examples, where the strategy is to choose.

    Args:
        loader: The user's loader.

    Raises:
        ValueError: If its sampler does more than shuffle.
    """
    if not isinstance(loader.sampler, (RandomSampler, SequentialSampler)):
        raise ValueError(
            "the sampler of train_loader must leave the choice of examples to the strategy; got "
            f"{type(loader.sampler).__name__}. Wrap the examples in torch.utils.data.Subset "
            "and use shuffle=True."
        )
