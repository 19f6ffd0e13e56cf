"""Losses and last-layer gradients, and that looking leaves no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from crest.looking.gradients import LastLayerGradients
from crest.looking.observer import Observer
from toys import CRITERION, make_model, make_tensors


class Tagger(nn.Module):
    """Token model: embeddings, a layer, and a head at each position."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embedding(tokens))).cumsum(1))


def language_loss(model, batch):
    tokens, targets = batch
    logits = model(tokens)
    return functional.cross_entropy(
        logits.transpose(1, 2), targets, reduction="none", ignore_index=-100
    ).sum(1) / (targets != -100).sum(1)


def classification(loss_fn):
    inputs, targets = make_tensors(12)
    return make_model(), loss_fn, (inputs, targets)


def regression(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))

    def loss_fn(output, target):
        return functional.mse_loss(output, target, reduction="none").mean(1)

    return model, loss_fn, (torch.randn(7, 4), torch.randn(7, outputs))


def without_bias():
    model = classification(CRITERION)[0]
    head = model[-1]
    model[-1] = nn.Linear(head.in_features, head.out_features, bias=False)
    return model, *classification(CRITERION)[1:]


def with_frozen_bias():
    model, *others = classification(CRITERION)
    model[-1].bias.requires_grad_(False)
    return model, *others


def binary():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def loss_fn(output, target):
        losses = functional.binary_cross_entropy_with_logits(output, target, reduction="none")
        return losses.sum(1)

    return model, loss_fn, (torch.randn(7, 4), torch.rand(7, 3).round())


def language():
    torch.manual_seed(0)
    tokens = torch.randint(11, (5, 6))
    targets = torch.randint(11, (5, 6))
    targets[:, 4:] = -100
    targets[2, 1] = -100
    return Tagger(), language_loss, (tokens, targets)


def pixels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 1))

    def loss_fn(output, target):
        return functional.cross_entropy(output, target, reduction="none").mean((1, 2))

    return model, loss_fn, (torch.randn(4, 2, 6, 7), torch.randint(3, (4, 4, 5)))


TASKS = {
    "cross-entropy": lambda: classification(CRITERION),
    "a head without bias": without_bias,
    "a frozen bias": with_frozen_bias,
    "label smoothing": lambda: classification(
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    ),
    "mse": lambda: regression(1),
    "several outputs": lambda: regression(3),
    "bce": binary,
    "language modelling with ignored tokens": language,
    "segmentation by a convolution": pixels,
}


def last(model):
    """A convolution must be named; linear layers are found."""
    return model[-1] if isinstance(model, nn.Sequential) and len(model) == 3 else None


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_last_layer_gradients_equal_autograd_one_example_at_a_time(task):
    model, loss_fn, (inputs, targets) = task()
    observer = Observer(model, loss_fn, head=last(model))
    seen = observer.last_layer_gradients((inputs, targets))
    head = observer.find_head((inputs, targets))
    model.eval()
    for i in range(len(inputs)):
        batch = (inputs[i : i + 1], targets[i : i + 1])
        if loss_fn is language_loss:
            loss = loss_fn(model, batch).sum()
        else:
            loss = loss_fn(model(batch[0]), batch[1]).sum()
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        parts = torch.autograd.grad(loss, trained)
        expected = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1).flatten()
        assert torch.allclose(seen.weight_gradients()[i], expected, atol=1e-6)
        assert torch.allclose(seen.losses[i], loss, atol=1e-6)
    # dL/dh = e W, for any linear head
    assert torch.allclose(seen.input_gradients, seen.errors @ head.weight.flatten(1), atol=1e-6)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_sums_and_norms_are_those_of_the_formed_gradients(task):
    model, loss_fn, batch = task()
    seen = Observer(model, loss_fn, head=last(model)).last_layer_gradients(batch)
    formed = seen.weight_gradients()
    factors = torch.linspace(-1, 1, len(formed))
    assert torch.allclose(seen.weighted_sum(factors).flatten(), factors @ formed, atol=1e-5)
    assert torch.allclose(seen.squared_norms(), formed.square().sum(1), rtol=1e-4, atol=1e-6)


def test_last_layer_gradients_equal_vmap_of_grad():
    model, _, (inputs, targets) = classification(CRITERION)
    seen = Observer(model, CRITERION).last_layer_gradients((inputs, targets))
    parameters = dict(model.named_parameters())

    def loss_of(parameters, x, y):
        output = torch.func.functional_call(model, parameters, (x[None],))
        return functional.cross_entropy(output, y[None])

    gradients = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0))(parameters, inputs, targets)
    expected = torch.cat([gradients["4.weight"], gradients["4.bias"][:, :, None]], dim=2)
    assert torch.allclose(seen.weight_gradients(), expected.flatten(1), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_of_a_head_of_several_modules_is_found(bias):
    inputs, targets = make_tensors(8)
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 5, bias=bias))
    head.bias = True  # a flag of its own
    observer = Observer(nn.Sequential(nn.Linear(20, 6), head), CRITERION, head=head)
    assert observer.last_layer_gradients((inputs, targets)).bias is bias


