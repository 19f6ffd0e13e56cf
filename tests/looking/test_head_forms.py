"""Last-layer gradients are those of autograd for every form of head, or the head is refused."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from crest.looking.observer import Observer
from toys import CRITERION

BATCH = (torch.randn(7, 10, generator=torch.Generator().manual_seed(1)), torch.arange(7) % 3)


class Net(nn.Module):
    """A body, a last layer, and what comes after it."""

    def __init__(self, head=None, after=None, *, call=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(10, 16)
        self.fc = nn.Linear(16, 3) if head is None else head
        self.after = after
        self.call = call

    def forward(self, inputs):
        hidden = torch.relu(self.body(inputs))
        outputs = self.fc(hidden) if self.call is None else self.call(self.fc, hidden)
        return outputs if self.after is None else self.after(outputs)


def by_autograd(model, loss_fn, batch, weight, bias=None):
    """Gradients of each example by the last layer, one example at a time."""
    was_training = [module.training for module in model.modules()]
    model.eval()
    rows = []
    for i in range(len(batch[1])):
        loss = loss_fn(model(batch[0][i : i + 1]), batch[1][i : i + 1]).sum()
        parts = torch.autograd.grad(loss, [weight] if bias is None else [weight, bias])
        flat = [part.reshape(len(part), -1) for part in parts]
        rows.append(torch.cat(flat, dim=1).flatten())
    for module, flag in zip(model.modules(), was_training, strict=True):
        module.training = flag
    return torch.stack(rows)


def assert_right(model, *, loss_fn=CRITERION, batch=BATCH, layer=None, bias=True, **options):
    layer = model.fc if layer is None else layer
    seen = Observer(model, loss_fn, **options).last_layer_gradients(batch)
    true = by_autograd(model, loss_fn, batch, layer.weight, layer.bias if bias else None)
    torch.testing.assert_close(seen.weight_gradients(), true, rtol=1e-4, atol=1e-6)
    return seen


def binary(outputs, targets):
    """Binary cross-entropy of probabilities."""
    wanted = functional.one_hot(targets, 3).float()
    return functional.binary_cross_entropy(outputs, wanted, reduction="none").sum(1)


@pytest.mark.parametrize(
    ("after", "loss_fn"),
    [
        (nn.ReLU(inplace=True), CRITERION),
        (nn.LeakyReLU(0.2, inplace=True), CRITERION),
        (lambda outputs: outputs.mul_(torch.tensor([1.0, 0.0, 5.0])), CRITERION),
        (lambda outputs: outputs.div_(0.3).sub_(torch.tensor([1.0, 2.0, 3.0])), CRITERION),
        (lambda outputs: outputs.sigmoid_(), binary),
        (lambda outputs: outputs.clamp_(-0.1, 0.1), CRITERION),
        (lambda outputs: outputs.masked_fill_(outputs > 0.3, -1.0), CRITERION),
        (lambda outputs: functional.elu_(outputs.view(-1, 3)), CRITERION),
    ],
    ids=[
        "relu",
        "leaky relu",
        "scale",
        "temperature and prior",
        "sigmoid",
        "clamp",
        "mask",
        "view",
    ],
)
def test_what_follows_the_head_in_place_is_differentiated(after, loss_fn):
    assert_right(Net(after=after), loss_fn=loss_fn)


def in_enabled(layer, hidden):
    with torch.set_grad_enabled(layer.training):
        return layer(hidden)


def in_no_grad_unless_training(layer, hidden):
    if layer.training:
        return layer(hidden)
    with torch.no_grad():
        return layer(hidden)


def in_inference_mode_unless_training(layer, hidden):
    with torch.inference_mode(not layer.training):
        return layer(hidden)


@pytest.mark.parametrize(
    "call",
    [
        lambda layer, hidden: layer(input=hidden),
        lambda layer, hidden: layer.forward(hidden),
        lambda layer, hidden: layer.forward(input=hidden),
        in_enabled,
        in_no_grad_unless_training,
        in_inference_mode_unless_training,
    ],
    ids=[
        "by keyword",
        "by forward",
        "by forward and keyword",
        "under set_grad_enabled",
        "under no_grad",
        "under inference_mode",
    ],
)
@pytest.mark.parametrize("head", [None, "fc"], ids=["found", "named"])
def test_a_head_may_be_called_in_other_ways(call, head):
    model, plain = Net(call=call), Net()
    seen = Observer(model, CRITERION, head=head).last_layer_gradients(BATCH)
    true = by_autograd(plain, CRITERION, BATCH, plain.fc.weight, plain.fc.bias)
    torch.testing.assert_close(seen.weight_gradients(), true)


def test_a_head_under_set_grad_enabled_serves_derivatives_of_the_head_alone():
    model = Net(call=in_enabled)
    observer = Observer(model, CRITERION)
    parameters = observer.parameters("head", BATCH)
    with observer.differentiable_losses(BATCH, "head") as losses:
        found = torch.autograd.grad(losses.sum(), parameters)
    plain = Net()
    expected = torch.autograd.grad(
        CRITERION(plain(BATCH[0]), BATCH[1]).sum(), plain.fc.parameters()
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("whole", [True, False], ids=["everything", "the body"])
def test_gradients_that_are_off_in_eval_mode_alone_are_no_curvature(whole):
    class Switching(Net):
        def forward(self, inputs):
            with torch.set_grad_enabled(self.training):
                hidden = torch.relu(self.body(inputs))
                if whole:
                    return self.fc(hidden)
            return self.fc(hidden)

    observer = Observer(Switching(), CRITERION)
    with (
        pytest.raises(ValueError, match=r"gradient in eval mode .*'body'.* error_threshold=0"),
        observer.differentiable_losses(BATCH),
    ):
        pass


def test_a_body_that_is_never_trained_may_be_without_gradients():
    class Frozen(Net):
        def forward(self, inputs):
            with torch.no_grad():
                hidden = torch.relu(self.body(inputs))
            return self.fc(hidden)

    model = Frozen()
    assert_right(model)
    with Observer(model, CRITERION).differentiable_losses(BATCH) as losses:
        assert losses.requires_grad


class Cosine(nn.Linear):
    def forward(self, hidden):
        return 10 * functional.linear(
            functional.normalize(hidden), functional.normalize(self.weight)
        )


class NormalizedWeight(nn.Linear):
    def forward(self, hidden):
        return functional.linear(hidden, functional.normalize(self.weight), self.bias)


class Tempered(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden) / 0.5


class Dropped(nn.Linear):
    """Rows of the input are mixed."""

    def forward(self, hidden):
        return super().forward(hidden - hidden.mean(0))


@pytest.mark.parametrize("kind", [Cosine, NormalizedWeight, Tempered, Dropped])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_linear_layer_with_a_forward_of_its_own_is_refused_if_it_is_not_linear(
    kind, bias, frozen
):
    model = Net(kind(16, 3, bias=bias))
    model.fc.requires_grad_(not frozen)
    with pytest.raises(ValueError, match=r"those of autograd.* 'fc', .* by .*%.* head="):
        Observer(model, CRITERION).last_layer_gradients(BATCH)


class SameLinear(nn.Linear):
    def forward(self, hidden):
        return functional.linear(hidden, self.weight, self.bias)


class LowRank(nn.Linear):
    """As of loralib: a frozen weight and a trained product of two small ones."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, self.in_features))
        self.up = nn.Parameter(torch.randn(self.out_features, 2))

    def forward(self, hidden):
        return super().forward(hidden) + hidden @ self.down.T @ self.up.T


