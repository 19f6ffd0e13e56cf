"""Two processes share the work of one folder, and nothing is left there without a word."""

import multiprocessing
import os
import signal
import time

import pytest

from crest.lab.run import comparison
from crest.lab.run.checkpoint import Checkpoint
from crest.lab.run.comparison import compare, train_and_keep
from crest.lab.run.results import Results
from crest.lab.run.under_way import UnderWay, stopped_runs
from lab.run.test_comparison import Log, make_plan, train_all

FORK = multiprocessing.get_context("fork")


class WaitingLog(Log):
    """Remembers what was waited for, too."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def wait(self, settings):
        self.waited.append((settings.strategy, settings.seed))


class Slow(WaitingLog):
    """Takes its time."""

    def advance(self, step):
        super().advance(step)
        time.sleep(0.02)


def begin(plan, data, path, log=None):
    """Compare in another process, and wait until its first run is under way."""
    process = FORK.Process(target=compare, args=(plan, data, Results(path), log or Slow()))
    process.start()
    while not list((path.parent / "under-way").glob("*.lock")):
        time.sleep(0.005)
    return process


def test_two_processes_train_each_run_once(data, tmp_path):
    plan, log = make_plan(), WaitingLog()
    path = tmp_path / "results.json"
    process = begin(plan, data, path)
    records = train_all(plan, data, Results(path), log)
    process.join()
    assert process.exitcode == 0
    assert len(records) == len(Results(path).records) == 6
    assert 0 < len(log.begun) < 6
    assert ("crest", 0) not in log.begun  # the first was the other's
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["results.json"]


def test_a_run_of_another_process_is_waited_for(data, tmp_path):
    plan, log = make_plan(["random"], [0]), WaitingLog()
    process = begin(plan, data, tmp_path / "results.json")
    (record,) = train_all(plan, data, Results(tmp_path / "results.json"), log)
    process.join()
    assert (log.waited, log.begun, log.kept) == ([("random", 0)], [], [True])
    assert record["steps"] == 11


def test_a_run_whose_process_is_killed_is_taken_over(data, tmp_path, monkeypatch):
    class EveryStep(comparison.Checkpoint):
        is_due = True

    class Killed(Slow):
        def advance(self, step):
            super().advance(step)
            if step == 8:
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(comparison, "Checkpoint", EveryStep)
    plan, log = make_plan(["random"], [0]), WaitingLog()
    process = begin(plan, data, tmp_path / "results.json", Killed())
    train_all(plan, data, Results(tmp_path / "results.json"), log)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (log.waited, log.begun) == ([("random", 0)], [("random", 0)])
    assert log.steps == 11 - 7  # the eighth step was not saved
    assert not list((tmp_path / "under-way").iterdir())


def test_waiting_ends_with_the_time(data, tmp_path):
    (settings,) = make_plan(["random"], [0])
    results = Results(tmp_path / "results.json")
    with UnderWay(results.path, settings.to_record(data.fingerprint)).alone() as is_alone:
        assert is_alone
        with pytest.raises(comparison.Paused):
            train_and_keep(
                settings, data, results, WaitingLog(), [], deadline=time.monotonic() + 0.1
            )
        assert not train_and_keep(settings, data, results, WaitingLog(), [], waits=False)
    assert train_and_keep(settings, data, results, WaitingLog(), [], waits=False)


def test_what_is_left_of_a_run_whose_record_is_kept_goes(data, tmp_path):
    (settings,) = plan = make_plan(["random"], [0])
    results = Results(tmp_path / "results.json")
    train_all(plan, data, results, Log(), diagnostics=["selections"])
    under_way = UnderWay(results.path, settings.to_record(data.fingerprint))
    for diagnostics in ([], ["selections"], ["forgetting", "selections"]):
        file, run = under_way.checkpoint(diagnostics)
        Checkpoint(file, run=run).save({})
    file.with_name(f".{file.name}.123").touch()  # of a process killed while it saved
    file.with_name(file.name.split("-")[0] + ".lock").touch()
    train_all(plan, data, results, Log())
    assert list(file.parent.iterdir()) == [file]  # it measures what the record has not


def test_runs_that_were_stopped_are_listed_unless_a_process_trains_them(data, tmp_path):
    results = Results(tmp_path / "results.json")
    files = []
    for settings in make_plan(["random", "full"], [0]):
        under_way = UnderWay(results.path, settings.to_record(data.fingerprint))
        file, run = under_way.checkpoint([])
        Checkpoint(file, run=run).save({})
        files.append(file)
    assert stopped_runs(results.path) == sorted(files)
    with under_way.alone():
        assert stopped_runs(results.path) == files[:1]
    assert stopped_runs(tmp_path / "elsewhere" / "results.json") == []
