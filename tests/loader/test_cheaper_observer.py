"""Selecting with a cheaper view, a cheaper model or fewer bits."""

import copy
import re

import pytest
import torch
from torch import nn

import crest
from crest import Look
from crest.looking.observer import Observer
from crest.quadratic import gradient_and_hessian_diagonal, rademacher_probes
from toys import CRITERION, NUM_CLASSES, equal_parameters, make_loader, make_model, make_tensors

SELECTING = crest.Crest(switch_off=False, subset_size=64)


def planned(loader, batches=3):
    """Indices and weights of some batches, with steps that change no parameter."""
    found = []
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
        with torch.no_grad():
            next(loader._model.parameters()).add_(0)
        batch = loader.handed_out
        found.append((batch.indices, batch.weights))
    return found


def equal_plans(one, other):
    return all(
        torch.equal(a, b)
        for pair in zip(one, other, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def halve(batch):
    inputs, targets = batch
    return 0.5 * inputs, targets


def test_a_transform_changes_what_is_selected_on_and_not_what_is_trained_on():
    inputs, _ = make_tensors()
    plain = make_loader(SELECTING, model=make_model())
    cheap = make_loader(SELECTING, model=make_model(), look=Look(transform=halve))
    same = make_loader(SELECTING, model=make_model(), look=Look(transform=lambda batch: batch))
    assert equal_plans(planned(plain), planned(same))
    assert not equal_plans(planned(plain), planned(cheap))
    handed_out, _, _ = next(iter(cheap))
    assert torch.equal(handed_out, inputs[cheap.handed_out.indices])


def test_selection_follows_the_observer_model():
    model, other = make_model(0), make_model(1)
    by_other = make_loader(SELECTING, model=model, look=Look(model=other))
    assert equal_plans(planned(by_other), planned(make_loader(SELECTING, model=other)))
    assert not equal_plans(planned(by_other), planned(make_loader(SELECTING, model=model)))


def test_a_cheaper_pass_counts_for_its_share_of_the_operations():
    wide = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, NUM_CLASSES))
    proxy = nn.Linear(20, NUM_CLASSES)
    loader = make_loader(SELECTING, model=wide, look=Look(model=proxy), batch_size=16)
    next(iter(loader))
    share = 20 * NUM_CLASSES / (20 * 300 + 300 * NUM_CLASSES)
    first_pass = 64  # of the model itself, to count its operations
    expected = first_pass + 64 * share
    assert loader.history.passes["features"]["forward"] == pytest.approx(expected)


def test_the_pass_that_counts_operations_is_not_weighed_against_the_coresets():
    loader = make_loader(SELECTING, model=make_model(), look=Look(transform=halve))
    planned(loader, 2)
    first, second = (record["price"] for record in loader.history.records)
    assert first == second == pytest.approx(1 + 64 / 16 / 3)


def test_the_share_is_counted_once_also_after_resume():
    def make():
        return make_loader(SELECTING, model=make_model(), look=Look(model=make_model(1)), budget=1)

    whole, first, second = make(), make(), make()
    planned(whole, 4)
    planned(first, 2)
    second.load_state_dict(first.state_dict())
    planned(second, 2)
    assert second.history.passes == whole.history.passes


