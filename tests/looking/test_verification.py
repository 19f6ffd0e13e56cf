"""What a look tells is compared with autograd: no false alarm, and nothing wrong in silence."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from crest.looking import observer as observing
from crest.looking.observer import Observer
from looking.test_head_forms import BATCH, Net, by_autograd
from looking.test_observer import TASKS, last
from toys import CRITERION, make_model, make_tensors


def smooth(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def hinge(outputs, targets):
    return functional.multi_margin_loss(outputs, targets, reduction="none")


def squared(outputs, targets):
    return (outputs - functional.one_hot(targets, 3)).square().mean(1)


def focal(outputs, targets):
    losses = CRITERION(outputs, targets)
    return (1 - (-losses).exp()) ** 2 * losses


def weighted(outputs, targets):
    weight = torch.tensor([1.0, 5.0, 0.2], dtype=outputs.dtype)
    return functional.cross_entropy(outputs, targets, weight=weight, reduction="none")


LOSSES = [CRITERION, smooth, hinge, squared, focal, weighted]


class Autocast(Net):
    """Autocast within the model, as many training scripts have it."""

    def forward(self, inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(inputs).float()


@pytest.fixture
def compared(monkeypatch):
    """Whether each test found something to compare."""
    found = []
    verify = observing.verify

    def noting(*arguments, **options):
        found.append(verify(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(observing, "verify", noting)
    return found


@pytest.mark.parametrize("loss_fn", LOSSES)
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16", "float16", "autocast"])
def test_no_form_of_loss_or_precision_is_refused_falsely(loss_fn, precision, compared):
    if loss_fn is hinge and precision in {"bfloat16", "float16"}:
        pytest.skip("torch has no such kernel")
    model, (inputs, targets) = Net(), BATCH
    if precision == "autocast":
        model = Autocast()
    else:
        dtype = getattr(torch, precision)
        model, inputs = model.to(dtype), inputs.to(dtype)
    for options in ({}, {"dtype": torch.bfloat16}):
        Observer(model, loss_fn, **options).last_layer_gradients((inputs, targets))
    assert compared == [True, True]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_task_is_refused_falsely(task, frozen, scale, compared):
    model, loss_fn, batch = task()
    head = last(model)
    if frozen:
        model.requires_grad_(False)

    def scaled(*arguments):
        return scale * loss_fn(*arguments)

    Observer(model, scaled, head=head).last_layer_gradients(batch)
    assert compared == [True]


def test_a_wide_net_of_a_large_batch_is_not_refused_for_its_rounding(compared):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 500))
    batch = (torch.randn(512, 64), torch.randint(500, (512,)))
    Observer(model, CRITERION).last_layer_gradients(batch)
    for _ in range(2):  # near the end of training, and beyond
        with torch.no_grad():
            model[2].weight.mul_(20)
        Observer(model, CRITERION).last_layer_gradients(batch)
    assert compared == [True] * 3


def in_batch(outputs, targets):
    """Contrastive: each example against all others."""
    normal = functional.normalize(outputs)
    return CRITERION(normal @ normal.T / 0.1, torch.arange(len(outputs)).roll(1))


def test_losses_that_depend_on_each_other_are_told_of_and_compared_in_sum(compared):
    model = Net()
    with pytest.warns(UserWarning, match="depends on the other examples of its batch"):
        seen = Observer(model, in_batch).last_layer_gradients(BATCH)
    assert compared == [True]
    true = torch.autograd.grad(in_batch(model(BATCH[0]), BATCH[1]).sum(), model.fc.weight)[0]
    mine = seen.weighted_sum(torch.ones(7))
    torch.testing.assert_close(mine[:, :-1], true)
    wrong = Net(after=nn.Identity(), call=lambda layer, hidden: layer(hidden))
    wrong.fc = nn.Sequential(nn.Linear(16, 3))
    with pytest.warns(UserWarning, match="depends on"):
        Observer(wrong, in_batch).last_layer_gradients(BATCH)


def test_statistics_of_a_batch_that_were_asked_for_are_no_surprise(compared):
    model = Net(after=nn.BatchNorm1d(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Observer(model, CRITERION).last_layer_gradients(BATCH)
        Observer(model, CRITERION, batch_statistics=True).last_layer_gradients(BATCH)
        Observer(make_model(norm=True), CRITERION, batch_statistics=True).last_layer_gradients(
            make_tensors(8)
        )
    assert compared == [True] * 3


def test_the_comparison_waits_for_gradients_and_a_second_row(compared):
    model = Net()
    observer = Observer(model, lambda outputs, targets: hinge(outputs * scale, targets))
    scale = 0.0
    observer.last_layer_gradients((BATCH[0][:1], BATCH[1][:1]))
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    scale = 1.0
    easy = BATCH[1] == 0
    observer.last_layer_gradients((BATCH[0][easy], BATCH[1][easy]))
    observer.last_layer_gradients(BATCH)
    observer.last_layer_gradients(BATCH)
    assert compared == [False, False, True]


def test_the_comparison_comes_again_ten_times_more_seldom(compared):
    model = Net()
    observer = Observer(model, CRITERION)
    for _ in range(105):
        observer.last_layer_gradients(BATCH)
    assert compared == [True] * 3  # at the looks 1, 10 and 100
    model.fc = nn.Linear(16, 3)
    observer.last_layer_gradients(BATCH)
    observer.last_layer_gradients(BATCH)
    assert compared == [True] * 4


class LateScale(nn.Linear):
    """Linear at first: its scale is trained."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, hidden):
        return self.scale * super().forward(hidden)


