"""How many labels are wrong, how they came about, and which."""

import pytest
import torch

from crest.watching.audit import (
    LabelNoise,
    Predictions,
    estimate_label_noise,
    score_labels,
    wrong_label_chance,
)

N, C = 20_000, 10


def make(noise, *, moved=False, confusion=0.1, classes=C, n=N, seed=0):
    """A model that is right but for a confusion of neighbours, trained on what it is given.

    Its probabilities are those of the given labels: true classes, mixed as labels were made wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (n,), generator=generator)
    is_wrong = torch.rand(n, generator=generator) < noise
    step = torch.randint(1, classes, (n,), generator=generator)
    given = torch.where(is_wrong, (true + (1 if moved else step)) % classes, true)
    believed = torch.rand(n, classes, generator=generator) * 0.01
    rows = torch.arange(n)
    sure = 0.4 + 0.6 * torch.rand(n, generator=generator)
    is_right = torch.rand(n, generator=generator) >= confusion * (1.5 - sure)
    neighbour = true ^ 1  # pairs that are confused both ways
    believed[rows, true] += torch.where(is_right, sure, 1 - sure)
    believed[rows, neighbour.clamp(max=classes - 1)] += torch.where(is_right, 1 - sure, sure)
    believed /= believed.sum(1, keepdim=True)
    if moved:
        mixed = (1 - noise) * believed + noise * believed.roll(1, dims=1)
    else:
        mixed = (1 - noise) * believed + noise / (classes - 1) * (1 - believed)
    return predictions(mixed, given), given != true


def predictions(p, given):
    rows = torch.arange(len(given))
    p_given = p[rows, given]
    rivals = p.clone()
    rivals[rows, given] = -1
    p_other, other = rivals.max(1)
    behind = (rivals > p_given[:, None]).sum(1) / (p.shape[1] - 1)
    return Predictions(given.int(), other.int(), p_given, p_other, behind.half(), p.shape[1])


def auroc(score, positive):
    ranks = score.argsort().argsort().double() + 1
    k = int(positive.sum())
    return (float(ranks[positive].sum()) - k * (k + 1) / 2) / (k * (len(score) - k))


@pytest.mark.parametrize("classes", [3, 10, 11, 100])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2, 0.4])
def test_labels_of_any_class_are_counted_behind_the_middle(noise, classes):
    seen, _ = make(noise, classes=classes)
    found = estimate_label_noise(seen)
    assert found.share == pytest.approx(noise, abs=0.05)
    assert found.uniform == pytest.approx(found.share, abs=0.03)


def test_labels_moved_to_another_class_are_found_as_pairs():
    seen, _ = make(0.2, moved=True)
    found = estimate_label_noise(seen)
    assert found.share == pytest.approx(0.2, abs=0.04)
    assert found.uniform < 0.02
    true, label = found.pairs // C, found.pairs % C
    assert torch.equal(label, (true + 1) % C)
    assert len(found.pairs) == C


@pytest.mark.parametrize("confusion", [0.1, 0.3, 0.5])
def test_what_a_model_confuses_both_ways_is_no_wrong_label(confusion):
    found = estimate_label_noise(make(0.0, confusion=confusion)[0])
    assert found.share < 0.04
    assert not len(found.pairs)


@pytest.mark.parametrize("moved", [False, True])
def test_wrong_labels_are_told_by_a_chance_that_means_what_it_says(moved):
    seen, wrong = make(0.2, moved=moved)
    chance = wrong_label_chance(seen, estimate_label_noise(seen))
    assert auroc(chance, wrong) > 0.93
    assert float(wrong[chance > 0.5].float().mean()) > 0.85
    assert float((chance > 0.5)[wrong].float().mean()) > 0.55
    assert float(chance.mean()) == pytest.approx(0.2, abs=0.05)


def test_a_moved_label_is_told_where_its_margin_is_that_of_a_hard_example():
    # Class 1 is given to a fifth of class 0; the model has learned that.
    noise = LabelNoise(0.1, 0.0, torch.tensor([1]), torch.tensor([0.2]))
    p = torch.tensor([[0.80, 0.20, 0.0], [0.0, 0.20, 0.80], [0.02, 0.96, 0.02]])
    seen = predictions(p, torch.tensor([1, 1, 1]))
    assert wrong_label_chance(seen, noise).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.02)


def test_few_examples_tell_nothing():
    assert estimate_label_noise(make(0.2, n=200)[0]) is None


def make_untrained(classes, spread, learned):
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(classes, (N,), generator=generator)
    outputs = spread * torch.randn(N, classes, generator=generator)
    outputs[torch.arange(N), given] += learned
    return predictions(outputs.softmax(1), given)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_a_model_that_has_learned_nothing_tells_nothing(classes, spread):
    assert estimate_label_noise(make_untrained(classes, spread, learned=0.0)) is None


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("learned", [0.1, 0.2, 0.4])
def test_a_model_that_has_learned_little_does_not_blame_the_labels(classes, learned):
    assert estimate_label_noise(make_untrained(classes, 0.3, learned)) is None


@pytest.mark.parametrize("classes", [1, 2])
def test_one_or_two_classes_are_no_trouble(classes):
    given = torch.randint(classes, (4000,), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(4000)
    p = torch.full((4000, classes), 0.1)
    p[rows, given] = 0.9
    seen = predictions(p, given)
    found = estimate_label_noise(seen)
    assert found.share == 0
    assert (wrong_label_chance(seen, found) == 0).all()


@pytest.mark.parametrize("moved", [False, True], ids=["any class", "moved"])
@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_scores_rank_wrong_labels_at_least_as_margins_and_probabilities_do(noise, moved):
    seen, wrong = make(min(noise, 0.3) if moved else noise, moved=moved)
    score = auroc(-score_labels(seen, estimate_label_noise(seen)), wrong)
    assert score > auroc(seen.p_other - seen.p_given, wrong) - 0.002
    assert score > auroc(-seen.p_given, wrong) - 0.002


def test_the_few_wrong_labels_of_clean_data_are_ranked_too():
    seen, wrong = make(0.002)
    none = LabelNoise.of_any_class(0.0)
    assert auroc(-score_labels(seen, none), wrong) > 0.95


def test_scores_are_margins_where_the_noise_is_unknown():
    seen, _ = make(0.2, n=200)
    margins = (1 + seen.p_given - seen.p_other) / 2
    assert torch.equal(score_labels(seen, None), margins)
