"""Selective back-propagation: unbiased, and closer to the full gradient than random batches."""

import contextlib

import pytest
import torch
from torch import nn

import crest
from baselines import M, N, assert_resumes, make_task, make_trained_model, planned
from crest.quadratic import flatten
from crest.strategies.selective_backprop import (
    SelectiveBackprop,
    inclusion_probabilities,
    systematic_sample,
)
from toys import CRITERION, make_loader, make_model, make_tensors, train

DRAWS = 2000


def make_losses(r=48):
    return torch.rand(r, generator=torch.Generator().manual_seed(0)) ** 4 * 5


@pytest.mark.parametrize(
    "losses",
    [make_losses(), torch.zeros(48), torch.ones(48), torch.eye(48)[3], 1e-30 * make_losses()],
    ids=["spread", "zero", "equal", "one", "tiny"],
)
@pytest.mark.parametrize("size", [1, 16, 47, 48], ids="m={}".format)
def test_probabilities_sum_to_m_and_grow_with_the_loss(losses, size):
    probabilities = inclusion_probabilities(losses, size, 1.0, 0.2)
    assert float(probabilities.sum()) == pytest.approx(size)
    assert float(probabilities.max()) <= 1
    assert float(probabilities.min()) >= 0.2 * size / 48 * (1 - 1e-12)  # weights at most 5
    assert (probabilities[losses.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("size", [1, 16, 47], ids="m={}".format)
def test_each_candidate_is_kept_with_its_probability(size):
    probabilities = inclusion_probabilities(make_losses(), size, 1.0, 0.2)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(48)
    for _ in range(DRAWS):
        kept = systematic_sample(probabilities, size, generator)
        assert len(kept.unique()) == size
        counts[kept] += 1
    error = (probabilities * (1 - probabilities) / DRAWS).sqrt()  # standard error of a frequency
    assert ((counts / DRAWS - probabilities).abs() <= 4 * error + 1e-9).all()


def test_batches_are_unbiased_and_nearer_the_full_gradient_than_random_ones():
    inputs, targets = make_tensors(N)
    model = make_trained_model()

    def gradient(rows, weights):
        losses = CRITERION(model(inputs[rows]), targets[rows])
        loss = crest.weighted_mean(losses, weights)
        return flatten(torch.autograd.grad(loss, list(model.parameters())))

    full = gradient(torch.arange(N), torch.ones(N))
    batches = planned(SelectiveBackprop(), model, batches=500)
    errors = torch.stack([gradient(*batch) - full for batch in batches])
    random = torch.stack(
        [gradient(torch.randperm(N)[:M], torch.ones(M)) - full for _ in range(len(batches))]
    )
    square = float(errors.square().sum(1).mean())
    assert square < 0.7 * float(random.square().sum(1).mean())
    # the mean of B unbiased errors has the B-th part of their squared size
    assert float(errors.mean(0).square().sum()) < 2 * square / len(batches)
    uniform = torch.stack([gradient(rows, torch.ones(M)) - full for rows, _ in batches])
    assert float(uniform.mean(0).square().sum()) > 20 * square / len(batches)  # weights matter


def test_weights_have_mean_one_over_many_batches_and_stay_below_their_bound():
    batches = planned(SelectiveBackprop(), make_trained_model(), batches=200)
    weights = torch.stack([weights for _, weights in batches])
    means = weights.mean(1)
    assert abs(float(means.mean()) - 1) < 4 * float(means.std()) / len(means) ** 0.5
    assert float(weights.max()) <= 5 + 1e-6
    assert float(weights.max()) > 1.5


@pytest.mark.parametrize("settings", [{"exponent": 0.0}, {"uniform_share": 1.0}])
def test_without_a_preference_every_weight_is_one(settings):
    for _, weights in planned(SelectiveBackprop(**settings), make_model()):
        assert torch.allclose(weights, torch.ones(M))


def test_all_candidates_are_kept_where_there_are_no_more_than_m():
    for indices, weights in planned(SelectiveBackprop(num_candidates=M), make_model()):
        assert len(indices.unique()) == M
        assert torch.allclose(weights, torch.ones(M))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_costs_one_forward_pass_of_its_candidates(accumulation):
    model = make_model()
    loader = make_loader(
        SelectiveBackprop(num_candidates=40), model=model, accumulation_steps=accumulation
    )
    train(loader, model, lr=0.0)
    counted = loader.history.passes["check"]["forward"]
    drawn = 40 * len(loader)
    assert counted == drawn if accumulation == 1 else drawn / 2 < counted <= drawn
    assert loader.history.updates == len(loader) / accumulation


@pytest.mark.parametrize("candidates", [40, 48], ids="r={}".format)
def test_candidates_cover_the_data_before_any_comes_back(candidates):
    planner = SelectiveBackprop(num_candidates=candidates).start(make_task())
    seen = []

    class Recording:
        def timed(self, component):
            return contextlib.nullcontext()

        def hold(self, indices):
            seen.append(indices)

        def held_losses(self, indices):
            return torch.ones(len(indices))

        def release(self, keep):
            pass

    for step in range(-(-N // candidates)):
        planner.next_region(Recording(), step)
    assert torch.cat(seen).unique().tolist() == list(range(N))


def test_a_model_without_a_linear_layer_will_do():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, inputs):
            return inputs[:, :5] * self.scale

    for indices, _ in planned(SelectiveBackprop(), Scaled()):
        assert len(indices.unique()) == M


def test_a_resumed_run_continues_bit_for_bit():
    assert_resumes(SelectiveBackprop())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exponent": -1.0}, r"exponent must be >= 0 and finite; got -1\.0"),
        ({"uniform_share": 0.0}, r"uniform_share must be in \(0, 1\]; got 0\.0"),
        ({"num_candidates": 8}, r"num_candidates must be in \[16, 400\], .* got 8"),
        ({"num_candidates": 500}, r"num_candidates must be in \[16, 400\], .* got 500"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectiveBackprop(**settings).start(make_task())
