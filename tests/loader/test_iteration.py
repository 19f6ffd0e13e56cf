"""A loader has one iteration at a time, and a loop that is left ends its epoch."""

import itertools

import pytest
import torch

import crest
from toys import NoisyData, make_loader, make_model

STRATEGIES = {
    "random": crest.Random(),
    "full": crest.Full(),
    "greedy": crest.GreedyMiniBatch(),
    "paper": crest.Crest.paper(),
}
strategies = pytest.mark.parametrize("name", STRATEGIES)


def make(name="random", budget=0.4, **options):
    model = make_model()
    return make_loader(STRATEGIES[name], model=model, budget=budget, **options)


def step(loader):
    with torch.no_grad():
        loader._model[0].weight.mul_(0.99)


def rest_of(loader, stream=None):
    found = []
    for inputs, _, weights in loader if stream is None else stream:
        found.append((inputs, weights))
        step(loader)
    return found


def same(one, other):
    assert len(one) == len(other)
    return all(
        torch.equal(inputs, others) and torch.equal(weights, other_weights)
        for (inputs, weights), (others, other_weights) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("rounds", [1, 2, None], ids=["broken off", "later", "to its end"])
def test_a_loop_within_a_loop_is_an_error_that_says_so(rounds):
    loader = make()
    with pytest.raises(RuntimeError, match="another iteration over this CoresetLoader began"):
        nest(loader, rounds)
    assert len(list(loader)) == len(loader)


def nest(loader, rounds):
    for outer, _ in enumerate(loader):
        assert outer == 0
        list(itertools.islice(loader, rounds))


def test_two_iterations_side_by_side_are_an_error():
    loader = make()
    with pytest.raises(RuntimeError, match="make a second CoresetLoader"):
        list(zip(loader, loader, strict=True))


def test_an_iteration_that_was_abandoned_does_not_stand_in_the_way():
    loader = make()
    abandoned = iter(loader)
    next(abandoned)
    assert len(list(loader)) == len(loader)
    stream = iter(loader)
    next(stream)
    del abandoned  # closing it closes nothing of the iteration under way
    assert len(list(stream)) == len(loader) - 1


@strategies
@pytest.mark.parametrize("leave", ["break", "error"])
def test_live_and_restored_loaders_do_the_same_after_a_loop_that_was_left(name, leave):
    loader = make(name)
    with pytest.raises(ZeroDivisionError):
        run_and_leave(loader)
    if leave == "break":
        for _ in loader:
            step(loader)
            break
    other = make(name)
    other._model.load_state_dict(loader._model.state_dict())
    other.load_state_dict(loader.state_dict())
    torch.manual_seed(1)
    rest = rest_of(loader)
    assert len(rest) == len(loader)
    torch.manual_seed(1)
    assert same(rest, rest_of(other))


def run_and_leave(loader):
    for count, _ in enumerate(loader):
        step(loader)
        1 / (3 - count)


@strategies
def test_a_state_saved_inside_the_loop_resumes_the_rest_of_its_epoch(name):
    loader, other = make(name), make(name)
    torch.manual_seed(1)
    stream = iter(loader)
    for _ in range(3):
        next(stream)
        step(loader)
    other._model.load_state_dict(loader._model.state_dict())
    other.load_state_dict(loader.state_dict())
    states = torch.get_rng_state()
    rest = rest_of(loader, stream)
    assert len(rest) == len(loader) - 3
    torch.set_rng_state(states)
    assert same(rest, rest_of(other))


def test_a_loop_goes_on_from_a_state_that_is_loaded_inside_it():
    loader = make(dataset=NoisyData())
    stream = iter(loader)
    next(stream)
    state = loader.state_dict()
    expected = [next(stream)[0] for _ in range(2)]
    loader.load_state_dict(state)
    again = [inputs for inputs, *_ in stream]
    assert len(again) == len(loader) - 1
    assert all(map(torch.equal, expected, again))
    assert len(list(loader)) == len(loader)


def test_a_state_that_is_loaded_before_a_loop_is_left_stays():
    loader = make()
    stream = iter(loader)
    next(stream), next(stream)
    state = loader.state_dict()
    loader.load_state_dict(state)
    stream.close()
    assert len(list(loader)) == len(loader) - 2


def test_counted_loops_end_an_epoch():
    loader = make()
    for take in (
        lambda: list(zip(range(len(loader)), loader, strict=False)),
        lambda: list(itertools.islice(loader, len(loader))),
    ):
        take()
        assert not loader.state_dict()["in_epoch"]
        assert len(list(loader)) == len(loader)