def test_gradients_of_a_head_that_is_frozen_as_a_whole_are_those_of_a_trained_one():
    model, loss_fn, batch = classification(CRITERION)
    trained = Observer(model, loss_fn).last_layer_gradients(batch).weight_gradients()
    model[-1].requires_grad_(False)
    frozen = Observer(model, loss_fn).last_layer_gradients(batch).weight_gradients()
    assert torch.equal(frozen, trained)


def test_errors_of_cross_entropy_are_p_minus_y():
    model, _, (inputs, targets) = classification(CRITERION)
    seen = Observer(model, CRITERION).last_layer_gradients((inputs, targets))
    expected = model(inputs).softmax(1) - functional.one_hot(targets, 5)
    assert torch.allclose(seen.errors, expected, atol=1e-6)


def test_batches_of_different_length_join_with_zero_gradient():
    model, loss_fn, (tokens, targets) = language()
    observer = Observer(model, loss_fn)
    parts = [
        observer.last_layer_gradients((tokens[:3], targets[:3])),
        observer.last_layer_gradients((tokens[3:, :5], targets[3:, :5])),
    ]
    whole = observer.last_layer_gradients((tokens, targets))
    joined = LastLayerGradients.concatenate(parts)
    assert torch.allclose(joined.weight_gradients(), whole.weight_gradients(), atol=1e-6)


class Noisy(nn.Module):
    """Everything a pass could disturb: norm, dropout, a frozen part, a counter in a buffer."""

    def __init__(self):
        super().__init__()
        self.body = make_model(dropout=0.5, norm=True)
        self.body[1].eval()  # a part that the user keeps in eval mode
        self.body[0].weight.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        self.last = inputs.mean()  # replaces the buffer
        random.random()
        np.random.rand()
        torch.rand(1)
        return self.body(inputs)


def photograph(model):
    return {
        "parameters": [p.clone() for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        ],
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def assert_equal_photographs(before, after):
    for name, value in before.items():
        other = after[name]
        if name == "buffers":
            assert value.keys() == other.keys()
            value, other = list(value.values()), list(other.values())
        if isinstance(value, list):
            for a, b in zip(value, other, strict=True):
                same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                assert same, name
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        elif isinstance(value, np.ndarray):
            assert (value == other).all(), name
        else:
            assert value == other, name


def look(observer, batch, pass_):
    if pass_ == "losses":
        observer.losses(batch)
    elif pass_ == "last_layer_gradients":
        observer.last_layer_gradients(batch)
    else:
        scope = "head" if pass_ == "head" else "trainable"
        parameters = observer.parameters(scope, batch)
        with observer.differentiable_losses(batch, scope) as losses:
            torch.autograd.grad(losses.sum(), parameters, create_graph=True)


@pytest.mark.parametrize("grad_mode", [True, False], ids="grad {}".format)
@pytest.mark.parametrize(
    "pass_", ["losses", "last_layer_gradients", "differentiable_losses", "head"]
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_pass_leaves_no_trace(pass_, dtype, grad_mode):
    model = Noisy()
    inputs, targets = make_tensors(32)
    CRITERION(model(inputs), targets).mean().backward()
    before_any = photograph(model)
    with torch.set_grad_enabled(grad_mode), torch.autocast("cpu", dtype=torch.bfloat16):
        before = photograph(model)
        look(Observer(model, CRITERION, dtype=dtype), (inputs, targets), pass_)
        assert_equal_photographs(before, photograph(model))
    assert_equal_photographs(before_any, photograph(model))


def test_a_pass_that_fails_leaves_no_trace_either():
    model = Noisy()
    before = photograph(model)
    with pytest.raises(ValueError, match="scalar"):
        Observer(model, nn.CrossEntropyLoss()).last_layer_gradients(make_tensors(8))
    assert_equal_photographs(before, photograph(model))


def test_losses_are_those_of_eval_mode():
    model, (inputs, targets) = make_model(dropout=0.5, norm=True), make_tensors(32)
    expected = CRITERION(model.eval()(inputs), targets)
    model.train()
    assert torch.equal(Observer(model, CRITERION).losses((inputs, targets)), expected.detach())


def test_derivatives_of_the_head_alone_are_those_of_the_whole_graph():
    model = make_model()
    observer = Observer(model, CRITERION)
    batch = make_tensors(12)
    parameters = observer.parameters("head", batch)
    products = []
    for scope in ("trainable", "head"):
        with observer.differentiable_losses(batch, scope) as losses:
            gradients = torch.autograd.grad(losses.mean(), parameters, create_graph=True)
            products.append(torch.autograd.grad(gradients[0].square().sum(), parameters[0])[0])
    assert torch.allclose(*products)
    with (
        observer.differentiable_losses(batch, "head") as losses,
        pytest.raises(RuntimeError, match="not have been used"),
    ):
        torch.autograd.grad(losses.sum(), next(model.parameters()))


def test_attention_can_be_differentiated_twice():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2))
    batch = (torch.randn(4, 3, 8), torch.tensor([0, 1, 0, 1]))
    observer = Observer(model, CRITERION)
    parameters = observer.parameters("trainable")
    with observer.differentiable_losses(batch) as losses:
        gradients = torch.autograd.grad(losses.sum(), parameters, create_graph=True)
        products = torch.autograd.grad(sum(g.sum() for g in gradients), parameters)
    assert all(torch.isfinite(product).all() for product in products)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(20, 5)  # declared first, runs last
        self.body = nn.Linear(20, 20)

    def forward(self, inputs):
        return self.classifier(self.body(inputs))


