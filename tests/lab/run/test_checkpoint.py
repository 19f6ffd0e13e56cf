"""A run that is stopped goes on as if it had not been."""

import errno
import time
from collections import OrderedDict

import pytest
import torch

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


def saved_file(tmp_path):
    path = tmp_path / "run.pt"
    Checkpoint(path, run="of lr 0.1").save({"step": 3, "weights": torch.arange(100.0)})
    return path


def refuse(path, reason):
    """See that the file is refused in one line, which names it, and is left as it is."""
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"run\.pt must be the checkpoint of a run; {reason}"):
        Checkpoint(path, run="of lr 0.1").load()
    with pytest.raises(ValueError) as raised:
        Checkpoint(path, run="of lr 0.1").load()
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_checkpoint_that_is_cut_off_is_named(tmp_path, share):
    path = saved_file(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(path, "it is damaged, cut off, or no file of torch.save. Delete it")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_no_byte_that_changed_is_read_in_silence(tmp_path):
    path = saved_file(tmp_path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            state = Checkpoint(path, run="of lr 0.1").load()
        except ValueError as error:
            assert "run.pt must be the checkpoint of a run" in str(error)  # noqa: PT017
        else:  # a byte between the entries
            assert state["step"] == 3
            assert torch.equal(state["weights"], torch.arange(100.0))


@pytest.mark.parametrize(
    "content",
    [
        {"step": 3, "model": {}},
        OrderedDict(weight=torch.ones(2)),
        torch.ones(3),
        None,
        {"program": "another", "state": {}},
    ],
    ids=["older", "weights", "tensor", "nothing", "program"],
)
def test_a_file_of_another_program_is_named(tmp_path, content):
    torch.save(content, tmp_path / "run.pt")
    refuse(tmp_path / "run.pt", "another program saved it, or an older crest. Delete it")


def test_empty_files_other_versions_and_other_runs_are_named(tmp_path):
    path = saved_file(tmp_path)
    content = torch.load(path)
    torch.save({**content, "version": 7}, path)
    refuse(path, "it is of version 7, this crest reads 1")
    torch.save({**content, "run": "of lr 0.2"}, path)
    refuse(path, "it is of another run")
    path.write_bytes(b"")
    refuse(path, "it is empty")


def test_a_folder_in_place_of_a_checkpoint_is_named(tmp_path):
    (tmp_path / "run.pt").mkdir()
    with pytest.raises(OSError, match=r"run\.pt"):
        Checkpoint(tmp_path / "run.pt").load()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda state: state.pop("step"), "it lacks 'step'"),
        (lambda state: state.pop("optimizer"), "it lacks 'optimizer'"),
        (lambda state: state["loader"].pop("region"), "region of the state|'region'"),
        (lambda state: state["loader"].update(version=1), "must be of version 3; got 1"),
        (lambda state: state["model"].popitem(), "Missing key"),
        (lambda state: state.update(model=3), "dict"),
        (lambda state: state.update(cpu_random=None), "None"),
    ],
)
def test_a_state_of_something_else_is_told_with_its_file(data, tmp_path, change, fault):
    settings, checkpoint = make("random"), Checkpoint(tmp_path / "run.pt", every_seconds=0.0)
    train(settings, data, checkpoint=checkpoint)
    state = checkpoint.load()
    change(state)
    checkpoint.save(state)
    with pytest.raises(ValueError, match=f"run.pt must be the checkpoint of a run; .*{fault}") as e:
        train(settings, data, checkpoint=checkpoint)
    assert "\n" not in str(e.value)


def test_a_save_on_a_full_disk_ends_the_run_and_keeps_the_save_before(data, tmp_path, monkeypatch):
    settings, path = make("crest_paper"), tmp_path / "run.pt"

    def fill(step):
        if step == 9:
            monkeypatch.setattr("os.fsync", full)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        train(settings, data, on_step=fill, checkpoint=Checkpoint(path, every_seconds=0.0))
    assert raised.value.filename == str(path)
    monkeypatch.undo()
    steps = []
    record = train(settings, data, on_step=steps.append, checkpoint=Checkpoint(path))
    assert steps[0] == 9
    assert timeless(record) == timeless(train(settings, data))
