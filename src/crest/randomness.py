"""Random states: seeded inside, given back outside."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

__all__ = ["order_generators", "preserved_order", "preserved_random_state", "seeded"]


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Give back the random states of torch (CPU and `device`), numpy and Python on leaving.

    Args:
        device: A device whose generator may be drawn from, beside the CPU's.

    Yields:
        Nothing.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and Python inside, and give their states back on leaving.

    Args:
        seed: In [0, 2**63).

    Yields:
        Nothing.
    """
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    with preserved_random_state(device):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def order_generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """List the generators of its own that a loader draws its order from; none: the global one.

    Args:
        loader: The user's loader.

    Returns:
        Those of the loader, its sampler, its batch sampler and the sampler in that, which may be
        the same.
    """
    owners: list[Any] = [loader, loader.sampler]
    if loader.batch_sampler is not None:
        batches: Any = loader.batch_sampler
        inner = getattr(batches, "sampler", None)
        owners += [batches] if inner is loader.sampler else [batches, inner]
    found = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


@contextmanager
def preserved_order(loader: DataLoader[Any]) -> Iterator[None]:
    """Give back the states of the generators that a loader draws its order from.

    Args:
        loader: The user's loader.

    Yields:
        Nothing.
    """
    generators = order_generators(loader)
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
