"""Stop anywhere, resume, continue bit for bit."""

import copy
import io
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import crest
from loader.spawned import Noisy
from toys import (
    CRITERION,
    NoisyData,
    equal_parameters,
    make_loader,
    make_model,
    make_tensors,
    train,
)

EPOCHS, BUDGET = 4, 0.4  # ten batches an epoch

STRATEGIES = [
    # learned examples leave from step 5 on, and some checks pass
    crest.Crest.paper(exclusion_interval=5, loss_threshold=1.5, error_threshold=0.2),
    # pairs checks; and turns to random batches and back
    crest.Crest(
        error_threshold=0.2, curvature="head", advanced=crest.CrestAdvanced(forward_price=0.01)
    ),
    crest.Crest(advanced=crest.CrestAdvanced(forward_price=0.3, probe_interval=3)),
    crest.Crest(
        select_until=13, advanced=crest.CrestAdvanced(forward_price=0.01, probe_interval=6)
    ),
    crest.GreedyMiniBatch(),
    crest.Random(),
    crest.Full(),
]


def name(value):
    return type(value).__name__


def run(
    strategy,
    *,
    accumulation=1,
    stop_at=None,
    checkpoint=None,
    epochs=EPOCHS,
    dataset=None,
    **workers,
):
    """Train, stop after `stop_at` batches with a checkpoint, or go on from one."""
    model = make_model(dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = crest.CoresetLoader(
        DataLoader(dataset or NoisyData(), batch_size=16, shuffle=True, **workers),
        model,
        loss_fn=CRITERION,
        strategy=strategy,
        budget=BUDGET,
        accumulation_steps=accumulation,
    )
    first_epoch, batches = 0, 0
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    if checkpoint is not None:
        file, numpy_state, python_state = checkpoint
        saved = torch.load(io.BytesIO(file), weights_only=True)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        for parameter, gradient in zip(model.parameters(), saved["gradients"], strict=True):
            parameter.grad = gradient
        loader.load_state_dict(saved["loader"])
        torch.set_rng_state(saved["random"])
        first_epoch, batches = saved["epoch"], saved["batches"]
    for epoch in range(first_epoch, epochs):
        for inputs, targets, weights in loader:
            loss = crest.weighted_mean(CRITERION(model(inputs), targets), weights)
            (loss / accumulation).backward()
            batches += 1
            if batches % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
            if batches == stop_at:
                file = io.BytesIO()
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "gradients": [parameter.grad for parameter in model.parameters()],
                        "loader": loader.state_dict(),
                        "random": torch.get_rng_state(),
                        "epoch": epoch + (batches % len(loader) == 0),
                        "batches": batches,
                    },
                    file,
                )
                return file.getvalue(), np.random.get_state(), random.getstate()
    return model, loader


def plan_of(loader):
    return [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in loader.history.records
    ]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
@pytest.mark.parametrize(
    ("num_workers", "accumulation", "stops"),
    [(0, 1, (1, 2, 9, 10, 11, 20, 40)), (2, 1, (1, 17)), (0, 2, (1, 6, 7, 20))],
    ids=["0 workers", "2 workers", "accumulation 2"],
)
def test_a_resumed_run_continues_bit_for_bit(strategy, num_workers, accumulation, stops):
    options = {"num_workers": num_workers, "accumulation": accumulation}
    model, loader = run(strategy, **options)
    for stop_at in stops:
        checkpoint = run(strategy, stop_at=stop_at, **options)
        resumed, resumed_loader = run(strategy, checkpoint=checkpoint, **options)
        assert equal_parameters(model, resumed), stop_at
        assert plan_of(loader) == plan_of(resumed_loader), stop_at
        assert loader.history.passes == resumed_loader.history.passes


def test_a_run_with_spawned_workers_is_resumed_bit_for_bit():
    """From within a region and from the end of an epoch; each start of workers takes seconds."""
    strategy, options = crest.OnlineSelection(), {"dataset": Noisy(), "epochs": 2}
    model, loader = run(strategy, **options)
    spawn = {"num_workers": 1, "multiprocessing_context": "spawn"}
    checkpoint = run(strategy, stop_at=3, **options)
    checkpoint = run(strategy, stop_at=10, checkpoint=checkpoint, **options, **spawn)
    spawn["persistent_workers"] = True
    resumed, resumed_loader = run(strategy, checkpoint=checkpoint, **options, **spawn)
    assert equal_parameters(model, resumed)
    assert plan_of(loader) == plan_of(resumed_loader)


