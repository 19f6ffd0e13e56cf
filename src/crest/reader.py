"""Reads examples through the user's dataset, collate_fn and workers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crest.randomness import seeded

__all__ = ["Reader", "Request"]


class Request(NamedTuple):
    """What to read at once.

    Attributes:
        indices: Example indices.
        seed: Seeds torch, numpy and Python before the dataset is asked, so that the views are a
            function of the request alone, whichever process reads it. None lets the dataset draw
            from the random states as they are.
        collate: Whether to answer with one collated batch instead of single items.
    """

    indices: list[int]
    seed: int | None
    collate: bool


class Reader:
    """Fetches requests with the settings of a user's loader.

    Workers start at the first request and stay until the reader goes. Iterating never draws from
    the global random state.

    Attributes:
        has_workers: Whether other processes do the reading.

    Args:
        loader: The user's loader over a map-style dataset.
        dataset: Read this one instead of the loader's.
    """

    def __init__(self, loader: DataLoader[Any], dataset: Any = None) -> None:
        self._collate_fn = loader.collate_fn
        self._dataset = _RequestDataset(
            loader.dataset if dataset is None else dataset, loader.collate_fn
        )
        self._queue: list[Request] = []
        workers: dict[str, Any] = {}
        if loader.num_workers:
            workers = {
                "num_workers": loader.num_workers,
                "persistent_workers": True,
                "prefetch_factor": loader.prefetch_factor,
                "worker_init_fn": loader.worker_init_fn,
                "multiprocessing_context": loader.multiprocessing_context,
                "timeout": loader.timeout,
            }
        self._loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=_Queue(self),
            collate_fn=_as_it_is,
            pin_memory=loader.pin_memory and torch.cuda.is_available(),
            generator=torch.Generator(),
            **workers,
        )
        self.has_workers = loader.num_workers > 0

    def stream(self, requests: Sequence[Request]) -> Iterator[Any]:
        """Read requests in order, ahead of their use if there are workers.

        Only one stream can be open; opening the next one ends it.

        Args:
            requests: What to read.

        Returns:
            The answers, in order.
        """
        self._queue[:] = requests
        return iter(self._loader)

    def batches(self, batches: Sequence[Tensor], seed: int) -> Iterator[Any]:
        """Read views of any examples.

        Args:
            batches: Example indices of each batch, int64.
            seed: Of the views.

        Returns:
            The batches, as the user's collate_fn makes them.
        """
        generator = torch.Generator().manual_seed(seed)
        seeds: list[int] = torch.randint(2**62, (len(batches),), generator=generator).tolist()
        return self.stream(
            [
                Request(indices.tolist(), view_seed, collate=True)
                for indices, view_seed in zip(batches, seeds, strict=True)
            ]
        )

    def items(self, indices: Tensor, seeds: Sequence[int], chunk: int) -> dict[int, Any]:
        """Read single items, in chunks spread over the workers.

        Args:
            indices: Distinct example indices, shape (k,).
            seeds: One seed for each chunk, at least ceil(k / chunk).
            chunk: Examples in one request.

        Returns:
            Item by example index.
        """
        numbers: list[int] = indices.tolist()
        requests = [
            Request(numbers[start : start + chunk], seed, collate=False)
            for start, seed in zip(range(0, len(numbers), chunk), seeds, strict=False)
        ]
        found: dict[int, Any] = {}
        for request, answer in zip(requests, self.stream(requests), strict=True):
            items = unpack(answer) if self.has_workers else answer
            found.update(zip(request.indices, items, strict=True))
        return found

    def collate(self, items: Sequence[Any], seed: int) -> Any:
        """Collate items in this process, once or again.

        The dicts and lists of an item are copied, so that what a collate function takes out of
        them, or puts there, is not missing or done twice the next time.

        Args:
            items: Items of one batch.
            seed: Seeds a collate function that draws at random.

        Returns:
            The batch, as the user's collate_fn makes it.

        Raises:
            ValueError: If the collate function changed a tensor of an item in place.
        """
        tensors: list[Tensor] = []
        copies = [_copied(item, tensors) for item in items]
        versions = [tensor._version for tensor in tensors]
        with seeded(seed):
            batch = self._collate_fn(copies)
        if versions != [tensor._version for tensor in tensors]:
            raise ValueError(
                "collate_fn must not change the tensors of an item in place, as items are collated "
                "for selection and again for training. Write x = x / 2 in place of x /= 2."
            )
        return batch


class _Queue:
    """Sampler of a loader whose requests change from one iteration to the next."""

    def __init__(self, reader: Reader) -> None:
        self._requests = reader._queue

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)


class _RequestDataset(Dataset[Any]):
    """Answers requests, in a worker or in the main process."""

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._dataset = dataset
        self._collate_fn = collate_fn

    def __getitem__(self, request: Request) -> Any:
        if request.seed is None:
            return self._answer(request)
        with seeded(request.seed):
            return self._answer(request)

    def _answer(self, request: Request) -> Any:
        if hasattr(self._dataset, "__getitems__"):
            items = self._dataset.__getitems__(request.indices)
        else:
            items = [self._read(index) for index in request.indices]
        if request.collate:
            return self._collate_fn(items)
        in_worker = torch.utils.data.get_worker_info() is not None
        return pack(items) if in_worker else items

    def _read(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except Exception as error:
            raise RuntimeError(
                f"the dataset must give example {index}; it raised {type(error).__name__}: {error}"
            ) from error


class _Packed(NamedTuple):
    """Items on their way out of a worker, column by column."""

    kind: str
    detail: Any
    columns: list[Any]


def pack(items: list[Any]) -> _Packed:
    """Turn items into few large tensors, which cross between processes in shared memory.

    Args:
        items: Items of one request: tensors, tuples, lists or dicts of such, or anything else.

    Returns:
        What `unpack` turns back into the same items.
    """
    first = items[0]
    is_container = isinstance(first, (tuple, list)) or type(first) is dict
    is_empty = is_container and not first  # has no columns to tell the number of rows by
    if not is_empty and all(type(item) is type(first) for item in items):
        if type(first) is Tensor and all(
            item.shape == first.shape and item.dtype == first.dtype and item.device == first.device
            for item in items
        ):
            return _Packed("tensor", None, [torch.stack(items)])
        if isinstance(first, (tuple, list)) and len({len(item) for item in items}) == 1:
            columns = [pack(list(column)) for column in zip(*items, strict=True)]
            return _Packed("sequence", type(first), columns)
        if type(first) is dict and all(item.keys() == first.keys() for item in items):
            return _Packed(
                "mapping", list(first), [pack([item[key] for item in items]) for key in first]
            )
    return _Packed("other", None, [pickle.dumps(items)])


def unpack(packed: _Packed) -> list[Any]:
    """Undo `pack`.

    Args:
        packed: The result of `pack`.

    Returns:
        The items, in order.
    """
    kind, detail, columns = packed
    if kind == "tensor":
        return list(columns[0].unbind(0))
    if kind == "other":
        items: list[Any] = pickle.loads(columns[0])
        return items
    rows = zip(*(unpack(column) for column in columns), strict=True)
    if kind == "mapping":
        return [dict(zip(detail, row, strict=True)) for row in rows]
    make = detail._make if hasattr(detail, "_make") else detail
    return [make(row) for row in rows]


def place(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device.

    Args:
        batch: A tensor, an object with `.to()`, or a sequence or mapping of such.
        device: Where to.

    Returns:
        The same structure; what is no tensor stays as it is.
    """
    if hasattr(batch, "to"):
        return (
            batch.to(device, non_blocking=True) if isinstance(batch, Tensor) else batch.to(device)
        )
    if isinstance(batch, Mapping):
        return {key: place(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [place(value, device) for value in batch]
        return type(batch)._make(moved) if hasattr(batch, "_make") else type(batch)(moved)
    return batch


def _copied(item: Any, tensors: list[Tensor]) -> Any:
    """Copy the containers that an item is made of, and note the tensors they hold."""
    if isinstance(item, Tensor):
        if not item.is_inference():  # has no version
            tensors.append(item)
        return item
    if isinstance(item, (tuple, list)):
        parts = [_copied(part, tensors) for part in item]
        if isinstance(item, tuple):
            return type(item)._make(parts) if hasattr(item, "_make") else tuple(parts)
        return parts
    if isinstance(item, MutableMapping):
        copied = copy.copy(item)
        for key in item:
            copied[key] = _copied(item[key], tensors)
        return copied
    return item


def _as_it_is(answer: Any) -> Any:
    return answer
