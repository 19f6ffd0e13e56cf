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
from crest.ranks import Ranks
from crest.strategies.protocol import Task

__all__ = [
    "check_length",
    "check_loader",
    "default_batch_size",
    "draw_user_order",
    "drops_last",
    "epoch_length",
    "make_task",
    "processes_of",
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


def _draw_shared_order(loader: DataLoader[Any], ranks: Ranks) -> list[Tensor]:
    """Draw what all processes train on together: the order of the first one, `world` at a time."""
    batches, world = draw_user_order(loader), ranks.world
    if world == 1:
        return batches
    batches = ranks.gather("order", batches)[0]
    if drops_last(loader):
        batches = batches[: len(batches) // world * world]
    return [torch.cat(batches[i : i + world]) for i in range(0, len(batches), world)]


def processes_of(loader: DataLoader[Any], options: LoaderOptions) -> Ranks:
    """Find the processes that share the work of a loader.

    A strategy that keeps the order of a DistributedSampler has parts already.

    Args:
        loader: The user's loader.
        options: Of the `CoresetLoader`.

    Returns:
        All that there are, or this one by itself.

    Raises:
        ValueError: If the sampler chooses examples, where the strategy is to choose.
    """
    parted = options.keeps_user_order and _num_parts(loader) > 1
    ranks = Ranks(shares=options.shard and not parted)
    if not options.keeps_user_order:
        _check_sampler(loader, ranks.world)
    return ranks


def _num_parts(loader: DataLoader[Any]) -> int:
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    return sampler.num_replicas if isinstance(sampler, DistributedSampler) else 1


def _full_length(loader: DataLoader[Any], ranks: Ranks) -> int:
    """Count the batches of an epoch over all examples, each shared by all processes."""
    length = len(loader)
    if ranks.world == 1 or _num_parts(loader) == ranks.world:
        return length
    whole, rest = divmod(length, ranks.world)
    if not whole and drops_last(loader):
        raise ValueError(
            f"an epoch must have a batch for each of the {ranks.world} processes; train_loader has "
            f"{length}, and drop_last leaves them out. Use smaller batches, or drop_last=False."
        )
    return whole if drops_last(loader) else whole + bool(rest)


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
    if type(train_loader).__module__.startswith("accelerate."):
        raise TypeError(
            "train_loader must be the DataLoader as it was before accelerator.prepare; got a "
            f"{type(train_loader).__name__}. Make the CoresetLoader from the plain DataLoader; "
            "crest.adapters.accelerate.prepare takes the CoresetLoader."
        )
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


def epoch_length(loader: DataLoader[Any], options: LoaderOptions, ranks: Ranks) -> int:
    """Count the batches of a short epoch: whole groups of accumulation, at least one.

    Args:
        loader: The user's loader.
        options: Of the `CoresetLoader`: budget 1 takes all batches.
        ranks: The processes that train on each batch together.

    Returns:
        At least 1.

    Raises:
        ValueError: If there is no batch for each process, as the last, incomplete one is left out.
    """
    length, group = _full_length(loader, ranks), options.accumulation_steps
    if options.budget == 1:
        return length
    return max(math.floor(options.budget * length / group + 0.5), 1) * group


def _check_sampler(loader: DataLoader[Any], world: int) -> None:
    """Refuse a sampler that chooses examples, where the strategy is to choose.

    One that parts the examples among as many processes as share the work is as good as none.

    Raises:
        ValueError: If it does more than shuffle: it leaves examples out, repeats some, weighs
            them, or is of a kind that is not known to give each example once.
    """
    batches: Any = loader.batch_sampler
    if getattr(type(batches), "__iter__", None) is not BatchSampler.__iter__:
        reason = "make batches in a way of its own"
    else:
        reason = _choice(batches.sampler, len(cast(Any, loader.dataset)), world)
    if reason:
        raise ValueError(
            "the sampler of train_loader must leave the choice of examples to the strategy, not "
            f"{reason}; got {_name(loader)}. Wrap the examples in torch.utils.data.Subset and use "
            "shuffle=True. crest.Full() keeps sampler and order."
        )


def _choice(sampler: Any, num_examples: int, world: int) -> str:
    """Say what a sampler does beyond giving each example once in an epoch; empty: nothing."""
    kind = type(sampler)
    if isinstance(sampler, DistributedSampler) and kind.__iter__ is DistributedSampler.__iter__:
        if sampler.num_replicas not in (1, world):
            return (
                f"give this process one of {sampler.num_replicas} parts, which is "
                "Subset(dataset, range(rank, len(dataset), world_size))"
            )
        source: Any = sampler.dataset
    elif getattr(kind, "__iter__", None) is RandomSampler.__iter__ or _is_seedable(kind):
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


def _is_seedable(kind: type) -> bool:
    """Tell the random sampler of Accelerate, which only seeds each pass anew."""
    name = (kind.__module__, kind.__name__)
    return name == ("accelerate.data_loader", "SeedableRandomSampler")


def _name(loader: DataLoader[Any]) -> str:
    """Name the part of the user's that decides on the order."""
    batches: Any = loader.batch_sampler
    return type(batches.sampler if type(batches) is BatchSampler else batches).__name__


def make_task(
    loader: DataLoader[Any],
    options: LoaderOptions,
    generator: torch.Generator,
    labels: Tensor,
    ranks: Ranks,
) -> Task:
    """Tell a strategy what it must know before the first region.

    Args:
        loader: The user's loader.
        options: Of the `CoresetLoader`.
        generator: Of the plan.
        labels: Classes as far as they are known, which the data fills in later.
        ranks: The processes that train on each batch together: the task is theirs.

    Returns:
        The task.
    """
    return Task(
        num_examples=len(labels),
        batch_size=options.batch_size * ranks.world,
        batches_per_step=options.accumulation_steps,
        drop_last=drops_last(loader),
        generator=generator,
        labels=None if options.labels is None else labels,
        user_order=functools.partial(_draw_shared_order, loader, ranks),
        batches_per_pass=_full_length(loader, ranks),
        dataset=loader.dataset,
        exact_losses=options.look.is_exact,
        batch_statistics=options.look.batch_statistics,
    )
