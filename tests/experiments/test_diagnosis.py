"""Diagnostics of a run: what was asked for is in the record, and nothing else changes."""

import pytest
import torch

from crest.experiments import training
from crest.experiments.diagnosis import DIAGNOSTICS
from crest.experiments.settings import RunSettings
from crest.experiments.training import train

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


@pytest.mark.parametrize("network", ["mlp", "resnet8"])  # without and with BatchNorm
@pytest.mark.parametrize("strategy", ["crest", "full", "random"])
def test_diagnostics_change_nothing_else(data, monkeypatch, strategy, network):
    last = []  # models, as their optimizers are made
    make_optimizer = training._make_optimizer

    def spy(settings, model):
        last.append(model)
        return make_optimizer(settings, model)

    monkeypatch.setattr(training, "_make_optimizer", spy)
    settings = RunSettings(**{**vars(make(strategy, epochs=4)), "network": network})
    plain = train(settings, data)
    after_plain, random_state = last[-1], torch.get_rng_state()
    watched = train(settings, data, diagnostics=DIAGNOSTICS)
    assert torch.equal(random_state, torch.get_rng_state())
    assert without_clocks(watched) == without_clocks(plain)
    for name, value in after_plain.state_dict().items():
        assert torch.equal(value, last[-1].state_dict()[name]), name
    assert plain["diagnostics"] == {}
    assert list(watched["diagnostics"]) == list(DIAGNOSTICS)
