"""A look leaves no trace in model or loss, and computes what training computes."""

import functools
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import crest
from crest.looking.observer import Observer
from looking.test_head_forms import BATCH, Net
from toys import CRITERION, make_loader, make_model, train


class Centers(nn.Module):
    """A loss that keeps something of every call, in all ways at once."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("late", None)
        self.count, self.mean = 0, 0.0
        self.plain = torch.zeros(3)
        self.array = np.zeros(3)
        self.recent, self.means = deque(maxlen=3), {0: torch.zeros(3)}
        self.generator = torch.Generator().manual_seed(0)
        self.draws, self.numpy_draws = random.Random(0), np.random.default_rng(0)

    def forward(self, outputs, targets):
        assert torch.is_tensor(outputs)
        self.calls += 1
        self.count += 1
        self.late = outputs.detach().mean() if self.late is None else self.late + 1
        self.mean = 0.9 * self.mean + 0.1 * float(outputs.detach().mean())
        self.plain.mul_(0.9).add_(outputs.detach().mean(0)[:3])
        self.array += 1
        self.recent.append(self.mean)
        self.means[0].add_(1)
        self.means[self.count] = torch.ones(1)
        self.new = torch.rand(1, generator=self.generator)
        self.draws.random()
        self.numpy_draws.random()
        return CRITERION(outputs, targets)

    def photograph(self):
        return repr(
            (
                {**self.state_dict(), "late": self.late},
                (self.count, self.mean, self.plain, self.array, list(self.recent), self.means),
                (hasattr(self, "new"), self.generator.get_state().sum(), self.draws.getstate()),
                self.numpy_draws.bit_generator.state,
            )
        )


class CallableLoss:
    """No module, but it has one; and a method that does."""

    def __init__(self, centers):
        self.centers, self.calls, self.plain = centers, 0, torch.zeros(())

    def __call__(self, outputs, targets):
        self.calls += 1
        self.plain += 1
        return self.centers(outputs, targets)

    def method(self, outputs, targets):
        return self(outputs, targets)


class Slotted:
    __slots__ = ("centers",)

    def __init__(self, centers):
        self.centers = centers

    def loss(self, outputs, targets):
        return CRITERION(outputs, targets)


def scaled(outputs, targets, *, loss, scale):
    return scale * loss(outputs, targets)


def in_closure(centers):
    nested = [centers]
    return lambda outputs, targets: nested[0](outputs, targets)


GLOBAL = Centers()


def of_global(outputs, targets):
    def inner():
        return GLOBAL(outputs, targets)

    return inner()


def of_model(centers):
    def loss_fn(model, batch):
        return centers(model(batch[0]), batch[1])

    return loss_fn


class Nested(nn.Module):
    def __init__(self, centers):
        super().__init__()
        self.parts = nn.ModuleList([nn.Sequential(), centers])
        self.hidden = {"again": centers}

    def forward(self, outputs, targets):
        return self.parts[1](outputs, targets)


LOSSES = {
    "module": lambda centers: centers,
    "nested module": Nested,
    "partial": lambda centers: functools.partial(scaled, loss=centers, scale=2.0),
    "bound method": lambda centers: centers.forward,
    "callable": CallableLoss,
    "method of an object": lambda centers: CallableLoss(centers).method,
    "method of an object with slots": lambda centers: Slotted(centers).loss,
    "closure": in_closure,
    "global": lambda centers: of_global,
    "of the model": of_model,
    "partial of a partial": lambda centers: functools.partial(
        functools.partial(scaled, loss=functools.partial(centers)), scale=1.0
    ),
}


def look(observer, batch):
    observer.losses(batch)
    observer.last_layer_gradients(batch)
    for scope in ("trainable", "head"):
        with observer.differentiable_losses(batch, scope) as losses:
            torch.autograd.grad(losses.sum(), observer.parameters(scope, batch))


@pytest.mark.parametrize("kind", LOSSES.values(), ids=LOSSES.keys())
def test_a_loss_is_left_as_it_was(kind):
    centers = GLOBAL if kind is LOSSES["global"] else Centers()
    loss_fn = kind(centers)
    for _ in range(2):
        centers(*[torch.randn(7, 3), BATCH[1]])
        before = centers.photograph()
        look(Observer(Net(), loss_fn), BATCH)
        assert centers.photograph() == before
    assert centers.training


def test_modules_of_a_loss_are_in_eval_mode_while_it_is_looked_at():
    centers, modes = Centers(), []
    centers.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    Observer(Net(), in_closure(centers)).losses(BATCH)
    assert modes == [False]


def test_what_a_function_reports_to_a_list_stays():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(len(outputs))
        return CRITERION(outputs, targets)

    Observer(Net(), loss_fn).losses(BATCH)
    assert calls == [7]


def test_tensors_that_a_loss_function_changes_in_place_are_given_back():
    running = torch.zeros(3)

    def loss_fn(outputs, targets):
        running.mul_(0.9).add_(outputs.detach().mean(0))
        return CRITERION(outputs - running, targets)

    look(Observer(Net(), loss_fn), BATCH)
    assert torch.equal(running, torch.zeros(3))


def test_a_model_is_left_as_it_was():
    class Keeping(Net):
        def __init__(self):
            super().__init__()
            self.calls, self.cache, self.teacher = 0, [], [make_model(norm=True)]

        def forward(self, inputs):
            self.calls += 1
            self.cache.append(inputs)
            self.last = inputs
            self.teacher[0](torch.randn(4, 20))  # no part of the model, as lists hide it
            return super().forward(inputs)

    model = Keeping()
    statistics = model.teacher[0][1].running_mean
    look(Observer(model, CRITERION), BATCH)
    assert (model.calls, model.cache, hasattr(model, "last")) == (0, [], False)
    assert torch.equal(statistics, torch.zeros(32))
    assert model.teacher[0].training


def test_a_weight_that_hooks_make_keeps_its_graph():
    model = Net()
    prune.l1_unstructured(model.fc, "weight", 0.3)
    model(BATCH[0])
    weight = model.fc.weight
    look(Observer(model, CRITERION), BATCH)
    assert model.fc.weight is weight
    assert weight.requires_grad


class Momentum(nn.Module):
    """A second encoder that follows the first with every pass."""

    def __init__(self, *, guarded):
        super().__init__()
        self.query, self.key, self.guarded = Net(), Net().requires_grad_(False), guarded

    def forward(self, inputs):
        if self.training or not self.guarded:
            with torch.no_grad():
                for mine, other in zip(self.key.parameters(), self.query.parameters(), strict=True):
                    mine.mul_(0.9).add_(0.1 * other)
        return self.query(inputs) + self.key(inputs)


def test_parameters_that_a_pass_in_eval_mode_changes_are_refused():
    model = Momentum(guarded=True)
    before = [parameter.clone() for parameter in model.parameters()]
    assert Observer(model, CRITERION).find_head(BATCH) is model.query.fc
    look(Observer(model, CRITERION), BATCH)
    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ValueError, match=r"changed key\.\w+\.\w+.* in place.*if self\.training"):
        Observer(Momentum(guarded=False), CRITERION).losses(BATCH)


class Cached(Net):
    """Fills a buffer at the first call, or writes over it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positions", None, persistent=False)

    def forward(self, inputs):
        if self.positions is None:
            self.positions = torch.linspace(0, 1, 16)
        return self.fc(torch.relu(self.body(inputs)) + self.positions)


