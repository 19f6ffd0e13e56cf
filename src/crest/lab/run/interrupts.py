"""Ctrl-C and SIGTERM, held back until the state of a run is saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupts"]

# Each with the handler that stands for "nobody wants it": what a program handles by itself, or
# ignores, stays as it is.
_HELD: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


class Interrupts:
    """Holds the first Ctrl-C or SIGTERM back; the second ends at once.

    A context manager, which may be entered again within itself. Signals are held in the main
    thread alone, as Python handles them there.

    Attributes:
        came: Whether there was one.

    Raises:
        KeyboardInterrupt: At the end, if there was one and nothing else was raised but a
            `ValueError`.
    """

    def __init__(self) -> None:
        self.came = False
        self._depth = 0
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Stop here if there was one, as nothing would be lost.

        Raises:
            KeyboardInterrupt: If there was one.
        """
        if self.came:
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupts:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            for number, unwanted in _HELD.items():
                if signal.getsignal(number) is unwanted:
                    self._before[number] = signal.signal(number, self._hold)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        # A run that diverged fails alone, and others would begin; a full disk must be told.
        if kind is None or issubclass(kind, ValueError):
            self.check()

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.check()  # the second
        self.came = True
