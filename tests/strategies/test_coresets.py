"""Coresets against random batches on real images."""

import pytest
import torch
from torch import nn

import crest
from crest.looking.observer import Observer
from crest.quadratic import flatten
from crest.selection import last_layer_distances
from crest.strategies.coresets import relative_gradient_error
from crest.strategies.protocol import MiniBatch

CRITERION = nn.CrossEntropyLoss(reduction="none")
M, R, DRAWS = 32, 128, 200


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(data.target)


def train_a_little(digits):
    inputs, targets = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        rows = torch.randint(len(inputs), (M,))
        optimizer.zero_grad()
        CRITERION(model(inputs[rows]), targets[rows]).mean().backward()
        optimizer.step()
    return model


def test_coreset_gradients_are_nearly_unbiased_and_closer_than_random_ones(digits):
    inputs, targets = digits
    model = train_a_little(digits)

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


@pytest.mark.parametrize("num_coresets", [1, 3])
def test_the_estimated_gradient_error_is_the_one_that_the_full_gradient_tells(digits, num_coresets):
    inputs, targets = digits
    observer = Observer(train_a_little(digits), CRITERION)
    everything = observer.last_layer_gradients((inputs, targets)).weight_gradients()
    full = everything.mean(0)
    variance = float((everything - full).square().sum(1).mean())
    generator = torch.Generator().manual_seed(0)
    estimates, errors = [], []
    for _ in range(DRAWS):
        # Of an endless pool, as the estimate knows of no other: drawn with replacement.
        candidates = torch.randint(len(inputs), (R,), generator=generator)
        seen = observer.last_layer_gradients((inputs[candidates], targets[candidates]))
        distances = last_layer_distances(seen.errors, seen.inputs)
        coresets = []
        for _ in range(num_coresets):  # random subsets of the candidates that all share
            rows = torch.randperm(R, generator=generator)[: R // 2]
            picked = crest.facility_location(distances=distances[rows][:, rows], batch_size=M)
            weights = picked.cluster_sizes * (2 * M / R)
            coresets.append(MiniBatch(rows[picked.indices], weights))
        estimates.append(relative_gradient_error(seen, torch.arange(R), coresets))
        gradients = seen.weight_gradients()
        mean = sum((c.weights[:, None] * gradients[c.indices]).mean(0) for c in coresets)
        off = mean / num_coresets - full
        errors.append(float(off.square().sum()) * M * num_coresets / variance)
    error = torch.tensor(errors)
    # Four standard errors of the mean over the draws.
    assert sum(estimates) / DRAWS == pytest.approx(
        float(error.mean()), abs=4 * float(error.std()) / DRAWS**0.5
    )


@pytest.mark.parametrize("seed", range(8))
def test_gradients_that_are_all_equal_leave_nothing_to_gain(seed):
    torch.manual_seed(seed)
    seen = Observer(nn.Linear(64, 2), CRITERION).last_layer_gradients(
        (torch.randn(64).expand(8, 64), torch.zeros(8, dtype=torch.int64))
    )
    batch = MiniBatch.unweighted(torch.tensor([1, 5]))
    assert relative_gradient_error(seen, torch.arange(8), [batch]) == 1