@pytest.mark.parametrize("plain_attribute", [False, True])
def test_inference_tensors_may_be_kept_by_model_and_loss(plain_attribute):
    model, centers = Cached(), Centers()
    with torch.inference_mode():
        model(BATCH[0])
        centers.late = torch.ones(())
        if plain_attribute:
            model.seen = torch.ones(3)
    assert model.positions.is_inference()
    look(Observer(model, centers), BATCH)
    assert torch.equal(model.positions, torch.linspace(0, 1, 16))
    assert centers.late.is_inference()


@pytest.mark.parametrize(
    "strategy", [crest.GreedyMiniBatch(), crest.Crest.paper(), crest.LossPruning()], ids=repr
)
def test_a_run_goes_on_after_validation_in_inference_mode(strategy):
    model = make_model(norm=True)
    loader = make_loader(strategy, model=model, budget=0.2)
    for _ in range(2):
        train(loader, model)
        with torch.inference_mode():
            model(torch.randn(4, 20))
            model[1].running_mean = model[1].running_mean * 1.0
        model[1].running_mean = model[1].running_mean.clone()


def test_a_look_works_within_inference_mode():
    model = Net()
    expected = Observer(model, CRITERION).last_layer_gradients(BATCH)
    with torch.inference_mode():
        seen = Observer(model, CRITERION).last_layer_gradients(BATCH)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(seen.weight_gradients(), expected.weight_gradients())