def test_autocast_keeps_the_head_precise_and_leaves_no_trace():
    batch = make_tensors(32)
    model = make_model(norm=True)
    exact = Observer(model, CRITERION).last_layer_gradients(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        observer = Observer(model, CRITERION, dtype=torch.bfloat16)
        seen = observer.last_layer_gradients(batch)
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.equal(seen.inputs, exact.inputs)  # fewer bits were used
    torch.testing.assert_close(seen.inputs, exact.inputs, rtol=0.02, atol=0.02)
    for part in (seen.losses, seen.errors, seen.inputs, seen.input_gradients):
        assert part.dtype == torch.float32
    probabilities = model[-1](seen.inputs).softmax(1)
    classes = torch.nn.functional.one_hot(batch[1], NUM_CLASSES)
    torch.testing.assert_close(seen.errors, (probabilities - classes).detach())
    assert torch.equal(observer.losses(batch), seen.losses)


@pytest.mark.parametrize("scope", ["trainable", "head"])
def test_autocast_reaches_both_derivatives(scope):
    batch = make_tensors(64)
    model = make_model(norm=True)
    found = []
    for dtype in (None, torch.bfloat16):
        observer = Observer(model, CRITERION, dtype=dtype)
        parameters = observer.parameters(scope, batch)
        probes = rademacher_probes(parameters, 1, torch.Generator().manual_seed(0))
        with observer.differentiable_losses(batch, scope) as losses:
            found.append(gradient_and_hessian_diagonal(losses.mean(), parameters, probes))
    assert not torch.is_autocast_enabled("cpu")
    for exact, seen in zip(*found, strict=True):
        assert seen.dtype == torch.float32
        assert not torch.equal(seen, exact)  # fewer bits were used
        assert (seen - exact).norm() < 0.1 * exact.norm()


def test_autocast_serves_a_model_in_double_precision():
    model = make_model().double()
    inputs, targets = make_tensors(32)
    observer = Observer(model, CRITERION, dtype=torch.bfloat16)
    assert observer.last_layer_gradients((inputs.double(), targets)).errors.dtype == torch.float64


def test_autocast_finds_the_head_of_a_body_in_fewer_bits():
    model = make_model()
    model[0].bfloat16()
    observer = Observer(model, CRITERION, dtype=torch.bfloat16)
    assert observer.last_layer_gradients(make_tensors(8)).errors.dtype == torch.float32
    assert observer.find_head(make_tensors(8)) is model[-1]


def test_the_chunk_bounds_a_pass():
    sizes = []
    model = make_model()
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    planned(make_loader(SELECTING, model=model, look=Look(chunk=24)), 1)
    assert sizes[-3:] == [22, 21, 21]  # 64 candidates


def test_losses_of_a_cheaper_observer_exclude_nobody():
    strategy = crest.Crest(
        switch_off=False, subset_size=64, exclusion_interval=1, loss_threshold=1e9
    )
    for observer_model, excludes in ((None, True), (make_model(1), False)):
        look = Look(model=observer_model)
        loader = make_loader(strategy, model=make_model(), look=look, budget=1)
        planned(loader, 5)
        active = loader.history.records[-1]["active"]
        assert (active < 400) == excludes


def test_a_quadratic_model_is_refused_beside_a_cheaper_observer():
    message = re.escape("error_threshold must be 0 and curvature 'none' with transform")
    for options in (
        {"look": Look(model=make_model(1))},
        {"look": Look(transform=halve)},
    ):
        with pytest.raises(ValueError, match=message):
            make_loader(crest.Crest.paper(subset_size=64), **options)


@pytest.mark.parametrize(
    "strategy", [crest.AdaCore(), crest.LossPruning(), crest.SelectiveBackprop()], ids=repr
)
def test_strategies_that_need_the_model_itself_refuse_a_cheaper_look(strategy):
    with pytest.raises(ValueError, match=f"left out with {type(strategy).__name__}, which looks"):
        make_loader(strategy, look=Look(transform=halve))


def test_an_empty_chunk_is_refused():
    with pytest.raises(
        ValueError, match=re.escape("chunk must be >= 1 and <= 2**31 or None; got 0.")
    ):
        make_loader(look=Look(chunk=0))


def test_batch_statistics_are_those_that_training_would_use():
    model = make_model(norm=True)
    inputs, targets = make_tensors(32)
    observer = Observer(model, CRITERION, batch_statistics=True)
    model.train()
    before = copy.deepcopy(model.state_dict())
    seen = observer.last_layer_gradients((inputs, targets))
    torch.testing.assert_close(observer.losses((inputs, targets)), seen.losses)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    torch.testing.assert_close(seen.losses, CRITERION(model(inputs), targets).detach())
    running = Observer(model, CRITERION).losses((inputs, targets))
    assert not torch.allclose(running, seen.losses, rtol=0.01)


def test_batch_statistics_leave_dropout_off_and_a_frozen_layer_frozen():
    norm, head = nn.BatchNorm1d(8), nn.Linear(8, NUM_CLASSES)
    model = nn.Sequential(nn.Linear(20, 8), norm, nn.Dropout(), head)
    batch = make_tensors(32)
    observer = Observer(model, CRITERION, batch_statistics=True)
    exact = Observer(model, CRITERION).losses(batch)
    of_batch = observer.losses(batch)
    assert torch.equal(of_batch, observer.losses(batch))
    assert not torch.equal(of_batch, exact)
    norm.eval()
    assert torch.equal(observer.losses(batch), exact)
    model.eval()  # for a test, say: nothing is known to be frozen
    assert torch.equal(observer.losses(batch), of_batch)


def test_selection_can_follow_batch_statistics():
    running = planned(make_loader(SELECTING, model=make_model(norm=True)))
    of_batch = make_loader(SELECTING, model=make_model(norm=True), look=Look(batch_statistics=True))
    assert not equal_plans(running, planned(of_batch))


def test_passes_are_of_equal_size():
    sizes = []
    model = make_model()
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    planned(make_loader(SELECTING, model=model, look=Look(chunk=63)), 1)
    assert sizes[-2:] == [32, 32]  # and not 63 and a single example


def test_batch_statistics_need_batch_normalization():
    message = "batch statistics need a model with batch normalization; got Sequential without."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_loader(SELECTING, model=make_model(), look=Look(batch_statistics=True))


def test_the_observer_model_is_left_alone():
    proxy, twin = make_model(1, norm=True), make_model(1, norm=True)
    planned(make_loader(SELECTING, look=Look(model=proxy)))
    assert equal_parameters(proxy, twin)
    assert all(parameter.grad is None for parameter in proxy.parameters())


def test_the_pass_that_finds_the_head_is_no_part_of_the_price():
    model = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, NUM_CLASSES))
    look = Look(transform=lambda batch: batch, dtype=torch.bfloat16)
    loader = make_loader(SELECTING, model=model, look=look)
    next(iter(loader))
    assert loader.history.passes["features"]["forward"] == pytest.approx(64 + 64, rel=0.01)
