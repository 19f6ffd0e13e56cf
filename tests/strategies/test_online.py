"""Online selection reads the situation from training, and does what fits it."""

import itertools
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from baselines import assert_resumes
from crest import OnlineSelection
from crest.strategies.online import rules
from crest.strategies.online.rules import class_shares, draw_by_norm, pick_cover, repeats

CRITERION = nn.CrossEntropyLoss(reduction="none")


def make_data(n=1200, classes=6, noise=0.0, tail=None, seed=0):
    """Classes that a small network learns in a pass or two; some labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [n // classes] * classes
    if tail is not None:
        sizes = [round(n / classes * tail ** (-k / (classes - 1))) for k in range(classes)]
    true = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    centres = 3 * torch.randn(classes, 8, generator=generator)
    inputs = centres[true] + torch.randn(len(true), 8, generator=generator)
    wrong = torch.rand(len(true), generator=generator) < noise
    given = torch.where(wrong, (true + 1 + true % 2) % classes, true)
    return inputs, given, given != true


def run(
    strategy, data, *, epochs=6, criterion=CRITERION, outputs=6, batch_size=20, budget=1, lr=0.05
):
    """The loop of the README; nothing is told."""
    inputs, targets = data
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs.shape[1], 32), nn.ReLU(), nn.Linear(32, outputs))
    loader = crest.CoresetLoader(
        DataLoader(TensorDataset(inputs, targets), batch_size, shuffle=True),
        model,
        loss_fn=criterion,
        strategy=strategy,
        budget=budget,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for x, y, weights in loader:
            loss = crest.weighted_mean(criterion(model(x), y), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loader


def last(loader):
    return loader.history.records[-1]


def test_the_first_pass_is_random_and_the_next_selected():
    loader = run(OnlineSelection(), make_data()[:2], epochs=1)
    first = [record["selected"] for record in loader.history.records]
    assert not any(first)
    seen = torch.zeros(1200, dtype=torch.bool)
    loader = run(OnlineSelection(), make_data()[:2], epochs=2)
    assert loader.history.records[-1]["selected"]
    assert loader._planner._memory.known.all()
    assert not seen.any()


def test_clean_and_balanced_data_is_covered():
    record = last(run(OnlineSelection(), make_data()[:2]))
    assert record["rule"] == "cover"
    assert record["noise"] is None or record["noise"] < 0.03
    assert record["imbalance"] == pytest.approx(1)
    assert record["left_out"] == 0


def test_wrong_labels_are_estimated_and_left_out():
    inputs, given, wrong = make_data(n=6000, noise=0.2)
    loader = run(OnlineSelection(), (inputs, given), epochs=6, batch_size=50)
    record = last(loader)
    assert record["noise"] == pytest.approx(0.2, abs=0.07)
    out = ~loader.active
    assert int((out & wrong).sum()) / int(out.sum()) > 0.85  # precision
    assert int((out & wrong).sum()) / int(wrong.sum()) > 0.8  # recall


@pytest.mark.parametrize("lr", [1e-7, 1e-4])
def test_a_model_that_learns_slowly_leaves_nothing_out(lr):
    loader = run(OnlineSelection(), make_data(n=6000)[:2], batch_size=50, lr=lr)
    late = [record for record in loader.history.records if record["selected"]]
    assert late
    assert not any(record["left_out"] for record in late)


@pytest.mark.parametrize("rule", ["auto", "chance"])
def test_wrong_labels_that_were_not_found_are_not_sought(rule):
    inputs, given, wrong = make_data(n=6000, noise=0.3, seed=2)
    loader = run(OnlineSelection(rule=rule), (inputs, given), epochs=4, batch_size=50)
    picked = torch.cat([planned.indices for planned, _ in loader.preview(120)])
    picked = picked[loader.active[picked]]  # beside those that are looked at again
    in_play = float(wrong[loader.active].float().mean())
    assert float(wrong[picked].float().mean()) < 1.3 * in_play + 0.01


def test_the_noise_is_told_before_anything_is_left_out_and_kept():
    inputs, given, _ = make_data(n=6000, noise=0.2)
    loader = run(OnlineSelection(), (inputs, given), epochs=8, batch_size=50)
    records = [record for record in loader.history.records if record["selected"]]
    begun = [record["left_out"] > 0 for record in records]
    assert not begun[0]
    first = begun.index(True)
    assert records[first]["step"] >= 240  # two passes
    assert {record["noise"] for record in records[first:]} == {records[first]["noise"]}


def test_what_is_left_out_is_looked_at_again():
    inputs, given, _ = make_data(n=6000, noise=0.2)

    def times_seen(second_look):
        strategy = OnlineSelection(second_look=second_look)
        loader = run(strategy, (inputs, given), epochs=8, batch_size=50)
        return loader._planner._memory.times_seen[~loader.active].float().mean()

    assert times_seen(0.5) > times_seen(0) + 1


def test_a_long_tail_is_balanced_and_drawn_by_chance():
    inputs, given, _ = make_data(tail=50)
    loader = run(OnlineSelection(), (inputs, given), epochs=8)
    record = last(loader)
    assert record["imbalance"] == pytest.approx(50, rel=0.2)
    assert (record["rule"], record["balance"]) == ("chance", 1.0)
    handed = torch.cat([planned.indices for planned, _ in loader.preview(40)])
    counts = given[handed].bincount(minlength=6)
    assert counts.min() > 0.5 * counts.max()


def test_two_classes_are_drawn_by_chance():
    inputs, given, _ = make_data(classes=2)
    loader = run(OnlineSelection(), (inputs, given), outputs=2)
    assert last(loader)["rule"] == "chance"
    assert not any(record["selected"] for record in loader.history.records)  # it says so
    assert loader.history.updates == sum(loader.examples()["times_selected"]) == 0


@pytest.mark.parametrize("rule", ["cover", "norm", "chance"])
def test_each_part_can_be_set(rule):
    strategy = OnlineSelection(rule=rule, noise=0, balance=0)
    record = last(run(strategy, make_data(noise=0.2, tail=5)[:2], epochs=3))
    assert record["rule"] == rule
    assert record["left_out"] == 0
    assert record["balance"] == 0
    assert record["selected"] == (rule != "chance")


def test_a_given_share_of_noise_is_taken_at_its_word():
    inputs, given, _ = make_data(noise=0.3)
    few, many = (
        last(run(OnlineSelection(noise=share), (inputs, given), epochs=4)) for share in (0.1, 0.4)
    )
    assert 0 < few["left_out"] < many["left_out"]


def test_where_no_label_is_trusted_all_are_in_play():
    inputs, given, _ = make_data(n=300)
    loader = run(OnlineSelection(noise=0.999), (inputs, given), epochs=5)
    picked = torch.cat([planned.indices for planned, _ in loader.preview(15)])
    assert len(picked.unique()) > 60


def several(outputs, targets):
    return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(
        1
    )


def squared(outputs, targets):
    return (outputs - targets).square().mean(1)


@pytest.mark.parametrize("criterion", [several, squared])
def test_losses_without_classes_are_neither_balanced_nor_suspected(criterion):
    inputs = make_data()[0]
    targets = (inputs @ torch.randn(8, 6, generator=torch.Generator().manual_seed(1))).sign()
    targets = targets.clamp(min=0) if criterion is several else targets
    record = last(run(OnlineSelection(), (inputs, targets), criterion=criterion, epochs=3))
    assert record["noise"] is None
    assert record["balance"] == 0
    assert record["left_out"] == 0


def test_one_class_and_a_class_of_one_example_are_no_trouble():
    inputs, given, _ = make_data()
    run(OnlineSelection(), (inputs, torch.zeros_like(given)), epochs=3)
    given = given.clone()
    given[given == 5] = 0
    given[0] = 5
    record = last(run(OnlineSelection(), (inputs, given), epochs=3))
    assert record["selected"]


def test_all_labels_wrong_is_no_trouble():
    inputs, given, _ = make_data(noise=1.0)
    assert last(run(OnlineSelection(), (inputs, given), epochs=3))["selected"]


def test_a_loop_that_shows_nothing_gets_random_batches_and_one_warning():
    def step_by_hand(strategy):
        inputs, targets, _ = make_data()
        model = nn.Linear(8, 6)
        loader = crest.CoresetLoader(
            DataLoader(TensorDataset(inputs, targets), 20), model, loss_fn=CRITERION,
            strategy=strategy, budget=1,
        )  # fmt: skip
        for x, _, _ in itertools.chain(loader, loader):
            assert len(x) == 20
            with torch.no_grad():
                model.weight.add_(0)
        return loader

    with pytest.warns(UserWarning, match="batches are random: nothing of training was seen"):
        loader = step_by_hand(OnlineSelection(if_unseen="go on"))
    assert not any(record["selected"] for record in loader.history.records)
    with pytest.raises(ValueError, match="OnlineSelection needs what training computes"):
        step_by_hand(OnlineSelection())


def test_what_it_does_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="crest"):
        run(OnlineSelection(), make_data()[:2], epochs=3)
    assert any("selection by cover" in message for message in caplog.messages)


def test_it_resumes():
    assert_resumes(OnlineSelection(), batches=40, stops=(1, 24, 26, 33))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_class_shares_balance_as_far_as_told(strength):
    counts = torch.tensor([1000, 100, 10])
    shares = class_shares(counts, strength)
    assert float((shares * counts).sum()) == pytest.approx(1110)
    drawn = shares * counts
    assert float(drawn[0] / drawn[2]) == pytest.approx(100 ** (1 - strength), rel=1e-6)


def test_repeats_are_right_on_average():
    rates = torch.tensor([0.25, 1.0, 3.7])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([repeats(rates, generator) for _ in range(4000)]).double()
    assert torch.allclose(drawn.mean(0), rates.double(), atol=0.03)
    assert (drawn[:, 1] == 1).all()


@pytest.mark.parametrize("r", [300, 260, 130])
def test_a_large_mini_batch_is_covered_in_parts(r):
    """Of 130 picks the three parts, each of a third of the candidates, give 44, 43 and 43."""
    candidates = torch.randn(2, r, 3, generator=torch.Generator().manual_seed(0))
    rows = pick_cover(candidates, 130)
    assert rows.shape == (2, 130)
    assert all(len(some.unique()) == 130 for some in rows)
    if r < 132:  # so few candidates are cut into fewer parts, and all of them are picked
        return
    for group, picked in zip(candidates, rows, strict=True):
        for k, part in enumerate(group[: r // 3 * 3].chunk(3)):
            best = crest.facility_location(part, 44).indices
            assert picked[k::3].tolist() == (best + k * (r // 3)).tolist()[: len(picked[k::3])]


@pytest.mark.parametrize("m", [1, 7, 64])
def test_a_small_mini_batch_is_covered_at_once(m):
    candidates = torch.randn(3, 4 * m, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pick_cover(candidates, m), crest.facility_location(candidates, m).indices)


@pytest.mark.parametrize("strategy", [OnlineSelection(rule="cover"), crest.RememberedGradients()])
def test_a_cover_takes_time_in_proportion_to_the_batch(strategy, monkeypatch):
    """Distances among all candidates of a mini-batch of 1,024 would be 16 million."""
    asked = []

    def watched(features, size):
        asked.append(tuple(features.shape))
        return crest.facility_location(features, size)

    monkeypatch.setattr(rules, "facility_location", watched)
    inputs, targets, _ = make_data(n=6144)
    loader = run(strategy, (inputs, targets), epochs=3, batch_size=1024)
    assert last(loader)["updated"]
    assert {r for _, r, _ in asked} == {256}


def test_draws_by_norm_are_distinct_and_prefer_the_large():
    norms = torch.tensor([[1.0, 1.0, 1.0, 16.0]])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(2000):
        rows = draw_by_norm(norms, 1, 0.5, generator)
        counts[rows] += 1
    assert counts[3] / 2000 == pytest.approx(4 / 7, abs=0.04)
    rows = draw_by_norm(norms, 3, 0.5, generator)[0]
    assert len(rows.unique()) == 3
