"""What a watch keeps: batches that were handed out, and calls of the model that it saw."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from crest.containers import shallow

__all__ = ["HALF", "Call", "HandedOut", "example_rows"]

HALF = (torch.bfloat16, torch.float16)  # of 16 bits


@dataclass(eq=False)
class HandedOut:
    """A batch whose gradients have not all been seen.

    Attributes:
        number: How many batches were handed out before, plus one.
        step: Optimizer steps taken with it.
        indices: Of its examples, int64, shape (m,).
        weights: Of its examples, shape (m,).
        batch: As the loss takes it, without weights.
        num_taken: How many rows were taken in.
    """

    number: int
    step: int
    indices: Tensor
    weights: Tensor
    batch: Any
    num_taken: int = field(default=0, init=False)
    _taken: Tensor | None = field(default=None, init=False)  # bool, shape (m,), if it is a part
    _tensors: list[weakref.ref[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        m = self.size
        self._tensors = [
            weakref.ref(leaf)
            for leaf in _leaves(self.batch)
            if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == m
        ]

    @property
    def size(self) -> int:
        """Number of examples; the length of a tensor takes ten times as long as its shape."""
        return self.indices.shape[0]

    @property
    def tensors(self) -> list[Tensor]:
        """Those of the batch that have a row for each example, as long as they live."""
        return [tensor for ref in self._tensors if (tensor := ref()) is not None]

    def forget_batch(self) -> None:
        """Keep the batch alive no longer, now that all of it was taken in."""
        self.batch = None

    @property
    def is_taken(self) -> bool:
        """Whether all rows were taken in."""
        return self.num_taken == self.size

    @property
    def next_row(self) -> int:
        """First row that was not taken in."""
        return 0 if self._taken is None else int(self._taken.int().argmin())

    def was_taken(self, start: int, size: int) -> bool:
        """Tell whether some rows were all taken in.

        Args:
            start: The first.
            size: How many.

        Returns:
            Whether they were.
        """
        if self._taken is None:
            return self.is_taken
        return bool(self._taken[start : start + size].all())

    def take(self, start: int, size: int) -> None:
        """Note that some rows were taken in.

        Args:
            start: The first.
            size: How many.
        """
        if self._taken is None and size == self.size:
            self.num_taken = size
            return
        if self._taken is None:
            self._taken = torch.zeros(self.size, dtype=torch.bool)
        self._taken[start : start + size] = True
        self.num_taken = int(self._taken.sum())

    def part(self, start: int, size: int) -> Any:
        """Cut some rows out of the batch, for micro-batches.

        Args:
            start: The first.
            size: How many.

        Returns:
            A batch of that many examples.
        """
        m = self.size
        return self.batch if size == m else example_rows(self.batch, m, slice(start, start + size))


def example_rows(batch: Any, m: int, rows: Any) -> Any:
    """Index the rows of each tensor of a batch that has one for each example.

    Args:
        batch: A batch of m examples.
        m: How many.
        rows: What to index with.

    Returns:
        The same structure; what has no rows stays as it is.
    """

    def part(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[rows] if leaf.ndim and len(leaf) == m else leaf
        if not isinstance(leaf, MutableMapping):
            return leaf
        made = shallow(leaf)
        for key, value in leaf.items():
            made[key] = example_rows(value, m, rows)
        return made

    return tree_map(part, batch)


def _leaves(batch: Any) -> Iterator[Any]:
    """List what a batch consists of; mappings that torch does not know, as BatchEncoding, too."""
    if type(batch) in (list, tuple) and all(isinstance(leaf, Tensor) for leaf in batch):
        yield from batch  # as most are: to flatten it takes longer
        return
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Mapping):
            yield from _leaves(dict(leaf))
        else:
            yield leaf


@dataclass(eq=False)
class Call:
    """One forward pass of the model with a graph, and the gradients that came back through it.

    Attributes:
        number: Calls seen before, plus one.
        leaves: The output, flat and detached.
        spec: How it was nested.
        where: Leaves that have a graph.
        versions: Of these, to see that the loop left them as they were.
        inputs: Tensors that the model was called with.
        latest: Number of the batch that had been handed out last.
        names_logits: Whether the output was a mapping of which only `logits` is known.
        gradients: By leaf, one for each backward pass.
    """

    number: int
    leaves: list[Any]
    spec: TreeSpec
    where: list[int]
    versions: list[int]
    inputs: list[Tensor]
    latest: int
    names_logits: bool = False
    gradients: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of the output."""
        return int(self.leaves[self.where[0]].shape[0])

    @property
    def is_one_tensor(self) -> bool:
        """Whether the output is a tensor by itself."""
        return len(self.leaves) == 1 and self.spec.is_leaf() and not self.names_logits

    @property
    def is_half(self) -> bool:
        """Whether the output was in 16 bits."""
        return any(self.leaves[i].dtype in HALF for i in self.where)

    @property
    def was_changed(self) -> bool:
        """Whether the loop wrote to the output."""
        versions = [self.leaves[i]._version for i in self.where]
        return versions != self.versions

    def output(self, leaves: list[Any]) -> Any:
        """Nest other leaves as the output was.

        Args:
            leaves: As many as there were.

        Returns:
            The output.
        """
        whole = tree_unflatten(leaves, self.spec)
        return _Logits(logits=whole) if self.names_logits else whole


class _Logits(dict[Any, Any]):
    """A model output of which only the logits were seen, by key, attribute or first place."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__("logits" if key == 0 else key)
