"""How far a comparison is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from crest.lab.run.comparison import Progress
from crest.lab.run.settings import RunSettings

__all__ = ["LineProgress", "make_progress"]

_SILENCE_SECONDS = 30.0  # at most this long between two lines


@contextmanager
def make_progress() -> Iterator[Progress]:
    """Make what suits standard error, and clear the bar when done.

    Yields:
        A progress bar if standard output and error are terminals and rich is there, else lines.
    """
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield LineProgress(sys.stderr)
        return
    try:
        from rich import progress as rich_progress
        from rich.console import Console
    except ModuleNotFoundError:
        yield LineProgress(sys.stderr)
        return
    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("steps, left"),
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
        refresh_per_second=2,  # training wants the processor
    )
    with bar:
        yield _BarProgress(bar)


class LineProgress:
    """Writes a line for each finished run, and one now and then in a long run.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._title = ""
        self._steps = 0
        self._spoke = time.monotonic()

    def plan(self, steps: Iterable[int]) -> None:
        """Announce the runs to come."""
        counts = list(steps)
        if counts:
            self._say(f"{len(counts)} run(s) to train, {sum(counts):,} steps in all")

    def begin(self, settings: RunSettings, steps: int) -> None:
        """Remember what runs."""
        self._title, self._steps = _title(settings), steps

    def wait(self, settings: RunSettings) -> None:
        """Say which run another process trains."""
        self._say(_waiting(settings))

    def advance(self, step: int) -> None:
        """Say where the run is, if nothing was said for long."""
        if time.monotonic() - self._spoke > _SILENCE_SECONDS:
            self._say(f"{self._title}: step {step:,} of {self._steps:,}")

    def finish(self, record: dict[str, Any], *, kept: bool) -> None:
        """Say what came out."""
        self._say(_line(record, kept=kept))

    def fail(self, settings: RunSettings, error: ValueError) -> None:
        """Say which run failed, and why."""
        self._say(f"{_title(settings)}: failed: {error}")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)
        self._spoke = time.monotonic()


class _BarProgress:
    """One bar for all runs, finished ones above it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=0)
        self._total = 0
        self._before = 0  # steps of runs that are over
        self._steps = 0  # of the run under way

    def plan(self, steps: Iterable[int]) -> None:
        self._total += sum(steps)
        self._bar.update(self._task, total=self._total)

    def begin(self, settings: RunSettings, steps: int) -> None:
        self._steps = steps
        self._bar.update(self._task, description=_title(settings))

    def wait(self, settings: RunSettings) -> None:
        self._bar.print(_waiting(settings))

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=self._before + step)

    def finish(self, record: dict[str, Any], *, kept: bool) -> None:
        if not kept:
            self._before += self._steps
        self._bar.print(_line(record, kept=kept))

    def fail(self, settings: RunSettings, error: ValueError) -> None:
        self._before += self._steps
        self._bar.print(f"{_title(settings)}: failed: {error}")


def _title(settings: RunSettings) -> str:
    equal_time = ", equal time" if settings.num_steps is not None else ""
    return f"{settings.strategy}{equal_time}, seed {settings.seed}"


def _waiting(settings: RunSettings) -> str:
    return f"{_title(settings)}: another process trains it; waiting for its record"


def _line(record: dict[str, Any], *, kept: bool) -> str:
    equal_time = ", equal time" if record["equal_time"] else ""
    ending = ", kept from an earlier call" if kept else ""
    return (
        f"{record['strategy']}{equal_time}, seed {record['seed']}: "
        f"{100 * record['accuracy']:.2f} % after {record['steps']:,} steps "
        f"in {record['seconds']:.1f} s{ending}"
    )
