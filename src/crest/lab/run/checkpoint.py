"""The state of a run that is under way, in a file that is never half written."""

from __future__ import annotations

import math
import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch

__all__ = ["Checkpoint", "Paused"]


class Paused(Exception):
    """A run stopped because its time was up, and left its state in its checkpoint."""


class Checkpoint:
    """Saves a run every few minutes, and when its time is up.

    Attributes:
        path: The file; it is there while the run is under way.

    Args:
        path: The file. Its folder is made.
        every_seconds: Between two saves, >= 0.
        deadline: When to save and pause, in the seconds of `time.monotonic`.
    """

    def __init__(
        self, path: Path, *, every_seconds: float = 120.0, deadline: float = math.inf
    ) -> None:
        self.path = path
        self._every_seconds = every_seconds
        self._deadline = deadline
        self._saved = time.monotonic()

    @property
    def time_is_up(self) -> bool:
        """Whether the run shall pause."""
        return time.monotonic() >= self._deadline

    @property
    def is_due(self) -> bool:
        """Whether the run shall be saved."""
        return self.time_is_up or time.monotonic() - self._saved >= self._every_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file.

        Args:
            state: Tensors and primitives.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Read the file.

        Returns:
            What was saved, each tensor on its device; None if there is no file.

        Raises:
            ValueError: If the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{self.path} must be the checkpoint of a run; it cannot be read. "
                "Delete it to train that run anew."
            ) from error
        return state

    def remove(self) -> None:
        """Delete the file, once the record of the run is kept."""
        self.path.unlink(missing_ok=True)
