"""AdaCore: facility location on gradients divided by the curvature of the last layer."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import reference
import reference_baselines
from baselines import K, N, make_trained_model, observe, planned, shares, subset_of
from crest import AdaCore, Craig
from toys import CRITERION, make_loader, make_tensors

DAMPING = 0.1


@pytest.fixture(scope="module")
def model():
    return make_trained_model()


@pytest.fixture(scope="module")
def preconditioned(model):
    """Gradients by the exact Hessian diagonal of cross-entropy: mean of p (1 - p) (x) [h, 1]^2."""
    inputs, targets = make_tensors(N)
    seen = observe(model, inputs, targets)
    probabilities = model(inputs).detach().softmax(1)
    squares = torch.cat([seen.inputs, torch.ones(N, 1)], dim=1).square()
    diagonal = (probabilities * (1 - probabilities)).T @ squares / N
    diagonal = diagonal.flatten()
    return seen.weight_gradients() / (diagonal + DAMPING * diagonal.mean())


@pytest.fixture(scope="module")
def distances(preconditioned):
    return reference.distance_matrix(preconditioned)


STRETCH = torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0])


def stretched_loss(output, target):
    """Squared error, with a curvature of its own for each class."""
    return (STRETCH * (output - nn.functional.one_hot(target, 5)).square()).sum(1)


@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "whole set"])
def test_picks_are_those_of_the_slow_version_where_one_probe_is_exact(per_class):
    """Each input has one entry that is not 0, so that the Hessian of the last layer is diagonal."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(N, 20)
    entries = torch.randint(20, (N,), generator=generator)
    inputs[torch.arange(N), entries] = torch.rand(N, generator=generator) * (1 + entries)
    _, targets = make_tensors(N)
    torch.manual_seed(0)
    model = nn.Linear(20, 5, bias=False)
    errors = 2 * STRETCH * (model(inputs).detach() - nn.functional.one_hot(targets, 5))
    gradients = torch.einsum("nc,nd->ncd", errors, inputs)
    diagonal = torch.einsum("c,nd->cd", 2 * STRETCH, inputs.square() / N)
    preconditioned = gradients / (diagonal + DAMPING * diagonal.mean())
    groups = shares(targets, per_class)
    found = subset_of(
        AdaCore(per_class=per_class, damping=DAMPING),
        model,
        dataset=TensorDataset(inputs, targets),
        loss_fn=stretched_loss,
    )
    expected = reference_baselines.craig(preconditioned.flatten(1), groups)
    assert found.keys() == expected.keys()
    assert found == pytest.approx({i: size * K / N for i, size in expected.items()})
    assert found.keys() != reference_baselines.craig(gradients.flatten(1), groups).keys()


@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "whole set"])
def test_the_subset_stands_for_preconditioned_gradients_better_than_random_or_craig(
    model, distances, per_class
):
    generator = torch.Generator().manual_seed(0)
    random = min(
        reference_baselines.spread(distances, torch.randperm(N, generator=generator)[:K])
        for _ in range(20)
    )
    craig = reference_baselines.spread(distances, subset_of(Craig(per_class=per_class), model))
    adacore = reference_baselines.spread(
        distances, subset_of(AdaCore(per_class=per_class, damping=DAMPING), model)
    )
    assert adacore < 0.9 * random
    assert adacore < craig


def test_weights_are_cluster_sizes(model):
    weights = torch.tensor(list(subset_of(AdaCore(), model).values())).double()
    assert torch.allclose(weights * N / K, (weights * N / K).round(), atol=1e-4)
    assert float(weights.mean()) == pytest.approx(1)


def test_curvature_is_smoothed_over_selections():
    def second_subset(beta):
        batches = planned(AdaCore(beta=beta, curvature_size=32), make_trained_model(), batches=6)
        return {int(index) for indices, _ in batches[3:] for index in indices}

    assert second_subset(0.0) != second_subset(0.999)


def test_a_head_without_bias_works():
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5, bias=False))
    assert len(subset_of(AdaCore(), model)) == K


def test_a_loss_without_curvature_divides_by_one():
    def linear_loss(output, target):
        return 10 + output.gather(1, target.unsqueeze(1)).squeeze(1)

    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5, bias=False))
    assert len(subset_of(AdaCore(), model, loss_fn=linear_loss)) == K


class Scaled(nn.Module):
    """A last layer that is no linear one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, inputs):
        return inputs * self.scale


def test_a_head_that_is_not_linear_is_refused():
    model = nn.Sequential(nn.Linear(20, 5), Scaled())
    loader = make_loader(AdaCore(), model=model, loss_fn=CRITERION, head=model[1])
    with pytest.raises(
        ValueError, match=r"AdaCore needs a linear last layer.*got shapes \[\(5,\)\]"
    ):
        next(iter(loader))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.0}, r"beta must be in \[0, 1\); got 1\.0"),
        ({"damping": 0.0}, r"damping must be > 0 and finite; got 0\.0"),
        ({"curvature_size": 0}, "curvature_size must be >= 1; got 0"),
        ({"num_probes": 0}, "num_probes must be >= 1 and <= 1000000; got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaCore(**settings)
