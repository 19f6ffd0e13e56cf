"""The state of a run that is under way, in a file that is never half written."""

from __future__ import annotations

import io
import math
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from crest.lab.run.files import replace_file
from crest.lab.run.interrupts import Interrupts

__all__ = ["Checkpoint", "Paused"]

_PROGRAM = "crest run"
_VERSION = 1

# What reading a state of something else raises.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Paused(Exception):
    """A run stopped because its time was up, and left its state in its checkpoint."""


class Checkpoint:
    """Saves a run every few minutes, when its time is up, and when it is interrupted.

    Attributes:
        path: The file; it is there while the run is under way.
        interrupts: Holds Ctrl-C back while the run is trained.

    Args:
        path: The file. Its folder is made.
        every_seconds: Between two saves, >= 0.
        deadline: When to save and pause, in the seconds of `time.monotonic`.
        run: What run it is of, in any words; a file of another run is refused.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_seconds: float = 120.0,
        deadline: float = math.inf,
        run: str = "",
    ) -> None:
        self.path = path
        self.interrupts = Interrupts()
        self._every_seconds = every_seconds
        self._deadline = deadline
        self._run = run
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

        Raises:
            OSError: If it cannot be written, such as on a full disk; the old one stays.
        """
        content = io.BytesIO()  # on a full disk torch would tell of its own streams alone
        whole = {"program": _PROGRAM, "version": _VERSION, "run": self._run, "state": state}
        torch.save(whole, content)
        replace_file(self.path, content.getvalue())
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Read the file.

        Returns:
            What was saved, each tensor on its device; None if there is no file.

        Raises:
            OSError: If the file cannot be opened.
            ValueError: If it is damaged, or of another program, version or run.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if not content:
            raise ValueError(self._complaint("it is empty"))
        damage = "it is damaged, cut off, or no file of torch.save"
        try:
            # torch reads changed bytes of a tensor in silence; their check sums are there.
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                is_whole = archive.testzip() is None
            whole = torch.load(io.BytesIO(content), weights_only=True) if is_whole else None
        except Exception as error:  # of any kind: such bytes lead torch anywhere
            raise ValueError(self._complaint(damage)) from error
        if not is_whole:
            raise ValueError(self._complaint(damage))
        if not isinstance(whole, dict) or whole.get("program") != _PROGRAM:
            raise ValueError(self._complaint("another program saved it, or an older crest"))
        if whole.get("version") != _VERSION:
            reason = f"it is of version {whole.get('version')}, this crest reads {_VERSION}"
            raise ValueError(self._complaint(reason))
        if whole.get("run") != self._run:
            raise ValueError(self._complaint("it is of another run"))
        state: dict[str, Any] = whole["state"]
        return state

    @contextmanager
    def naming_faults(self) -> Iterator[None]:
        """Name the file in what is raised while its content is taken up.

        Yields:
            Nothing.

        Raises:
            ValueError: In place of whatever a state of something else leads to.
        """
        try:
            yield
        except _FAULTS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            fault = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            reason = " ".join(fault.split()).rstrip(".")
            raise ValueError(self._complaint(reason or type(error).__name__)) from error

    def remove(self) -> None:
        """Delete the file, once the record of the run is kept."""
        self.path.unlink(missing_ok=True)

    def _complaint(self, reason: str) -> str:
        return (
            f"{self.path} must be the checkpoint of a run; {reason}. "
            "Delete it to train that run anew."
        )
