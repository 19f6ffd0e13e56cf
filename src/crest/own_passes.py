"""Whether a pass over a model is one of our own, which nobody shall take for training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["in_own_pass", "own_pass"]

_state = threading.local()


def in_own_pass() -> bool:
    """Tell whether a pass of our own is under way in this thread."""
    return getattr(_state, "depth", 0) > 0


@contextmanager
def own_pass() -> Iterator[None]:
    """Mark the passes inside as our own.

    Yields:
        Nothing.
    """
    _state.depth = getattr(_state, "depth", 0) + 1
    try:
        yield
    finally:
        _state.depth -= 1
