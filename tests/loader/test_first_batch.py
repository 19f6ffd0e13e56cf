"""The first batch shows whether the loss is one per example, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import crest
from toys import CRITERION, NoisyData, equal_parameters, make_loader, make_model, train

NEVER_LOOKS = [crest.Random(), crest.Full(), crest.LossPruning(), crest.RememberedGradients()]
EACH = pytest.mark.parametrize("strategy", NEVER_LOOKS, ids=lambda s: type(s).__name__)


@EACH
@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.CrossEntropyLoss(), r'not their mean; got a scalar\. Set reduction="none"'),
        (lambda output, target: output, r"shape \(16,\); got \(16, 5\)"),
        (lambda output, target: 0.5, "must return a tensor of one loss per example; got float"),
    ],
    ids=["scalar", "two dimensions", "no tensor"],
)
def test_a_loss_that_is_not_one_per_example_is_refused(strategy, loss_fn, message):
    with pytest.raises(ValueError, match=message):
        next(iter(make_loader(strategy, loss_fn=loss_fn, budget=1)))


def test_a_loss_of_another_length_than_the_batch_is_refused():
    def of_pairs(model, batch):
        return CRITERION(model(batch["x"]), batch["y"])

    def in_pairs(items):
        return {
            "x": torch.stack([x for x, _ in items for _ in "ab"]),
            "y": torch.tensor([y for _, y in items for _ in "ab"]),
        }

    data = DataLoader(NoisyData(), batch_size=8, shuffle=True, collate_fn=in_pairs)
    loader = crest.CoresetLoader(data, make_model(), loss_fn=of_pairs, strategy=crest.Random())
    with pytest.raises(ValueError, match=r"one loss per example, shape \(8,\); got \(16,\)"):
        next(iter(loader))


@EACH
def test_what_the_loop_prepares_by_itself_is_no_error(strategy):
    """loss_fn fails on the batch as it is collated; the loop knows better."""

    def knows_nothing(output, target):
        raise KeyError("targets")

    assert next(iter(make_loader(strategy, loss_fn=knows_nothing, budget=1)))


@EACH
def test_the_look_leaves_no_trace_and_costs_no_pass(strategy):
    model = make_model(dropout=0.5, norm=True)
    loader = make_loader(strategy, model=model, dataset=NoisyData(), budget=1)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    next(iter(loader))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) or isinstance(strategy, crest.Full)
    assert all(module.training for module in model.modules())
    assert loader.history.seconds["check"] > 0
    assert loader.history.overhead == 0


def test_training_is_the_same_with_and_without_the_look(monkeypatch):
    models = []
    for looks in (True, False):
        if not looks:
            monkeypatch.setattr("crest.first_batch.FirstBatch.check", lambda *_: None)
        torch.manual_seed(0)
        models.append(make_model(dropout=0.5, norm=True))
        torch.manual_seed(1)
        train(make_loader(crest.Full(), model=models[-1], budget=1), models[-1], epochs=2)
    assert equal_parameters(*models)


def test_the_look_is_once_per_loader_and_not_in_a_preview():
    calls = []

    def counted(output, target):
        calls.append(len(output))
        return CRITERION(output, target)

    loader = make_loader(crest.Random(), loss_fn=counted)
    loader.preview(2)
    assert calls == []
    for _ in range(3):
        list(loader)
    assert calls == [16]
    resumed = make_loader(crest.Random(), loss_fn=counted)
    resumed.load_state_dict(loader.state_dict())
    list(resumed)
    assert calls == [16, 16]


def test_a_strategy_that_has_looked_needs_no_other_look():
    calls = []

    def counted(output, target):
        calls.append(len(output))
        return CRITERION(output, target)

    loader = make_loader(crest.GreedyMiniBatch(subset_size=48), loss_fn=counted)
    next(iter(loader))
    assert set(calls) == {48}  # the candidates, not the 16 of the batch
