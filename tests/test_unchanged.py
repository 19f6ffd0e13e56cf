"""Each strategy hands out the batches that it did before the layout of today.

The record was written by the code before the change (`python tests/test_unchanged.py` writes it
anew, which only a change that is meant to pick other examples may do). Everything is in float64, so
that the rounding of one processor or another picks the same examples.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest

RECORD = Path(__file__).parent / "records" / "batches.json"
N, M = 120, 8
CRITERION = nn.CrossEntropyLoss(reduction="none")


def make_data():
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(N + 24, 6, generator=generator, dtype=torch.float64)
    rule = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    targets = (inputs @ rule + torch.randn(N + 24, 3, generator=generator)).argmax(1)
    return inputs, targets


def held_out():
    inputs, targets = make_data()
    return DataLoader(TensorDataset(inputs[N:], targets[N:]), batch_size=M)


OF_THEN = {  # there was nothing else
    "loss_model": "quadratic",
    "max_coreset_uses": None,
    "per_class": False,
}
STRATEGIES = {
    "crest": (lambda: crest.Crest(subset_size=24), 0.5),
    "crest_coresets": (lambda: crest.Crest(subset_size=24, switch_off=False), 0.5),
    "crest_paper": (
        lambda: crest.Crest.paper(
            subset_size=12, error_threshold=0.2, curvature_coresets=None, **OF_THEN
        ),
        0.5,
    ),
    "crest_excluding": (
        lambda: crest.Crest.paper(
            subset_size=12,
            exclusion_interval=2,
            loss_threshold=1.0,
            low_looks=1,
            check="fresh",
            curvature_coresets=None,
            advanced=crest.CrestAdvanced(min_pool=N // 10),
            **OF_THEN,
        ),
        0.5,
    ),
    "crest_paired": (
        lambda: crest.Crest(
            subset_size=12,
            num_candidates=30,
            coreset_multiplier=2.0,
            error_threshold="auto",
            curvature="head",
            switch_off=False,
            **OF_THEN,
        ),
        0.5,
    ),
    "greedy": (lambda: crest.GreedyMiniBatch(subset_size=24, features="logits"), 0.5),
    "craig": (lambda: crest.Craig(subset_fraction=0.2), 0.5),
    "grad_match": (lambda: crest.GradMatch(subset_fraction=0.2), 0.5),
    "glister": (lambda: crest.Glister(held_out(), subset_fraction=0.2), 0.5),
    "adacore": (lambda: crest.AdaCore(subset_fraction=0.2), 0.5),
    "loss_pruning": (lambda: crest.LossPruning(num_steps=40), 1),
    "selective_backprop": (lambda: crest.SelectiveBackprop(), 0.5),
    "remembered": (lambda: crest.RememberedGradients(), 1),
    "random": (lambda: crest.Random(), 0.5),
    "full": (lambda: crest.Full(), 1),
}


def batches_of(name):
    """Indices and weights of two epochs, with a step of SGD after each batch."""
    make, budget = STRATEGIES[name]
    inputs, targets = make_data()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    loader = crest.CoresetLoader(
        DataLoader(
            TensorDataset(inputs[:N], targets[:N]),
            batch_size=M,
            shuffle=True,
            generator=torch.Generator().manual_seed(4),
        ),
        model,
        loss_fn=CRITERION,
        strategy=make(),
        budget=budget,
        seed=7,
        attach=lambda batch, weights, indices: (*batch, weights, indices),
    )
    found = []
    for _ in range(2):
        for x, y, weights, indices in loader:
            outputs = model(x)
            losses = CRITERION(outputs, y)
            loader.observe(losses, outputs)
            optimizer.zero_grad()
            crest.weighted_mean(losses, weights).backward()
            optimizer.step()
            assert torch.equal(x, inputs[indices])
            found.append([indices.tolist(), [round(weight, 6) for weight in weights.tolist()]])
    return found


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_batches_of_two_epochs_are_those_of_before(name):
    recorded = json.loads(RECORD.read_text())[name]
    found = batches_of(name)
    assert [indices for indices, _ in found] == [indices for indices, _ in recorded]
    for (_, weights), (_, before) in zip(found, recorded, strict=True):
        assert weights == pytest.approx(before, abs=2e-6)


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(batches_of(name))}" for name in STRATEGIES)
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
