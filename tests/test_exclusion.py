"""Which examples are learned, Sec. 4.3."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.exclusion import LearnedExamples
from toys import CRITERION, NoisyData, make_loader, make_model, make_tensors, train


def make(interval=20, threshold=0.1, n=5, low_looks=3, readmit_after=None):
    return LearnedExamples(n, interval, threshold, low_looks=low_looks, readmit_after=readmit_after)


def watch(*losses, learned=None, first=0, **options):
    """Look at example 0 once at each step."""
    learned = make(**options) if learned is None else learned
    for step, loss in enumerate(losses, first):
        learned.observe(torch.tensor([0]), torch.tensor([loss]), step)
    return learned


@pytest.mark.parametrize(
    ("losses", "is_learned"),
    [
        ([0.05, 0.05, 0.05], True),
        ([0.05, 0.05], False),
        ([5.0, 0.05, 0.05, 0.05], True),
        ([0.05, 0.05, 0.05, 0.2], False),
        ([0.05, 0.2, 0.05, 0.05], False),
        ([0.1, 0.1, 0.1], True),  # at the threshold
        ([], False),
    ],
    ids=str,
)
def test_the_last_three_looks_must_all_be_low(losses, is_learned):
    found, _ = watch(*losses, threshold=float(torch.tensor(0.1))).collect(20)
    assert found.tolist() == [0] * is_learned


def test_a_single_low_look_is_enough_only_if_that_is_asked_for():
    assert watch(5.0, 0.05, low_looks=1).collect(20)[0].tolist() == [0]
    assert watch(5.0, 0.05, low_looks=2).collect(20)[0].tolist() == []


def test_a_window_closes_at_its_end_and_not_before():
    learned = watch(0.05, 0.05, 0.05)
    assert learned.collect(19)[0].tolist() == []
    assert learned.collect(20)[0].tolist() == [0]
    assert learned.collect(21)[0].tolist() == []  # the next window has just begun


@pytest.mark.parametrize("interval", [1, 2, 20])
def test_a_streak_goes_on_over_windows_also_over_shorter_ones(interval):
    learned, found = make(interval=interval), []
    for step in range(0, 4 * interval, interval):
        found.append(learned.collect(step)[0].tolist())
        watch(0.05, learned=learned, first=step)
    assert found == [[], [], [], [0]]


def test_looks_at_the_same_parameters_count_once_with_their_largest_loss():
    learned = make()
    for losses in ([0.05, 0.04], [0.05, 0.03], [0.01, 0.02]):
        learned.observe(torch.tensor([0, 0]), torch.tensor(losses), 7)
    assert learned.collect(20)[0].tolist() == []
    watch(0.02, 0.01, learned=learned, first=20)
    indices, largest = learned.collect(40)
    assert indices.tolist() == [0]
    assert largest.tolist() == torch.tensor([0.05]).tolist()


@pytest.mark.parametrize("losses", [[0.05, 0.5], [0.5, 0.05]], ids=str)
def test_a_high_look_is_not_made_low_by_another_at_the_same_parameters(losses):
    learned = watch(0.05, 0.05)
    for loss in losses:
        learned.observe(torch.tensor([0]), torch.tensor([loss]), 2)
    watch(0.05, 0.05, learned=learned, first=3)
    assert learned.collect(20)[0].tolist() == []
    watch(0.05, learned=learned, first=20)
    assert learned.collect(40)[0].tolist() == [0]


def test_the_largest_loss_is_that_of_the_streak():
    _, largest = watch(5.0, 0.02, 0.09, 0.01).collect(20)
    assert largest.tolist() == torch.tensor([0.09]).tolist()


def test_a_region_longer_than_a_window_closes_all_of_them_at_once():
    assert watch(0.01, 0.01, 0.01).collect(75)[0].tolist() == [0]


@pytest.mark.parametrize("saved_after", range(5))
def test_a_run_that_is_resumed_in_the_middle_of_a_streak_goes_on(saved_after):
    losses = [5.0, 0.05, 0.04, 0.03, 0.05]
    whole = watch(*losses)
    before, resumed = watch(*losses[:saved_after]), make()
    resumed.load_state_dict(before.state_dict())
    watch(*losses[saved_after:], learned=resumed, first=saved_after)
    for one, other in zip(whole.collect(20), resumed.collect(20), strict=True):
        assert torch.equal(one, other)


def test_what_was_excluded_comes_back_after_some_windows_and_is_watched_anew():
    learned = watch(0.05, 0.05, 0.05, readmit_after=2)
    found, _ = learned.collect(20)
    learned.note_excluded(found)
    resumed = make(readmit_after=2)
    resumed.load_state_dict(learned.state_dict())
    returning = []
    for step in (39, 40, 59, 60, 80):
        resumed.collect(step)
        returning.append(resumed.collect_returning().tolist())
    assert returning == [[], [], [], [0], []]
    watch(0.05, 0.05, learned=resumed, first=80)
    assert resumed.collect(100)[0].tolist() == []
    watch(0.05, learned=resumed, first=100)
    assert resumed.collect(120)[0].tolist() == [0]


def test_nothing_comes_back_unless_that_is_asked_for():
    learned = watch(0.05, 0.05, 0.05)
    learned.note_excluded(learned.collect(20)[0])
    learned.collect(10_000)
    assert learned.collect_returning().tolist() == []


class VeryNoisyData(NoisyData):
    """Views that say little of their class, so that a look is low by chance."""

    def __getitem__(self, index):
        return self.inputs[index] + 3 * torch.randn(20), int(self.targets[index])


def test_one_low_look_drains_a_pool_where_a_streak_of_three_does_not():
    inputs, targets = make_tensors()
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        threshold = CRITERION(make_model()(inputs + 3 * noise), targets).quantile(0.3)
    left = {}
    for low_looks in (1, 3):
        model = make_model()
        strategy = crest.Crest(
            subset_size=48,
            exclusion_interval=5,
            loss_threshold=float(threshold),
            low_looks=low_looks,
            switch_off=False,
            advanced=crest.CrestAdvanced(min_pool=48),
        )
        loader = make_loader(strategy, model=model, dataset=VeryNoisyData(), budget=1)
        train(loader, model, epochs=2, lr=0.0)  # nothing is learned
        left[low_looks] = int(loader.active.sum())
    assert left[1] < 200 < 300 < left[3], left


def test_the_losses_of_checks_exclude_nobody():
    inputs, targets = make_tensors()
    model = nn.Linear(20, 5)
    loader = crest.CoresetLoader(
        DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True),
        model,
        loss_fn=CRITERION,
        strategy=crest.Crest.paper(
            exclusion_interval=1,
            loss_threshold=1e9,
            low_looks=2,
            error_threshold=1e9,
            max_coreset_uses=None,
        ),
        budget=1,
    )
    train(loader, model)
    assert sum("relative_error" in record for record in loader.history.records) > 20
    assert bool(loader.active.all())  # one look of selection, and 24 of checks
