"""Which layer is the last one, and that it is found again when the model changes."""

import copy

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn import functional

import crest
from crest.looking.observer import Observer
from looking.test_head_forms import BATCH, Net, assert_right
from toys import CRITERION, make_loader, make_model, make_tensors, train


class Distilled(nn.Module):
    """A student, and a teacher that runs after it."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher, self.how = Net(), Net(), how
        if how in {"frozen", "frozen, first"}:
            self.teacher.requires_grad_(False)

    def forward(self, inputs):
        if self.how == "frozen, first":
            soft = self.teacher(inputs)
            return self.student(inputs), soft
        outputs = self.student(inputs)
        if self.how == "frozen":
            return outputs, self.teacher(inputs)
        with torch.no_grad():
            return outputs, self.teacher(inputs)


def distilled_loss(outputs, targets):
    mine, soft = outputs
    divergence = functional.kl_div(mine.log_softmax(1), soft.softmax(1), reduction="none")
    return CRITERION(mine, targets) + divergence.sum(1)


@pytest.mark.parametrize("how", ["frozen", "frozen, first", "without gradients"])
def test_the_head_is_the_last_layer_that_is_trained(how):
    model = Distilled(how)
    observer = Observer(model, distilled_loss)
    assert observer.find_head(BATCH) is model.student.fc
    seen = observer.last_layer_gradients(BATCH)
    outputs, soft = (part.detach() for part in model(BATCH[0]))
    outputs.requires_grad_()
    losses = distilled_loss((outputs, soft), BATCH[1])
    (true,) = torch.autograd.grad(losses.sum(), outputs)
    torch.testing.assert_close(seen.errors, true)


def test_a_head_that_is_frozen_above_a_trained_body_is_the_last_layer():
    model = Net()
    model.fc.requires_grad_(False)
    assert Observer(model, CRITERION).find_head(BATCH) is model.fc


def test_of_a_model_that_is_frozen_as_a_whole_the_layer_that_runs_last_is_the_head():
    model = Net().requires_grad_(False)
    assert Observer(model, CRITERION).find_head(BATCH) is model.fc
    assert_right_frozen(model)


def assert_right_frozen(model):
    seen = Observer(model, CRITERION).last_layer_gradients(BATCH)
    trained = copy.deepcopy(model).requires_grad_()
    true = Observer(trained, CRITERION).last_layer_gradients(BATCH)
    assert torch.equal(seen.weight_gradients(), true.weight_gradients())


def test_what_runs_last_in_training_alone_is_no_head():
    class Auxiliary(Net):
        def __init__(self):
            super().__init__()
            self.auxiliary = nn.Linear(16, 3)

        def forward(self, inputs):
            hidden = torch.relu(self.body(inputs))
            outputs = self.fc(hidden)
            return (outputs, self.auxiliary(hidden)) if self.training else outputs

    def loss_fn(outputs, targets):
        if isinstance(outputs, tuple):
            return CRITERION(outputs[0], targets) + CRITERION(outputs[1], targets)
        return CRITERION(outputs, targets)

    with pytest.warns(UserWarning, match=r"something else in eval mode.* differ by \d+ %"):
        assert_right(Auxiliary(), loss_fn=loss_fn)


def replace(model):
    model.fc = nn.Linear(16, 3)


def grow(model):
    bigger = nn.Linear(16, 4)
    with torch.no_grad():
        bigger.weight[:3], bigger.bias[:3] = model.fc.weight, model.fc.bias
    model.fc = bigger


def grow_in_place(model):
    model.fc.weight = nn.Parameter(torch.cat([model.fc.weight.detach(), torch.randn(2, 16)]))
    model.fc.bias = nn.Parameter(torch.cat([model.fc.bias.detach(), torch.zeros(2)]))
    model.fc.out_features = 5


def append(model):
    model.after = nn.Linear(3, 3)


def become_two(model):
    model.fc = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))


def last_of(model):
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return model.after if model.after is not None else layers[-1]


@pytest.mark.parametrize("change", [replace, grow, grow_in_place, append, become_two])
@pytest.mark.parametrize("head", [None, "fc"], ids=["found", "named"])
def test_a_head_that_changes_in_the_run_is_followed(change, head):
    if change is append and head == "fc":
        pytest.skip("the named head stays where it is")
    model = Net()
    observer = Observer(model, CRITERION, head=head)
    observer.last_layer_gradients(BATCH)
    change(model)
    seen = observer.last_layer_gradients(BATCH)
    assert observer.find_head(BATCH) is last_of(model)
    fresh = Observer(model, CRITERION, head=head).last_layer_gradients(BATCH)
    assert torch.equal(seen.weight_gradients(), fresh.weight_gradients())


def test_a_head_that_was_given_as_a_module_is_followed_by_its_name():
    model = Net()
    observer = Observer(model, CRITERION, head=model.fc)
    observer.last_layer_gradients(BATCH)
    replace(model)
    assert observer.find_head(BATCH) is model.fc
    del model.fc
    with pytest.raises(ValueError, match="head must name a module of the model; got 'fc'"):
        observer.last_layer_gradients(BATCH)


def test_a_declared_head_is_asked_for_again():
    class Declaring(Net):
        def get_classifier(self):
            return self.fc

    model = Declaring()
    observer = Observer(model, CRITERION)
    assert observer.find_head(BATCH) is model.fc
    replace(model)
    assert observer.find_head(BATCH) is model.fc


def test_another_layer_is_found_where_the_model_goes_another_way():
    class Switched(Net):
        def __init__(self):
            super().__init__()
            self.other, self.uses = nn.Linear(16, 3), "fc"

        def forward(self, inputs):
            return getattr(self, self.uses)(torch.relu(self.body(inputs)))

    model = Switched()
    observer = Observer(model, CRITERION)
    observer.last_layer_gradients(BATCH)
    model.uses = "other"
    observer.last_layer_gradients(BATCH)
    assert observer.find_head(BATCH) is model.other


def test_layers_that_are_frozen_and_unfrozen_are_noticed():
    model = Net()
    observer = Observer(model, CRITERION)
    assert observer.last_layer_gradients(BATCH).bias
    model.fc.bias.requires_grad_(False)
    assert not observer.last_layer_gradients(BATCH).bias


@pytest.mark.parametrize(
    "strategy",
    [crest.Random(), crest.GreedyMiniBatch(), crest.Crest.paper(), crest.AdaCore(), crest.Craig()],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_run_goes_on_with_another_head(strategy):
    model = make_model()
    loader = make_loader(strategy, model=model, budget=0.2)
    for _ in range(2):
        train(loader, model)
        model[4] = nn.Linear(32, 6)


class Functional(Net):
    """Applies the weight of its last layer, not the layer."""

    def forward(self, inputs):
        hidden = torch.relu(self.body(inputs))
        return functional.linear(hidden, self.fc.weight, self.fc.bias)


class Tied(nn.Module):
    """A language model whose outputs are products with the embedding."""

    def __init__(self, *, as_module):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False) if as_module else None
        if as_module:
            self.out.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = torch.tanh(self.mix(self.embedding(tokens))).cumsum(1)
        if self.out is None:
            return functional.linear(hidden, self.embedding.weight)
        return self.out(hidden)


class LastConvolution(nn.Module):
    """Linear layers within, a convolution at the end."""

    def __init__(self):
        super().__init__()
        self.gate, self.out = nn.Linear(4, 4), nn.Conv1d(4, 3, 3, padding=1)

    def forward(self, inputs):
        gated = inputs * self.gate(inputs.mean(2)).sigmoid()[:, :, None]
        return self.out(gated).mean(2)


TOKENS = torch.randint(11, (5, 6), generator=torch.Generator().manual_seed(0))


def of_tokens(outputs, targets):
    return functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)


@pytest.mark.parametrize(
    ("model", "loss_fn", "batch", "weight"),
    [
        (Functional(), CRITERION, BATCH, r"fc\.weight"),
        (Tied(as_module=False), of_tokens, (TOKENS, TOKENS), r"embedding\.weight"),
        (LastConvolution(), CRITERION, (torch.randn(7, 4, 5), BATCH[1]), r"out\.weight"),
    ],
    ids=["functional", "tied embedding", "convolution"],
)
def test_a_weight_that_is_trained_after_the_last_linear_module_is_refused(
    model, loss_fn, batch, weight
):
    message = rf"last layer that is trained; after '\w+'.* {weight} is used.* functional\.linear"
    with pytest.raises(ValueError, match=message):
        Observer(model, loss_fn).last_layer_gradients(batch)


def test_a_named_head_that_does_not_run_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"ran 0 times .*'fc'.* functional\.linear.*is not seen"):
        Observer(Functional(), CRITERION, head="fc").last_layer_gradients(BATCH)


def test_a_named_head_may_be_followed_by_trained_weights():
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3))
    assert_right(model, layer=model[0], head="0")


def test_of_a_tied_weight_the_gradient_through_the_head_counts():
    model = Tied(as_module=True)
    seen = Observer(model, of_tokens).last_layer_gradients((TOKENS, TOKENS))
    with torch.no_grad():
        hidden = torch.tanh(model.mix(model.embedding(TOKENS))).cumsum(1)
    for i in range(len(TOKENS)):
        loss = of_tokens(model.out(hidden[i : i + 1]), TOKENS[i : i + 1]).sum()
        (true,) = torch.autograd.grad(loss, model.out.weight)
        torch.testing.assert_close(seen.weight_gradients()[i], true.flatten())


@pytest.fixture
def process_group(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_distributed_model_is_observed_through_its_original(process_group):
    model = make_model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    for outer in (wrapped, torch.compile(wrapped), nn.DataParallel(model)):
        assert Observer(outer, CRITERION).model is model
    for strategy in (crest.GreedyMiniBatch(), crest.Crest.paper()):
        train(make_loader(strategy, model=wrapped, budget=0.2), wrapped)


def test_a_compiled_part_of_a_model_hides_no_head():
    model = Net()
    plain = copy.deepcopy(model)
    model.fc = torch.compile(model.fc, backend="eager")
    model.compile(backend="eager")
    model(BATCH[0])  # compiled before it is looked at
    true = Observer(plain, CRITERION).last_layer_gradients(BATCH)
    for head in (None, "fc"):
        seen = Observer(model, CRITERION, head=head).last_layer_gradients(BATCH)
        assert torch.equal(seen.weight_gradients(), true.weight_gradients())


@pytest.mark.parametrize("where", ["body", "head"])
def test_checkpointed_parts_are_no_hindrance(where):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Net):
        def forward(self, inputs):
            if where == "body":
                hidden = checkpoint(self.body, inputs, use_reentrant=False)
                return self.fc(torch.relu(hidden))
            return checkpoint(self.fc, torch.relu(self.body(inputs)), use_reentrant=False)

    model = Checkpointed()
    plain = Net()
    true = Observer(plain, CRITERION).last_layer_gradients(BATCH)
    seen = Observer(model, CRITERION).last_layer_gradients(BATCH)
    torch.testing.assert_close(seen.weight_gradients(), true.weight_gradients())
    observer = Observer(model, CRITERION)
    with observer.differentiable_losses(BATCH) as losses:
        gradients = torch.autograd.grad(losses.sum(), observer.parameters("trainable"))
    expected = torch.autograd.grad(CRITERION(plain(BATCH[0]), BATCH[1]).sum(), plain.parameters())
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_that_is_one_linear_layer_is_its_own_head():
    model = nn.Linear(20, 5)
    assert Observer(model, CRITERION).find_head(make_tensors(4)) is model


@pytest.mark.parametrize(
    "penalty",
    [
        lambda model: sum(part.square().sum() for part in model.parameters()),
        lambda model: model.body.weight.norm() + model.fc.weight.abs().sum(),
        lambda model: (model.body.weight @ model.body.weight.T - torch.eye(16)).square().sum(),
        lambda model: sum((part - 1).square().mean() for part in model.parameters()),
    ],
    ids=["decay", "norm", "orthogonality", "distance to a start"],
)
def test_a_penalty_in_the_loss_is_no_layer_after_the_head(penalty):
    def loss_fn(model, batch):
        return CRITERION(model(batch[0]), batch[1]) + 0.1 * penalty(model)

    seen = Observer(Net(), loss_fn).last_layer_gradients(BATCH)
    true = Observer(Net(), CRITERION).last_layer_gradients(BATCH)
    torch.testing.assert_close(seen.weight_gradients(), true.weight_gradients())
