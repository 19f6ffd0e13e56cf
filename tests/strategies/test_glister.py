"""GLISTER against a real last layer that takes the steps, and against overlapping data."""

import random

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import reference_baselines
from baselines import (
    K,
    N,
    held_out_loader,
    make_task,
    make_trained_model,
    observe,
    shares,
    subset_of,
)
from crest import Glister
from toys import CRITERION, make_loader, make_model, make_tensors


@pytest.fixture(scope="module")
def model():
    return make_trained_model()


def slow_picks(model, *, per_class, lr, rounds):
    inputs, targets = make_tensors(N)
    held_out = held_out_loader().dataset.tensors
    groups = shares(targets, per_class)
    return reference_baselines.glister(
        model[-1],
        (observe(model, inputs, targets).inputs, targets),
        (observe(model, *held_out).inputs, held_out[1]),
        groups,
        step_of_one=lr / 16,  # m of make_loader
        rounds=min(rounds, max(size for _, size in groups)),
    )


@pytest.mark.parametrize("rounds", [1, 4, 1000])
@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "whole set"])
def test_picks_are_those_of_the_slow_version(model, per_class, rounds):
    strategy = Glister(held_out_loader(), lr=2.5, rounds=rounds, per_class=per_class)
    found = subset_of(strategy, model)
    assert found.keys() == set(slow_picks(model, per_class=per_class, lr=2.5, rounds=rounds))
    assert set(found.values()) == {1.0}


def test_a_head_without_bias_moves_by_its_weight_alone():
    model = make_trained_model()
    model[-1] = nn.Linear(32, 5, bias=False)
    nn.init.normal_(model[-1].weight, std=0.5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[0].weight *= 0.2  # so that an input of 1 beside them would count
    found = subset_of(Glister(held_out_loader(), lr=2.5, per_class=False), model)
    assert found.keys() == set(slow_picks(model, per_class=False, lr=2.5, rounds=200))


def test_the_validation_gradient_is_renewed_between_rounds(model):
    """Known elsewhere: an update that never runs."""
    once, often = (
        subset_of(Glister(held_out_loader(), lr=2.5, rounds=rounds), model).keys()
        for rounds in (1, 1000)
    )
    assert len(once & often) < 0.9 * K


def test_more_rounds_than_picks_come_to_an_end(model):
    """Known elsewhere: an endless loop if k is below the number of rounds."""
    strategy = Glister(held_out_loader(), subset_fraction=0.04, rounds=10**9, per_class=False)
    assert len(subset_of(strategy, model, batches=1)) == 16


def test_the_loss_on_unseen_data_falls_more_than_by_random_subsets(model):
    inputs, targets = make_tensors(N)
    held_out = held_out_loader().dataset.tensors

    def loss_after_a_step(rows):
        loss = CRITERION(model(inputs[rows]), targets[rows]).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        moved = {
            name: parameter - 0.1 * gradient
            for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True)
        }
        with torch.no_grad():
            outputs = torch.func.functional_call(model, moved, (held_out[0],))
            return float(CRITERION(outputs, held_out[1]).mean())

    before = float(CRITERION(model(held_out[0]), held_out[1]).mean().detach())
    generator = torch.Generator().manual_seed(0)
    gains = [
        before - loss_after_a_step(torch.randperm(N, generator=generator)[:K]) for _ in range(20)
    ]
    picks = list(subset_of(Glister(held_out_loader(), lr=0.1), model))
    assert before - loss_after_a_step(torch.tensor(picks)) > 1.5 * max(max(gains), 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_data_leaves_the_random_states_alone_and_may_be_shuffled(num_workers):
    own = torch.Generator()
    before = own.get_state()
    held_out = held_out_loader(shuffle=True, num_workers=num_workers, generator=own)
    loader = make_loader(Glister(held_out), attach=lambda batch, _, indices: (*batch, indices))
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate()
    found = [indices for _, _, indices in loader]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert torch.equal(own.get_state(), before)
    expected = subset_of(Glister(held_out_loader()), make_model())
    assert set(torch.cat(found).tolist()) == expected.keys()


def test_a_shuffled_validation_set_is_summed_in_one_order():
    """Or the last bits of its gradient, and with them a resumed run, would depend on chance."""
    reads = []

    class Recorded(TensorDataset):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    held_out = DataLoader(Recorded(*make_tensors(50, seed=1)), batch_size=32, shuffle=True)
    next(iter(make_loader(Glister(held_out))))
    assert reads == list(range(50))


def test_only_what_the_validation_sampler_chooses_is_observed():
    tensors = make_tensors(N + 100)
    everything = TensorDataset(*tensors)
    sampler = SubsetRandomSampler(range(N, N + 100))
    held_out = DataLoader(everything, batch_size=32, sampler=sampler)
    loader = make_loader(Glister(held_out), dataset=Subset(everything, range(N)))
    next(iter(loader))
    assert loader.history.passes["features"]["forward"] == N + 100


def test_a_sampler_that_draws_gives_the_same_validation_set_in_every_process(model):
    everything = TensorDataset(*make_tensors(100, seed=1))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sampler = RandomSampler(everything, num_samples=10)
        held_out = DataLoader(everything, batch_size=10, sampler=sampler)
        found.append(subset_of(Glister(held_out), model))
    assert found[0] == found[1]


def test_a_batch_sampler_chooses_the_validation_set():
    tensors = make_tensors(N + 100)
    everything = TensorDataset(*tensors)
    sampler = BatchSampler(SubsetRandomSampler(range(N, N + 50)), 16, drop_last=False)
    held_out = DataLoader(everything, batch_sampler=sampler)
    loader = make_loader(Glister(held_out), dataset=Subset(everything, range(N)))
    next(iter(loader))
    assert loader.history.passes["features"]["forward"] == N + 50


def test_accumulated_batches_share_one_step(model):
    """Four batches are one step of the mean loss: as far as one batch at a quarter of the rate."""
    found = [
        subset_of(Glister(held_out_loader(), lr=lr, rounds=9), model, accumulation_steps=steps)
        for lr, steps in ((10.0, 4), (2.5, 1), (10.0, 1))
    ]
    assert found[0].keys() == found[1].keys() != found[2].keys()


def test_settings_are_primitives_and_the_loader_is_none_of_them():
    state = make_loader(Glister(held_out_loader())).state_dict()
    assert not any("loader" in name for name in state["settings"])
    assert all(
        isinstance(value, (int, float, str, type(None))) for value in state["settings"].values()
    )


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"needs a DataLoader over held-out examples; got NoneType\. Write Glister\("),
        ((TensorDataset(*make_tensors(10)),), "needs a DataLoader .* got TensorDataset"),
        ((DataLoader(Stream()),), "must be map-style; got an IterableDataset, Stream"),
    ],
    ids=["none", "dataset", "stream"],
)
def test_no_validation_loader_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        Glister(*arguments)


