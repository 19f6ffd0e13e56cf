"""Which examples are learned, Sec. 4.3."""

import torch

from crest.exclusion import LearnedExamples


def watch(*observations, interval=20, threshold=0.1, n=5):
    learned = LearnedExamples(n, interval, threshold)
    for indices, losses in observations:
        learned.observe(torch.tensor(indices), torch.tensor(losses))
    return learned


def test_a_window_closes_at_its_end_and_not_before():
    learned = watch(([0], [0.05]))
    assert learned.collect(19)[0].tolist() == []
    assert learned.collect(20)[0].tolist() == [0]
    assert learned.collect(21)[0].tolist() == []  # the next window has just begun


def test_one_loss_above_the_threshold_keeps_an_example():
    learned = watch(([0, 1], [0.05, 0.05]), ([0], [0.2]), ([0], [0.01]))
    indices, losses = learned.collect(20)
    assert indices.tolist() == [1]
    assert losses.tolist() == torch.tensor([0.05]).tolist()


def test_a_loss_at_the_threshold_counts_as_learned():
    learned = watch(([3], [0.25]), threshold=0.25)
    assert learned.collect(20)[0].tolist() == [3]


def test_what_was_never_seen_stays():
    assert watch(([2], [5.0])).collect(20)[0].tolist() == []


def test_repeated_indices_count_with_their_largest_loss():
    assert watch(([0, 0], [0.01, 0.5])).collect(20)[0].tolist() == []


def test_a_window_forgets_the_one_before():
    learned = watch(([0], [5.0]))
    learned.collect(20)
    learned.observe(torch.tensor([0]), torch.tensor([0.01]))
    assert learned.collect(40)[0].tolist() == [0]


def test_a_region_longer_than_a_window_closes_all_of_them_at_once():
    assert watch(([0], [0.01])).collect(75)[0].tolist() == [0]


def test_state_holds_the_open_window():
    learned, other = watch(([0], [0.01])), LearnedExamples(5, 20, 0.1)
    other.load_state_dict(learned.state_dict())
    assert other.collect(20)[0].tolist() == [0]
