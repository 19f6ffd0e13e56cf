"""Forgetting scores, selections and excluded examples, against sequences counted by hand."""

import pytest
import torch

from crest.diagnostics import Forgetting, Selections, excluded_accuracy

LOOKS = {  # at the same example, one after the other: right or wrong
    "110100": 2,
    "000000": 0,
    "111111": 0,
    "010101": 2,
    "101010": 3,
    "000001": 0,
}
SCORES = list(LOOKS.values())


def columns():
    return torch.tensor([[int(look) for look in looks] for looks in LOOKS]).bool().unbind(1)


def test_an_example_is_forgotten_when_it_turns_from_right_to_wrong():
    forgetting = Forgetting(6)
    for correct in columns():
        forgetting.observe(torch.arange(6), correct)
    assert forgetting.scores.tolist() == SCORES
    assert forgetting.histogram() == [3, 0, 2, 1]


def test_looks_at_some_examples_compare_with_the_last_look_at_each():
    forgetting = Forgetting(3)
    forgetting.observe(torch.tensor([2, 0]), torch.tensor([True, True]))
    forgetting.observe(torch.tensor([1]), torch.tensor([False]))
    forgetting.observe(torch.tensor([1, 2]), torch.tensor([False, False]))
    assert forgetting.scores.tolist() == [0, 0, 1]


@pytest.mark.parametrize("stop", range(7))
def test_forgetting_resumes_anywhere(stop):
    forgetting = Forgetting(6)
    for step, correct in enumerate(columns()):
        if step == stop:
            state, forgetting = forgetting.state_dict(), Forgetting(6)
            forgetting.load_state_dict(state)
        forgetting.observe(torch.arange(6), correct)
    assert forgetting.scores.tolist() == SCORES
    assert forgetting.was_ever_correct.tolist() == [True, False, True, True, True, True]


def test_correct_needs_the_shape_of_indices():
    with pytest.raises(ValueError, match=r"correct must have the shape of indices, \(2,\); got"):
        Forgetting(6).observe(torch.tensor([0, 1]), torch.tensor([True]))


def select(selections, batches, steps=(1, 2, 3, 4)):
    """Four mini-batches, with a period closed after each but the first; the last has no picks."""
    for step, rows in zip(steps, batches, strict=True):
        if rows:
            selections.observe(torch.tensor(rows))
        if step > 1:
            selections.close_period(step)
    return selections


BATCHES = [[0, 1], [0, 4], [4, 5], []]


def test_selections_are_counted_in_all_and_by_period():
    selections = select(Selections(6), BATCHES)
    assert selections.counts.tolist() == [2, 1, 0, 0, 2, 1]
    assert selections.histogram() == [2, 2, 2]
    assert [(step, counts.tolist()) for step, counts in selections.periods] == [
        (2, [2, 1, 0, 0, 1, 0]),
        (3, [0, 0, 0, 0, 1, 1]),
    ]


def test_difficulty_of_what_is_selected_over_time():
    forgetting = Forgetting(6)
    for correct in columns():
        forgetting.observe(torch.arange(6), correct)
    selections = select(Selections(6), BATCHES)
    assert forgetting.of_selected(selections) == [
        {"step": 2, "score": (2 * 2 + 0 + 3) / 4, "never_learned": 1 / 4},
        {"step": 3, "score": (3 + 0) / 2, "never_learned": 0},
    ]
    assert forgetting.histogram(selections) == [2, 0, 2, 2]  # sixth and second; first; fifth


@pytest.mark.parametrize("stop", range(5))
def test_selections_resume_anywhere(stop):
    selections = select(Selections(6), BATCHES[:stop], range(1, stop + 1))
    state, selections = selections.state_dict(), Selections(6)
    selections.load_state_dict(state)
    select(selections, BATCHES[stop:], range(stop + 1, 5))
    expected = select(Selections(6), BATCHES)
    assert selections.counts.tolist() == expected.counts.tolist()
    assert [(s, c.tolist()) for s, c in selections.periods] == [
        (s, c.tolist()) for s, c in expected.periods
    ]


def test_accuracy_of_excluded_examples():
    active = torch.tensor([True, False, False, False, True])
    correct = torch.tensor([True, True, False, True, False])
    assert excluded_accuracy(active, correct) == {
        "excluded": 3,
        "accuracy": pytest.approx(2 / 3),
        "active_accuracy": 0.5,
    }


def test_without_excluded_examples_there_is_no_accuracy_of_them():
    found = excluded_accuracy(torch.ones(2).bool(), torch.tensor([True, False]))
    assert found == {"excluded": 0, "accuracy": None, "active_accuracy": 0.5}


def test_correct_needs_the_shape_of_active():
    with pytest.raises(ValueError, match=r"correct must have the shape of active, \(3,\); got"):
        excluded_accuracy(torch.ones(3).bool(), torch.ones(2).bool())
