"""What the user's own loader would hand out: its examples, its order, its batch size."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from crest.checks import check, instance
from crest.options import LoaderOptions
from crest.strategies.protocol import Task

__all__ = [
    "check_length",
    "check_loader",
    "check_sampler",
    "default_batch_size",
    "draw_user_order",
    "drops_last",
    "epoch_length",
    "make_task",
    "set_epoch",
]

_LOADER = instance(DataLoader, text="a torch.utils.data.DataLoader")


def draw_user_order(loader: DataLoader[Any]) -> list[Tensor]:
    """Draw the batches of an epoch as `for batch in loader` would.

    Args:
        loader: The user's loader.

    Returns:
        Example indices of each batch, int64: at most as many as `len(loader)` announces, as some
        batch samplers go on for ever, to keep their workers.

    Raises:
        ValueError: If there is no batch, or one whose members are not integers.
    """
    # iter(loader) draws a seed for its workers before the sampler draws its own.
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    batches = iter(cast(Any, loader.batch_sampler))
    order = [list(indices) for indices in itertools.islice(batches, len(loader))]
    if next(batches, None) is not None:  # asked in any case: samplers draw at their end, too
        warnings.warn(
            f"{_name(loader)} hands out more than the {len(loader)} batches that "
            "len(train_loader) announces; each epoch begins anew after these.",
            stacklevel=2,
        )
    if not order:
        raise ValueError(f"{_name(loader)} must hand out a batch in each epoch; got none.")
    found = []
    for indices in order:
        try:
            batch = torch.tensor(indices)
        except (TypeError, ValueError, RuntimeError):
            batch = torch.empty(0)
        if batch.dtype != torch.int64 or batch.ndim != 1:
            raise ValueError(
                f"{_name(loader)} must hand out lists of integers, the places of examples; got "
                f"{str(indices)[:100]}."
            )
        found.append(batch)
    return found


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Tell an epoch to the samplers that want to know.

    Args:
        loader: The user's loader.
        epoch: Number of the epoch that starts.
    """
    batches: Any = loader.batch_sampler
    inner: Any = getattr(batches, "sampler", None)
    for sampler in (loader.sampler, batches, None if inner is loader.sampler else inner):
        tell = getattr(sampler, "set_epoch", None)
        if callable(tell):
            tell(epoch)


def drops_last(loader: DataLoader[Any]) -> bool:
    """Tell whether an epoch leaves out its incomplete last batch.

    Args:
        loader: The user's loader.

    Returns:
        What its batch sampler says, which may be one of the user's own.
    """
    return bool(getattr(loader.batch_sampler, "drop_last", loader.drop_last))


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
    if type(train_loader).__iter__ is not DataLoader.__iter__:
        warnings.warn(
            f"{type(train_loader).__name__} iterates in a way of its own, which is not asked: "
            "batches are made with its dataset, samplers, collate_fn and workers. What it does to "
            "batches beyond that belongs into collate_fn, or into the loop.",
            stacklevel=4,
        )
    return length


def check_length(loader: DataLoader[Any], num_examples: int) -> None:
    """Refuse a dataset that has grown or shrunk.

    Args:
        loader: The user's loader.
        num_examples: Its examples when the run began.

    Raises:
        ValueError: If they are not as many now.
    """
    length = len(cast(Any, loader.dataset))
    if length != num_examples:
        raise ValueError(
            f"the dataset must keep its length, {num_examples}; it has {length} now. "
            "Make a new loader for other data."
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
        ValueError: If it does more than shuffle: it leaves examples out, repeats some, weighs
            them, or is of a kind that is not known to give each example once.
    """
    batches: Any = loader.batch_sampler
    if getattr(type(batches), "__iter__", None) is not BatchSampler.__iter__:
        reason = "make batches in a way of its own"
    else:
        reason = _choice(batches.sampler, len(cast(Any, loader.dataset)))
    if reason:
        raise ValueError(
            "the sampler of train_loader must leave the choice of examples to the strategy, not "
            f"{reason}; got {_name(loader)}. Wrap the examples in torch.utils.data.Subset and use "
            "shuffle=True. crest.Full() keeps sampler and order."
        )


def _choice(sampler: Any, num_examples: int) -> str:
    """Say what a sampler does beyond giving each example once in an epoch; empty: nothing."""
    kind = type(sampler)
    if isinstance(sampler, DistributedSampler) and kind.__iter__ is DistributedSampler.__iter__:
        if sampler.num_replicas > 1:
            return (
                f"give this process one of {sampler.num_replicas} parts, which is "
                "Subset(dataset, range(rank, len(dataset), world_size))"
            )
        source: Any = sampler.dataset
    elif getattr(kind, "__iter__", None) is RandomSampler.__iter__:
        if sampler.replacement:
            return "draw with replacement"
        source = sampler.data_source
        if sampler.num_samples != len(source):
            return f"draw {sampler.num_samples} of {len(source)}"
    elif getattr(kind, "__iter__", None) is SequentialSampler.__iter__:
        source = sampler.data_source
    else:
        return "choose in a way of its own"
    if len(source) != num_examples:
        return f"know {len(source)} of {num_examples} examples"
    return ""


def _name(loader: DataLoader[Any]) -> str:
    """Name the part of the user's that decides on the order."""
    batches: Any = loader.batch_sampler
    return type(batches.sampler if type(batches) is BatchSampler else batches).__name__


def make_task(
    loader: DataLoader[Any],
    options: LoaderOptions,
    generator: torch.Generator,
    labels: Tensor,
) -> Task:
    """Tell a strategy what it must know before the first region.

    Args:
        loader: The user's loader.
        options: Of the `CoresetLoader`.
        generator: Of the plan.
        labels: Classes as far as they are known, which the data fills in later.

    Returns:
        The task.
    """
    return Task(
        num_examples=len(labels),
        batch_size=options.batch_size,
        batches_per_step=options.accumulation_steps,
        drop_last=drops_last(loader),
        generator=generator,
        labels=None if options.labels is None else labels,
        user_order=functools.partial(draw_user_order, loader),
        batches_per_pass=len(loader),
        dataset=loader.dataset,
        exact_losses=options.look.is_exact,
        batch_statistics=options.look.batch_statistics,
    )
