"""Ctrl-C saves a run before it ends it, and a second one ends it at once."""

import os
import signal
import threading

import pytest

from crest.lab.run.checkpoint import Checkpoint
from crest.lab.run.interrupts import Interrupts
from crest.lab.run.training import train
from lab.run.test_checkpoint import make, timeless


@pytest.fixture(autouse=True)
def handlers():
    """Python's own; what a test leaves behind is undone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    for number, handler in before.items():
        signal.signal(number, handler)


def send_at(step, number=signal.SIGINT):
    """A hook that sends this process a signal after a step."""

    def on_step(taken):
        if taken == step:
            os.kill(os.getpid(), number)

    return on_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5, 9, "last"])
@pytest.mark.parametrize("strategy", ["crest_paper", "remembered"])
def test_the_step_under_way_is_saved(data, tmp_path, strategy, step, number):
    settings, path = make(strategy), tmp_path / "run.pt"
    whole = train(settings, data)
    step = whole["steps"] if step == "last" else step
    with pytest.raises(KeyboardInterrupt):
        train(settings, data, on_step=send_at(step, number), checkpoint=Checkpoint(path))
    steps = []
    record = train(settings, data, on_step=steps.append, checkpoint=Checkpoint(path))
    assert steps == list(range(step + 1, whole["steps"] + 1))
    assert timeless(record) == timeless(whole)


def test_a_second_one_ends_at_once(data, tmp_path):
    def twice(taken):
        if taken == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make("random"), data, on_step=twice, checkpoint=Checkpoint(tmp_path / "run.pt"))
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_is_told_although_it_was_interrupted(data, tmp_path):
    (tmp_path / "folder").touch()
    checkpoint = Checkpoint(tmp_path / "folder" / "run.pt")
    with pytest.raises(OSError, match="folder"):
        train(make("random"), data, on_step=send_at(5), checkpoint=checkpoint)


def test_without_a_checkpoint_a_run_ends_as_any_program(data):
    with pytest.raises(KeyboardInterrupt):
        train(make("random"), data, on_step=send_at(5))


def test_what_comes_in_the_rehearsal_ends_before_the_first_step(data, tmp_path, monkeypatch):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("crest.lab.run.training._rehearse", interrupted)
    steps = []
    with pytest.raises(KeyboardInterrupt):
        train(
            make("random"), data, on_step=steps.append, checkpoint=Checkpoint(tmp_path / "run.pt")
        )
    assert steps == []


def test_handlers_of_the_program_stay():
    came = []

    def own(number, frame):
        came.append(number)

    signal.signal(signal.SIGINT, own)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
    assert came == [signal.SIGINT]
    assert not interrupts.came
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
    assert not interrupts.came
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_than_the_main_one_leaves_signals_alone():
    found = []

    def enter():
        with Interrupts():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_within_itself_the_outermost_end_stops():
    reached = []

    def hold_within():
        with Interrupts() as interrupts:
            with interrupts:
                os.kill(os.getpid(), signal.SIGTERM)
            reached.append("between")

    with pytest.raises(KeyboardInterrupt):
        hold_within()
    assert reached == ["between"]


@pytest.mark.parametrize(("error", "raised"), [(ValueError, KeyboardInterrupt), (OSError, OSError)])
def test_a_run_that_fails_lets_no_other_begin(error, raised):
    def fail():
        with Interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            raise error

    with pytest.raises(raised):
        fail()
