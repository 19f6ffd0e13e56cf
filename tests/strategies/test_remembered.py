"""Mini-batches from gradients that training has shown before."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from baselines import M, N, assert_resumes, make_task, make_trained_model, observing
from crest import RememberedGradients
from crest.watching.memory import LastSeen
from reference import greedy
from toys import CRITERION, make_loader, make_model, make_tensors


def make_errors():
    """p - y of all examples, of a network in the middle of its training."""
    inputs, targets = make_tensors(N)
    probabilities = make_trained_model()(inputs).softmax(1).detach()
    return probabilities - nn.functional.one_hot(targets, 5)


def planner_that_knows(errors, **settings):
    planner = RememberedGradients(**settings).start(make_task())
    planner.next_region(Clockless(), 0)
    planner.remember(torch.arange(N), errors)
    return planner


def make_first_batch():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model)
    return loader, model, *next(iter(loader))


class Clockless:
    """Stands in for the examples, of which only the clock is used."""

    def timed(self, component):
        return torch.no_grad()


def test_the_first_pass_holds_every_example_and_no_weights():
    region = RememberedGradients().start(make_task()).next_region(Clockless(), 0)
    indices = torch.cat([batch.indices for batch in region.batches])
    assert indices.sort().values.tolist() == list(range(N))
    assert all((batch.weights == 1).all() for batch in region.batches)
    assert region.record == {"updated": False, "selected": False}


def test_picks_are_those_of_greedy_facility_location_on_all_that_is_remembered():
    errors = make_errors()
    region = planner_that_knows(errors, num_candidates=N).next_region(Clockless(), 25)
    (batch,) = region.batches
    assert batch.indices.sort().values.tolist() == sorted(greedy(errors, M))
    assert (batch.weights == 1).all()


def test_a_pass_is_cut_into_groups_that_share_no_example():
    region = planner_that_knows(make_errors(), num_candidates=50).next_region(Clockless(), 25)
    indices = torch.cat([batch.indices for batch in region.batches])
    assert len(region.batches) == N // 50
    assert len(indices.unique()) == len(indices) == M * N // 50


def test_picks_cover_the_gradients_better_than_random_examples():
    errors = make_errors()

    def uncovered(rows):
        return float(torch.cdist(errors, errors[rows]).amin(1).mean())

    planner = planner_that_knows(errors)
    picked = [
        uncovered(batch.indices)
        for _ in range(5)
        for batch in planner.next_region(Clockless(), 25).batches
    ]
    generator = torch.Generator().manual_seed(1)
    random = [uncovered(torch.randperm(N, generator=generator)[:M]) for _ in picked]
    assert sum(picked) < 0.75 * sum(random)
    assert max(picked) < sorted(random)[len(random) // 2]


def test_what_is_remembered_is_the_gradient_of_the_last_time():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model, budget=1)
    inputs, targets = make_tensors(N)
    observing(loader, model, lr=0.0)
    state = loader.state_dict()["planner"]
    errors = model(inputs).softmax(1) - nn.functional.one_hot(targets, 5)
    assert torch.allclose(state["gradients"], errors, atol=1e-6)
    with torch.no_grad():
        model[-1].bias += torch.tensor([1.0, 0, 0, 0, 0])
    again = torch.zeros(N, dtype=torch.bool)
    for some, some_targets, _ in loader:
        outputs = model(some)
        loader.observe(CRITERION(outputs, some_targets), outputs)
        again[loader.handed_out.indices] = True
    state = loader.state_dict()["planner"]
    moved = model(inputs).softmax(1) - nn.functional.one_hot(targets, 5)
    assert torch.allclose(state["gradients"][again], moved[again], atol=1e-6)
    assert torch.allclose(state["gradients"][~again], errors[~again], atol=1e-6)
    assert (~again).any()


def test_batches_that_are_fetched_ahead_are_told_apart_by_their_indices():
    model = make_trained_model()
    pairs = {"attach": lambda batch, _, indices: (batch, indices)}
    loader = make_loader(RememberedGradients(), model=model, budget=1, **pairs)
    waiting = []
    for batch in loader:
        waiting.append(batch)
        if len(waiting) == 3:
            (inputs, targets), indices = waiting.pop(0)
            outputs = model(inputs)
            loader.observe(CRITERION(outputs, targets), outputs, indices=indices)
    gradients = loader.state_dict()["planner"]["gradients"]
    known = ~gradients.isnan().any(1)
    assert known.sum() == N - 2 * M
    torch.testing.assert_close(gradients[known], make_errors()[known])


def test_indices_of_no_example_are_refused():
    loader, model, inputs, targets, _ = make_first_batch()
    outputs = model(inputs)
    losses = CRITERION(outputs, targets)
    with pytest.raises(ValueError, match=r"one per example of indices, shape \(3,\); got \(16,\)"):
        loader.observe(losses, outputs, indices=torch.arange(3))
    loader.observe(losses, outputs, indices=torch.arange(N - M + 1, N + 1))
    with pytest.raises(ValueError, match=r"indices must be in \[0, 399\]; got 385 to 400"):
        loader.state_dict()


def test_observing_leaves_the_gradients_of_training_as_they_are():
    found = []
    for observes in (True, False):
        loader, model, inputs, targets, weights = make_first_batch()
        outputs = model(inputs)
        losses = CRITERION(outputs, targets)
        if observes:
            loader.observe(losses, outputs)
        crest.weighted_mean(losses, weights).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_selection_costs_no_pass():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model, budget=1)
    observing(loader, model, epochs=4)
    assert loader.history.overhead == 0
    assert loader.history.updates >= 3
    assert loader.history.seconds["select"] > 0


def test_batches_are_random_until_every_example_was_observed():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model, budget=1)
    with pytest.warns(UserWarning, match=r"not heard of \d+ of 400 examples after more"):
        observing(loader, model, epochs=40, observe_every=2)
    selected = [record["selected"] for record in loader.history.records]
    assert selected[0] is False
    assert True in selected
    first = selected.index(True)
    assert first >= 2  # half of the examples were not observed in the first pass
    assert not any(selected[:first])


@pytest.mark.parametrize(("batch_size", "steps"), [(M, N // M), (2, 64)])
def test_a_loop_that_observes_nothing_is_told_after_a_pass_or_some_steps(batch_size, steps):
    loader = make_loader(RememberedGradients(), budget=1, batch_size=batch_size)
    batches = itertools.chain(loader, loader)
    for _ in range(steps):
        next(batches)
    with pytest.raises(
        ValueError, match=r"nothing was observed so far\. Of .* no backward pass was seen"
    ):
        next(batches)


def test_a_loop_that_stops_to_observe_is_told_once():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model, budget=1)
    observing(loader, model, epochs=3)
    unobserved = itertools.chain(loader, loader, loader, loader)
    with pytest.warns(UserWarning, match=r"heard nothing for more than a pass\. Call") as told:
        list(unobserved)
    assert len(told) == 1


def test_a_resumed_loop_that_observes_nothing_is_told_and_a_preview_is_not():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model, budget=1)
    observing(loader, model, epochs=2)
    loader.preview(2 * len(loader))  # warnings are errors here
    resumed = make_loader(RememberedGradients(), model=model, budget=1)
    resumed.load_state_dict(loader.state_dict())
    with pytest.warns(
        UserWarning, match=r"heard nothing for more than a pass\. Of .* unseen|no back"
    ):
        list(itertools.chain(resumed, resumed, resumed))


def test_a_long_first_pass_is_planned_in_pieces_and_holds_every_example_once():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model, budget=1, batch_size=2)
    observing(loader, model, epochs=1)
    records = loader.history.records
    assert [record["length"] for record in records] == [64, 64, 64, 8]
    assert not any(record["selected"] for record in records)
    observing(loader, model, epochs=1)
    assert loader.history.records[4]["selected"]


def test_losses_may_come_from_one_output_for_each_example():
    inputs, targets = make_tensors()
    model = nn.Sequential(nn.Linear(inputs.shape[1], 1), nn.Flatten(0))
    criterion = nn.BCEWithLogitsLoss(reduction="none")
    data = TensorDataset(inputs, (targets > 0).float())
    loader = crest.CoresetLoader(
        DataLoader(data, M, shuffle=True),
        model,
        loss_fn=criterion,
        strategy=RememberedGradients(),
        budget=1,
    )
    for _ in range(2):
        for batch, labels, _ in loader:
            outputs = model(batch)
            loader.observe(criterion(outputs, labels), outputs)
    assert loader.history.records[-1]["selected"]


def test_an_error_of_the_backward_pass_is_not_taken_for_a_lost_graph():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, losses):
            return losses.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise torch.OutOfMemoryError("out of memory")

    loader, model, inputs, targets, _ = make_first_batch()
    outputs = model(inputs)
    with pytest.raises(torch.OutOfMemoryError):
        loader.observe(Broken.apply(CRITERION(outputs, targets)), outputs)


def test_accumulated_batches_come_in_whole_groups():
    model = make_model()
    loader = make_loader(RememberedGradients(), model=model, budget=1, accumulation_steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        for step, (inputs, targets, weights) in enumerate(loader):
            outputs = model(inputs)
            losses = CRITERION(outputs, targets)
            loader.observe(losses, outputs)
            crest.weighted_mean(losses, weights).backward()
            if step % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert any(record["selected"] for record in loader.history.records)


def test_a_resumed_run_continues_bit_for_bit():
    stops = (1, 12, 25, 26, 31, 40, 69)  # the first pass takes 25 batches, later ones 6
    assert_resumes(RememberedGradients(), stops=stops, batches=70, observes=True)


def test_losses_without_their_outputs_are_refused():
    loader, model, inputs, targets, _ = make_first_batch()
    outputs = model(inputs)
    losses = CRITERION(outputs, targets)
    message = r"needs the outputs that the losses were computed from.*; got "
    with pytest.raises(ValueError, match=message + "none"):
        loader.observe(losses)
    for wrong in (model(inputs), outputs.detach(), outputs[:3]):
        with pytest.raises(ValueError, match=message):
            loader.observe(losses, wrong)
    with pytest.raises(ValueError, match=message):
        loader.observe(losses.detach(), outputs)
    losses.sum().backward()
    with pytest.raises(ValueError, match=message):
        loader.observe(losses, outputs)


@pytest.mark.parametrize("r", [M - 1, N + 1])
def test_candidates_that_do_not_fit_are_refused(r):
    with pytest.raises(ValueError, match=rf"num_candidates must be in \[{M}, {N}\].*; got {r}"):
        RememberedGradients(num_candidates=r).start(make_task())


def test_the_last_value_of_an_example_counts():
    seen = LastSeen(4, "losses")
    assert seen.take_in() is False
    seen.tell(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    seen.tell(torch.tensor([1, 2]), torch.tensor([3.0, 4.0]))
    assert seen.take_in() is True
    assert seen.values[:3].tolist() == [1.0, 3.0, 4.0]
    assert math.isnan(float(seen.values[3]))


@pytest.mark.parametrize("taken_in", [True, False])
def test_values_of_another_shape_are_refused(taken_in):
    seen = LastSeen(4, "losses")
    seen.tell(torch.tensor([0, 1]), torch.ones(2, 3))
    if taken_in:
        seen.take_in()
    with pytest.raises(ValueError, match=r"observed losses must all have the shape \(3,\); got \("):
        seen.tell(torch.tensor([2]), torch.ones(1, 2))


def test_a_gradient_that_is_not_finite_is_refused_with_its_example():
    planner = RememberedGradients().start(make_task())
    planner.next_region(Clockless(), 0)
    errors = make_errors()
    errors[7, 2] = math.nan
    planner.remember(torch.arange(N), errors)
    with pytest.raises(ValueError, match="must be finite; got nan for example 7. Lower lr"):
        planner.next_region(Clockless(), 25)