NONE = {"num_workers": 0}
PERSISTENT = {"num_workers": 2, "persistent_workers": True}


@pytest.mark.parametrize(
    "strategy", [STRATEGIES[0], crest.Random(), crest.OnlineSelection()], ids=name
)
@pytest.mark.parametrize(
    ("workers", "accumulation", "stops"),
    [
        (NONE, 1, (1, 10, 14, 20, 29, 40)),
        (NONE, 5, (1, 3, 5, 10, 13)),
        (PERSISTENT, 1, (1, 10, 14)),
    ],
    ids=["0 workers", "accumulation 5", "persistent"],
)
def test_a_resumed_run_is_resumed_once_more(strategy, workers, accumulation, stops):
    """First batch, middle, end of an epoch and of the run, each left for the point after it."""
    options = {"accumulation": accumulation, **workers}
    model, loader = run(strategy, **options)
    checkpoint = None
    for stop_at in stops:
        checkpoint = run(strategy, stop_at=stop_at, checkpoint=checkpoint, **options)
    resumed, resumed_loader = run(strategy, checkpoint=checkpoint, **options)
    assert equal_parameters(model, resumed)
    assert plan_of(loader) == plan_of(resumed_loader)


@pytest.mark.parametrize("strategy", [*STRATEGIES, crest.OnlineSelection()], ids=name)
@pytest.mark.parametrize("budget", [BUDGET, 1.0])
def test_a_state_saved_at_the_last_batch_begins_the_next_epoch(strategy, budget):
    loader, other = (make_loader(strategy, budget=budget) for _ in range(2))
    seen = {}

    def save_at_the_last_batch(*batch):
        if loader.history.steps == 2 * len(loader):
            state = copy.deepcopy([one.state_dict() for one in (loader._model, loader)])
            seen["states"] = state, torch.get_rng_state()

    train(loader, loader._model, epochs=2, lr=0.01, on_step=save_at_the_last_batch)
    (model_state, state), random_state = seen["states"]
    assert state["in_epoch"]
    other._model.load_state_dict(model_state)
    other.load_state_dict(state)
    batches = []
    for one in (loader, other):
        torch.set_rng_state(random_state)
        found = []
        train(one, one._model, lr=0.01, on_step=lambda x, y, w: found.append(x))  # noqa: B023
        batches.append(found)
    assert len(batches[0]) == len(batches[1]) == len(loader)
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_the_run_above_excludes_examples_and_keeps_some_coresets():
    _, loader = run(STRATEGIES[0])
    assert loader.history.records[-1]["active"] < 400
    assert 1 < loader.history.updates < len(loader.history.records)


def test_a_checkpoint_after_an_epoch_starts_the_next_one():
    loader = make_loader(crest.Random(), budget=BUDGET)
    first = [inputs for inputs, _, _ in loader]
    other = make_loader(crest.Random(), budget=BUDGET)
    other.load_state_dict(loader.state_dict())
    rest = [inputs for inputs, _, _ in other]
    assert len(rest) == len(first) == len(loader)
    assert not torch.equal(rest[0], first[0])


def test_a_checkpoint_after_a_counted_epoch_resumes_into_the_next():
    loader = make_loader(crest.Random(), budget=BUDGET)
    for _, _ in zip(range(len(loader)), loader, strict=False):
        pass  # the loop never asks for one more batch
    other = make_loader(crest.Random(), budget=BUDGET)
    other.load_state_dict(loader.state_dict())
    pairs = list(zip(loader, other, strict=True))
    assert len(pairs) == len(loader)
    assert all(torch.equal(one[0], two[0]) for one, two in pairs)


def test_the_order_of_a_loader_with_a_generator_resumes_under_full():
    def make():
        data = TensorDataset(*make_tensors())
        generator = torch.Generator().manual_seed(5)
        train_loader = DataLoader(data, batch_size=16, shuffle=True, generator=generator)
        return crest.CoresetLoader(
            train_loader, make_model(), loss_fn=CRITERION, strategy=crest.Full(), budget=1.0
        )

    loader, other = make(), make()
    for _ in range(2):
        list(loader)
    other.load_state_dict(loader.state_dict())
    for one, two in zip(loader, other, strict=True):
        assert torch.equal(one[0], two[0])


def test_a_checkpoint_at_step_zero_changes_nothing():
    loader, other = (make_loader(crest.Random(), budget=BUDGET) for _ in range(2))
    other.load_state_dict(loader.state_dict())
    for one, two in zip(loader, other, strict=True):
        assert torch.equal(one[0], two[0])


