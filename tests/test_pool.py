"""V, V_p and what may leave."""

import pytest
import torch

from crest.pool import UNKNOWN_CLASS, Deck, Pool, random_subsets


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unknown(n):
    return torch.full((n,), UNKNOWN_CLASS)


def test_subsets_are_drawn_without_replacement_from_the_active_examples():
    pool = Pool(50)
    pool.exclude(torch.arange(10), torch.zeros(10), unknown(50))
    subsets = pool.draw(20, 30, generator())
    assert subsets.shape == (20, 30)
    assert all(len(subset.unique()) == 30 for subset in subsets)
    assert subsets.min() >= 10


def test_subsets_of_many_examples_are_distinct_too():
    subsets = Pool(4000).draw(20, 1000, generator())  # some 130 are drawn twice at first
    assert all(len(subset.unique()) == 1000 for subset in subsets)
    assert not torch.equal(subsets[0], subsets[0].sort().values)


def test_every_example_is_as_likely_as_any_other():
    counts = torch.bincount(Pool(40).draw(2000, 10, generator()).flatten(), minlength=40)
    # binomial with 2000 draws at 1/4: standard deviation 19.4
    assert (counts - 500).abs().max() < 5 * 19.4


def test_the_draw_depends_on_the_generator_alone():
    first, second = (Pool(50).draw(3, 20, generator(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_stratified_subsets_hold_each_class_in_proportion():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    subsets = Pool(100).draw(5, 20, generator(), labels=labels)
    for subset in subsets:
        assert torch.bincount(labels[subset]).tolist() == [12, 6, 2]
        assert len(subset.unique()) == 20


def test_a_stratified_subset_has_its_full_size_where_shares_are_odd():
    labels = torch.arange(7) % 3
    assert Pool(7).draw(1, 5, generator(), labels=labels).shape == (1, 5)


@pytest.mark.parametrize(("counts", "size"), [([600, 395, 5], 96), ([10, 10, 10], 4)])
def test_odd_ones_go_to_each_class_in_proportion(counts, size):
    """The largest remainder would never draw a rare class, and always favour one of equals."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    drawn = labels[Pool(len(labels)).draw(3000, size, generator(), labels=labels)]
    found = torch.bincount(drawn.flatten()) / 3000
    expected = size * torch.tensor(counts) / len(labels)
    # of each class a whole number and an odd one, of standard deviation 1/2 at most
    assert ((found - expected).abs() < 5 * 0.5 / 3000**0.5).all()


def test_classes_may_have_any_number():
    labels = 10**12 * (torch.arange(40) % 2)
    subset = random_subsets(torch.arange(40), 1, 10, generator(), labels=labels)
    assert labels[subset].bool().sum() == 5


def test_more_than_the_active_examples_are_refused():
    with pytest.raises(
        ValueError, match=r"subset_size must be at most .* active examples, 5; got 6"
    ):
        Pool(5).draw(1, 6, generator())


def test_exclusion_stops_at_the_floor_and_keeps_the_largest_losses():
    pool = Pool(6, min_pool=4)
    losses = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3])
    gone = pool.exclude(torch.arange(5), losses, unknown(6))
    assert sorted(gone.tolist()) == [1, 3]
    assert pool.active.tolist() == [True, False, True, False, True, True]
    assert pool.num_active == 4


def test_no_class_is_emptied():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    pool = Pool(6)
    gone = pool.exclude(torch.arange(5), torch.tensor([0.1, 0.3, 0.2, 0.5, 0.4]), labels)
    assert sorted(gone.tolist()) == [0, 2, 4]  # the hardest of each class stays
    assert labels[pool.active].tolist() == [0, 1, 2]


def test_examples_of_unknown_class_are_no_class():
    pool = Pool(3)
    assert sorted(pool.exclude(torch.arange(2), torch.zeros(2), unknown(3)).tolist()) == [0, 1]
    labels = torch.tensor([UNKNOWN_CLASS, UNKNOWN_CLASS, -1])
    pool = Pool(3)
    gone = pool.exclude(torch.arange(3), torch.zeros(3), labels)
    assert sorted(gone.tolist()) == [0, 1]  # -1 is a class


def test_excluded_examples_do_not_count_twice():
    pool = Pool(4, min_pool=2)
    pool.exclude(torch.tensor([0]), torch.zeros(1), unknown(4))
    gone = pool.exclude(torch.tensor([0, 1]), torch.zeros(2), unknown(4))
    assert gone.tolist() == [1]


def test_state_holds_the_mask():
    pool, other = Pool(4), Pool(4)
    pool.exclude(torch.tensor([2]), torch.zeros(1), unknown(4))
    other.load_state_dict(pool.state_dict())
    assert torch.equal(pool.active, other.active)


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_a_deck_draws_every_row_before_any_twice_and_none_twice_at_once(size):
    deck = Deck(10, torch.Generator().manual_seed(0))
    draws = [deck.draw(size) for _ in range(10)]
    assert all(len(drawn.unique()) == size for drawn in draws)
    for one_pass in torch.cat(draws).split(10):
        assert one_pass.sort().values.tolist() == list(range(10))


def test_a_deck_is_shuffled_and_resumes():
    generator = torch.Generator().manual_seed(0)
    deck = Deck(100, generator)
    deck.draw(30)
    state = deck.state_dict(), generator.get_state()
    rest = [deck.draw(40) for _ in range(3)]
    assert rest[0].tolist() != rest[0].sort().values.tolist()
    generator = torch.Generator()
    other = Deck(100, generator)
    other.load_state_dict(state[0])
    generator.set_state(state[1])
    assert all(torch.equal(other.draw(40), drawn) for drawn in rest)
