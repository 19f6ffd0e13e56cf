"""What the doctor finds is so, and what it looks at stays as it is."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import crest
from toys import CRITERION, equal_parameters, make_loader, make_model, train


def findings(checkup, topic):
    return [finding for finding in checkup.findings if finding.topic == topic]


@pytest.mark.parametrize(
    "strategy",
    [crest.OnlineSelection(), crest.RememberedGradients(), crest.LossPruning()],
    ids=lambda strategy: type(strategy).__name__,
)
@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_selection_begins_where_it_says(strategy, accumulation_steps):
    model = make_model()
    loader = make_loader(
        strategy, model=model, budget=1, batch_size=20, accumulation_steps=accumulation_steps
    )
    told = crest.doctor(loader).numbers["first_selected_step"]
    train(loader, model, epochs=4, group=accumulation_steps)
    first = next(one["step"] for one in loader.history.records if one["updated"])
    assert told == first


def test_a_run_that_is_too_short_to_select_is_a_problem():
    loader = make_loader(crest.OnlineSelection(), budget=0.1)
    checkup = crest.doctor(loader, num_steps=10)
    (problem,) = checkup.problems
    assert problem.found.startswith("batches are never selected in this run: it has 10 steps")
    assert "Train for" in problem.change
    assert checkup.numbers["first_selected_step"] is None
    assert "PROBLEM" in str(checkup)
    assert not crest.doctor(loader, num_steps=100).problems


@pytest.mark.parametrize(
    ("strategy", "step"), [(crest.Random(), None), (crest.GreedyMiniBatch(subset_size=64), 0)]
)
def test_others_select_at_once_or_never(strategy, step):
    checkup = crest.doctor(make_loader(strategy))
    assert checkup.numbers["first_selected_step"] == step
    assert not checkup.problems


def test_it_says_what_will_be_observed():
    checkup = crest.doctor(make_loader(crest.OnlineSelection()))
    (finding,) = findings(checkup, "observing")
    assert finding.level == "good"
    assert "derivatives of shape (5,)" in finding.found
    assert checkup.numbers["head"] == "4"
    (none,) = findings(crest.doctor(make_loader(crest.Random())), "observing")
    assert "nothing is watched" in none.found


def test_a_loss_that_cannot_be_replayed_is_found_before_training():
    def twice(model, batch):
        inputs, targets = batch
        return CRITERION(model(inputs) + model(inputs), targets)

    checkup = crest.doctor(make_loader(crest.OnlineSelection(), loss_fn=twice))
    (problem,) = [one for one in checkup.problems if one.topic == "observing"]
    assert "nothing of training would be seen" in problem.found
    assert "loader.observe(losses, outputs)" in problem.change


def test_normalization_dropout_and_frozen_layers_are_found():
    model = make_model(dropout=0.5, norm=True)
    model[0].requires_grad_(False)
    checkup = crest.doctor(make_loader(crest.GreedyMiniBatch(subset_size=64), model=model))
    (norm,) = findings(checkup, "batch norm")
    assert norm.level == "note"
    assert "batch_statistics=True" in norm.change
    assert "1 layers" in findings(checkup, "dropout")[0].found
    assert findings(checkup, "frozen")[0].found.startswith("672 ")
    assert findings(checkup, "looks")


def test_memory_grows_with_what_is_kept():
    numbers = [
        crest.doctor(make_loader(strategy, record=record)).numbers["bytes_per_example"]
        for strategy, record in (
            (crest.Random(), False),
            (crest.Random(), True),
            (crest.OnlineSelection(), True),
        )
    ]
    assert numbers == sorted(numbers)
    assert numbers[0] == 12
    assert 50 < numbers[1] - numbers[0] < 150


@pytest.mark.parametrize(
    "strategy", [crest.OnlineSelection(), crest.Crest(subset_size=64)], ids=["online", "looking"]
)
def test_nothing_is_changed(strategy):
    model = make_model(dropout=0.5, norm=True)
    model.eval()
    loader = make_loader(strategy, model=model, budget=1)
    before, state = copy.deepcopy(model), copy.deepcopy(loader.state_dict())
    random = torch.get_rng_state()
    crest.doctor(loader)
    assert equal_parameters(model, before)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    after = loader.state_dict()
    assert repr(after) == repr(state)
    assert not any(module._forward_hooks for module in model.modules())


class Broken(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise OSError(f"no file {index}")


def test_what_is_broken_is_said_first():
    model = nn.Linear(3, 2)
    loader = crest.CoresetLoader(DataLoader(Broken(), 4), model, loss_fn=CRITERION)
    (problem,) = crest.doctor(loader).problems
    assert problem.topic == "data"
    assert "no file 0" in problem.found
    data = DataLoader(TensorDataset(torch.randn(40, 3), torch.randn(40)), 4)
    loader = crest.CoresetLoader(data, model, loss_fn=nn.CrossEntropyLoss(), strategy="online")
    assert any(one.topic == "loss" for one in crest.doctor(loader).problems)