class Encoder(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.fc, self.kind = nn.Embedding(20, 8), nn.Linear(8, 4), kind
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens):
        hidden, padding = self.embedding(tokens), tokens == 0
        if self.kind == "encoder":
            hidden = self.layers(hidden, src_key_padding_mask=padding)
        elif self.kind == "layer":
            hidden = self.layers.layers[0](hidden, src_key_padding_mask=padding)
        else:
            hidden, _ = self.attention(
                hidden, hidden, hidden, key_padding_mask=padding, need_weights=False
            )
        return self.fc(hidden.mean(1))


@pytest.mark.parametrize("kind", ["encoder", "layer", "attention"])
def test_attention_gives_what_it_gives_in_training(kind):
    tokens = torch.randint(1, 20, (16, 12))
    for i in range(16):
        tokens[i, 3 + i % 6 :] = 0
    model, batch = Encoder(kind), (tokens, torch.arange(16) % 4)
    observer = Observer(model, CRITERION)
    true = CRITERION(model(tokens), batch[1]).detach()
    with observer.differentiable_losses(batch) as losses:
        torch.testing.assert_close(losses.detach(), true)
    torch.testing.assert_close(observer.losses(batch), true)
    torch.testing.assert_close(observer.last_layer_gradients(batch).losses, true)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_path_of_attention_is_given_back_as_it_was():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        Observer(Net(), CRITERION).losses(BATCH)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_functional_dropout_is_off_while_the_head_is_found():
    class Dropping(Net):
        def forward(self, inputs):
            return functional.dropout(super().forward(inputs), 0.5, self.training)

    model = Dropping()
    state = torch.get_rng_state()
    seen = Observer(model, CRITERION).last_layer_gradients(BATCH)
    assert torch.equal(torch.get_rng_state(), state)
    true = Observer(Net(), CRITERION).last_layer_gradients(BATCH)
    assert torch.equal(seen.weight_gradients(), true.weight_gradients())


def test_what_is_changed_through_data_is_given_back():
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.plain = torch.zeros(3)

        def forward(self, outputs, targets):
            self.mean.data.mul_(0.9).add_(1)
            self.plain.data += 1
            self.mean.numpy()[:] += 1
            return CRITERION(outputs - self.mean, targets)

    loss_fn, values = Averaging(), np.zeros(3)

    def of_array(outputs, targets):
        values[:] += 1
        return CRITERION(outputs, targets)

    look(Observer(Net(), loss_fn), BATCH)
    look(Observer(Net(), of_array), BATCH)
    assert loss_fn.mean.tolist() == loss_fn.plain.tolist() == values.tolist() == [0, 0, 0]


def test_generators_that_a_loss_function_draws_from_go_on_as_if_nothing_was():
    generator = torch.Generator().manual_seed(0)

    def loss_fn(outputs, targets):
        noise = torch.randn(outputs.shape, generator=generator)
        return CRITERION(outputs + noise, targets)

    before = generator.get_state()
    look(Observer(Net(), loss_fn), BATCH)
    assert torch.equal(generator.get_state(), before)