def test_a_linear_layer_with_a_forward_of_its_own_is_taken_if_it_is_linear():
    assert_right(Net(SameLinear(16, 3)))
    model = Net(LowRank(16, 3))
    seen = Observer(model, CRITERION).last_layer_gradients(BATCH)
    model.fc.weight.requires_grad_()
    true = by_autograd(model, CRITERION, BATCH, *[model.fc.weight, model.fc.bias])
    torch.testing.assert_close(seen.weight_gradients(), true)


class Adapted(nn.Module):
    """As of peft: a frozen layer, and two trained ones beside it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(16, 3).requires_grad_(False)
        self.lora_A = nn.Linear(16, 2, bias=False)
        self.lora_B = nn.Linear(2, 3, bias=False)

    def forward(self, hidden):
        return self.base_layer(hidden) + self.lora_B(self.lora_A(hidden))


@pytest.mark.parametrize("head", [None, "fc"])
def test_of_an_adapted_layer_what_is_trained_last_counts(head):
    model = Net(Adapted())
    assert_right(model, layer=model.fc.lora_B, bias=False, head=head)


class Both(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(16, 3), nn.Linear(16, 2), kind

    def forward(self, hidden):
        return self.kind([("a", self.a(hidden)), ("b", self.b(hidden))])


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_a_head_that_returns_no_tensor_is_refused_with_its_layers(kind):
    model = Net(Both(kind))

    def loss_fn(outputs, targets):
        outputs = dict(outputs)
        return CRITERION(outputs["a"], targets) + CRITERION(outputs["b"], targets % 2)

    message = rf"'fc' returns a {kind.__name__}\. Name one .*: fc\.[ab], fc\.[ab]"
    with pytest.raises(ValueError, match=message):
        Observer(model, loss_fn, head="fc").last_layer_gradients(BATCH)
    Observer(model, loss_fn, head="fc.a").last_layer_gradients(BATCH)


class Raw(nn.Module):
    """A linear layer of its own parameters."""

    def __init__(self, *, transposed=False, returns=lambda outputs: outputs):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(16, 3) if transposed else torch.randn(3, 16))
        self.shift = nn.Parameter(torch.randn(3))
        self.transposed, self.returns = transposed, returns

    def forward(self, hidden):
        weight = self.matrix if self.transposed else self.matrix.T
        return self.returns(hidden @ weight + self.shift)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_named_head_may_be_a_linear_layer_of_raw_parameters(transposed):
    model = Net(Raw(transposed=transposed))
    seen = Observer(model, CRITERION, head="fc").last_layer_gradients(BATCH)
    if not transposed:
        true = by_autograd(model, CRITERION, BATCH, model.fc.matrix, model.fc.shift)
        torch.testing.assert_close(seen.weight_gradients(), true)
    with pytest.raises(ValueError, match=r"'fc' returns a tuple\. Name a linear layer with head="):
        Observer(
            Net(Raw(returns=lambda outputs: (outputs,))),
            lambda outputs, targets: CRITERION(outputs[0], targets),
            head="fc",
        ).last_layer_gradients(BATCH)


class Prototypes(nn.Module):
    """Distances to trained points."""

    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(torch.randn(3, 16))

    def forward(self, hidden):
        return -torch.cdist(hidden, self.points)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(3, 16)), nn.Parameter(torch.tensor(3.0))

    def forward(self, hidden):
        return self.scale * hidden @ self.weight.T


class TwoWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(9, 16)), nn.Parameter(torch.randn(3, 9))

    def forward(self, hidden):
        return torch.tanh(hidden @ self.one.T) @ self.two.T


@pytest.mark.parametrize("kind", [Prototypes, Scaled, TwoWeights])
def test_a_named_head_that_is_no_linear_layer_is_refused(kind):
    with pytest.raises(ValueError, match=r"(those of autograd|must be a linear layer).* 'fc'"):
        Observer(Net(kind()), CRITERION, head="fc").last_layer_gradients(BATCH)


@pytest.mark.parametrize(
    "first",
    [nn.Hardswish(inplace=True), nn.ReLU(inplace=True), nn.LayerNorm(16), nn.Dropout(), nn.Tanh()],
    ids=repr,
)
def test_of_a_named_head_of_several_modules_the_last_linear_layer_counts(first):
    model = Net(nn.Sequential(first, nn.Linear(16, 3)))
    assert_right(model, layer=model.fc[1], head="fc")
    assert_right(model, layer=model.fc[1], head=model.fc)


def test_a_raw_head_may_start_in_place():
    class InPlace(Raw):
        def forward(self, hidden):
            return super().forward(functional.relu_(hidden))

    model = Net(InPlace(), after=None, call=lambda layer, hidden: layer(hidden))
    true = by_autograd(model, CRITERION, BATCH, model.fc.matrix, model.fc.shift)
    seen = Observer(model, CRITERION, head="fc").last_layer_gradients(BATCH)
    torch.testing.assert_close(seen.weight_gradients(), true)


def segmentation(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none").flatten(1).mean(1)


@pytest.mark.parametrize("channels", [8, 5])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_convolution_in_a_named_head_is_a_layer_at_each_pixel(channels, wrapped):
    convolution = nn.Conv2d(8, channels, 1)
    out = nn.Sequential(convolution) if wrapped else convolution
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), out)
    batch = (torch.randn(5, 3, 6, 6), torch.randint(channels, (5, 6, 6)))
    assert_right(model, loss_fn=segmentation, batch=batch, layer=convolution, head="2")


@pytest.mark.parametrize(
    "out",
    [
        nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
        nn.Sequential(nn.Conv2d(8, 4, 3, padding=1)),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Conv2d(8, 4, 3, padding=1),
    ],
    ids=["wide last", "wide within", "groups", "wide"],
)
def test_a_convolution_over_more_than_a_pixel_is_refused_within_others_too(out):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), out)
    batch = (torch.randn(5, 3, 6, 6), torch.randint(4, (5, 6, 6)))
    with pytest.raises(ValueError, match="linear layer at each pixel"):
        Observer(model, segmentation, head="1").last_layer_gradients(batch)


def weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


REPARAMETRIZED = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "pruned bias": lambda layer: prune.random_unstructured(layer, "bias", 0.5),
    "weight norm": parametrizations.weight_norm,
    "weight norm by hooks": weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("change", REPARAMETRIZED.values(), ids=REPARAMETRIZED.keys())
def test_derivatives_by_a_reparametrized_head_reach_its_own_parameters(change):
    model = Net(change(nn.Linear(16, 3)))
    model(BATCH[0])
    observer = Observer(model, CRITERION)
    parameters = observer.parameters("head", BATCH)
    with observer.differentiable_losses(BATCH, "head") as losses:
        found = torch.autograd.grad(losses.mean(), parameters)
    model.eval()
    true = torch.autograd.grad(CRITERION(model(BATCH[0]), BATCH[1]).mean(), parameters)
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("change", REPARAMETRIZED.values(), ids=REPARAMETRIZED.keys())
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_a_reparametrized_head_are_those_by_the_weight_it_applies(change, frozen):
    model = Net(change(nn.Linear(16, 3)))
    model.fc.requires_grad_(not frozen)
    model(BATCH[0])
    seen = Observer(model, CRITERION).last_layer_gradients(BATCH)
    assert [parameter.requires_grad for parameter in model.fc.parameters()] == [not frozen] * len(
        list(model.fc.parameters())
    )
    plain = Net()
    plain.load_state_dict(
        {
            "body.weight": model.body.weight,
            "body.bias": model.body.bias,
            "fc.weight": model.eval().fc.weight,
            "fc.bias": model.fc.bias,
        }
    )
    true = Observer(plain, CRITERION).last_layer_gradients(BATCH)
    torch.testing.assert_close(seen.weight_gradients(), true.weight_gradients())


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, tokens):
        return self.fc(self.embedding(tokens.T)).transpose(0, 1)


class Sorted(Net):
    """As of packed sequences: the head sees the examples in another order."""

    def forward(self, inputs):
        order = inputs[:, 0].argsort()
        outputs = self.fc(torch.relu(self.body(inputs[order])))
        return outputs[order.argsort()]


def of_tokens(outputs, targets):
    return functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def test_rows_that_are_not_those_of_the_examples_are_refused():
    torch.manual_seed(0)
    for length in (12, 5):
        batch = torch.randint(20, (12, length)), torch.randint(20, (12, length))
        with pytest.raises(ValueError, match="batch first"):
            Observer(TimeFirst(), of_tokens).last_layer_gradients(batch)
    with pytest.raises(ValueError, match=r"rows of the head .* in the order of the batch"):
        Observer(Sorted(), CRITERION).last_layer_gradients(BATCH)


def test_losses_of_an_output_that_has_fewer_parts_in_eval_mode_are_refused():
    class Auxiliary(Net):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return (outputs, outputs) if self.training else outputs

    def first_part(outputs, targets):  # of a tuple in training; a row, of all, in eval mode
        return (outputs[0] - targets[:, None]).square().mean(1)

    with pytest.raises(ValueError, match="in eval mode"):
        Observer(Auxiliary(), first_part).last_layer_gradients(BATCH)
