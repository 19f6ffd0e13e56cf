"""Gradient errors are those of one backward pass per batch, and of numbers worked out by hand."""

import copy
import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.diagnostics import measure_gradient_error
from crest.strategies.protocol import MiniBatch, Region
from toys import CRITERION, make_model, make_tensors


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Gives the same mini-batches over and over."""

    batches: list

    def start(self, task):
        return self

    def next_region(self, examples, step):
        return Region(self.batches)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def make_line(targets, *batches, batch_size=None):
    """A model w = 0 of inputs 1, so that the gradient of an example is minus its target."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    targets = torch.tensor(targets, dtype=torch.float64)
    data = TensorDataset(torch.ones(len(targets), 1, dtype=torch.float64), targets)
    batches = [MiniBatch(torch.tensor(rows), torch.tensor(weights)) for rows, weights in batches]
    return crest.CoresetLoader(
        DataLoader(data, batch_size=batch_size or len(batches[0].indices)),
        model,
        loss_fn=lambda outputs, targets: (outputs.squeeze(1) - targets).square() / 2,
        strategy=Fixed(batches),
    )


def make_loader(strategy, n=90, m=10, **options):
    inputs, targets = make_tensors(n)
    model = make_model(norm=True, dropout=0.3).double()
    data = TensorDataset(inputs.double(), targets)
    train_loader = DataLoader(data, batch_size=m, shuffle=True)
    options.setdefault("loss_fn", CRITERION)
    return crest.CoresetLoader(train_loader, model, strategy=strategy, **options), model


def gradient_of(model, inputs, targets, weights):
    """One backward pass, in eval mode."""
    model = copy.deepcopy(model).eval()
    (CRITERION(model(inputs), targets) * weights).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def effective_size(weights):
    return sum(weights) ** 2 / sum(weight**2 for weight in weights)


