"""Collates items that are held, again and again, each time as if it were the first."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from crest.containers import attributes_of
from crest.items import Copier
from crest.randomness import seeded

__all__ = ["Collation"]


class Collation:
    """The user's collate_fn on items that others will be shown, too.

    It gets copies of them: what it takes out of an item, puts there or divides in place is not
    missing or done twice the next time, and what the batch holds is nobody else's, so that loss and
    loop may write to it. `default_collate` gets the items themselves, as it writes to none, makes
    new tensors and draws nothing.

    Attributes:
        draws: Whether it was seen to draw from torch, numpy or `random`.

    Args:
        collate_fn: Makes a batch of a list of items.
        shared: Objects that items may point at and that are not copied, such as the data set.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], shared: Iterable[Any]) -> None:
        self._collate_fn = collate_fn
        self._shared = tuple(shared)
        self.draws = False

    def __call__(self, items: Sequence[Any], seed: int) -> Any:
        """Collate items in this process.

        Args:
            items: Items of one batch.
            seed: Seeds a collate function that draws at random.

        Returns:
            The batch, as the user's collate_fn makes it.

        Raises:
            ValueError: If the collate function changed a tensor of an item in place.
        """
        if self._collate_fn is default_collate:
            return default_collate(list(items))
        copier = Copier(self._shared)
        copies = [copier.copy(item) for item in items]
        watched = [tensor for tensor in copier.tensors if not tensor.is_inference()]
        versions = [tensor._version for tensor in watched]
        with seeded(seed):
            before = None if self.draws else _random_states()
            batch = self._collate_fn(copies)
            self.draws = self.draws or before != _random_states()
        if versions != [tensor._version for tensor in watched]:
            raise ValueError(
                "collate_fn must not change the tensors of an item in place, as the dataset may "
                "give the same ones again. Write x = x / 2 in place of x /= 2."
            )
        return batch

    def is_random(self, items: Sequence[Any]) -> bool:
        """Tell whether items are collated in another way each time, by doing it twice.

        Unlike `draws` this sees generators of its own, too.

        Args:
            items: Items of one batch.

        Returns:
            Whether two batches of them differ.
        """
        if self._collate_fn is default_collate:
            return False
        return self.draws or not _same(self(items, 0), self(items, 1)) or self.draws


def _random_states() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    torch_state = torch.get_rng_state().numpy().tobytes()
    return torch_state, random.getstate(), name, np.asarray(keys).tobytes(), *rest


def _same(one: Any, other: Any) -> bool:
    """Compare what batches are made of; what cannot be compared counts as the same."""
    try:
        return _equal(one, other)
    except Exception:  # RecursionError among others
        return True


def _equal(one: Any, other: Any) -> bool:
    kind: Any = type(one)
    if kind is not type(other):
        return False
    if isinstance(one, (Tensor, np.ndarray)):
        if one.shape != other.shape:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())  # nan is nan
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    by_identity: Any = object.__eq__
    if kind.__eq__ is by_identity:
        return _equal(attributes_of(one), attributes_of(other))
    return bool(one == other)
