"""A run takes its steps, measures itself off the clock, and depends on its seed alone."""

import dataclasses
import json
import time

import pytest
import torch

import crest
from crest.lab.data.views import ImageViews
from crest.lab.run import training
from crest.lab.run.learning_rate import learning_rate_factor
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import check, count_steps, train


def make(strategy="random", **changes):
    options = {"epochs": 8, "batch_size": 8, "lr": 0.05, "budget": 0.5, "threads": 1}
    return RunSettings("digits", "mlp", strategy, **{**options, **changes})


def timeless(record):
    """What must not depend on the clock."""
    curve = [(point["step"], point["accuracy"]) for point in record["curve"]]
    return record["steps"], record["cost"], record["updates"], curve


@pytest.mark.parametrize("strategy", crest.registered_strategies())
def test_a_run_takes_its_steps_and_gives_a_plain_record(data, strategy):
    steps = []
    record = train(make(strategy), data, on_step=steps.append)
    expected = 56 if strategy == "full" else 28  # 60 // 8 = 7 steps an epoch, 8 epochs
    assert steps == list(range(1, expected + 1))
    assert record["steps"] == record["history"]["steps"] == expected
    assert json.loads(json.dumps(record)) == record
    assert record["curve"][-1]["step"] == expected
    assert record["accuracy"] == record["curve"][-1]["accuracy"]
    assert record["seconds"] == record["curve"][-1]["seconds"]
    assert 15 <= len(record["curve"]) <= 20
    free = strategy in ("random", "sgd_dagger", "full", "loss_pruning", "remembered", "online")
    assert (record["cost"] == expected) is free
    assert (record["overhead"] == 0) is free
    if strategy != "crest":  # which may find that selection does not pay
        by_chance = ("random", "sgd_dagger", "full", "online")  # the last as classes are three
        assert (record["updates"] >= 1) is (strategy not in by_chance)


def test_a_run_learns(data):
    assert train(make("full", epochs=20), data)["accuracy"] > 0.8  # chance is 0.33


@pytest.mark.parametrize("strategy", crest.registered_strategies())
def test_a_run_depends_on_its_seed_alone(data, strategy):
    one = train(make(strategy), data)
    torch.rand(7)
    assert timeless(train(make(strategy), data)) == timeless(one)
    assert timeless(train(make(strategy, seed=1), data)) != timeless(one)


@pytest.mark.parametrize("evaluations", [1, 3, 1000])
def test_accuracy_is_measured_as_often_as_asked_and_last_at_the_end(data, evaluations):
    record = train(make(evaluations=evaluations), data)
    steps = [point["step"] for point in record["curve"]]
    expected = {1: [28], 3: [10, 19, 28], 1000: list(range(1, 29))}[evaluations]
    assert steps == expected


def test_measuring_accuracy_changes_nothing_else(data):
    often, rarely = (train(make("crest", evaluations=n), data) for n in (28, 1))
    assert often["accuracy"] == rarely["accuracy"]
    assert often["cost"] == rarely["cost"]


def test_measuring_accuracy_takes_no_time(data, monkeypatch):
    right = torch.ones(1)
    now = [0.0]  # a clock that only steps (one second) and evaluations (a hundred) move

    def move(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training, "_correct", lambda *arguments: move(100.0, right))
    record = train(make(evaluations=7), data, on_step=lambda step: move(1.0))
    assert [point["seconds"] for point in record["curve"]] == [4, 8, 12, 16, 20, 24, 28]
    assert record["seconds"] == 28
    # The loader books a step when the next batch is asked for: the last one never is.
    assert record["history"]["seconds"]["train"] in (27, 28)


def test_the_rehearsal_leaves_no_trace(data, monkeypatch):
    settings = dataclasses.replace(make(), network="resnet8")  # has buffers
    rehearsed = train(settings, data)
    monkeypatch.setattr(training, "_rehearse", lambda *arguments: None)
    assert timeless(train(settings, data)) == timeless(rehearsed)


