"""Which form a loss has, and what is said where a look cannot use it."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

import crest
from crest.looking.losses import PerExampleLoss
from crest.looking.observer import Observer
from looking.test_head_forms import BATCH, Net
from toys import CRITERION, make_loader, make_model, train

TRUE = CRITERION(Net()(BATCH[0]), BATCH[1])


def undecorated(function):
    """A decorator without functools.wraps."""

    def wrapper(*arguments, **options):
        return function(*arguments, **options)

    return wrapper


def of_model(model, batch):
    return CRITERION(model(batch[0]), batch[1])


def of_net(net, batch):
    return CRITERION(net(batch[0]), batch[1])


def of_unusual_names(classifier, examples):
    return CRITERION(classifier(examples[0]), examples[1])


def of_outputs(output, target):
    return CRITERION(output, target)


def of_more(model, batch, scale=1.0, *, shift=0.0):
    return scale * of_model(model, batch) + shift


class ModelLoss(nn.Module):
    def forward(self, network, batch):
        return CRITERION(network(batch[0]), batch[1])


class CallableLoss:
    def __call__(self, model, batch):
        return CRITERION(model(batch[0]), batch[1])

    def training_step(self, module, batch):
        return CRITERION(module(batch[0]), batch[1])


FORMS = {
    "model": of_model,
    "net": of_net,
    "unusual names": of_unusual_names,
    "outputs": of_outputs,
    "decorated, model": undecorated(of_model),
    "decorated, outputs": undecorated(of_outputs),
    "wrapped": functools.wraps(of_model)(undecorated(of_model)),
    "partial": functools.partial(of_more, scale=1.0),
    "module": ModelLoss(),
    "callable": CallableLoss(),
    "method": CallableLoss().training_step,
    "lambda": lambda m, b: CRITERION(m(b[0]), b[1]),
    "lambda of outputs": lambda a, b: CRITERION(a, b),
    "arguments": lambda *arguments: CRITERION(*arguments),
    "module of torch": CRITERION,
    "builtin": functools.partial(functional.cross_entropy, reduction="none"),
}


@pytest.mark.parametrize("loss_fn", FORMS.values(), ids=FORMS.keys())
def test_the_form_of_a_loss_is_told_by_its_arguments_or_by_trying(loss_fn):
    observer = Observer(Net(), loss_fn)
    for _ in range(2):
        assert torch.equal(observer.losses(BATCH), TRUE.detach())
    seen = Observer(Net(), loss_fn).last_layer_gradients(BATCH)
    assert torch.equal(seen.losses, TRUE.detach())


def test_a_loss_of_unusual_names_serves_batches_that_are_no_pairs():
    def loss_fn(classifier, examples):
        return CRITERION(classifier(examples["x"]), examples["y"])

    losses = PerExampleLoss(Net(), loss_fn)({"x": BATCH[0], "y": BATCH[1]})
    assert torch.equal(losses, TRUE)


def test_the_form_is_tried_once():
    calls = []

    def loss_fn(classifier, examples):
        calls.append(type(classifier))
        return CRITERION(classifier(examples[0]), examples[1])

    loss = PerExampleLoss(model := Net(), loss_fn)
    loss(BATCH)
    loss(BATCH)
    assert calls == [torch.Tensor, type(model), type(model)]


def of_three(model, inputs, targets):
    return CRITERION(model(inputs), targets)


def failing(outputs, targets):
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("loss_fn", "kind"),
    [(of_three, TypeError), (failing, KeyError), (lambda a, b: a.no_such(b), AttributeError)],
    ids=["three arguments", "a fault of its own", "neither form"],
)
def test_what_a_loss_raises_is_passed_on_with_the_rule(loss_fn, kind):
    with pytest.raises(kind) as caught:
        Observer(Net(), loss_fn).losses(BATCH)
    (note,) = caught.value.__notes__
    assert "eval mode" in note
    assert "first argument, model" in note


class Auxiliary(Net):
    """More outputs in training than in eval mode."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return self.kind(outputs) if self.training else outputs


@pytest.mark.parametrize(
    ("kind", "loss_fn"),
    [
        (lambda outputs: (outputs, outputs), lambda out, y: CRITERION(out[0], y)),
        (lambda outputs: {"out": outputs}, lambda out, y: CRITERION(out["out"], y)),
    ],
    ids=["tuple", "dict"],
)
def test_a_model_that_returns_less_in_eval_mode_is_told_of(kind, loss_fn):
    model = Auxiliary(kind)
    loss_fn(model(BATCH[0]), BATCH[1])  # as in training
    for look in (Observer(model, loss_fn).losses, Observer(model, loss_fn).last_layer_gradients):
        with pytest.raises(Exception) as caught:  # the user's own, of any kind
            look(BATCH)
        assert any("in eval mode" in note for note in caught.value.__notes__)


