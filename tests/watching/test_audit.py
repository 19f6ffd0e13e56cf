"""How many labels are wrong, and which."""

import pytest
import torch

from crest.watching.audit import estimate_label_noise, suspicious

N, C = 20_000, 10


def make(noise, error, seed=0):
    """A model right on all but `error`, and surer there; labels wrong by `noise`."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(C, (N,), generator=generator)
    given = (true + (torch.rand(N, generator=generator) < noise) * 3) % C
    right = torch.rand(N, generator=generator) >= error
    predicted = torch.where(right, true, (true + 1) % C)
    sure = torch.where(right, 0.95, 0.7) * torch.rand(N, generator=generator).sqrt()
    agrees = predicted == given
    p_given = torch.where(agrees, sure, 0.5 * (1 - sure))
    p_other = torch.where(agrees, 0.5 * (1 - sure), sure)
    return p_given, p_other, given != true


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2, 0.4])
def test_the_share_of_wrong_labels_is_read_off_the_surest(noise):
    p_given, p_other, _ = make(noise, error=0.2)
    assert estimate_label_noise(p_given, p_other).share == pytest.approx(noise, abs=0.03)


# What a small network showed on CIFAR-10: shares of disagreement among the most confident 2 % and
# over all, after 2 to 5 passes.
@pytest.mark.parametrize(
    ("disagreeing", "overall", "noise"),
    [
        *((0.099, 0.53, 0.0), (0.047, 0.46, 0.0), (0.022, 0.39, 0.0), (0.012, 0.35, 0.0)),
        *((0.336, 0.66, 0.2), (0.258, 0.60, 0.2), (0.205, 0.54, 0.2), (0.213, 0.51, 0.2)),
    ],
)
def test_early_errors_of_the_model_itself_are_taken_off(disagreeing, overall, noise):
    top = round(0.02 * N)
    p_given, p_other = torch.full((N,), 0.5), torch.full((N,), 0.1)
    p_given[:top], p_other[:top] = 0.01, 0.99
    p_given[round(disagreeing * top) : top], p_other[round(disagreeing * top) : top] = 0.99, 0.01
    rest = round(overall * N - disagreeing * top)
    p_given[top : top + rest], p_other[top : top + rest] = 0.1, 0.5
    assert estimate_label_noise(p_given, p_other).share == pytest.approx(noise, abs=0.04)


def test_few_examples_tell_nothing():
    assert estimate_label_noise(torch.rand(100), torch.rand(100)) is None


def test_the_suspicious_are_those_of_lowest_margin_that_the_model_contradicts():
    margin = torch.tensor([0.9, -0.5, -0.9, 0.1, -0.1, -0.7])
    known = torch.tensor([True, True, True, True, True, False])
    assert suspicious(margin, 0.4, known).nonzero().squeeze(1).tolist() == [1, 2]
    assert suspicious(margin, 1.0, known).nonzero().squeeze(1).tolist() == [1, 2, 4]
    assert not suspicious(margin, 0.0, known).any()
