"""A run that is stopped goes on as if it had not been."""

import time

import pytest

from crest.lab.run.checkpoint import Checkpoint, Paused
from crest.lab.run.diagnosis import DIAGNOSTICS
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import train

STRATEGIES = [
    "crest",
    "crest_paper",
    "random",
    "full",
    "craig",
    "glister",
    "loss_pruning",
    "remembered",
]


def make(strategy, **changes):
    options = {"epochs": 4, "batch_size": 8, "lr": 0.05, "budget": 0.5, "threads": 1}
    return RunSettings("digits", "mlp", strategy, evaluations=3, **{**options, **changes})


def timeless(value):
    """Everything but the clock."""
    if isinstance(value, dict):
        clocks = ("seconds", "forward_price")
        return {key: timeless(entry) for key, entry in value.items() if key not in clocks}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def train_in_pieces(settings, data, path, steps, **options):
    """Stop after each of `steps`, and go on to the end."""
    for stop in steps:
        checkpoint = Checkpoint(path)

        def pause(step, stop=stop, checkpoint=checkpoint):
            if step == stop:
                checkpoint._deadline = 0.0

        with pytest.raises(Paused):
            train(settings, data, on_step=pause, checkpoint=checkpoint, **options)
    return train(settings, data, checkpoint=Checkpoint(path), **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_in_pieces_equals_one_without_a_stop(data, tmp_path, strategy, optimizer):
    settings = make(strategy, optimizer=optimizer)
    whole = train(settings, data)
    # the first step, an evaluation, the end of a short epoch and the last but one
    stops = [1, 5, 7, whole["steps"] - 1]
    pieces = train_in_pieces(settings, data, tmp_path / "run.pt", stops)
    assert timeless(pieces) == timeless(whole)


def test_diagnostics_go_on_too(data, tmp_path):
    settings, wanted = make("crest_paper"), {"diagnostics": DIAGNOSTICS}
    pieces = train_in_pieces(settings, data, tmp_path / "run.pt", [2, 5, 13], **wanted)
    assert timeless(pieces) == timeless(train(settings, data, **wanted))


def test_saving_changes_nothing(data, tmp_path):
    settings = make("crest_paper")
    often = train(settings, data, checkpoint=Checkpoint(tmp_path / "run.pt", every_seconds=0.0))
    assert timeless(often) == timeless(train(settings, data))
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_a_killed_run_loses_what_came_after_the_last_save(data, tmp_path):
    path, settings = tmp_path / "run.pt", make("crest_paper")

    def kill(step):
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, data, on_step=kill, checkpoint=Checkpoint(path, every_seconds=0.0))
    steps = []
    record = train(settings, data, on_step=steps.append, checkpoint=Checkpoint(path))
    assert steps[0] == 9  # step 8 was saved
    assert timeless(record) == timeless(train(settings, data))


def test_seconds_go_on_without_those_of_the_stop(data, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    path, settings = tmp_path / "run.pt", make("random")

    def tick(step):
        now[0] += 1.0
        if step == 6:
            checkpoint._deadline = 0.0

    checkpoint = Checkpoint(path)
    with pytest.raises(Paused):
        train(settings, data, on_step=tick, checkpoint=checkpoint)
    now[0] += 1000.0
    checkpoint = Checkpoint(path)
    record = train(settings, data, on_step=tick, checkpoint=checkpoint)
    assert record["seconds"] == record["steps"] == 14


def test_a_save_that_is_killed_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "run.pt")
    checkpoint.save({"step": 1})

    def half(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "run.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="run.pt must be the checkpoint of a run; .* Delete it"):
        Checkpoint(tmp_path / "run.pt").load()
