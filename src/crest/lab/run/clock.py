"""The clock of a run, which stands still while something is measured or saved."""

from __future__ import annotations

import time

import torch

__all__ = ["Clock"]


class Clock:
    """Wall time with pauses, once the device has done what it was given.

    Args:
        device: Whose queue is awaited when the clock is read.
        seconds: That it ran before.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._seconds = seconds
        self._turned = self._now()

    def stop(self) -> float:
        """Return the seconds that the clock ran in all."""
        now = self._now()
        self._seconds += now - self._turned
        self._turned = now
        return self._seconds

    def start(self) -> float:
        """Go on, and return the seconds since `stop`."""
        now = self._now()
        pause = now - self._turned
        self._turned = now
        return pause

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
