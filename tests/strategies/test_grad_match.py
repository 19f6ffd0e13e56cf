"""GRAD-MATCH: its weighted subset has the gradient of the whole data set."""

import pytest
import torch

import reference_baselines
from baselines import K, N, make_task, make_trained_model, observe, shares, subset_of
from crest import GradMatch
from toys import make_tensors


@pytest.fixture(scope="module")
def model():
    return make_trained_model()


@pytest.fixture(scope="module")
def gradients(model):
    return observe(model, *make_tensors(N)).weight_gradients().double()


def relative_residual(gradients, subset):
    """How far the mean gradient of the weighted subset is from that of all."""
    weights = torch.tensor(list(subset.values())).double()
    estimate = weights @ gradients[list(subset)] / len(subset)
    return float((estimate - gradients.mean(0)).norm() / gradients.mean(0).norm())


def angle(gradients, subset):
    weights = torch.tensor(list(subset.values())).double()
    estimate = weights @ gradients[list(subset)]
    return 1 - float(torch.cosine_similarity(estimate, gradients.mean(0), dim=0))


@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "whole set"])
def test_picks_and_weights_are_those_of_the_slow_version(model, gradients, per_class):
    _, targets = make_tensors(N)
    expected = {}
    for rows, size in shares(targets, per_class):
        found = reference_baselines.matching_pursuit(gradients[rows], size, 0.5)
        expected |= {int(rows[row]): weight for row, weight in found.items()}
    matched = subset_of(GradMatch(per_class=per_class, match_scale=True), model)
    assert matched.keys() == expected.keys()
    for index, weight in expected.items():
        assert matched[index] == pytest.approx(weight * K / N, rel=1e-4)


@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "whole set"])
def test_the_gradient_is_matched_much_better_than_by_random_subsets(model, gradients, per_class):
    generator = torch.Generator().manual_seed(0)
    random = [
        dict.fromkeys(torch.randperm(N, generator=generator)[:K].tolist(), 1.0) for _ in range(20)
    ]
    matched = subset_of(GradMatch(per_class=per_class, match_scale=True), model)
    best = min(relative_residual(gradients, subset) for subset in random)
    assert relative_residual(gradients, matched) < 0.5 * best
    scaled = subset_of(GradMatch(per_class=per_class), model)
    assert angle(gradients, scaled) < 0.25 * min(angle(gradients, subset) for subset in random)


def test_weights_of_mean_one_differ_from_matched_ones_by_a_factor_alone(model):
    scaled, matched = (
        subset_of(GradMatch(match_scale=match_scale), model) for match_scale in (False, True)
    )
    factor = sum(scaled.values()) / sum(matched.values())
    assert factor > 1  # the pursuit prefers large gradients
    assert scaled == pytest.approx({i: factor * weight for i, weight in matched.items()})
    assert sum(scaled.values()) == pytest.approx(len(scaled))


def test_a_model_that_has_learned_everything_gets_uniform_weights():
    class Certain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(20, 5)

        def forward(self, inputs):
            return self.head(inputs)

    def no_loss(output, _):
        return 0 * output.sum(1)

    subset = subset_of(GradMatch(), Certain(), loss_fn=no_loss)
    assert set(subset.values()) == {1.0}


def test_a_ridge_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="ridge must be > 0 and finite; got 0"):
        GradMatch(ridge=0.0).start(make_task())
