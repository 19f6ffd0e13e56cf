"""Runs under another default dtype of torch."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.watching.memory import LastSeen
from toys import CRITERION, make_tensors

STRATEGIES = {
    "crest": lambda _: crest.Crest(switch_off=False),
    "paper": lambda _: crest.Crest.paper(),
    "switching": lambda _: crest.Crest(),
    "paired": lambda _: crest.Crest(
        num_candidates=64,
        subset_size=32,
        error_threshold="auto",
        curvature="head",
        exclusion_interval=2,
        switch_off=False,
    ),
    "greedy": lambda _: crest.GreedyMiniBatch(),
    "craig": lambda _: crest.Craig(subset_fraction=0.2),
    "grad match": lambda _: crest.GradMatch(subset_fraction=0.2),
    "glister": lambda data: crest.Glister(DataLoader(data, batch_size=8), subset_fraction=0.2),
    "adacore": lambda _: crest.AdaCore(subset_fraction=0.2),
    "loss pruning": lambda _: crest.LossPruning(),
    "selective backprop": lambda _: crest.SelectiveBackprop(),
    "remembered": lambda _: crest.RememberedGradients(),
    "random": lambda _: crest.Random(),
    "full": lambda _: crest.Full(),
}


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def batches(name, dtype):
    torch.manual_seed(0)
    inputs, targets = (part[:200] for part in make_tensors())
    held_out = tuple(part[200:220] for part in make_tensors())
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5)).to(dtype)
    strategy = STRATEGIES[name](TensorDataset(held_out[0].to(dtype), held_out[1]))
    data = TensorDataset(inputs.to(dtype), targets)
    budget = 1.0 if name in {"full", "loss pruning", "remembered", "selective backprop"} else 0.4
    loader = crest.CoresetLoader(
        DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0)),
        model,
        loss_fn=CRITERION,
        strategy=strategy,
        budget=budget,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(3):
        for x, y, weights in loader:
            outputs = model(x)
            losses = CRITERION(outputs, y)
            loader.observe(losses, outputs)
            optimizer.zero_grad()
            crest.weighted_mean(losses, weights).backward()
            optimizer.step()
            found.append(loader.handed_out)
    state = loader.state_dict()
    loader.load_state_dict(state)
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_whatever_the_default_dtype(name, default_dtype):
    for batch in batches(name, default_dtype):
        assert batch.weights.isfinite().all()


def test_what_was_seen_last_is_kept_in_float32(default_dtype):
    seen = LastSeen(5, "losses")
    seen.tell(torch.tensor([0, 3]), torch.ones(2, 4, dtype=torch.float64))
    seen.take_in()
    assert seen.values.dtype == torch.float32
    seen.replace(torch.ones(5, dtype=torch.float64))
    assert seen.values.dtype == torch.float32
