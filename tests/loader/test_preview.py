"""Looking ahead shows what comes next, and leaves no trace."""

import copy
import dataclasses
import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.strategies.protocol import MiniBatch, Region
from toys import CRITERION, NoisyData, equal_parameters, make_loader, make_model, make_tensors

STRATEGIES = {
    "crest": crest.Crest(switch_off=False),
    "crest off": crest.Crest(advanced=crest.CrestAdvanced(forward_price=100.0, probe_interval=3)),
    "crest paper": crest.Crest.paper(error_threshold=10.0, interval_multiplier=4.0),
    "greedy": crest.GreedyMiniBatch(),
    "craig": crest.Craig(subset_fraction=0.2),
    "pruning": crest.LossPruning(),
    "remembered": crest.RememberedGradients(),
    "random": crest.Random(),
    "full": crest.Full(),
}

strategies = pytest.mark.parametrize("name", STRATEGIES)


def same(one, other):
    """Compare whatever batches and states are made of."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.allclose(one, other, 0, 0, equal_nan=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def without_clocks(loader):
    state = copy.deepcopy(loader.state_dict())
    state["history"]["seconds"] = None
    state["history"]["records"] = [{**r, "seconds": None} for r in state["history"]["records"]]
    return state


def advance(loader, stream, model, steps=None):
    """Train for some steps, or to the end of the epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets, weights in itertools.islice(stream, steps):
        outputs = model(inputs)
        losses = CRITERION(outputs, targets)
        loader.observe(losses, outputs)
        crest.weighted_mean(losses, weights).backward()
        optimizer.step()
        optimizer.zero_grad()


@strategies
@pytest.mark.parametrize("steps", [0, 3])
def test_a_preview_is_what_comes_next_at_the_same_parameters(name, steps):
    model = make_model()
    loader = make_loader(STRATEGIES[name], model=model, dataset=NoisyData(), budget=0.9)
    stream = iter(loader)
    advance(loader, stream, model, steps)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # Full reads unseeded views
    previewed = loader.preview(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that are not taken
        for planned, (inputs, targets) in previewed:
            batch = next(stream)
            assert torch.equal(planned.indices, loader.handed_out.indices)
            assert torch.equal(planned.weights, batch[2])
            assert torch.equal(inputs, batch[0])
            assert torch.equal(targets, batch[1])


@strategies
@pytest.mark.parametrize("num_workers", [0, 2])
def test_looking_ahead_leaves_no_trace(name, num_workers):
    """It crosses the end of the epoch; the same loader without it is the witness."""
    ends = []
    for looks in (False, True):
        model = make_model(norm=True, dropout=0.5)
        dataset = TensorDataset(*make_tensors(n=120))
        loader = make_loader(
            STRATEGIES[name], model=model, dataset=dataset, num_workers=num_workers, budget=0.9
        )
        stream = iter(loader)
        advance(loader, stream, model, 2)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        state, parameters = without_clocks(loader), copy.deepcopy(model)
        if looks:
            assert len(loader.preview(9)) == 9
            assert len(list(loader.read([torch.arange(5)], seed=3))) == 1
        assert same(without_clocks(loader), state)
        assert equal_parameters(model, parameters)
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
        assert before[2] == random.getstate()
        advance(loader, stream, model)
        advance(loader, iter(loader), model, 2)
        ends.append((without_clocks(loader), model))
    assert same(ends[0][0], ends[1][0])
    assert equal_parameters(ends[0][1], ends[1][1])


class Counting:
    """A planner whose state is a tensor that it goes on writing to."""

    def __init__(self):
        self.step = torch.zeros(1, dtype=torch.int64)

    def next_region(self, examples, step):
        self.step += 1
        return Region([MiniBatch.unweighted(self.step % 400)])

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


@dataclasses.dataclass(frozen=True)
class CountingStrategy:
    def start(self, task):
        return Counting()


def test_a_state_that_is_still_written_to_is_copied():
    loader = make_loader(CountingStrategy(), batch_size=1)
    shown = [planned.indices.item() for planned, _ in loader.preview(3)]
    assert shown == [planned.indices.item() for planned, _ in loader.preview(3)] == [1, 2, 3]


def test_the_order_of_the_users_own_loader_is_not_drawn_from():
    generator = torch.Generator().manual_seed(5)
    train_loader = DataLoader(
        TensorDataset(*make_tensors(n=40)), batch_size=10, shuffle=True, generator=generator
    )
    loader = crest.CoresetLoader(
        train_loader, make_model(), loss_fn=CRITERION, strategy=crest.Full(), budget=1
    )
    before = generator.get_state()
    assert len(loader.preview(9)) == 9
    assert torch.equal(generator.get_state(), before)


def test_views_that_are_held_are_not_read_again():
    class Counting(NoisyData):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    loader = make_loader(crest.Craig(subset_fraction=0.5), dataset=Counting())
    next(iter(loader))
    before = Counting.reads
    loader.preview(5)  # of an epoch of 12
    assert Counting.reads == before


def test_previewed_batches_come_without_weights_in_any_form():
    loader = make_loader(crest.Random(), attach=lambda batch, weights, indices: "attached")
    ((_, batch),) = loader.preview(1)
    assert len(batch) == 2


def test_what_is_read_depends_on_the_seed_alone():
    loader = make_loader(dataset=NoisyData())
    rows = [torch.tensor([3, 1]), torch.tensor([7])]
    one, again, other = (list(loader.read(rows, seed)) for seed in (0, 0, 1))
    assert same(one, again)
    assert not same(one, other)
    assert [len(inputs) for inputs, _ in one] == [2, 1]
    assert one[0][1].tolist() == loader._train_loader.dataset.targets[[3, 1]].tolist()


def test_the_batch_that_was_handed_out_is_known():
    loader = make_loader(crest.Crest(switch_off=False))
    assert loader.handed_out is None
    for inputs, _, weights in loader:
        assert torch.equal(loader.handed_out.weights, weights)
        assert torch.equal(make_tensors()[0][loader.handed_out.indices], inputs)
        break
    assert (loader.num_examples, loader.batch_size) == (400, 16)


def test_active_examples_are_those_of_the_pool():
    model = make_model()
    strategy = crest.Crest(exclusion_interval=2, loss_threshold=1.6, switch_off=False)
    loader = make_loader(strategy, model=model, budget=1.0)
    assert loader.active.all()
    for _ in range(2):
        advance(loader, iter(loader), model)
    assert 0 < int(loader.active.sum()) == loader.history.records[-1]["active"] < 400
    loader.active[:] = False  # a copy
    assert loader.active.any()
    assert make_loader(crest.Random()).active.all()
