"""What CRAIG, GRAD-MATCH, GLISTER and AdaCore have in common."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from baselines import (
    K,
    M,
    N,
    assert_resumes,
    held_out_loader,
    make_task,
    planned,
    subset_of,
)
from crest import AdaCore, Craig, Glister, GradMatch
from crest.strategies.subsets import _in_proportion
from toys import CRITERION, NoisyData, make_loader, make_model, make_tensors, train

STRATEGIES = [Craig, GradMatch, Glister, AdaCore]


def make(strategy, **settings):
    return Glister(held_out_loader(), **settings) if strategy is Glister else strategy(**settings)


all_strategies = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.__name__)


@all_strategies
def test_mini_batches_use_every_pick_once_before_any_twice(strategy):
    steps = 8  # 128 draws: three times through the subset of 40
    batches = planned(make(strategy, reselect_steps=steps), make_model(), batches=steps)
    draws = torch.cat([indices for indices, _ in batches])
    counts = draws.unique(return_counts=True)[1]
    assert all(len(set(indices.tolist())) == len(indices) == M for indices, _ in batches)
    assert len(draws[:K].unique()) == len(draws[K : 2 * K].unique()) == len(counts) == K
    assert counts.min() >= 3


@all_strategies
def test_weights_have_mean_one_over_the_subset_and_belong_to_their_example(strategy):
    weights = {}
    for indices, batch_weights in planned(make(strategy), make_model()):
        for index, weight in zip(indices.tolist(), batch_weights.tolist(), strict=True):
            assert weights.setdefault(index, weight) == weight
    assert sum(weights.values()) / len(weights) == pytest.approx(1, abs=1e-5)
    assert all(math.isfinite(weight) and weight >= 0 for weight in weights.values())


@all_strategies
def test_a_new_subset_is_picked_at_the_beginning_of_every_epoch(strategy):
    model = make_model()
    loader = make_loader(make(strategy), model=model)
    train(loader, model, epochs=3)
    steps = [record["step"] for record in loader.history.records]
    assert steps == [0, len(loader), 2 * len(loader)]


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("n", [400, 397])
def test_regions_are_as_long_as_the_epoch_of_the_loader(n, fraction, drop_last, accumulation):
    data = TensorDataset(*make_tensors(n))
    train_loader = DataLoader(data, batch_size=M, shuffle=True, drop_last=drop_last)
    model = make_model()
    loader = crest.CoresetLoader(
        train_loader,
        model,
        loss_fn=CRITERION,
        strategy=Craig(subset_fraction=fraction),
        budget=fraction,
        accumulation_steps=accumulation,
    )
    train(loader, model, epochs=2, group=accumulation)
    (first, second) = loader.history.records
    assert second["step"] * accumulation == len(loader)
    assert first["length"] * accumulation == len(loader)


def test_an_epoch_of_larger_batches_has_one_selection():
    model = make_model()
    train_loader = DataLoader(TensorDataset(*make_tensors()), batch_size=16, shuffle=True)
    strategy = Craig(subset_fraction=0.25)
    options = {"loss_fn": CRITERION, "strategy": strategy, "budget": 0.25, "batch_size": 64}
    loader = crest.CoresetLoader(train_loader, model, **options)
    train(loader, model, epochs=2)
    assert [record["step"] for record in loader.history.records] == [0, len(loader)]


@all_strategies
def test_a_resumed_run_continues_bit_for_bit(strategy):
    assert_resumes(make(strategy))


@all_strategies
def test_a_selection_costs_one_forward_pass_of_each_example(strategy):
    loader = make_loader(make(strategy))
    list(loader)
    held_out = 100 if strategy is Glister else 0
    assert loader.history.passes["features"]["forward"] == N + held_out


class Counting(NoisyData):
    def __init__(self):
        super().__init__(N)
        self.views = {}
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        self.views[index] = super().__getitem__(index)
        return self.views[index]


@all_strategies
def test_the_views_that_were_selected_are_trained_on(strategy):
    data = Counting()
    loader = make_loader(
        make(strategy), dataset=data, attach=lambda batch, _, indices: (*batch, indices)
    )
    for inputs, _, indices in loader:
        assert torch.equal(inputs, torch.stack([data.views[i][0] for i in indices.tolist()]))
    assert data.reads == N


@all_strategies
def test_views_that_are_not_kept_are_read_anew(strategy):
    data = Counting()
    loader = make_loader(make(strategy, keep_views=False), dataset=data)
    trained = len(list(loader)) * 16
    assert data.reads == N + trained + (N if strategy is AdaCore else 0)


@all_strategies
def test_keeping_views_makes_no_difference_where_nothing_is_random(strategy):
    kept = subset_of(make(strategy), make_model())
    assert kept == subset_of(make(strategy, keep_views=False), make_model())


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=12),
    st.floats(0.01, 1),
)
def test_classes_get_their_share_exactly_k_in_all_and_never_more_than_they_have(counts, fraction):
    size = max(round(fraction * sum(counts)), len(counts))
    sizes = _in_proportion(counts, size)
    assert sum(sizes) == size
    assert all(1 <= given <= count for given, count in zip(sizes, counts, strict=True))


def test_shares_are_in_proportion():
    assert _in_proportion([500, 300, 200], 10) == [5, 3, 2]
    assert _in_proportion([995, 3, 2], 10) == [8, 1, 1]


@all_strategies
def test_each_class_has_its_share(strategy):
    _, targets = make_tensors(N)
    picks = list(subset_of(make(strategy), make_model()))
    expected = _in_proportion(targets.bincount().tolist(), K)
    assert targets[picks].bincount().tolist() == expected


class Signed(NoisyData):
    """Two classes, -1 and 1."""

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs, 2 * int(target > 2) - 1


def signed_loss(output, target):
    return nn.functional.cross_entropy(output, target.clamp(min=0), reduction="none")


@pytest.mark.parametrize("strategy", [Craig, GradMatch, AdaCore])  # Glister takes its own loss
def test_minus_one_may_be_a_class(strategy):
    dataset = Signed()
    picks = subset_of(
        make(strategy, per_class=True), make_model(), dataset=dataset, loss_fn=signed_loss
    )
    negative = sum(dataset[index][1] == -1 for index in range(N))
    expected = _in_proportion([negative, N - negative], K)[0]
    assert sum(dataset[index][1] == -1 for index in picks) == expected


class Unlabelled(NoisyData):
    """Targets that are no class of one example."""

    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs, nn.functional.one_hot(torch.tensor(target), 5).float()


@all_strategies
def test_without_labels_the_whole_set_is_picked_from(strategy):
    assert len(subset_of(make(strategy), make_model(), dataset=Unlabelled())) == K


@all_strategies
def test_per_class_without_labels_is_refused(strategy):
    loader = make_loader(make(strategy, per_class=True), dataset=Unlabelled())
    message = "per_class=True needs the class of every example; 400 of 400 are unknown"
    with pytest.raises(ValueError, match=message):
        next(iter(loader))


class Tagger(nn.Module):
    """A class for each of several tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 6)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def tagging_loss(model, batch):
    losses = CRITERION(model(batch["tokens"]).flatten(0, 1), batch["tags"].flatten())
    return losses.view(len(batch["tokens"]), -1).mean(1)