def test_the_state_holds_tensors_and_primitives_alone():
    file = io.BytesIO()
    torch.save(run_state(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


def run_state():
    loader = make_loader(crest.Crest.paper())
    next(iter(loader))
    return loader.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": TensorDataset(*make_tensors(300))}, "dataset_length must be .* 400; got 300"),
        ({"budget": 0.2}, r"budget must be that of the checkpoint, 0\.1; got 0\.2"),
        ({"batch_size": 8}, "batch_size must be .* 16; got 8"),
        ({"seed": 3}, "seed must be .* 0; got 3"),
        ({"strategy": crest.Random()}, "strategy must be .* 'Crest'; got 'Random'"),
        (
            {"strategy": crest.Crest.paper(error_threshold=0.5)},
            r"strategy\.error_threshold must be .* 0\.05; got 0\.5",
        ),
    ],
    ids=["data", "budget", "batch size", "seed", "strategy", "setting"],
)
def test_a_checkpoint_of_other_data_or_settings_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(**options).load_state_dict(run_state())


def test_a_checkpoint_of_other_labels_is_refused():
    labels = make_tensors()[1]
    state = make_loader(labels=labels).state_dict()
    make_loader(labels=labels).load_state_dict(state)
    make_loader().load_state_dict(state)  # nothing was told that it could contradict
    message = "labels must be those of the checkpoint; [0-9]+ examples have another one, such as"
    with pytest.raises(ValueError, match=message):
        make_loader(labels=labels.roll(1)).load_state_dict(state)


def test_a_checkpoint_of_another_version_is_refused():
    with pytest.raises(ValueError, match="the checkpoint must be of version 3; got 0"):
        make_loader().load_state_dict({**run_state(), "version": 0})


def without(state, *path):
    """A state that lacks an entry."""
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return state


def with_entry(state, value, *path):
    """A state with another value in an entry."""
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return state


def paths_of(state, path=()):
    """Every entry at any depth."""
    for key, value in state.items():
        yield (*path, key)
        if isinstance(value, dict) and key != "settings":
            yield from paths_of(value, (*path, key))


def test_each_entry_that_is_missing_is_named():
    loader, state = make_loader(crest.Crest.paper()), run_state()
    for path in paths_of(state):
        if path == ("version",) or path[:2] in (("history", "seconds"), ("history", "passes")):
            continue
        with pytest.raises(ValueError, match=f"the state.*{path[-1]}"):
            loader.load_state_dict(without(copy.deepcopy(state), *path))


def test_each_entry_of_another_kind_is_named():
    loader, state = make_loader(crest.Crest.paper()), run_state()
    next(iter(loader))  # from then on each entry has a value
    for path in paths_of(state):
        value = state
        for key in path:
            value = value[key]
        if value is None or path == ("version",) or path[0] == "history":
            continue
        for wrong in ("a word", 3, [], {}, torch.ones(3)):
            if isinstance(wrong, type(value)) or (
                isinstance(wrong, int) and isinstance(value, (int, float))
            ):
                continue
            with pytest.raises((TypeError, ValueError), match=f"{path[-1]} .*the state"):
                loader.load_state_dict(with_entry(copy.deepcopy(state), wrong, *path))


@pytest.mark.filterwarnings("ignore:a region was planned")  # nobody trains in this loop
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("plan_generator",), torch.zeros(3, dtype=torch.uint8)),
        (("region", "weights"), ["a word"]),
        (("examples", "labels"), torch.zeros(3, dtype=torch.int64)),
        (("planner", "pool", "active"), torch.ones(3, dtype=torch.bool)),
        (("history", "passes"), {"train": 3}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_an_entry_of_another_size_is_named_and_the_loader_stays_as_it_was(path, value):
    def at_the_third_batch():
        loader = make_loader(crest.Crest.paper(), seed=3)
        iterator = iter(loader)
        for _ in range(2):
            next(iterator)
        return loader, iterator

    state = make_loader(crest.Crest.paper(), seed=3).state_dict()
    loader, iterator = at_the_third_batch()
    with pytest.raises(ValueError, match=f"{path[0]}.* of the state must.*Take an earlier"):
        loader.load_state_dict(with_entry(state, value, *path))
    _, untouched = at_the_third_batch()
    for _ in range(3):
        one, other = next(iterator, None), next(untouched, None)
        assert one is None or torch.equal(one[0], other[0])