def test_the_learning_rate_follows_the_schedule_in_any_budget(data, monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def spy(self, *arguments, **options):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train(make(budget=20 / 56), data)
    expected = [0.05 * factor for factor in [0.5] + [1.0] * 11 + [0.1] * 5 + [0.01] * 3]
    assert seen[-20:] == pytest.approx(expected)  # the first is the rehearsal


def test_sgd_dagger_stops_the_schedule_of_full_training_at_the_budget(data, monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def spy(self, *arguments, **options):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    record = train(make("sgd_dagger", budget=20 / 56), data)
    assert record["steps"] == 20
    assert seen[-20:] == pytest.approx([0.05 * learning_rate_factor(i, 56) for i in range(20)])


def test_glister_validates_on_train_images_that_it_does_not_train_on(data, monkeypatch):
    made = []

    def spy(train_loader, *arguments, strategy, **options):
        made.append((train_loader.dataset, vars(strategy)["validation_loader"].dataset))
        return loader_type(train_loader, *arguments, strategy=strategy, **options)

    loader_type = crest.CoresetLoader
    monkeypatch.setattr(crest, "CoresetLoader", spy)
    train(make("glister"), data)
    trained, held_out = made[-1]
    assert len(held_out.indices) == 6
    assert sorted([*trained.indices, *held_out.indices]) == list(range(60))
    clean = ImageViews(data, augment=False)
    assert torch.equal(held_out[0][0], clean[held_out.indices[0]][0])


@pytest.mark.parametrize("strategy", ["crest", "glister"])
def test_strategies_are_told_the_classes_of_what_they_train_on(data, strategy, monkeypatch):
    told = []

    def spy(train_loader, *arguments, labels, **options):
        told.append((train_loader.dataset, labels))
        return loader_type(train_loader, *arguments, labels=labels, **options)

    loader_type = crest.CoresetLoader
    monkeypatch.setattr(crest, "CoresetLoader", spy)
    train(make(strategy), data)
    dataset, labels = told[-1]
    assert labels.tolist() == [int(dataset[k][1]) for k in range(len(dataset))]


def test_crest_picks_per_class_in_a_run(data):
    options = {"per_class": True, "subset_size": 20, "exclusion_interval": None}
    assert train(make("crest_paper", strategy_options=options), data)["updates"] >= 1


def test_loss_pruning_passes_over_all_images_at_the_end(data):
    record = train(make("loss_pruning"), data)
    kept = [(region["step"], region["kept"]) for region in record["history"]["records"]]
    assert all(number < 60 for step, number in kept[1:] if step < 24)  # 7/8 of 28 steps
    assert kept[-1] == (24, 60)


def test_augmentation_can_be_left_out(data):
    assert timeless(train(make(augment=False), data)) == timeless(train(make(), data))
    big = torch.nn.functional.interpolate
    images = [
        big(part.float(), size=8).to(torch.uint8) for part in (data.train_images, data.test_images)
    ]
    larger = type(data)(
        "digits", images[0], data.train_labels, images[1], data.test_labels, data.classes, False
    )
    assert timeless(train(make(augment=False), larger)) != timeless(train(make(), larger))


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_autocast_reaches_training_selection_and_tests(data, autocast, monkeypatch):
    model = data.build_network("mlp")
    seen = set()

    def note(module, arguments, output):
        seen.add((output.dtype, module.training, torch.is_grad_enabled()))

    model[1].register_forward_hook(note)
    monkeypatch.setattr(type(data), "build_network", lambda self, name: model)
    record = train(make("greedy", autocast=autocast), data)
    dtype = torch.bfloat16 if autocast else torch.float32
    assert seen == {(dtype, True, True), (dtype, False, False)}
    assert record["settings"]["autocast"] == autocast
    assert record["accuracy"] > 0.4  # chance is 0.33


def test_a_compiled_run_is_the_same_run(data, monkeypatch):
    calls = []

    def compile_to_python(model, *, mode):
        def backend(graph, inputs):
            def call(*arguments):
                calls.append(mode)
                return graph(*arguments)

            return call

        return compiler(model, backend=backend)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", compile_to_python)
    compiled = train(make("greedy", budget=0.1, compile="reduce-overhead"), data)
    assert calls == ["reduce-overhead"] * (3 + 6)  # the rehearsal and each step, nothing else
    assert timeless(compiled) == timeless(train(make("greedy", budget=0.1), data))


def test_compiling_without_a_compiler_is_refused_in_a_sentence(data, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(ValueError, match="no-such-compiler is not found"):
        check(make("random", budget=0.1, compile="default"), data)


def test_diverging_loss_is_named(data):
    with pytest.raises(
        ValueError, match=r"loss must be finite; got nan at step \d+. Lower the learning"
    ):
        train(make(lr=1e30), data)


def test_batch_larger_than_the_data_is_refused(data):
    with pytest.raises(ValueError, match="number of train examples, 60; got 61"):
        count_steps(make(batch_size=61), data)
