"""Coresets against random batches on real images."""

import pytest
import torch
from torch import nn

import crest
from crest.observer import Observer
from crest.quadratic import flatten
from crest.selection import last_layer_distances

CRITERION = nn.CrossEntropyLoss(reduction="none")
M, R, DRAWS = 32, 128, 200


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(data.target)


def test_coreset_gradients_are_nearly_unbiased_and_closer_than_random_ones(digits):
    inputs, targets = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        rows = torch.randint(len(inputs), (M,))
        optimizer.zero_grad()
        CRITERION(model(inputs[rows]), targets[rows]).mean().backward()
        optimizer.step()

    def gradient(rows, weights):
        losses = CRITERION(model(inputs[rows]), targets[rows])
        loss = crest.weighted_mean(losses, weights)
        return flatten(torch.autograd.grad(loss, list(model.parameters())))

    full = gradient(torch.arange(len(inputs)), torch.ones(len(inputs)))
    observer = Observer(model, CRITERION)
    generator = torch.Generator().manual_seed(0)
    random_errors, coreset_errors = [], []
    for _ in range(DRAWS):
        subset = torch.randperm(len(inputs), generator=generator)[:R]
        seen = observer.last_layer_gradients((inputs[subset], targets[subset]))
        distances = last_layer_distances(seen.errors, seen.inputs)
        picked = crest.facility_location(distances=distances, batch_size=M)
        weights = picked.cluster_sizes * M / R
        random_errors.append(gradient(subset[:M], torch.ones(M)) - full)
        coreset_errors.append(gradient(subset[picked.indices], weights) - full)
    random_error, coreset_error = torch.stack(random_errors), torch.stack(coreset_errors)
    random_square = float(random_error.square().sum(1).mean())
    coreset_square = float(coreset_error.square().sum(1).mean())
    # r / m = 4 times smaller would be the variance of the whole subset
    assert coreset_square < random_square / 3
    # picks are nearly unbiased: the squared bias is a small share of the squared error, in which
    # the noise of the mean of 200 draws counts 0.5 %
    assert float(coreset_error.mean(0).square().sum()) < 0.02 * coreset_square
