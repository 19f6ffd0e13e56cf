"""CRAIG against the slow version, and against what is known to go wrong elsewhere."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import crest
import reference
import reference_baselines
from baselines import K, M, N, make_trained_model, observe, shares, subset_of
from crest import Craig
from toys import CRITERION, make_model, make_tensors


@pytest.fixture(scope="module")
def model():
    return make_trained_model()


@pytest.fixture(scope="module")
def errors(model):
    return observe(model, *make_tensors(N)).errors


@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "whole set"])
def test_picks_and_weights_are_those_of_the_slow_version(model, errors, per_class):
    _, targets = make_tensors(N)
    expected = reference_baselines.craig(errors, shares(targets, per_class))
    found = subset_of(Craig(per_class=per_class), model)
    assert found.keys() == expected.keys()
    for index, cluster_size in expected.items():
        assert found[index] == pytest.approx(cluster_size * K / N)


def test_the_order_of_the_users_loader_does_not_matter(model, errors):
    """Known elsewhere: picks are positions in a shuffled pass, taken for example indices."""
    inputs, targets = make_tensors(N)
    found = []
    for shuffle in (True, False):
        loader = crest.CoresetLoader(
            DataLoader(TensorDataset(inputs, targets), batch_size=M, shuffle=shuffle),
            model,
            loss_fn=CRITERION,
            strategy=Craig(),
            attach=lambda batch, _, indices: (*batch, indices),
        )
        picks = set()
        for batch_inputs, _, indices in loader:
            assert torch.equal(batch_inputs, inputs[indices])
            picks |= set(indices.tolist())
        found.append(picks)
    assert found[0] == found[1]


def test_the_first_example_is_picked_only_for_its_merit(model, errors):
    """Known elsewhere: index 0 is always part of the coreset."""
    assert 0 not in reference.greedy(errors, K)
    assert 0 not in subset_of(Craig(per_class=False), model)


def test_distances_are_not_squared(model, errors):
    """Known elsewhere: squared distances, which pick outliers."""
    squares = reference.distance_matrix(errors).square()
    picks = subset_of(Craig(per_class=False), model).keys()
    assert picks != set(reference.greedy_of_distances(squares, K))
    assert picks == set(reference.greedy(errors, K))


def test_weights_are_cluster_sizes_scaled_to_mean_one(model):
    """Known elsewhere: weights of cluster size + 1."""
    weights = torch.tensor(list(subset_of(Craig(), model).values())).double()
    cluster_sizes = weights * N / K
    assert len(weights) == K
    assert float(weights.mean()) == pytest.approx(1)
    assert torch.allclose(cluster_sizes, cluster_sizes.round(), atol=1e-4)
    assert int(cluster_sizes.round().sum()) == N


@pytest.mark.parametrize("per_class", [True, False], ids=["per class", "whole set"])
def test_the_subset_stands_for_the_rest_much_better_than_a_random_one(model, errors, per_class):
    picks = subset_of(Craig(per_class=per_class), model)
    distances = reference.distance_matrix(errors)
    generator = torch.Generator().manual_seed(0)
    random = [
        reference_baselines.spread(distances, torch.randperm(N, generator=generator)[:K])
        for _ in range(20)
    ]
    assert reference_baselines.spread(distances, picks) < 0.7 * min(random)


def test_an_untrained_model_is_no_special_case():
    assert len(subset_of(Craig(), make_model())) == K
