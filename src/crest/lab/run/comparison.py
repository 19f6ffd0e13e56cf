"""Several runs on one data set: finished ones are kept, the one under way goes on if stopped."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from crest.lab.data.protocol import LabelledData
from crest.lab.run.checkpoint import Checkpoint, Paused
from crest.lab.run.diagnosis import check_diagnostics
from crest.lab.run.results import Results
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import check, count_steps, train
from crest.lab.run.under_way import UnderWay
from crest.strategies import Random, registered_strategies
from crest.strategies.registry import word_of

__all__ = ["Progress", "check_runs", "compare", "do_all", "lacks", "train_and_keep"]

_RANDOM = word_of(Random)  # whose steps are the measure of others

_PATIENCE_SECONDS = 0.2  # between two looks whether another process is done with a run

Job = TypeVar("Job")


class Progress(Protocol):
    """Is told how far a comparison is."""

    def plan(self, steps: Iterable[int]) -> None:
        """Hear of runs to come, and the steps of each."""
        ...

    def begin(self, settings: RunSettings, steps: int) -> None:
        """Hear that a run starts, and of its steps."""
        ...

    def wait(self, settings: RunSettings) -> None:
        """Hear that another process trains a run, which is waited for."""
        ...

    def advance(self, step: int) -> None:
        """Hear that the run has taken so many steps."""
        ...

    def finish(self, record: dict[str, Any], *, kept: bool) -> None:
        """Hear the record of a run, finished now or kept from before."""
        ...

    def fail(self, settings: RunSettings, error: ValueError) -> None:
        """Hear that a run has no record, and why; others go on."""
        ...


def compare(
    plan: Sequence[RunSettings],
    data: LabelledData,
    results: Results,
    progress: Progress,
    *,
    time_matched: bool = False,
    diagnostics: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], int]:
    """Train each run of a plan unless its record is there already.

    Args:
        plan: Runs in order.
        data: Train and test examples.
        results: Takes each record as soon as its run is finished.
        progress: Is told how far it is.
        time_matched: Add, for each seed, a run of random batches whose schedule is stretched to
            the steps that random batches take in the seconds that the first strategy of the plan
            took that is no baseline.
        diagnostics: What else to measure, see `train`. A run whose record lacks one of them is
            trained again, and its record replaced.

    Returns:
        The records of the plan, then those of equal time; and how many runs have none, as they
        failed: those that diverged.

    Raises:
        ValueError: If `time_matched` and the plan lacks a strategy it needs, a diagnostic is
            unknown, or a run cannot start: before the first is trained. Or if the only run fails.
    """
    check_diagnostics(diagnostics)
    if time_matched:
        planned = {settings.strategy for settings in plan}
        if _RANDOM not in planned or all(settings.entry.is_baseline for settings in plan):
            known = registered_strategies().values()
            *others, last = [entry.word for entry in known if not entry.is_baseline]
            raise ValueError(
                f"equal time needs the strategies {_RANDOM} and {', '.join(others)} or {last}; "
                f"the plan has {', '.join(sorted(planned))}."
            )
    keys = _run_all(plan, data, results, progress, diagnostics, raises=len(plan) == 1)
    if time_matched:
        equal_time = _plan_equal_time(plan, data, results)
        keys += _run_all(equal_time, data, results, progress, diagnostics)
    records = [record for key in keys if (record := results.find(key)) is not None]
    return records, len(keys) - len(records)


def _run_all(
    plan: Sequence[RunSettings],
    data: LabelledData,
    results: Results,
    progress: Progress,
    diagnostics: Sequence[str],
    *,
    raises: bool = False,
) -> list[dict[str, Any]]:
    """Train what is not there yet, and return what to look the records up by."""
    keys = [settings.to_record(data.fingerprint) for settings in plan]
    left = [
        settings
        for settings, key in zip(plan, keys, strict=True)
        if lacks(results.find(key), diagnostics)
    ]
    check_runs(left, data)
    progress.plan(count_steps(settings, data) for settings in left)

    def attempt(settings: RunSettings, waits: bool) -> bool:
        if settings not in left:
            key = settings.to_record(data.fingerprint)
            record = results.find(key)
            assert record is not None
            UnderWay(results.path, key).clear(_measured(record))
            progress.finish(record, kept=True)
            return True
        try:
            return train_and_keep(settings, data, results, progress, diagnostics, waits=waits)
        except ValueError as error:
            if raises:
                raise
            progress.fail(settings, error)
            return True

    do_all(plan, attempt)
    return keys


def do_all(jobs: Sequence[Job], attempt: Callable[[Job, bool], bool]) -> None:
    """Do what no other process does, and then what is left.

    Two processes on one plan share the work so, and both end with all of it.

    Args:
        jobs: In order.
        attempt: `attempt(job, waits)` does one, and returns whether it did; only if `waits` may it
            wait for another process.
    """
    busy = [job for job in jobs if not attempt(job, False)]
    for job in busy:
        attempt(job, True)


def check_runs(plan: Sequence[RunSettings], data: LabelledData) -> None:
    """Refuse what would stop a run before its first step, such as too small a data set.

    Args:
        plan: Runs; those of the first seed are looked at.
        data: Train and test examples.

    Raises:
        ValueError: If a run cannot start.
    """
    for settings in plan:
        if settings.seed == plan[0].seed:
            check(settings, data)


def train_and_keep(
    settings: RunSettings,
    data: LabelledData,
    results: Results,
    progress: Progress,
    diagnostics: Sequence[str],
    *,
    deadline: float = math.inf,
    waits: bool = True,
) -> bool:
    """Train a run, from where it was stopped if it was, and keep its record.

    While the run is under way, its state is saved every two minutes beside the results, and after
    Ctrl-C. Where another process trains the same run, its record is taken.

    Args:
        settings: Of the run.
        data: Train and test examples.
        results: Takes the record.
        progress: Hears the steps and the record.
        diagnostics: What else to measure, beside what an older record of the run has.
        deadline: When to save and pause, in the seconds of `time.monotonic`.
        waits: Whether to wait for another process that trains this run, and to go on from its last
            save if it ends before.

    Returns:
        Whether the record is kept; not if another process is at it and `waits` is false.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM; the run is saved first.
        OSError: If a file cannot be written, such as on a full disk.
        Paused: If the deadline is past.
        ValueError: If the run diverges, or its checkpoint or the results are damaged.
    """
    key = settings.to_record(data.fingerprint)
    under_way = UnderWay(results.path, key)

    def make_checkpoint() -> tuple[Checkpoint, list[str]]:
        wanted = _to_measure(results.find(key), diagnostics)
        file, run = under_way.checkpoint(wanted)
        return Checkpoint(file, deadline=deadline, run=run), wanted

    is_told = False
    while True:
        if make_checkpoint()[0].time_is_up:
            raise Paused
        with under_way.alone() as is_alone:
            if is_alone:
                results.read_again()  # another process may have finished the run just now
                found = results.find(key)
                if found is not None and not lacks(found, diagnostics):
                    progress.finish(found, kept=True)
                else:
                    _train_alone(settings, data, results, progress, *make_checkpoint())
                return True
        if not waits:
            return False
        if not is_told:
            progress.wait(settings)
            is_told = True
        time.sleep(_PATIENCE_SECONDS)


def _train_alone(
    settings: RunSettings,
    data: LabelledData,
    results: Results,
    progress: Progress,
    checkpoint: Checkpoint,
    wanted: Sequence[str],
) -> None:
    """Train a run that no other process trains now."""
    progress.begin(settings, count_steps(settings, data))
    with checkpoint.interrupts:
        record = results.add(
            train(
                settings, data, on_step=progress.advance, diagnostics=wanted, checkpoint=checkpoint
            )
        )
        checkpoint.remove()
        progress.finish(record, kept=False)


def lacks(record: dict[str, Any] | None, diagnostics: Sequence[str]) -> bool:
    """Tell whether a run must be trained, for its record or for a diagnostic."""
    return record is None or not set(diagnostics) <= set(_measured(record))


def _to_measure(record: dict[str, Any] | None, diagnostics: Sequence[str]) -> list[str]:
    """Name what a run must measure: what is asked for, and what its older record has."""
    return sorted({*diagnostics, *_measured(record)})


def _measured(record: dict[str, Any] | None) -> list[str]:
    """Name the diagnostics of a record; those before there were any have none."""
    return [] if record is None else list(record.get("diagnostics", {}))


def _plan_equal_time(
    plan: Sequence[RunSettings], data: LabelledData, results: Results
) -> list[RunSettings]:
    """Stretch each random run to the seconds of the other strategy with the same seed."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for settings in plan:
        record = results.find(settings.to_record(data.fingerprint))
        if record is not None:
            found[settings.strategy, settings.seed] = record
    matched = next(settings.strategy for settings in plan if not settings.entry.is_baseline)
    equal_time = []
    for settings in plan:
        other = found.get((matched, settings.seed))
        random = found.get((_RANDOM, settings.seed))
        if settings.strategy == _RANDOM and other and random:
            steps = round(random["steps"] * other["seconds"] / random["seconds"])
            equal_time.append(dataclasses.replace(settings, num_steps=max(steps, 1)))
    return equal_time