everything = TensorDataset(*make_tensors(20))


@pytest.mark.parametrize(
    ("train", "held_out", "shared"),
    [
        (everything, everything, "20 of 20"),
        (everything, Subset(everything, [3, 4]), "2 of 2"),
        (Subset(everything, range(15)), Subset(everything, range(12, 20)), "3 of 8"),
        (Subset(Subset(everything, range(5, 20)), range(10)), Subset(everything, [4, 5]), "1 of 2"),
    ],
    ids=["same", "part", "two parts", "part of a part"],
)
def test_a_validation_set_that_overlaps_training_is_refused(train, held_out, shared):
    strategy = Glister(DataLoader(held_out), subset_fraction=1.0)
    task = make_task(len(train), 2, dataset=train)
    with pytest.raises(
        ValueError, match=f"must share no example with training; it shares {shared}"
    ):
        strategy.start(task)


def test_the_loader_tells_that_the_validation_set_overlaps_training():
    data = TensorDataset(*make_tensors(N))
    held_out = DataLoader(Subset(data, range(N - 50, N)), batch_size=32)
    with pytest.raises(ValueError, match="it shares 50 of 50. Hold some out"):
        make_loader(Glister(held_out), dataset=data)
    make_loader(Glister(held_out), dataset=Subset(data, range(N - 50)))


def test_parts_without_a_common_example_are_accepted():
    held_out = Glister(DataLoader(Subset(everything, range(10, 20))), subset_fraction=1.0)
    held_out.start(make_task(10, 2, dataset=Subset(everything, range(10))))


def test_an_empty_validation_set_is_refused():
    strategy = Glister(DataLoader(Subset(everything, [])))
    with pytest.raises(ValueError, match="must hold at least one example; got an empty one"):
        strategy.start(make_task())


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.2),
        nn.CrossEntropyLoss(reduction="none", weight=torch.arange(1.0, 6.0)),
        lambda output, target: (output - nn.functional.one_hot(target, 5)).square().sum(1),
    ],
    ids=["smoothing", "class weights", "squared error"],
)
def test_other_losses_than_cross_entropy_are_refused(loss_fn):
    loader = make_loader(Glister(held_out_loader()), loss_fn=loss_fn)
    with pytest.raises(ValueError, match="cross-entropy with one class for each example"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"lr must be > 0 and finite; got 0\.0"),
        ({"rounds": 0}, "rounds must be >= 1; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Glister(held_out_loader(), **settings)