def bags(sizes=(3, 7, 1, 5, 3, 4, 6)):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(size, 10, generator=generator) for size in sizes)


class Bag(Net):
    def forward(self, images):
        return super().forward(torch.stack([image.mean(0) for image in images]))


def of_bag(model, batch):
    targets = batch["labels"] if isinstance(batch, dict) else batch[1]
    images = batch["images"] if isinstance(batch, dict) else batch[0]
    if not isinstance(targets, torch.Tensor):
        targets = torch.as_tensor([int(target) for target in targets])
    return CRITERION(model(images), targets)


@pytest.mark.parametrize(
    "batch",
    [
        (bags(), tuple(BATCH[1])),
        [list(bags()), BATCH[1].tolist()],
        (bags(), BATCH[1]),
        {"images": bags(), "labels": tuple(BATCH[1])},
        {"images": [image.numpy() for image in bags()], "labels": list(BATCH[1])},
    ],
    ids=["tuples", "lists", "tuple and tensor", "dict of tuples", "dict of arrays"],
)
def test_batches_of_examples_of_different_size_are_no_reason_to_refuse(batch):
    def loss_fn(model, batch):
        if isinstance(batch, dict):
            batch = {**batch, "images": [torch.as_tensor(image) for image in batch["images"]]}
        return of_bag(model, batch)

    seen = Observer(Bag(), loss_fn).last_layer_gradients(batch)
    assert len(seen.losses) == 7


def test_a_batch_may_be_a_list_of_examples():
    batch = [
        {"image": image, "label": label} for image, label in zip(bags(), BATCH[1], strict=True)
    ]

    def loss_fn(model, batch):
        return of_bag(model, ([one["image"] for one in batch], [one["label"] for one in batch]))

    assert Observer(Bag(), loss_fn).losses(batch).shape == (7,)


def test_losses_that_are_not_one_per_example_are_refused_for_such_batches_too():
    def loss_fn(model, batch):
        return of_bag(model, batch)[:4]

    sizes = (3, 7, 1, 5, 3, 2, 6)
    with pytest.raises(ValueError, match="one loss per example"):
        Observer(Bag(), loss_fn).losses((bags(sizes), tuple(BATCH[1])))


def test_a_run_may_name_the_model_as_it_likes():
    for loss_fn in (of_net, of_unusual_names, undecorated(of_model)):
        loader = make_loader(
            crest.GreedyMiniBatch(), model=make_model(), loss_fn=loss_fn, budget=0.1
        )
        train(loader, loader._model)


class Probabilities(Net):
    """Tells probabilities in eval mode, logits in training, as detectors do."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs if self.training else outputs.softmax(1)


class SmoothInTraining(nn.Module):
    def forward(self, outputs, targets):
        return functional.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=0.3 if self.training else 0.0
        )


@pytest.mark.parametrize(
    ("model", "loss_fn"),
    [(Probabilities(), CRITERION), (Net(), SmoothInTraining())],
    ids=["model", "loss"],
)
def test_losses_that_differ_between_eval_mode_and_training_are_told_of_once(model, loss_fn):
    observer = Observer(model, loss_fn)
    with pytest.warns(UserWarning, match=r"eval mode.* losses differ by .* %"):
        observer.last_layer_gradients(BATCH)
    for _ in range(12):
        observer.last_layer_gradients(BATCH)


class Stochastic(Net):
    """Dropout of its own, statistics of its own, and a generator."""

    def __init__(self):
        super().__init__()
        self.norm = type("OwnNorm", (nn.BatchNorm1d,), {})(16)
        self.recurrent = nn.LSTM(16, 16, dropout=0.5, num_layers=2, batch_first=True)

    def forward(self, inputs):
        hidden = self.norm(torch.relu(self.body(inputs)))
        hidden = functional.dropout(hidden, 0.3, self.training)
        if self.training and torch.rand(()) < 0.5:
            hidden = hidden + 1  # stochastic depth
        return self.fc(hidden + self.recurrent(hidden[:, None])[0][:, 0])


def test_dropout_and_normalization_are_no_such_difference():
    model = Stochastic()
    for batch_statistics in (False, True):
        observer = Observer(model, CRITERION, batch_statistics=batch_statistics)
        observer.last_layer_gradients(BATCH)