@pytest.mark.parametrize(
    "strategy",
    [crest.Crest(switch_off=False), crest.Random(), crest.Craig(subset_fraction=0.5)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_errors_equal_one_backward_pass_per_batch(strategy):
    loader, model = make_loader(strategy)
    inputs, targets = loader._train_loader.dataset.tensors
    full = gradient_of(model, inputs, targets, torch.ones(90))
    batches = [planned for planned, _ in loader.preview(6)]
    errors = [
        gradient_of(model, inputs[b.indices], targets[b.indices], b.weights.double()) - full
        for b in batches
    ]
    found = measure_gradient_error(loader, num_batches=6)
    squares = [float(error @ error) for error in errors]
    pairs = [float(one @ other) for one, other in itertools.permutations(errors, 2)]
    expected = {
        "num_examples": 90,
        "num_batches": 6,
        "gradient_norm": float(full.norm()),
        "variance": sum(squares) / 6,
        "union_error": float(torch.stack(errors).mean(0).square().sum()),
        "squared_bias": sum(pairs) / 30,
        "normalized_bias": math.sqrt(max(sum(pairs) / 30, 0)) / float(full.norm()),
        "normalized_error": sum(map(math.sqrt, squares)) / 6 / float(full.norm()),
        "effective_size": sum(effective_size(b.weights.tolist()) for b in batches) / 6,
        "subset_size": 30,
    }
    values = dataclasses.asdict(found)
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_batches_of_one_half_are_biased_beyond_the_full_gradient():
    """Gradients are -1 and 0.5, the full one -0.25: a bias of 0.75 is three times as long."""
    ones = [1.0, 1.0]
    loader = make_line([1.0] * 4 + [-0.5] * 4, ([0, 1], ones), ([2, 3], ones))
    error = measure_gradient_error(loader, num_batches=2)
    assert error.gradient_norm == pytest.approx(0.25)
    assert error.variance == error.union_error == error.squared_bias == pytest.approx(0.5625)
    assert error.normalized_bias == error.normalized_error == pytest.approx(3)
    assert error.nearly_unbiased is False


def test_a_mini_batch_in_another_order_is_the_same():
    batches = [([0, 1], [1.5, 0.5]), ([1, 0], [0.5, 1.5]), ([0, 1], [0.5, 1.5])]
    for looked_at, distinct in ((2, 1), (3, 2)):  # other weights make another one
        line = make_line([1.0, 2.0, 3.0, 6.0], *batches)
        error = measure_gradient_error(line, num_batches=looked_at, subset_size=2)
        assert error.num_batches == distinct


def test_errors_that_cancel_are_no_bias():
    ones = [1.0, 1.0]
    loader = make_line([1.0] * 4 + [-0.5] * 4, ([0, 1], ones), ([4, 5], ones))
    error = measure_gradient_error(loader, num_batches=2)
    assert error.union_error == pytest.approx(0)
    assert error.squared_bias == pytest.approx(-0.5625)
    assert (error.normalized_bias, error.nearly_unbiased) == (0, True)
    assert error.normalized_error == pytest.approx(3)


def test_weights_count_in_gradient_and_effective_size():
    """Weights 1.5 and 0.5 on gradients -1 and 0.5: (-1.5 + 0.25) / 2 = -0.625."""
    loader = make_line([1.0] * 4 + [-0.5] * 4, ([0, 4], [1.5, 0.5]))
    error = measure_gradient_error(loader, num_batches=1)
    assert error.variance == pytest.approx((-0.625 + 0.25) ** 2)
    assert error.effective_size == pytest.approx(4 / (1.5**2 + 0.5**2))


def test_batches_of_one_example_give_the_variance_exactly():
    targets = torch.randn(12, generator=torch.Generator().manual_seed(0)).tolist()
    loader = make_line(targets, ([0], [1.0]))
    error = measure_gradient_error(loader, num_batches=1, subset_size=4)
    variance = float(torch.tensor(targets).var())
    assert error.random_variance == pytest.approx(variance * (1 - 1 / 12))
    assert error.subset_variance == pytest.approx(variance / 4 * (1 - 4 / 12))


def test_one_mini_batch_tells_no_bias_from_variance():
    batch = ([0, 4], [1.0, 1.0])
    error = measure_gradient_error(make_line([1.0] * 4 + [-0.5] * 4, batch), num_batches=5)
    assert error.num_batches == 1  # the same came five times
    assert (error.squared_bias, error.normalized_bias, error.nearly_unbiased) == (None,) * 3


def test_at_a_stationary_point_nothing_is_normalized():
    ones = [1.0, 1.0]
    loader = make_line([1.0, 1.0, -1.0, -1.0], ([0, 1], ones), ([2, 3], ones))
    error = measure_gradient_error(loader, num_batches=2)
    assert (error.gradient_norm, error.variance) == (0, 1)
    assert (error.normalized_bias, error.normalized_error, error.nearly_unbiased) == (None,) * 3


def test_random_batches_and_samples_are_right_on_average():
    """Means over 100 random orders, within four of their standard errors."""
    noise = torch.randn(20, generator=torch.Generator().manual_seed(1))
    targets = torch.stack([1 + noise, 1 - noise], dim=1).flatten()  # each pair has the mean 1
    loader = make_line(
        targets.tolist(), ([0, 1, 2, 3], [1.0] * 4), ([4, 5, 6, 7], [1.0] * 4)
    )  # mini-batches without error: what is measured is the error of the sample
    exact = {
        "random_variance": float(targets.var()) / 4 * (1 - 4 / 40),
        "variance": 0.0,
        "union_error": 0.0,
        "squared_bias": 0.0,
        "squared_norm": 1.0,
    }
    drawn = []
    for seed in range(100):
        error = measure_gradient_error(loader, num_examples=16, num_batches=2, seed=seed)
        values = dataclasses.asdict(error)
        values["squared_norm"] = error.gradient_norm**2
        drawn.append([values[name] for name in exact])
    drawn = torch.tensor(drawn, dtype=torch.float64)
    deviations = (drawn.mean(0) - torch.tensor(list(exact.values()))).abs()
    assert (deviations < 4 * drawn.std(0) / math.sqrt(100)).all()
    assert (drawn.std(0) > 0).all()


def test_the_sample_is_not_what_the_loader_draws_with_the_same_seed():
    """Else the sample is the first mini-batches, and their union has no error."""
    for seed in (0, 1):
        loader, _ = make_loader(crest.Random(), n=1000, seed=seed)
        errors = measure_gradient_error(loader, num_examples=200, num_batches=20, seed=seed)
        assert errors.union_error > 0


def test_measuring_leaves_no_trace():
    loader, model = make_loader(crest.Crest(switch_off=False))
    next(iter(loader))
    model[0].eval()
    model[4].bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model)
    training = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    passes = copy.deepcopy(loader.history.passes)
    measure_gradient_error(loader, num_batches=3)
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [module.training for module in model.modules()] == training
    assert all(map(torch.equal, gradients, [p.grad for p in model.parameters()]))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert loader.history.passes == passes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_examples": 19}, r"num_examples must be in \[20, 90\]; got 19"),
        ({"num_examples": 91}, r"num_examples must be in \[20, 90\]; got 91"),
        ({"subset_size": 9}, r"subset_size must be in \[10, 90\]; got 9"),
        ({"subset_size": 91}, r"subset_size must be in \[10, 90\]; got 91"),
        ({"num_batches": 0}, "num_batches must be >= 1 and <= 1000000; got 0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    loader, _ = make_loader(crest.Random())
    with pytest.raises(ValueError, match=message):
        measure_gradient_error(loader, **options)
