"""What comes out of a CoresetLoader."""

import math
import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import crest
from toys import (
    CRITERION,
    NoisyData,
    equal_parameters,
    make_loader,
    make_model,
    make_tensors,
    train,
)

STRATEGIES = [
    crest.Crest(),
    crest.Crest.paper(),
    crest.GreedyMiniBatch(),
    crest.Random(),
    crest.Full(),
]


def name(value):
    return type(value).__name__


def train_plainly(dataset, model, generator, epochs=2):
    """The loop that a user has before the five changed lines."""
    loader = DataLoader(dataset, batch_size=16, shuffle=True, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for inputs, targets in loader:
            loss = CRITERION(model(inputs), targets).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.mark.parametrize("own_generator", [True, False], ids=["generator", "global"])
@pytest.mark.parametrize("dataset", [TensorDataset(*make_tensors()), NoisyData()], ids=name)
def test_full_equals_a_plain_loop_bit_for_bit(dataset, own_generator):
    models = [make_model(dropout=0.2, norm=True) for _ in range(2)]
    states = []
    for model, run in zip(models, ("plain", "crest"), strict=True):
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        generator = torch.Generator().manual_seed(3) if own_generator else None
        if run == "plain":
            train_plainly(dataset, model, generator)
        else:
            train_loader = DataLoader(dataset, batch_size=16, shuffle=True, generator=generator)
            loader = crest.CoresetLoader(
                train_loader, model, loss_fn=CRITERION, strategy=crest.Full(), budget=1
            )
            train(loader, model, epochs=2)
        states.append(torch.get_rng_state())
    assert equal_parameters(*models)
    assert torch.equal(*states)


def test_random_equals_a_seeded_random_loop():
    inputs, targets = make_tensors()
    model, other = make_model(), make_model()
    loader = make_loader(crest.Random(), model=model, budget=1, seed=5)
    train(loader, model, epochs=2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        for rows in torch.randperm(len(inputs), generator=generator).split(16):
            optimizer.zero_grad()
            CRITERION(other(inputs[rows]), targets[rows]).mean().backward()
            optimizer.step()
    assert equal_parameters(model, other)


@pytest.mark.parametrize("accumulation_steps", [1, 3])
@pytest.mark.parametrize("budget", [0.03, 0.1, 0.5, 1])
@pytest.mark.parametrize("n", [40, 100])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_every_epoch_has_the_announced_length(strategy, n, budget, accumulation_steps):
    model = make_model()
    dataset = TensorDataset(*make_tensors(n))
    loader = make_loader(
        strategy,
        model=model,
        dataset=dataset,
        budget=budget,
        accumulation_steps=accumulation_steps,
    )
    for _ in range(2):
        lengths = 0
        for _ in loader:
            lengths += 1
            with torch.no_grad():
                model[0].weight.mul_(0.999)  # stands for an optimizer step
        assert lengths == len(loader)
    if budget == 1:
        assert len(loader) == math.ceil(n / 16)
    else:
        assert len(loader) % accumulation_steps == 0


@pytest.mark.parametrize("drop_last", [True, False])
def test_drop_last_is_that_of_the_users_loader(drop_last):
    train_loader = DataLoader(
        TensorDataset(*make_tensors(40)), batch_size=16, shuffle=True, drop_last=drop_last
    )
    for strategy in (crest.Random(), crest.Full()):
        loader = crest.CoresetLoader(
            train_loader, make_model(), loss_fn=CRITERION, strategy=strategy, budget=1
        )
        sizes = [len(weights) for _, _, weights in loader]
        assert sizes == ([16, 16] if drop_last else [16, 16, 8])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_weights_are_positive_with_mean_one(strategy):
    model = make_model()
    loader = make_loader(strategy, model=model, budget=0.4)

    def check(inputs, targets, weights):
        assert weights.shape == targets.shape == (16,)
        assert (weights > 0).all()
        assert float(weights.mean()) == pytest.approx(1, abs=1e-6)

    train(loader, model, on_step=check)


class WithIndex(torch.utils.data.Dataset):
    """Gives its index away in the input, and can speak in dicts."""

    def __init__(self, n=400, as_dict=False):
        self.inputs, self.targets = make_tensors(n)
        self.as_dict = as_dict

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        if self.as_dict:
            return {"x": self.inputs[index], "label": int(self.targets[index]), "index": index}
        return self.inputs[index], int(self.targets[index])


def dict_loss(model, batch):
    return CRITERION(model(batch["x"]), batch["label"])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_dict_batches_get_weight_and_index_of_the_examples_they_hold(strategy, num_workers):
    model = make_model()
    loader = make_loader(
        strategy,
        model=model,
        dataset=WithIndex(as_dict=True),
        loss_fn=dict_loss,
        num_workers=num_workers,
    )
    for batch in loader:
        assert torch.equal(batch["index"], batch["sample_index"])
        assert batch["sample_weight"].shape == batch["index"].shape
        loss = crest.weighted_mean(dict_loss(model, batch), batch["sample_weight"])
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None


def test_an_attach_function_serves_other_batches():
    class Batch:
        def __init__(self, rows):
            self.x = torch.stack([x for x, _ in rows])
            self.y = torch.tensor([y for _, y in rows])

    def loss_fn(model, batch):
        return CRITERION(model(batch.x), batch.y)

    def loader_with(**options):
        train_loader = DataLoader(WithIndex(), batch_size=16, shuffle=True, collate_fn=Batch)
        return crest.CoresetLoader(train_loader, make_model(), loss_fn=loss_fn, **options)

    batch, weights, indices = next(iter(loader_with(attach=lambda *parts: parts)))
    assert torch.equal(batch.x, WithIndex().inputs[indices])
    assert weights.shape == (16,)
    with pytest.raises(TypeError, match=r"tuples, lists or dicts .* got Batch\. Pass attach="):
        next(iter(loader_with()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_view_that_is_selected_is_the_view_that_is_trained_on(num_workers):
    model = make_model()
    seen = []

    def loss_fn(model, batch):
        seen.append(batch[0].clone())
        return CRITERION(model(batch[0]), batch[1])

    loader = make_loader(
        crest.Crest.paper(error_threshold=1.0),  # keep the first coresets
        model=model,
        dataset=NoisyData(),
        loss_fn=loss_fn,
        num_workers=num_workers,
        budget=0.5,
    )
    inputs, _, _ = next(iter(loader))
    looked_at = torch.cat(seen)
    assert all((looked_at == row).all(1).any() for row in inputs)


def test_a_selection_dataset_is_looked_at_and_the_other_one_trained_on():
    inputs, targets = make_tensors()
    seen = []

    def loss_fn(model, batch):
        seen.append(batch[0].clone())
        return CRITERION(model(batch[0]), batch[1])

    loader = make_loader(
        dataset=TensorDataset(inputs + 1, targets),
        selection_dataset=TensorDataset(inputs, targets),
        loss_fn=loss_fn,
    )
    trained_on, labels, _ = next(iter(loader))
    assert all((inputs == row).all(1).any() for row in torch.cat(seen))
    places = [int((inputs + 1 == row).all(1).nonzero()) for row in trained_on]
    assert torch.equal(targets[places], labels)
    with pytest.raises(ValueError, match="selection_dataset must have .*400; it has 300"):
        make_loader(selection_dataset=TensorDataset(*make_tensors(300)))


class Pairs(Dataset):
    """Items as dicts, with what stands in many of them and is no tensor."""

    def __init__(self):
        self.inputs, self.targets = make_tensors()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        label = {"label": int(self.targets[index])}
        return {"x": self.inputs[index], "target": label, "meta": {}, "boxes": []}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "strategy", [crest.Crest.paper(), crest.GreedyMiniBatch(), crest.Craig()], ids=name
)
def test_a_collate_function_may_write_to_the_items(strategy, num_workers):
    def collate(items):
        labels = torch.tensor([item.pop("target").pop("label") for item in items])
        for item in items:
            item["x"] = item["x"] / 2
        return torch.stack([item["x"] for item in items]), labels

    data = Pairs()
    train_loader = DataLoader(data, 16, shuffle=True, collate_fn=collate, num_workers=num_workers)
    model = make_model()
    loader = crest.CoresetLoader(train_loader, model, loss_fn=CRITERION, strategy=strategy)
    halves = data.inputs / 2

    def check(inputs, targets, weights):
        assert all((halves == row).all(1).any() for row in inputs)

    train(loader, model, epochs=2, on_step=check)
    assert loader.history.passes["features"]["forward"] > 0


def test_a_collate_function_that_changes_a_tensor_in_place_is_refused():
    def collate(items):
        return torch.stack([x.mul_(0.5) for x, _ in items]), torch.stack([y for _, y in items])

    train_loader = DataLoader(TensorDataset(*make_tensors()), 16, shuffle=True, collate_fn=collate)
    loader = crest.CoresetLoader(
        train_loader, make_model(), loss_fn=CRITERION, strategy=crest.GreedyMiniBatch()
    )
    with pytest.raises(ValueError, match="collate_fn must not change the tensors of an item"):
        next(iter(loader))


def test_examples_may_stand_in_columns():
    def collate(items):
        inputs, targets = zip(*items, strict=True)
        return torch.stack(inputs, 1), torch.tensor(targets)  # features first

    model = nn.Sequential(Turned(), *make_model())
    train_loader = DataLoader(TensorDataset(*make_tensors()), 16, shuffle=True, collate_fn=collate)
    loader = crest.CoresetLoader(
        train_loader, model, loss_fn=CRITERION, strategy=crest.GreedyMiniBatch()
    )
    shapes = set()
    train(loader, model, on_step=lambda inputs, *_: shapes.add(tuple(inputs.shape)))
    assert shapes == {(20, 16)}


class Turned(nn.Module):
    def forward(self, inputs):
        return inputs.T


@pytest.mark.parametrize(
    "make_label",
    [int, np.int64, np.uint8, np.array, torch.tensor, lambda label: torch.tensor([label])],
    ids=["int", "int64", "uint8", "array", "tensor", "tensor of one"],
)
def test_the_class_of_an_example_is_known_in_any_form(make_label):
    inputs, targets = make_tensors()
    data = [(x, make_label(int(y))) for x, y in zip(inputs, targets, strict=True)]
    train_loader = DataLoader(data, 16, shuffle=True)

    def loss_fn(outputs, target):
        return CRITERION(outputs, target.reshape(-1).long())

    loader = crest.CoresetLoader(
        train_loader, make_model(), loss_fn=loss_fn, strategy=crest.Craig(per_class=True)
    )
    next(iter(loader))
    picked = targets[torch.cat([batch.indices for batch, _ in loader.preview(2)])]
    assert len(picked.unique()) == 5


def test_a_run_does_not_depend_on_the_number_of_workers():
    models = []
    for num_workers in (0, 2):
        models.append(make_model())
        loader = make_loader(model=models[-1], dataset=NoisyData(), num_workers=num_workers)
        train(loader, models[-1], epochs=3)
    assert equal_parameters(*models)


@pytest.mark.parametrize("strategy", [crest.Crest.paper(), crest.Random()], ids=name)
def test_iterating_leaves_the_global_random_states_alone(strategy):
    model = make_model()
    loader = make_loader(strategy, model=model, dataset=NoisyData())
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(loader, model)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_an_epoch_that_is_broken_off_is_followed_by_a_whole_one():
    loader = make_loader(crest.Random(), budget=0.5)
    next(iter(loader))
    assert len(list(loader)) == len(loader)


def test_fetching_ahead_is_noticed_once():
    loader = make_loader(crest.GreedyMiniBatch(), budget=0.5)
    with pytest.warns(UserWarning, match=r"planned before 1 step\(s\)") as caught:
        list(loader)  # nobody trains
    assert len(caught) == 1
    assert loader.history.lag == len(loader) - 1


def test_a_plain_loop_has_no_lag():
    model = make_model()
    loader = make_loader(crest.GreedyMiniBatch(), model=model, budget=0.5)
    train(loader, model)
    assert loader.history.lag == 0


def test_an_optimizer_that_writes_to_data_has_no_lag():
    model = make_model()
    loader = make_loader(crest.GreedyMiniBatch(), model=model, budget=0.5)
    for inputs, targets, weights in loader:
        crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
        for parameter in model.parameters():
            parameter.data -= 0.1 * parameter.grad
            parameter.grad = None
    assert loader.history.lag == 0


def test_a_random_step_costs_one_and_costs_add_up():
    model = make_model()
    loader = make_loader(crest.Random(), model=model)
    train(loader, model, epochs=4)
    assert loader.history.cost == pytest.approx(loader.history.steps)
    assert loader.history.break_even == 1

    greedy = make_loader(crest.GreedyMiniBatch(subset_size=64), model=model)
    train(greedy, model, epochs=4)
    # r forward passes more for each step of 3 m: 1 + 64 / (3 * 16)
    assert greedy.history.cost == pytest.approx(greedy.history.steps * (1 + 64 / 48))
    assert greedy.history.break_even == pytest.approx(1 + 64 / 48)
    assert sum(greedy.history.seconds.values()) > 0
    assert greedy.history.updates == greedy.history.steps


def test_no_step_waits_for_the_device_and_its_work_is_booked_as_training(monkeypatch):
    """A clock that only kernels move: each step queues one second of them."""
    now, queued, waits = [0.0], [0.0], []

    def synchronize(device=None):
        waits.append(queued[0])
        now[0] += queued[0]
        queued[0] = 0.0

    loader = make_loader(crest.RememberedGradients(), budget=1)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    loader.history._device = torch.device("cuda")
    for inputs, targets, _ in loader:
        outputs = loader._model(inputs)
        loader.observe(CRITERION(outputs, targets), outputs)
        queued[0] += 1
    loader.history.await_training()
    steps = len(loader)
    assert loader.history.seconds["train"] == steps
    assert [wait for wait in waits if wait] == [steps]  # the pass is one region


def test_the_global_epoch_reaches_the_users_sampler():
    class Sampler(RandomSampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

    dataset = TensorDataset(*make_tensors(40))
    train_loader = DataLoader(dataset, batch_size=8, sampler=Sampler(dataset))
    loader = crest.CoresetLoader(train_loader, make_model(), loss_fn=CRITERION)
    loader.set_epoch(4)
    assert train_loader.sampler.epoch == 4
    make_loader().set_epoch(1)  # a sampler without epochs is fine


def test_a_batch_sampler_of_ones_own_needs_a_batch_size():
    class Buckets(BatchSampler):
        pass

    dataset = TensorDataset(*make_tensors(40))
    sampler = Buckets(RandomSampler(dataset), 8, drop_last=False)
    train_loader = DataLoader(dataset, batch_sampler=sampler)
    with pytest.raises(ValueError, match="batch_size must be given .*Buckets"):
        crest.CoresetLoader(train_loader, make_model(), loss_fn=CRITERION, strategy=crest.Full())
    loader = crest.CoresetLoader(
        train_loader, make_model(), loss_fn=CRITERION, strategy=crest.Full(), batch_size=8
    )
    assert sum(len(weights) for _, _, weights in loader) == 8  # a tenth of five batches


@pytest.mark.parametrize("shapes", [((), (3,)), ((3,), (4,)), ((3, 2), (3,))])
def test_weighted_mean_refuses_what_is_not_one_loss_per_weight(shapes):
    losses, weights = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match="losses must"):
        crest.weighted_mean(losses, weights)


def test_mean_losses_equal_those_of_the_mean_reduction():
    inputs, targets = make_tensors(32)
    model = make_model()
    ours = crest.weighted_mean(CRITERION(model(inputs), targets), torch.ones(32))
    theirs = nn.CrossEntropyLoss()(model(inputs), targets)
    assert ours.item() == pytest.approx(theirs.item())


def test_classes_that_are_given_are_not_those_that_the_data_tells():
    coarse = torch.arange(400) % 2
    loader = make_loader(
        crest.Crest(switch_off=False, advanced=crest.CrestAdvanced(stratify=True)), labels=coarse
    )
    next(iter(loader))
    assert torch.equal(loader.state_dict()["examples"]["labels"], coarse)
