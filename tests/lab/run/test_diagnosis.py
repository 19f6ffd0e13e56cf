"""Diagnostics of a run: what was asked for is in the record, and nothing else changes."""

import dataclasses
import json
import time

import pytest
import torch

from crest import registered_strategies
from crest.lab.run import diagnosis, training
from crest.lab.run.diagnosis import DIAGNOSTICS
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import train

# Coresets that are kept and checked, and examples that are left out.
KEEPING = {
    "error_threshold": 0.3, "curvature": "trainable", "switch_off": False, "loss_threshold": 1.0,
    "exclusion_interval": 4, "min_pool": 24, "subset_size": 20, "coreset_multiplier": 2,
}  # fmt: skip


def make(strategy="crest", **changes):
    options = {"epochs": 8, "batch_size": 8, "lr": 0.05, "budget": 0.5, "threads": 1}
    if strategy == "crest":
        options["strategy_options"] = KEEPING
    return RunSettings("digits", "mlp", strategy, **{**options, **changes})


def without_clocks(record):
    """All that must not change: accuracy, steps, costs and every region that was planned."""
    curve = [(point["step"], point["accuracy"]) for point in record["curve"]]
    history = record["history"]
    records = [{**region, "seconds": None} for region in history["records"]]
    return curve, records, history["passes"], history["updates"], history["lag"]


@pytest.mark.parametrize(
    ("strategy", "network"),
    [("crest", "mlp"), ("full", "mlp"), ("random", "mlp"), ("crest", "resnet8")],  # BatchNorm
)
def test_diagnostics_change_nothing_else(data, monkeypatch, strategy, network):
    last = []  # models, as their optimizers are made
    make_optimizer = training._make_optimizer

    def spy(settings, model):
        last.append(model)
        return make_optimizer(settings, model)

    monkeypatch.setattr(training, "_make_optimizer", spy)
    epochs = 8 if network == "mlp" else 2
    settings = dataclasses.replace(make(strategy, epochs=epochs), network=network, evaluations=5)
    plain = train(settings, data)
    after_plain, random_state = last[-1], torch.get_rng_state()
    watched = train(settings, data, diagnostics=DIAGNOSTICS)
    assert torch.equal(random_state, torch.get_rng_state())
    assert without_clocks(watched) == without_clocks(plain)
    for name, value in after_plain.state_dict().items():
        assert torch.equal(value, last[-1].state_dict()[name]), name
    assert plain["diagnostics"] == {}
    assert list(watched["diagnostics"]) == list(DIAGNOSTICS)


@pytest.mark.parametrize("strategy", registered_strategies())
def test_every_strategy_is_measured_at_the_steps_of_the_curve(data, strategy):
    record = train(make(strategy, evaluations=4), data, diagnostics=DIAGNOSTICS)
    assert json.loads(json.dumps(record)) == record
    steps = [point["step"] for point in record["curve"]]
    found = record["diagnostics"]
    assert [entry["step"] for entry in found["gradient_error"]] == steps
    assert [entry["step"] for entry in found["excluded"]] == steps
    assert [entry["step"] for entry in found["forgetting"]["selected"]] == steps
    trained_on = 54 if strategy == "glister" else 60
    assert found["gradient_error"][0]["num_examples"] == trained_on
    picks = record["steps"] * 8
    histogram = found["selections"]["histogram"]
    assert sum(histogram) == sum(found["forgetting"]["histogram"]) == trained_on
    assert sum(times * count for times, count in enumerate(histogram)) == picks
    assert sum(found["forgetting"]["selected_histogram"]) == picks


def test_excluded_examples_and_checks_are_those_of_the_history(data):
    record = train(make(evaluations=28), data, diagnostics=["excluded", "loss_model"])
    found = record["diagnostics"]
    assert list(found) == ["loss_model", "excluded"]
    regions = record["history"]["records"]
    checked = [region["step"] for region in regions if "relative_error" in region]
    assert [check["step"] for check in found["loss_model"]] == checked
    assert len(checked) > 1
    for entry in found["excluded"]:
        planned = [region["active"] for region in regions if region["step"] < entry["step"]]
        assert entry["excluded"] == 60 - planned[-1]
    assert found["excluded"][-1]["accuracy"] > 0.9  # what was learned stays so


def test_forgetting_scores_come_from_all_train_images(data, monkeypatch):
    """Image i is right at every (i + 2)-th look, and forgotten at the next, if there is one."""
    looks = []

    def correct(settings, model, batches):
        number = sum(len(labels) for _, labels in batches)
        if number == 60:  # the test part has 30
            looks.append(len(looks) + 1)
        return torch.tensor([len(looks) % (i + 2) == 0 for i in range(number)]).double()

    monkeypatch.setattr(training, "_correct", correct)
    record = train(make("random", evaluations=7), data, diagnostics=["forgetting"])
    assert looks == list(range(1, 8))
    scores = torch.tensor([6 // (i + 2) for i in range(60)])
    found = record["diagnostics"]["forgetting"]
    assert found["histogram"] == torch.bincount(scores).tolist()
    assert found["mean"] == pytest.approx(float(scores.float().mean()))


def test_gradients_are_measured_ten_times_at_most_on_the_subset_size_of_the_strategy(data):
    record = train(make(evaluations=28), data, diagnostics=["gradient_error"])
    found = record["diagnostics"]["gradient_error"]
    assert [entry["step"] for entry in found] == [3, 6, 9, 12, 14, 17, 20, 23, 26, 28]
    assert {entry["subset_size"] for entry in found} == {20}


def test_measuring_takes_no_time(data, monkeypatch):
    now = [0.0]  # a clock that only steps (one second) and measurements (a hundred) move

    def move(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(diagnosis.Diagnosis, "measure", lambda self, step: move(100.0))
    settings = make("random", evaluations=7)
    record = train(settings, data, on_step=lambda step: move(1.0), diagnostics=["excluded"])
    assert [point["seconds"] for point in record["curve"]] == [4, 8, 12, 16, 20, 24, 28]
    # The loader books a step when the next batch is asked for: the last one never is.
    assert record["history"]["seconds"]["train"] in (27, 28)


def test_unknown_diagnostics_are_refused(data):
    with pytest.raises(ValueError, match="got 'forgeting'. Did you mean forgetting"):
        train(make(), data, diagnostics=["forgeting"])
