"""A loader is neither copied nor pickled, says what to do, and keeps no model from it."""

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import crest
from toys import CRITERION, make_loader, make_model, train

STRATEGIES = [crest.Crest(), crest.Crest.paper(), crest.RememberedGradients(), crest.Random()]


def name(value):
    return type(value).__name__


def in_state(strategy, state, model):
    """A loader before its first batch, within an epoch, or after one."""
    loader = make_loader(strategy, model=model, budget=0.3)
    if state == "within":
        iterator = iter(loader)
        next(iterator)
        return loader, iterator
    if state == "after":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for inputs, targets, weights in loader:
            outputs = model(inputs)
            losses = CRITERION(outputs, targets)
            loader.observe(losses, outputs)
            crest.weighted_mean(losses, weights).backward()
            optimizer.step()
            optimizer.zero_grad()
    return loader, None


@pytest.mark.parametrize(
    "copying", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("state", ["before", "within", "after"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_a_copy_is_refused_at_any_time(strategy, state, copying):
    loader, _iterator = in_state(strategy, state, make_model())
    with pytest.raises(TypeError, match=r"must not be copied or pickled.*Make a new loader"):
        copying(loader)


def test_what_holds_a_loader_is_refused_too():
    loader = make_loader()
    for holder in ([loader], {"loader": loader}, lambda: None):
        if callable(holder):
            model = make_model()
            model.loader = loader
            holder = model
        with pytest.raises(TypeError, match="must not be copied"):
            copy.deepcopy(holder)
    with pytest.raises(TypeError, match="must not be copied"):
        torch.save({"loader": loader}, io.BytesIO())


@pytest.mark.filterwarnings("ignore:a region was planned")  # nobody trains in this loop
def test_the_state_is_what_is_carried_to_another_model():
    one, other = make_model(), make_model()
    loader = make_loader(crest.Crest.paper(), model=one, budget=0.3)
    train(loader, one)
    other.load_state_dict(one.state_dict())
    branch = make_loader(crest.Crest.paper(), model=other, budget=0.3)
    branch.load_state_dict(loader.state_dict())
    pairs = zip(loader, branch, strict=True)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[2], b[2]) for a, b in pairs)


@pytest.mark.parametrize("state", ["before", "within", "after"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_the_model_of_a_loader_is_copied_and_saved_as_ever(strategy, state):
    model = make_model()
    loader, _iterator = in_state(strategy, state, model)
    model.loader = weakref.ref(loader)
    average = AveragedModel(model)
    assert average.module.loader() is loader
    del model.loader, average.module.loader
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = loader.history.to_dict()
        twin(torch.randn(16, 20)).sum().backward()  # a pass of the copy is none of the model
        assert loader.history.to_dict() == before
    average.update_parameters(model)
