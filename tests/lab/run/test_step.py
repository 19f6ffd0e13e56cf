"""The step that is captured on a GPU, and runs on its buffers elsewhere, is the plain step."""

import dataclasses

import pytest
import torch
from torch import nn

from crest.lab.run import training
from crest.lab.run.checkpoint import Checkpoint, Paused
from crest.lab.run.settings import WHOLE_STEP, RunSettings
from crest.lab.run.step import CapturedStep, plain_step
from crest.lab.run.training import train

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
        ],
    ),
]


def make(strategy="random", **changes):
    options = {"epochs": 8, "batch_size": 8, "lr": 0.05, "budget": 0.5, "threads": 1}
    return RunSettings("digits", "resnet8", strategy, **{**options, **changes})


@pytest.fixture
def larger(data):
    """The data set at 8 x 8 pixels, so that views are shifted, and mirrored."""
    images = [
        part.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for part in (data.train_images, data.test_images)
    ]
    return dataclasses.replace(data, train_images=images[0], test_images=images[1], flip=True)


@pytest.fixture
def trained(larger, monkeypatch):
    """Trains, and returns the parameters and buffers that a run ended with, and its record."""
    models = []
    build = type(larger).build_network

    def keep(self, name):
        models.append(build(self, name))
        return models[-1]

    monkeypatch.setattr(type(larger), "build_network", keep)

    def run(settings, **options):
        record = train(settings, larger, **options)
        return {name: value.cpu() for name, value in models[-1].state_dict().items()}, record

    return run


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def without_clock(record):
    curve = [(point["step"], point["accuracy"]) for point in record["curve"]]
    return record["steps"], record["updates"], curve


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "strategy", ["random", "remembered", "online", "selective_backprop", "greedy", "glister"]
)
def test_a_run_of_whole_steps_ends_with_the_parameters_of_a_plain_one(trained, strategy, device):
    plain, record = trained(make(strategy, device=device, budget=0.4))
    whole, other = trained(make(strategy, device=device, budget=0.4, compile=WHOLE_STEP))
    assert_close(plain, whole)
    assert without_clock(other)[:2] == without_clock(record)[:2]
    start, _ = trained(make(strategy, device=device, num_steps=1))
    assert any(not torch.allclose(plain[name], start[name], atol=1e-2) for name in plain)


@pytest.mark.parametrize("changes", [{"optimizer": "adamw", "lr": 1e-3}, {"augment": False}])
def test_other_settings_reach_the_whole_step(trained, changes):
    plain, _ = trained(make(budget=0.2, **changes))
    whole, _ = trained(make(budget=0.2, compile=WHOLE_STEP, **changes))
    assert_close(plain, whole)


def test_autocast_reaches_the_whole_step(trained):
    exact, _ = trained(make(budget=0.1, compile=WHOLE_STEP))
    rounded, _ = trained(make(budget=0.1, compile=WHOLE_STEP, autocast="bfloat16"))
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)


def test_a_run_of_whole_steps_goes_on_where_it_stopped(trained, tmp_path):
    settings = make("remembered", compile=WHOLE_STEP)
    expected, _ = trained(settings)
    checkpoint = Checkpoint(tmp_path / "run.pt", every_seconds=1e9)

    def stop(step):
        if step == 13:
            checkpoint._deadline = 0.0

    with pytest.raises(Paused):
        trained(settings, checkpoint=checkpoint, on_step=stop)
    resumed, _ = trained(settings, checkpoint=Checkpoint(tmp_path / "run.pt"))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_views_are_those_of_the_plain_data_set(larger):
    settings = make(compile=WHOLE_STEP)
    for augment in (True, False):
        recipes = training._make_views(settings, larger, augment=augment)
        torch.manual_seed(3)
        told, labels = zip(*recipes.__getitems__([5, 0, 7, 7]), strict=True)
        torch.manual_seed(3)
        plain = larger.make_views("cpu", augment=augment).__getitems__([5, 0, 7, 7])
        drawn = recipes.draw(torch.stack(told))
        assert torch.equal(drawn, torch.stack([image for image, _ in plain]))
        assert list(labels) == [label for _, label in plain]
    assert not torch.equal(drawn[2], drawn[0])


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_observed_is_what_training_computed(device):
    told = {"plain": [], "captured": []}
    for kind, seen in told.items():
        torch.manual_seed(1)
        model = nn.Linear(3, 4).to(device)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=torch.tensor(0.1, device=device), fused=True
        )

        def observe(losses, outputs, seen=seen):
            (errors,) = torch.autograd.grad(losses.sum(), outputs, retain_graph=True)
            seen.append((losses.detach().clone(), errors))

        place = torch.device(device)
        if kind == "plain":
            step = plain_step(model, optimizer, place, observe)
        else:
            inputs = torch.zeros(5, 3)
            step = CapturedStep(model, model, optimizer, place, observe, inputs)
        for _ in range(3):
            step(torch.randn(5, 3).to(device), torch.randint(4, (5,)), torch.rand(5))
    assert len(told["plain"]) == len(told["captured"]) == 3  # of no warm-up
    for one, other in zip(told["plain"], told["captured"], strict=True):
        for mine, others in zip(one, other, strict=True):
            torch.testing.assert_close(mine, others)


def test_warming_up_leaves_no_trace():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9, fused=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    CapturedStep(model, model, optimizer, torch.device("cpu"), None, torch.ones(5, 3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())


def test_texts_are_refused():
    with pytest.raises(ValueError, match="compile='whole-step' needs images"):
        RunSettings("snli_part", "bag", "random", compile=WHOLE_STEP)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_whole_step_never_waits_for_the_gpu(larger):
    device = torch.device("cuda")
    settings = make(compile=WHOLE_STEP, device="cuda")
    network = larger.build_network("resnet8").to(device)
    views = training._make_views(settings, larger, augment=True)
    model = training.Drawing(network, views)
    optimizer = training._make_optimizer(settings, network)
    step = CapturedStep(model, network, optimizer, device, None, views.of_first(8))
    batch = torch.stack([recipe for recipe, _ in views.__getitems__(range(8))])
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, torch.zeros(8, dtype=torch.int64), torch.ones(8))
    finally:
        torch.cuda.set_sync_debug_mode("default")
