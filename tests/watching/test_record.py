"""The record of every example is what an independent loop would write down."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.watching.audit import estimate_label_noise, score_labels
from crest.watching.predictions import read_errors
from crest.watching.record import ExampleRecord
from toys import CRITERION, make_loader, make_model, make_tensors


def run(loader, model, *, epochs=1, tells=False):
    """The loop of the README, writing down by itself what each example showed."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    rows = {}
    for _ in range(epochs):
        for inputs, targets, weights in loader:
            outputs = model(inputs)
            losses = CRITERION(outputs, targets)
            if tells:
                loader.observe(losses, outputs)
            p = outputs.detach().softmax(1)
            for k, index in enumerate(loader.handed_out.indices.tolist()):
                others = p[k].clone()
                others[targets[k]] = -1
                rows.setdefault(index, []).append(
                    (
                        losses[k].item(),
                        float(p[k, targets[k]] - others.max()),
                        int(p[k].argmax()),
                        int(targets[k]),
                    )
                )
            optimizer.zero_grad()
            crest.weighted_mean(losses, weights).backward()
            optimizer.step()
    return rows


def forgotten(seen):
    right = [predicted == given for _, _, predicted, given in seen]
    return sum(a and not b for a, b in itertools.pairwise(right))


@pytest.mark.parametrize("tells", [False, True], ids=["seen", "told"])
def test_each_row_is_what_the_loop_computed(tells):
    model = make_model()
    loader = make_loader(crest.Random(), model=model, budget=1, record=True)
    truth = run(loader, model, epochs=12, tells=tells)
    table = columns_of(loader.examples())
    assert sum(forgotten(seen) for seen in truth.values()) > 20  # there is something to count
    record = loader._ledger.record
    smooth = record.predictions(torch.arange(len(truth)), record.num_classes)
    chances = score_labels(smooth, estimate_label_noise(smooth))
    for index, seen in truth.items():
        losses, margins = [one[0] for one in seen], [one[1] for one in seen]
        assert table["num_observations"][index] == len(seen) == table["times_trained"][index]
        assert table["last_loss"][index] == pytest.approx(losses[-1], abs=1e-5)
        smoothed = losses[0]
        for loss in losses[1:]:
            smoothed = 0.5 * smoothed + 0.5 * loss
        assert table["smoothed_loss"][index] == pytest.approx(smoothed, abs=1e-5)
        aum = sum(margins) / len(margins)
        assert table["aum"][index] == pytest.approx(aum, abs=1e-5)
        score = (float(chances[index]) + (1 + aum) / 2) / 2
        assert table["label_score"][index] == pytest.approx(score, abs=1e-5)
        assert table["mistakenness"][index] == pytest.approx(1 - score, abs=1e-5)
        assert table["predicted_label"][index] == seen[-1][2]
        assert table["given_label"][index] == seen[-1][3]
        assert table["forgotten"][index] == forgotten(seen)
        steps = [step for step, _ in loader._ledger.record.history(index)]
        kept = [loss for _, loss in loader._ledger.record.history(index)]
        assert kept == pytest.approx(losses[-8:], rel=1e-3, abs=1e-4)
        assert steps == sorted(steps)


def columns_of(table):
    return {name: table[name] for name in table}


def test_recording_changes_no_parameter():
    trained = []
    for record in (False, True):
        model = make_model()
        loader = make_loader(crest.Random(), model=model, budget=0.5, record=record)
        run(loader, model, epochs=2)
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*trained)


def test_a_corrected_label_begins_a_new_account():
    record = ExampleRecord(2)
    indices, loss = torch.tensor([1]), torch.tensor([1.0])
    for given, p in ((0, [0.9, 0.1]), (0, [0.2, 0.8]), (1, [0.3, 0.7])):
        errors = torch.tensor([p])
        errors[0, given] -= 1
        record.tell(1, indices, loss, errors)
    known = record.knowledge()
    assert known["forgotten"].tolist() == [0, 0]
    assert float(known["aum"][1]) == pytest.approx(0.4)
    assert known["given_label"].tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("criterion", "outputs", "targets"),
    [
        (lambda y, t: ((y - t) ** 2).mean(1), 3, torch.randn(40, 3)),
        (
            lambda y, t: nn.functional.binary_cross_entropy_with_logits(
                y, t, reduction="none"
            ).mean(1),
            3,
            torch.randint(2, (40, 3)).float(),
        ),
    ],
    ids=["regression", "several labels"],
)
def test_losses_without_one_class_each_are_recorded_without_scores(criterion, outputs, targets):
    model = nn.Linear(4, outputs)
    loader = crest.CoresetLoader(
        DataLoader(TensorDataset(torch.randn(40, 4), targets), 8),
        model,
        loss_fn=criterion,
        strategy=crest.Random(),
        budget=1,
        record=True,
    )
    for inputs, targets_, weights in loader:
        crest.weighted_mean(criterion(model(inputs), targets_), weights).backward()
    table = loader.examples()
    assert all(table["observed"])
    assert all(loss > 0 for loss in table["last_loss"])
    assert all(math.isnan(score) for score in table["label_score"])
    assert not any(table["is_label_issue"])
    assert set(table["predicted_label"]) == {-1}


def test_a_loss_that_is_not_finite_is_shown_and_spoils_no_average():
    record = ExampleRecord(1)
    for loss in (1.0, math.inf, 2.0):
        record.tell(0, torch.tensor([0]), torch.tensor([loss]), None)
    known = record.knowledge()
    assert float(known["smoothed_loss"]) == 2.0
    assert int(known["num_observations"]) == 3


def test_a_resumed_record_goes_on():
    def half(loader, model, state=None):
        if state is not None:
            loader.load_state_dict(state["loader"])
            model.load_state_dict(state["model"])
        run(loader, model)
        return {
            "loader": loader.state_dict(),
            "model": {name: value.clone() for name, value in model.state_dict().items()},
        }

    def fresh():
        model = make_model()
        return make_loader(crest.Random(), model=model, budget=1, record=True), model

    loader, model = fresh()
    state = half(loader, model)
    run(loader, model)
    again, other = fresh()
    half(again, other, state)
    for name, column in columns_of(loader.examples()).items():
        assert list(map(repr, again.examples()[name])) == list(map(repr, column)), name


def test_a_state_without_a_record_is_taken_up_by_a_loader_that_records():
    model = make_model()
    loader = make_loader(crest.Random(), model=model, budget=1)
    run(loader, model)
    recording = make_loader(crest.Random(), model=model, budget=1, record=True)
    recording.load_state_dict(loader.state_dict())
    assert not any(recording.examples()["observed"])
    assert sum(recording.examples()["times_trained"]) == 400
    loader.load_state_dict(recording.state_dict())


def test_errors_of_another_form_tell_no_classes():
    assert read_errors(torch.randn(4, 3, 2)) is None
    assert read_errors(torch.randn(4, 1)) is None
    inputs, targets = make_tensors(8)
    logits = inputs[:, :5].requires_grad_()
    (errors,) = torch.autograd.grad(CRITERION(logits, targets).sum(), logits)
    assert read_errors(errors)["given_label"].tolist() == targets.tolist()
    assert float(read_errors(errors)["off"].max()) < 1e-5