def test_the_head_is_the_linear_layer_that_runs_last():
    model = TwoHeads()
    assert Observer(model, CRITERION).find_head(make_tensors(4)) is model.classifier


def test_a_declared_head_comes_first():
    model = TwoHeads()
    model.get_classifier = lambda: model.body
    assert Observer(model, CRITERION).find_head(make_tensors(4)) is model.body


def test_a_named_head_is_taken():
    model = TwoHeads()
    assert Observer(model, CRITERION, head="body").find_head(make_tensors(4)) is model.body
    with pytest.raises(ValueError, match=r"head must name .* got 'tail'.*classifier, body"):
        Observer(model, CRITERION, head="tail")


def test_a_compiled_model_is_observed_through_its_original():
    model = make_model()
    observer = Observer(torch.compile(model), CRITERION)
    assert observer.model is model


def test_scope_head_lists_the_last_layer_alone():
    model = make_model()
    found = Observer(model, CRITERION).parameters("head", make_tensors(4))
    assert [p is q for p, q in zip(found, model[4].parameters(), strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.CrossEntropyLoss(), r'not their mean; got a scalar\. Set reduction="none"'),
        (lambda o, t: CRITERION(o, t)[:3], r"shape \(8,\); got \(3,\)"),
        (lambda o, t: o, r"shape \(8,\); got \(8, 5\)\. Take the mean"),
        (lambda o, t: 1.0, "must return a tensor .* got float"),
    ],
    ids=["scalar", "short", "two dimensions", "no tensor"],
)
def test_a_loss_that_is_not_one_per_example_is_refused(loss_fn, message):
    with pytest.raises(ValueError, match=message):
        Observer(make_model(), loss_fn).losses(make_tensors(8))


def test_a_model_without_a_linear_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())
    batch = (torch.randn(4, 1, 2, 2), torch.randint(3, (4,)))
    with pytest.raises(ValueError, match=r"must have a linear layer .*head=.*Sequential"):
        Observer(model, CRITERION).last_layer_gradients(batch)


def test_a_head_that_runs_twice_is_refused():
    layer = nn.Linear(20, 20)
    model = nn.Sequential(layer, layer)
    with pytest.raises(ValueError, match="exactly once .* it ran 2 times"):
        Observer(model, CRITERION).last_layer_gradients(make_tensors(4))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (
            nn.Sequential(nn.Flatten(0, 1), nn.Linear(20, 5), nn.Unflatten(0, (8, 3))),
            torch.randn(8, 3, 20),
            r"row for each example, batch first; '1' has one of shape \(24, 5\) for 8 examples",
        ),
        (
            nn.Sequential(nn.Conv1d(20, 5, 3)),
            torch.randn(8, 20, 5),
            r"linear layer at each pixel.* '0' is Conv1d\(20, 5, kernel_size=\(3,\)",
        ),
        (
            nn.Sequential(nn.Conv1d(20, 5, 1, padding=1)),
            torch.randn(8, 20, 3),
            "no padding; '0' is Conv1d",
        ),
    ],
    ids=["rows of several examples", "wide convolution", "padded convolution"],
)
def test_a_head_that_is_no_linear_layer_of_each_example_is_refused(model, inputs, message):
    def loss_fn(output, target):
        return output.flatten(1).sum(1)

    observer = Observer(model, loss_fn, head=model[min(1, len(model) - 1)])
    with pytest.raises(ValueError, match=message):
        observer.last_layer_gradients((inputs, torch.zeros(8)))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_head_that_the_loss_does_not_use_is_refused(scaled):
    model = TwoHeads()
    model.scale = nn.LayerNorm(20)  # after which the loss has a gradient of its own
    if not scaled:
        model.scale = nn.Identity()

    def forward(inputs):
        outputs = model.body(inputs)
        unused = model.classifier(inputs)
        return model.scale(outputs), unused

    model.forward = forward
    observer = Observer(model, lambda outputs, target: CRITERION(outputs[0], target))
    with pytest.raises(ValueError, match=r"must depend on the head; .* 'classifier', the last"):
        observer.last_layer_gradients(make_tensors(8))


def test_a_frozen_model_has_no_curvature():
    model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match=r"curvature='trainable' needs parameters .*got none"):
        Observer(model, CRITERION).parameters("trainable")


def test_a_batch_that_is_no_pair_needs_the_other_form_of_loss():
    with pytest.raises(ValueError, match=r"needs batches \(inputs, targets\); got a dict"):
        Observer(make_model(), CRITERION).losses({"x": torch.zeros(2, 20)})
