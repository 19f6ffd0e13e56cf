"""Progress is a bar on a terminal and plain lines elsewhere."""

import io
import sys

import pytest

from crest.lab.run.settings import RunSettings
from crest.report import progress
from crest.report.progress import LineProgress, make_progress


def run_through(teller, record):
    teller.plan([10, 20])
    teller.begin(RunSettings("digits", "mlp", "random", seed=3, num_steps=10), 10)
    teller.advance(5)
    teller.finish(record, kept=False)
    teller.finish(record, kept=True)


def test_lines_tell_each_run(make_record):
    stream = io.StringIO()
    run_through(LineProgress(stream), make_record(seed=3, accuracy=0.912, equal_time=True))
    assert stream.getvalue().splitlines() == [
        "2 run(s) to train, 30 steps in all",
        "random, equal time, seed 3: 91.20 % after 10 steps in 2.0 s",
        "random, equal time, seed 3: 91.20 % after 10 steps in 2.0 s, kept from an earlier call",
    ]


def test_a_long_run_speaks_now_and_then(make_record, monkeypatch):
    monkeypatch.setattr(progress, "_SILENCE_SECONDS", -1.0)
    stream = io.StringIO()
    run_through(LineProgress(stream), make_record())
    assert "random, equal time, seed 3: step 5 of 10" in stream.getvalue()


def test_nothing_to_train_is_not_announced():
    stream = io.StringIO()
    LineProgress(stream).plan([])
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("missing", [False, True])
def test_a_terminal_gets_a_bar_if_rich_is_there(make_record, monkeypatch, missing):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    if missing:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
        monkeypatch.delattr("rich.progress", raising=False)
    with make_progress() as teller:
        assert isinstance(teller, LineProgress) == missing
        run_through(teller, make_record(seed=3))
    assert "random, seed 3: 50.00 % after 10 steps in 2.0 s" in sys.stderr.getvalue()
    assert sys.stdout.getvalue() == ""


def test_a_pipe_gets_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with make_progress() as teller:
        assert isinstance(teller, LineProgress)
