"""Reads examples through the user's dataset, collate_fn and workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from crest.collation import Collation
from crest.containers import remade, shallow
from crest.items import pack, unpack
from crest.randomness import seeded

__all__ = ["Reader", "Request", "place"]


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

    Workers start at the first request and stay, through any number of streams, until the epoch
    ends, or the run if the user's loader has `persistent_workers`. Iterating never draws from the
    global random state.

    Attributes:
        collate: Collates items again and again, see `Collation`.
        has_workers: Whether other processes do the reading.

    Args:
        loader: The user's loader over a map-style dataset.
        dataset: Read this one instead of the loader's.
        worker_seed: What the seeds of workers are drawn from.
    """

    def __init__(self, loader: DataLoader[Any], dataset: Any = None, worker_seed: int = 0) -> None:
        dataset = loader.dataset if dataset is None else dataset
        self.collate = Collation(loader.collate_fn, [dataset, loader.dataset])
        self.has_workers = loader.num_workers > 0
        self._outlives_epochs = loader.persistent_workers
        self._worker_seed = worker_seed
        self._queue: list[Request] = []
        self._options: dict[str, Any] = {
            "dataset": _RequestDataset(dataset, loader.collate_fn),
            "batch_size": None,
            "sampler": _Queue(self._queue),
            "collate_fn": _as_it_is,
            "pin_memory": loader.pin_memory and torch.cuda.is_available(),
        }
        if self.has_workers:
            self._options |= {
                "num_workers": loader.num_workers,
                "persistent_workers": True,
                "prefetch_factor": loader.prefetch_factor,
                "worker_init_fn": _WorkerStart(loader.worker_init_fn),
                "multiprocessing_context": loader.multiprocessing_context,
                "timeout": loader.timeout,
            }
        self._loader: DataLoader[Any] | None = None
        self._iterator: Any = None  # of that loader, which owns the workers
        self._opened = 0  # streams so far

    def begin_epoch(self, worker_seed: int) -> None:
        """Let the workers of this epoch be new ones, which see the dataset as it is now.

        Args:
            worker_seed: What their seeds are drawn from.
        """
        if not self._outlives_epochs:
            self.end_workers()
            self._worker_seed = worker_seed

    def end_epoch(self) -> None:
        """End the workers, if those of the user's loader would end."""
        if not self._outlives_epochs:
            self.end_workers()

    def end_workers(self) -> None:
        """End the workers; the next stream starts others.

        At once, and not when the last reference goes: an error that somebody keeps holds one, and
        workers that are forked while older ones wait to be collected take seconds to end.
        """
        shut_down = getattr(self._iterator, "_shutdown_workers", None)
        self._loader = self._iterator = None
        if shut_down is not None:
            shut_down()

    def stream(self, requests: Sequence[Request]) -> Iterator[Any]:
        """Read requests in order, ahead of their use if there are workers.

        Only one stream can be open; opening the next one ends it. One that raised is over, too.

        Args:
            requests: What to read.

        Returns:
            The answers, in order.

        Raises:
            RuntimeError: If workers cannot be started.
        """
        self._queue[:] = requests
        if not all(worker.is_alive() for worker in getattr(self._iterator, "_workers", ())):
            self.end_workers()
        try:
            answers = self._opened_loader()
        except RuntimeError as error:
            if "is killed by signal" not in str(error):
                raise
            # Of an older worker: torch tells of it as soon as it hears, wherever that is.
            answers = self._opened_loader()
        self._iterator = answers
        self._opened += 1
        return self._answers(answers, self._opened)

    def _opened_loader(self) -> Iterator[Any]:
        if self._loader is None:
            generator = torch.Generator().manual_seed(self._worker_seed)
            self._loader = DataLoader(**self._options, generator=generator)
        try:
            return iter(self._loader)
        except BaseException:
            self.end_workers()
            raise

    def _answers(self, answers: Iterator[Any], number: int) -> Iterator[Any]:
        try:
            for answer in answers:
                yield answer
                assert number == self._opened, "another stream was opened"
        except GeneratorExit:
            raise
        except BaseException:
            self.end_workers()  # some may be gone, others at work on what nobody waits for
            raise

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


class _Queue:
    """Sampler of a loader whose requests change from one iteration to the next."""

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)


class _WorkerStart:
    """Shows a worker the user's dataset, and runs the user's `worker_init_fn`."""

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self._worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it is frozen
        if self._worker_init_fn is not None:
            self._worker_init_fn(worker_id)


class _RequestDataset(Dataset[Any]):
    """Answers requests, in a worker or in the main process."""

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self._collate_fn = collate_fn

    def __getitem__(self, request: Request) -> Any:
        if request.seed is None:
            return self._answer(request)
        with seeded(request.seed):
            return self._answer(request)

    def _answer(self, request: Request) -> Any:
        if getattr(self.dataset, "__getitems__", None):
            items = self._read(_getitems, request.indices, "examples")
        else:
            items = [self._read(getitem, index, "example") for index in request.indices]
        if not request.collate:
            return items if get_worker_info() is None else pack(items)
        try:
            return self._collate_fn(items)
        except StopIteration as error:  # would end a loop as if nothing had happened
            raise RuntimeError("collate_fn must return a batch; it raised StopIteration") from error

    def _read(self, read: Callable[[Any, Any], Any], which: Any, name: str) -> Any:
        try:
            return read(self.dataset, which)
        except Exception as error:
            raise RuntimeError(
                f"the dataset must give {name} {which}; it raised {type(error).__name__}: {error}"
            ) from error


def _getitems(dataset: Any, indices: list[int]) -> Any:
    return dataset.__getitems__(indices)


def place(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device.

    Args:
        batch: A tensor, an object with `.to()`, or a sequence, mapping or dataclass of such.
        device: Where to.

    Returns:
        The same structure of the same types; what is no tensor stays as it is.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if callable(getattr(type(batch), "to", None)):
        moved = batch.to(device)
        return batch if moved is None else moved
    if isinstance(batch, Mapping):
        return _placed_mapping(batch, device)
    if isinstance(batch, (tuple, list)):
        parts = [place(part, device) for part in batch]
        is_same = all(new is old for new, old in zip(parts, batch, strict=True))
        return batch if is_same else remade(batch, parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        made = shallow(batch)
        for field in dataclasses.fields(batch):
            part = getattr(batch, field.name, None)
            object.__setattr__(made, field.name, place(part, device))  # it may be frozen
        return made
    return batch


def _placed_mapping(batch: Mapping[Any, Any], device: torch.device) -> Any:
    moved = {key: place(value, device) for key, value in batch.items()}
    if type(batch) is dict:
        return moved
    if all(moved[key] is batch[key] for key in moved):
        return batch
    if not isinstance(batch, MutableMapping):
        return type(batch)(moved)  # type: ignore[call-arg]
    made = shallow(batch)
    for key, value in moved.items():
        made[key] = value
    return made


def _as_it_is(answer: Any) -> Any:
    return answer
