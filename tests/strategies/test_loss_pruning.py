"""Soft loss pruning: fewer examples in a pass, the gradient of all of them in expectation."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from baselines import M, N, assert_resumes, make_task, make_trained_model, observing
from crest import LossPruning
from crest.quadratic import flatten
from toys import CRITERION, make_loader, make_model, make_tensors, train


def make_losses():
    """A quarter at 4, the rest at 0.1: the mean is 1.075."""
    losses = torch.full((N,), 0.1)
    losses[::4] = 4.0
    return losses


def pruned_pass(planner, losses, step=1):
    """Indices and weights of the pass that follows one in which `losses` were observed."""
    planner.observe(torch.arange(N), losses)
    return in_one(planner.next_region(None, step))


def in_one(region):
    return (
        torch.cat([batch.indices for batch in region.batches]),
        torch.cat([batch.weights for batch in region.batches]),
    )


def started(**settings):
    planner = LossPruning(**settings).start(make_task())
    planner.next_region(None, 0)
    return planner


def test_the_first_pass_holds_every_example_once_with_weight_one():
    indices, weights = in_one(LossPruning().start(make_task()).next_region(None, 0))
    assert indices.sort().values.tolist() == list(range(N))
    assert (weights == 1).all()


@pytest.mark.parametrize("probability", [0.25, 0.5, 0.9])
def test_small_losses_are_left_out_with_their_probability_and_large_ones_never(probability):
    losses = make_losses()
    small = int((losses < 1).sum())
    planner, kept, passes = started(prune_probability=probability), 0, 50
    for _ in range(passes):
        indices, _ = pruned_pass(planner, losses)
        assert len(indices.unique()) == len(indices)
        assert torch.isin(torch.arange(0, N, 4), indices).all()
        kept += len(indices) - (N - small)
    draws = passes * small
    error = (probability * (1 - probability) / draws) ** 0.5
    assert abs(kept / draws - (1 - probability)) < 4 * error


def test_weights_are_one_and_the_inverse_of_the_share_that_is_kept():
    losses = make_losses()
    indices, weights = pruned_pass(started(prune_probability=0.75, match_scale=True), losses)
    assert set(weights[losses[indices] > 1].tolist()) == {1.0}
    assert set(weights[losses[indices] < 1].tolist()) == {4.0}


def test_scaled_weights_differ_by_one_factor_and_have_mean_one_over_many_passes():
    losses, means = make_losses(), []
    planner = started()
    for _ in range(200):
        indices, weights = pruned_pass(planner, losses)
        ratio = weights / torch.where(losses[indices] < 1, 2.0, 1.0)
        assert torch.allclose(ratio, torch.tensor(len(indices) / N))
        means.append(float(weights.mean()))
    means = torch.tensor(means)
    assert abs(float(means.mean()) - 1) < 4 * float(means.std()) / len(means) ** 0.5


def test_passes_are_unbiased_and_nearer_the_full_gradient_than_as_many_random_examples():
    inputs, targets = make_tensors(N)
    model = make_trained_model()

    def gradient(rows, weights):
        loss = crest.weighted_mean(CRITERION(model(inputs[rows]), targets[rows]), weights)
        return flatten(torch.autograd.grad(loss, list(model.parameters())))

    full = gradient(torch.arange(N), torch.ones(N))
    losses = CRITERION(model(inputs), targets).detach()
    planner = started()
    passes = [pruned_pass(planner, losses) for _ in range(500)]
    errors = torch.stack([gradient(*one) - full for one in passes])
    random = torch.stack(
        [
            gradient(torch.randperm(N)[: len(rows)], torch.ones(len(rows))) - full
            for rows, _ in passes
        ]
    )
    assert sum(len(rows) for rows, _ in passes) < 0.75 * N * len(passes)
    square = float(errors.square().sum(1).mean())
    assert square < 0.5 * float(random.square().sum(1).mean())
    # the mean of B unbiased errors has the B-th part of their squared size
    assert float(errors.mean(0).square().sum()) < 2 * square / len(passes)
    uniform = torch.stack([gradient(rows, torch.ones(len(rows))) - full for rows, _ in passes])
    assert float(uniform.mean(0).square().sum()) > 20 * square / len(passes)  # weights matter


def test_observed_losses_cost_nothing():
    model = make_model()
    loader = make_loader(LossPruning(), model=model, budget=1)
    observing(loader, model, epochs=4)
    assert loader.history.overhead == 0
    assert loader.history.updates >= 3
    assert all(record["kept"] < N for record in loader.history.records[1:])


def test_a_loop_that_observes_nothing_pays_one_forward_pass_for_each_pruned_pass():
    """Training is seen by itself, but not where another model is trained than the loader has."""
    loader = make_loader(LossPruning(), model=make_model(), budget=1)
    train(loader, make_model(), epochs=4)
    pruned = len(loader.history.records) - 1
    assert pruned >= 3
    assert loader.history.updates == pruned
    assert loader.history.passes["check"]["forward"] == pruned * N
    assert all(record["kept"] < N for record in loader.history.records[1:])


def test_a_loop_that_is_seen_by_itself_pays_nothing():
    model = make_model()
    loader = make_loader(LossPruning(), model=model, budget=1)
    train(loader, model, epochs=4)
    assert loader.history.passes["check"]["forward"] == 0
    assert any(record["kept"] < N for record in loader.history.records[1:])


def test_observed_and_measured_losses_prune_alike_where_nothing_moves():
    kept = []
    for loop in (observing, train):
        model = make_trained_model()
        loader = make_loader(LossPruning(), model=model, budget=1)
        loop(loader, model, epochs=2, lr=0.0)
        kept.append([record["kept"] for record in loader.history.records])
    assert kept[0] == kept[1]


def test_examples_whose_loss_was_never_observed_are_kept():
    model = make_model()
    loader = make_loader(
        LossPruning(match_scale=True),
        model=model,
        budget=1,
        attach=lambda _, weights, indices: (indices, weights),
    )
    seen = torch.zeros(N, dtype=torch.bool)
    for step, (indices, _) in enumerate(loader):
        if step % 2 == 0:
            loader.observe(torch.where(indices % 2 == 0, 0.0, 5.0))
            seen[indices] = True
    indices, weights = map(torch.cat, zip(*loader, strict=True))
    first = len(indices[: loader.history.records[1]["kept"]])
    unseen = (~seen).nonzero().squeeze(1)
    assert torch.isin(unseen, indices[:first]).all()
    assert (weights[:first][~seen[indices[:first]]] == 1).all()
    pruned = ~torch.isin(torch.arange(N), indices[:first])
    assert pruned.any()
    assert not (pruned & (torch.arange(N) % 2 == 1)).any()


def test_passes_are_whole_again_for_the_last_part_of_the_run():
    planner = started(num_steps=80, pruned_share=0.75)
    planner.observe(torch.arange(N), make_losses())
    before = planner.next_region(None, 25)
    assert len(before.batches) < N / M
    planner.observe(torch.arange(N), make_losses())
    assert len(planner.next_region(None, 57).batches) == 3  # ends with step 60
    indices, weights = in_one(planner.next_region(None, 60))
    assert len(indices.unique()) == len(indices) == N
    assert (weights == 1).all()


def test_the_first_pass_is_whole_where_pruning_ends_within_it():
    planner = LossPruning(num_steps=25).start(make_task())  # one pass; pruning ends with step 22
    indices, _ = in_one(planner.next_region(None, 0))
    assert len(indices.unique()) == len(indices) == N


def test_an_incomplete_last_batch_is_left_out_where_the_loader_does_so():
    data = TensorDataset(*make_tensors(N))
    for drop_last in (True, False):
        model = make_model()
        loader = crest.CoresetLoader(
            DataLoader(data, batch_size=M, shuffle=True, drop_last=drop_last),
            model,
            loss_fn=CRITERION,
            strategy=LossPruning(),
            budget=1,
        )
        sizes = []
        for _ in range(5):
            for inputs, targets, _ in loader:
                loader.observe(CRITERION(model(inputs), targets))
                sizes.append(len(inputs))
        assert (set(sizes) == {M}) is drop_last


def test_accumulated_batches_come_in_whole_groups():
    planner = LossPruning().start(dataclasses.replace(make_task(), batches_per_step=4))
    lengths = []
    for step in range(3):
        lengths.append(len(planner.next_region(None, step).batches))
        planner.observe(torch.arange(N), make_losses())
    assert lengths[0] == 24  # of 25
    assert all(length % 4 == 0 and 0 < length < 24 for length in lengths[1:])


def test_batches_that_fill_no_group_of_accumulation_come_first_in_the_next_pass():
    task = dataclasses.replace(make_task(), batches_per_step=4)
    planner = LossPruning(prune_probability=0.0).start(task)
    seen, passes = torch.zeros(N), 4  # of 25 batches: 4 of them are 25 steps
    for step in range(passes):
        region = planner.next_region(None, step)
        assert region.record["kept"] == N
        indices, _ = in_one(region)
        seen += torch.bincount(indices, minlength=N)
        planner.observe(torch.arange(N), make_losses())
    assert (seen == passes).all()


@pytest.mark.parametrize("match_scale", [True, False])
def test_whole_passes_at_the_end_hold_nothing_of_a_pruned_one(match_scale):
    settings = LossPruning(num_steps=20, pruned_share=0.5, match_scale=match_scale)
    planner = settings.start(dataclasses.replace(make_task(), batches_per_step=3))
    step = 0
    while step < 20:
        region = planner.next_region(None, step)
        _, weights = in_one(region)
        assert step < 10 or (weights == 1).all()
        step += len(region.batches) // 3
        planner.observe(torch.arange(N), make_losses())


def test_batches_that_wait_for_a_group_survive_a_checkpoint():
    task = dataclasses.replace(make_task(), batches_per_step=4)
    planner, resumed = LossPruning().start(task), LossPruning().start(task)
    planner.next_region(None, 0)  # 24 batches of 25
    planner.observe(torch.arange(N), make_losses())
    resumed.load_state_dict(planner.state_dict())
    first = [each.next_region(None, 6).batches[0].indices for each in (planner, resumed)]
    assert torch.equal(*first)


def test_examples_of_one_loss_are_all_kept():
    """The mean of 400 float32 of 0.1 is above them, rounded."""
    planner = started(prune_probability=0.9999999)
    indices, weights = pruned_pass(planner, torch.full((N,), 0.1))
    assert len(indices) == N
    assert (weights == 1).all()


@pytest.mark.parametrize("kept", [1, 3, 10])
def test_few_that_are_kept_fill_a_group_of_accumulation(kept):
    task = dataclasses.replace(make_task(), batches_per_step=5)
    planner = LossPruning(prune_probability=0.999999).start(task)
    planner.next_region(None, 0)
    losses = torch.zeros(N)
    losses[:kept] = 9.0
    planner.observe(torch.arange(N), losses)
    batches = planner.next_region(None, 1).batches
    assert len(batches) == 5
    assert all(len(batch.indices) for batch in batches)
    assert {index for batch in batches for index in batch.indices.tolist()} == set(range(kept))


def test_observed_losses_may_be_overwritten_afterwards():
    loader = make_loader(LossPruning(), budget=1.0)
    losses = torch.ones(M)
    for _ in range(2):  # passes
        for _ in loader:
            losses.fill_(1.0)
            loader.observe(losses)
            losses.fill_(torch.nan)  # or weighted in place
    assert loader.history.records[-1]["kept"] == N  # none is below the mean


@pytest.mark.parametrize("observes", [True, False])
def test_a_resumed_run_continues_bit_for_bit(observes):
    stops = (1, 12, 25, 26, 40, 69)  # the first pass takes 25
    assert_resumes(LossPruning(), stops=stops, batches=70, observes=observes)


@pytest.mark.parametrize("strategy", [LossPruning(), crest.RememberedGradients()], ids=repr)
def test_text_in_dicts_works(strategy):
    tokens = torch.randint(50, (80, 7), generator=torch.Generator().manual_seed(0))
    data = [{"tokens": row, "label": row[0] % 6} for row in tokens]
    model = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 6))

    def loss_fn(model, batch):
        return CRITERION(model(batch["tokens"]), batch["label"])

    loader = crest.CoresetLoader(
        DataLoader(data, batch_size=8), model, loss_fn=loss_fn, strategy=strategy, budget=1
    )
    for _ in range(3):
        for batch in loader:
            outputs = model(batch["tokens"])
            loader.observe(CRITERION(outputs, batch["label"]), outputs)
    assert loader.history.updates >= 2


@pytest.mark.parametrize(
    "strategy",
    [crest.Random(), crest.Full(), crest.Craig(subset_fraction=0.2), crest.Crest()],
    ids=repr,
)
def test_other_strategies_ignore_what_is_observed(strategy):
    found = []
    for loop in (observing, train):
        model = make_model()
        loader = make_loader(
            strategy, model=model, budget=0.2, attach=lambda batch, w, i: (*batch, w * i)
        )
        weighed = []
        for inputs, targets, weighted_indices in loader:
            if loop is observing:
                loader.observe(CRITERION(model(inputs), targets))
            weighed.append(weighted_indices)
        found.append(torch.cat(weighed))
    assert torch.equal(*found)


def test_observing_before_the_first_batch_is_refused():
    with pytest.raises(ValueError, match="observe needs a batch that was handed out; got none"):
        make_loader(LossPruning()).observe(torch.ones(M))


@pytest.mark.parametrize("losses", [torch.tensor(1.0), torch.ones(M - 1), torch.ones(M, 2)])
def test_observed_losses_of_another_shape_are_refused(losses):
    loader = make_loader(LossPruning())
    next(iter(loader))
    with pytest.raises(ValueError, match=r"one per example of the batch .* shape \(16,\); got"):
        loader.observe(losses)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_observed_losses_that_are_not_finite_are_refused_with_their_example(bad):
    planner = started()
    losses = make_losses()
    losses[7] = bad
    with pytest.raises(ValueError, match=f"must be finite; got {bad} for example 7. Lower lr"):
        pruned_pass(planner, losses)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune_probability": 1.0}, r"prune_probability must be in \[0, 1\); got 1\.0"),
        ({"prune_probability": -0.1}, r"prune_probability must be in \[0, 1\); got -0\.1"),
        ({"num_steps": 0}, r"num_steps must be >= 1 and <= 10\*\*15 or None; got 0"),
        ({"pruned_share": 1.5}, r"pruned_share must be in \[0, 1\]; got 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossPruning(**settings)