def tagging_loader(strategy):
    tokens = torch.randint(50, (80, 7), generator=torch.Generator().manual_seed(0))
    data = [{"tokens": row, "tags": row % 6} for row in tokens]
    return crest.CoresetLoader(
        DataLoader(data, batch_size=8, shuffle=True),
        Tagger(),
        loss_fn=tagging_loss,
        strategy=strategy,
    )


@pytest.mark.parametrize("strategy", [Craig, GradMatch, AdaCore], ids=lambda s: s.__name__)
def test_text_with_an_output_for_each_token_works(strategy):
    (batch,) = tagging_loader(strategy())
    assert batch["tokens"].shape == (8, 7)
    assert torch.isfinite(batch["sample_weight"]).all()
    assert len(batch["sample_index"].unique()) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset_fraction": 0.0}, r"subset_fraction must be in \(0, 1\].*; got 0\.0"),
        ({"subset_fraction": 10}, r"subset_fraction must be .* got 10\. Write 0\.1 for 10 %"),
        ({"reselect_steps": 0}, "reselect_steps must be >= 1 and <= 1000000 or None; got 0"),
    ],
)
@all_strategies
def test_settings_out_of_range_are_refused(strategy, settings, message):
    with pytest.raises(ValueError, match=message):
        make(strategy, **settings)


@all_strategies
def test_a_subset_smaller_than_a_mini_batch_is_refused(strategy):
    with pytest.raises(ValueError, match=r"batch_size must be at most the subset, 4 of 400 .* 16"):
        make(strategy, subset_fraction=0.01).start(make_task())


def test_fewer_picks_than_classes_are_refused():
    data = TensorDataset(torch.randn(100, 20), torch.arange(100) % 50)
    model = nn.Linear(20, 50)
    loader = make_loader(Craig(subset_fraction=0.2), model=model, dataset=data, batch_size=4)
    with pytest.raises(ValueError, match="room for each of 50 classes; got 20 picks. Raise subset"):
        next(iter(loader))
