"""What the log and trackers are told of a run."""

import json
import logging
import math
import re

import pytest
import torch

import crest
from strategies.test_online import make_data, run
from toys import make_loader, make_model, train


class Kept:
    def __init__(self):
        self.lines, self.closed = [], False

    def log(self, metrics, step):
        self.lines.append((step, metrics))

    def close(self):
        self.closed = True


def test_the_log_says_when_selection_begins_and_what_is_left_out(caplog):
    caplog.set_level(logging.INFO, logger="crest")
    inputs, given, _ = make_data(n=3000, noise=0.2)
    run(crest.OnlineSelection(), (inputs, given), epochs=4, batch_size=50)
    told = [record.getMessage() for record in caplog.records]
    assert told.count("step 60: batches are selected from here on") == 1
    assert any(re.search(r"wrong labels: [12]\d\.\d%", line) for line in told)
    assert any("the first examples are left out, " in line for line in told)


def test_the_log_says_once_what_share_of_batches_was_refused(caplog):
    model = make_model()
    loader = make_loader(crest.Random(), model=model, budget=1, record=True)
    smooth = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=0.3)
    train(loader, model, epochs=6, criterion=smooth)
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING][:1]
    assert told.name == "crest"
    assert "batches were not seen in training." in told.getMessage()
    assert "is not that of loss_fn" in told.getMessage()
    assert len(caplog.records) <= 3  # of six passes


def test_nothing_is_said_of_a_run_that_goes_well_unless_it_is_asked_for(caplog, capsys):
    caplog.set_level(logging.WARNING, logger="crest")
    model = make_model()
    train(make_loader(crest.Random(), model=model, record=True), model)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_a_tracker_hears_of_each_region(tmp_path):
    kept, model = Kept(), make_model()
    loader = make_loader(crest.OnlineSelection(), model=model, budget=1, tracker=kept, record=True)
    loader.preview(2)
    assert not kept.lines  # nothing was trained
    train(loader, model, epochs=3)
    assert [step for step, _ in kept.lines] == [one["step"] for one in loader.history.records]
    assert kept.lines[0][1]["crest/selected"] == 0
    assert kept.lines[-1][1]["crest/selected"] == 1
    assert kept.lines[-1][1]["crest/cost"] > 0
    assert all(isinstance(value, float) for _, line in kept.lines for value in line.values())


def test_json_lines_are_whole_and_continued(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    crest.JsonLines(path).log({"a": 1.5, "b": math.nan}, step=3)
    crest.JsonLines(str(path)).log({"a": 2.0}, step=4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 3, "a": 1.5, "b": None}, {"step": 4, "a": 2.0}]


class Recorder:
    """Stands for the three trackers' own objects; keeps calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *given, **named: self.calls.append((name, given, named))


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (crest.TensorBoard, ("add_scalar", ("crest/cost", 2.0, 7), {})),
        (crest.WandB, ("log", ({"crest/cost": 2.0, "crest/step": 7},), {})),
        (crest.MLflow, ("log_metrics", ({"crest/cost": 2.0},), {"step": 7})),
    ],
)
def test_numbers_reach_the_trackers_as_they_take_them(kind, call):
    theirs = Recorder()
    tracker = kind(theirs)
    assert isinstance(tracker, crest.Tracker)
    tracker.log({"crest/cost": 2.0}, step=7)
    tracker.close()
    assert theirs.calls[0] == call
    with pytest.raises(TypeError, match="must be .*with a method"):
        kind(object())