def test_a_head_that_becomes_another_function_is_noticed():
    model = Net(LateScale(16, 3))
    observer = Observer(model, CRITERION)
    observer.last_layer_gradients(BATCH)
    with torch.no_grad():
        model.fc.scale.fill_(1.5)
    for _ in range(8):
        observer.last_layer_gradients(BATCH)
    with pytest.raises(ValueError, match="those of autograd"):
        observer.last_layer_gradients(BATCH)


def test_losses_alone_are_not_compared(compared):
    Observer(Net(), CRITERION, dtype=torch.bfloat16).losses(BATCH)
    assert compared == []


ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu in place": lambda: nn.SiLU(inplace=True),
}
NORMS = {
    "none": nn.Identity,
    "batch": lambda: nn.BatchNorm1d(8),
    "layer": lambda: nn.LayerNorm(8),
    "group": lambda: nn.GroupNorm(2, 8),
}
AFTER = {
    "nothing": None,
    "relu in place": nn.ReLU(inplace=True),
    "scale in place": lambda outputs: outputs.mul_(torch.tensor([1.0, 0.2, 3.0])),
    "softplus": nn.Softplus(),
    "squared in place": lambda outputs: outputs.pow_(2),
    "clone and in place": lambda outputs: outputs.clone().sub_(1).tanh_(),
    "norm": nn.LayerNorm(3),
    "in place through a view": lambda outputs: outputs[:, :1].mul_(4) * 0 + outputs,
}


class Cosine(nn.Linear):
    def forward(self, input):
        return functional.linear(functional.normalize(input), functional.normalize(self.weight))


class Shifted(nn.Linear):
    def forward(self, input):
        return super().forward(input + 1)


HEADS = {  # from whether there is a bias
    "linear": lambda bias: nn.Linear(8, 3, bias=bias),
    "cosine": lambda bias: Cosine(8, 3, bias=bias),
    "shifted": lambda bias: Shifted(8, 3, bias=bias),
    "sequential": lambda bias: nn.Sequential(nn.Tanh(), nn.Linear(8, 3, bias=bias)),
    "two layers": lambda bias: nn.Sequential(
        nn.Linear(8, 5), nn.ReLU(inplace=True), nn.Linear(5, 3, bias=bias)
    ),
    "norm in front": lambda bias: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3, bias=bias)),
}
CALLS = {
    "plain": None,
    "by keyword": lambda head, hidden: head(input=hidden),
    "by forward": lambda head, hidden: head.forward(hidden),
    "grad mode": lambda head, hidden: _in_grad_mode(head, hidden),
}


def _in_grad_mode(head, hidden):
    with torch.set_grad_enabled(head.training):
        return head(hidden)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    depth=st.integers(0, 3),
    activation=st.sampled_from(list(ACTIVATIONS)),
    norm=st.sampled_from(list(NORMS)),
    head=st.sampled_from(list(HEADS)),
    call=st.sampled_from(list(CALLS)),
    after=st.sampled_from(list(AFTER)),
    bias=st.booleans(),
    frozen=st.sampled_from(["nothing", "body", "bias", "head", "all"]),
    loss_fn=st.sampled_from(LOSSES),
    named=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_of_any_model_are_those_of_autograd_or_refused(
    depth, activation, norm, head, call, after, bias, frozen, loss_fn, named, training, seed
):
    torch.manual_seed(seed)
    body = [nn.Linear(10, 8)]
    for _ in range(depth):
        body += [NORMS[norm](), ACTIVATIONS[activation](), nn.Linear(8, 8)]
    model = Net(HEADS[head](bias), AFTER[after], call=CALLS[call])
    model.body = nn.Sequential(*body)
    if call == "by keyword" and isinstance(model.fc, nn.Sequential):
        model.call = None  # a Sequential takes any name
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(0.5 * torch.randn(part.shape))
    layer = model.fc[-1] if isinstance(model.fc, nn.Sequential) else model.fc
    if frozen in {"body", "all"}:
        model.body.requires_grad_(False)
    if frozen in {"head", "all"}:
        model.fc.requires_grad_(False)
    if frozen == "bias" and bias:
        layer.bias.requires_grad_(False)
    model.train(training)
    batch = (torch.randn(6, 10), torch.randint(3, (6,)))
    observer = Observer(model, loss_fn, head="fc" if named else None)
    try:
        seen = observer.last_layer_gradients(batch)
    except ValueError as error:
        if head in {"cosine", "shifted"} and "head=" in str(error):
            return
        raise
    weight_counts_alone = not bias or (frozen == "bias")
    layer.requires_grad_()
    model.call = model.call if call != "grad mode" else None
    true = by_autograd(
        model, loss_fn, batch, layer.weight, None if weight_counts_alone else layer.bias
    )
    torch.testing.assert_close(seen.weight_gradients(), true, rtol=1e-3, atol=1e-5)
