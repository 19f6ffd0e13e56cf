"""In loops of any kind what is filed belongs to its example; the rest is refused, with why.

The truth is computed apart, from the numbers of the rows and by hand in float64.
"""

import copy
import gc
import io
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import crest
from crest.watching import hook
from watching.spy import C, D, Loop, M, Rows, cross_entropy, make_model, plain

TAKEN, REFUSED = {}, {}


def taken(make=Loop):
    """Register a step whose every row is to be taken in."""

    def register(step):
        TAKEN[step.__name__] = (make, step)
        return step

    return register


def refused(why, make=Loop):
    """Register a step of which nothing is to be taken in, and a word of the reason."""

    def register(step):
        REFUSED[step.__name__] = (make, step, why)
        return step

    return register


def backward(loop, outputs, targets, weights):
    crest.weighted_mean(loop.criterion(outputs, targets), weights).backward()


taken()(plain)


@taken(lambda: Loop(accumulation_steps=4))
def four_batches_are_accumulated(loop, x, y, w):
    loop.truth.note(x)
    (crest.weighted_mean(cross_entropy(loop.model(x), y), w) / 4).backward()
    if loop.steps % 4 == 0:
        loop.update()


@taken()
def validation_comes_between(loop, x, y, w):
    plain(loop, x, y, w)
    loop.model.eval()
    with torch.no_grad():
        loop.model(x)
    loop.model.train()


@taken()
def validation_keeps_its_graph(loop, x, y, w):
    plain(loop, x, y, w)
    loop.model(torch.randn(M, D))
    loop.model(x)


@taken()
def stray_passes_come_before(loop, x, y, w):
    loop.model(x[:3])
    (1e-9 * loop.model(x).square().sum()).backward()
    plain(loop, x, y, w)


@taken(lambda: Loop(make_model().eval()))
def the_model_trains_in_eval_mode(loop, x, y, w):
    plain(loop, x, y, w)


@taken(lambda: Loop(make_model(dropout=0.5)))
def there_is_dropout(loop, x, y, w):
    outputs = loop.model(x)
    loop.truth.note(x, outputs)
    backward(loop, outputs, y, w)
    loop.update()


@taken()
def sharpness_aware_steps_pass_twice(loop, x, y, w):
    plain_before = {name: p.clone() for name, p in loop.model.state_dict().items()}
    loop.truth.note(x)
    backward(loop, loop.model(x), y, w)
    with torch.no_grad():
        for p in loop.model.parameters():
            p.add_(0.05 * p.grad / (p.grad.norm() + 1e-6))
    loop.optimizer.zero_grad()
    loop.truth.note(x)
    backward(loop, loop.model(x), y, w)
    loop.model.load_state_dict(plain_before)
    loop.update()


@taken()
def a_gradient_penalty_is_added(loop, x, y, w):
    loop.truth.note(x)
    x.requires_grad_()
    loss = crest.weighted_mean(cross_entropy(loop.model(x), y), w)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + 0.1 * gradient.square().sum()).backward()
    loop.update()


@taken()
def two_forwards_make_one_backward(loop, x, y, w):
    loop.truth.note(x)
    outputs = torch.cat([loop.model(part) for part in x.chunk(2)])
    backward(loop, outputs, y, w)
    loop.update()


@taken()
def a_batch_is_cut_into_micro_batches(loop, x, y, w):
    for a, b, c in zip(x.split(3), y.split(3), w.split(3), strict=True):
        loop.truth.note(a)
        (crest.weighted_mean(cross_entropy(loop.model(a), b), c) * len(a) / len(x)).backward()
    loop.update()


@taken()
def losses_are_summed(loop, x, y, w):
    loop.truth.note(x)
    (cross_entropy(loop.model(x), y) * w).sum().backward()
    loop.update()


@taken()
def inputs_get_noise_in_the_loop(loop, x, y, w):
    outputs = loop.model(x + 0.3 * torch.randn_like(x))
    loop.truth.note(x, outputs)
    backward(loop, outputs, y, w)
    loop.update()


@taken()
def the_loss_is_scaled(loop, x, y, w):
    loop.truth.note(x)
    (2.0**14 * crest.weighted_mean(cross_entropy(loop.model(x), y), w)).backward()
    for p in loop.model.parameters():
        p.grad /= 2.0**14
    loop.update()


@taken()
def two_halves_of_the_loss_go_back_apart(loop, x, y, w):
    loop.truth.note(x)
    losses = cross_entropy(loop.model(x), y) * w
    (losses[: M // 2].sum() / M).backward(retain_graph=True)
    (losses[M // 2 :].sum() / M).backward()
    loop.update()


@taken()
def the_model_is_called_functionally(loop, x, y, w):
    loop.truth.note(x)
    outputs = torch.func.functional_call(loop.model, dict(loop.model.named_parameters()), (x,))
    backward(loop, outputs, y, w)
    loop.update()


@taken(lambda: Loop(make_model(), kind="several"))
def several_labels_may_be_right(loop, x, y, w):
    plain(loop, x, y, w)


@taken(lambda: Loop(make_model(), kind="numbers"))
def the_targets_are_numbers(loop, x, y, w):
    plain(loop, x, y, w)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant):
        super().__init__()
        model = make_model()
        self.body, self.head, self.reentrant = model[:3], model[3], reentrant

    def forward(self, x):
        if self.reentrant:
            x = x.requires_grad_()
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


@taken(lambda: Loop(Checkpointed(reentrant=False)))
def activations_are_computed_again(loop, x, y, w):
    plain(loop, x, y, w)


@taken(lambda: Loop(Checkpointed(reentrant=True)))
def activations_are_computed_again_by_the_old_way(loop, x, y, w):
    plain(loop, x, y, w)


@taken()
def the_whole_model_is_computed_again(loop, x, y, w):
    loop.truth.note(x)
    outputs = checkpoint(loop.model, x, use_reentrant=False)
    backward(loop, outputs, y, w)
    loop.update()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        model = make_model()
        self.body, self.head, self.other = model[:3], model[3], nn.Linear(16, C)

    def forward(self, x):
        hidden = self.body(x)
        return self.head(hidden), self.other(hidden)


class FirstOf(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[0]


@taken(lambda: Loop(TwoHeads(), loss_fn=lambda outputs, y: cross_entropy(outputs[0], y)))
def another_head_has_a_loss_of_its_own(loop, x, y, w):
    outputs, other = loop.model(x)
    loop.truth.note(x, outputs)
    (
        crest.weighted_mean(cross_entropy(outputs, y), w) + 0.4 * cross_entropy(other, y).mean()
    ).backward()
    loop.update()


def whole_loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


@taken(lambda: Loop(loss_fn=whole_loss))
def the_loss_takes_model_and_batch(loop, x, y, w):
    loop.truth.note(x)
    crest.weighted_mean(whole_loss(loop.model, (x, y)), w).backward()
    loop.update()


@pytest.mark.parametrize("name", TAKEN)
def test_taken_in_whole(name):
    make, step = TAKEN[name]
    loop = make().run(step)
    assert loop.rows_taken_in == loop.rows_trained_on
    assert loop.loader._feed.watch.taken_in == loop.steps


@refused("the gradient of training is not that of loss_fn")
def labels_are_smoothed_in_the_loop(loop, x, y, w):
    losses = functional.cross_entropy(loop.model(x), y, reduction="none", label_smoothing=0.05)
    crest.weighted_mean(losses, w).backward()
    loop.update()


@refused("the gradient of training is not that of loss_fn")
def inputs_are_mixed(loop, x, y, w):
    order, share = torch.randperm(M), 0.3
    outputs = loop.model(share * x + (1 - share) * x[order])
    losses = share * cross_entropy(outputs, y) + (1 - share) * cross_entropy(outputs, y[order])
    crest.weighted_mean(losses, w).backward()
    loop.update()


@refused("labels alone do not tell|not that of loss_fn")
def rows_are_shuffled(loop, x, y, w):
    order = torch.arange(M).roll(1)
    backward(loop, loop.model(x[order]), y[order], w[order])
    loop.update()


@refused("not that of loss_fn")
def the_temperature_is_another(loop, x, y, w):
    backward(loop, loop.model(x) / 1.1, y, w)
    loop.update()


@refused("not that of loss_fn")
def confidence_is_punished(loop, x, y, w):
    outputs = loop.model(x)
    p = outputs.softmax(1)
    loss = crest.weighted_mean(cross_entropy(outputs, y), w)
    (loss + 0.1 * (p * p.log()).sum(1).mean()).backward()
    loop.update()


@refused("rows count otherwise than loss_fn and the weights say")
def classes_have_weights_in_the_loop(loop, x, y, w):
    classes = torch.tensor([1.0, 2.0, 0.5, 1.0])
    losses = functional.cross_entropy(loop.model(x), y, classes, reduction="none")
    crest.weighted_mean(losses, w).backward()
    loop.update()


@refused("rows count otherwise")
def the_loss_is_focal(loop, x, y, w):
    losses = cross_entropy(loop.model(x), y)
    crest.weighted_mean((1 - (-losses.detach()).exp()) ** 2 * losses, w).backward()
    loop.update()


@refused("changed the output of the model in place")
def the_output_is_changed_in_place(loop, x, y, w):
    outputs = loop.model(x)
    outputs /= 2
    backward(loop, outputs, y, w)
    loop.update()


@refused("the outputs have other rows than the batch")
def two_views_go_through_at_once(loop, x, y, w):
    outputs = loop.model(torch.cat([x, x + 0.01]))
    losses = cross_entropy(outputs[:M], y) + cross_entropy(outputs[M:], y)
    crest.weighted_mean(losses, w).backward()
    loop.update()


def calls_twice(model, batch):
    return cross_entropy(model(batch[0]), batch[1]) + cross_entropy(model(-batch[0]), batch[1])


@refused("calls the model 2 times", lambda: Loop(loss_fn=calls_twice))
def the_loss_calls_the_model_twice(loop, x, y, w):
    crest.weighted_mean(calls_twice(loop.model, (x, y)), w).backward()
    loop.update()


@refused("Hand the loader the model that the loop calls", lambda: Loop(handed=make_model()))
def another_model_is_trained(loop, x, y, w):
    backward(loop, loop.model(x), y, w)
    loop.update()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_whole_and_why(name):
    make, step, why = REFUSED[name]
    loop = make().run(step)
    assert loop.spy.heard == []
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(loop.loader._feed.explain())


def test_weights_that_were_left_out_are_noticed():
    loop = Loop(uneven_weights=True)
    loop.run(lambda loop, x, y, w: backward(loop, loop.model(x), y, torch.ones(len(w))))
    assert loop.spy.heard == []
    assert "the weights of the batch were left out" in loop.loader._feed.explain()


def test_uneven_weights_that_are_used_are_taken_in():
    loop = Loop(uneven_weights=True).run()
    assert loop.rows_taken_in == loop.rows_trained_on


@pytest.mark.parametrize("ahead", [2, 8, 32])
@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
@pytest.mark.parametrize("changed", [False, True], ids=["as-they-are", "with-noise"])
@pytest.mark.parametrize("held", [-1, hook._MOST_HELD], ids=["large", "small"])
def test_batches_that_are_fetched_ahead_are_told_apart(ahead, order, changed, held, monkeypatch):
    monkeypatch.setattr(hook, "_MOST_HELD", held)  # large outputs are not held together
    loop = Loop(data=Rows(n=320))
    for _ in range(2):
        batches = []
        for k, batch in enumerate(loop.loader):
            batches.append(batch)
            if len(batches) == ahead or k + 1 == len(loop.loader):
                for x, y, w in batches[::order]:
                    outputs = loop.model(x + 0.05 * torch.randn_like(x) if changed else x)
                    loop.truth.note(x, outputs)
                    backward(loop, outputs, y, w)
                    loop.update()
                    loop.steps += 1
                batches = []
    share = loop.rows_taken_in / loop.rows_trained_on  # judged: none is of another example
    if changed and ahead == 32 and order == -1:  # labels alone tell few of so many
        assert share > 0
    else:
        assert share == 1 if not changed else share > 0.5


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("ahead", [1, 4])
def test_small_batches_of_two_classes_of_which_some_are_skipped_are_never_mixed_up(
    batch_size, ahead
):
    loop = Loop(make_model(2), data=Rows(classes=2), batch_size=batch_size)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        batches = []
        for batch in loop.loader:
            batches.append(batch)
            if len(batches) == ahead:
                for x, y, w in batches:
                    if float(torch.rand((), generator=generator)) < 0.2:
                        continue
                    outputs = loop.model(x + 0.05 * torch.randn_like(x))
                    loop.truth.note(x, outputs)
                    backward(loop, outputs, y, w)
                    loop.update()
                batches = []
    assert loop.rows_taken_in >= 0  # judged: none belongs to another example


def test_a_batch_filed_one_late_would_be_seen():
    """The judge is not blind: gradients under the examples of the batch before are found out."""
    loop = Loop().run()
    heard = loop.spy.heard
    late = [(one[0], *other[1:]) for one, other in itertools.pairwise(heard)]
    with pytest.raises(AssertionError, match="off by"):
        loop.truth.judge(late)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_taken_in_within_its_precision(dtype):
    def step(loop, x, y, w):
        with torch.autocast("cpu", dtype):
            outputs = loop.model(x)
            loss = crest.weighted_mean(cross_entropy(outputs, y), w)
        loop.truth.note(x, outputs.float())
        loss.backward()
        loop.update()

    loop = Loop().run(step)
    assert loop.truth.judge(loop.spy.heard, tolerance=0.02) == loop.rows_trained_on


def test_confident_rows_of_a_learned_model_are_taken_in():
    data = Rows()
    data.inputs *= 8
    loop = Loop(data=data).run(epochs=30)
    assert loop.rows_taken_in == loop.rows_trained_on


def test_parts_of_the_model_may_be_called_by_themselves():
    def step(loop, x, y, w):
        loop.truth.note(x)
        hidden = loop.model[2](loop.model[1](loop.model[0](x)))
        backward(loop, loop.model[3](hidden), y, w)
        loop.update()

    loop = Loop().run(step)
    assert loop.rows_taken_in >= loop.rows_trained_on - M  # the first batch told which is the head


def test_copies_of_the_model_are_not_watched():
    loop = Loop().run(epochs=1)
    watch = loop.loader._feed.watch
    calls = watch.calls_seen
    file = io.BytesIO()
    torch.save(loop.model, file)
    file.seek(0)
    copies = [
        copy.deepcopy(loop.model),
        pickle.loads(pickle.dumps(loop.model)),
        torch.load(file, weights_only=False),
    ]
    x, _, _ = next(iter(loop.loader))
    for one in copies:
        one(x).sum().backward()
    assert watch.calls_seen == calls
    torch.jit.trace(loop.model, x)
    torch.export.export(loop.model, (x,))


def test_hooks_go_with_the_loader():
    loop = Loop().run(epochs=1)
    model = loop.model
    assert model._forward_hooks
    loop.loader._feed.close()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_hooks_of_a_loader_that_is_gone_are_removed():
    model = make_model()
    Loop(model).run(epochs=1)
    gc.collect()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_loop_that_tells_by_itself_is_not_watched():
    def step(loop, x, y, w):
        outputs = loop.model(x)
        losses = cross_entropy(outputs, y)
        loop.loader.observe(losses, outputs)
        crest.weighted_mean(losses, w).backward()
        loop.update()

    loop = Loop().run(step)
    assert loop.loader._feed.watch is None
    assert sum(len(indices) for indices, _, _ in loop.spy.heard) == loop.rows_trained_on


def test_a_loop_that_changes_its_loss_is_refused_from_there_on_and_then_seen_again():
    def step(loop, x, y, w):
        if not 20 <= loop.steps < 30:
            plain(loop, x, y, w)
        else:
            crest.weighted_mean(cross_entropy(1.1 * loop.model(x), y), w).backward()
            loop.update()

    loop = Loop().run(step, epochs=5)
    assert loop.steps == 60
    assert loop.rows_taken_in == loop.rows_trained_on - 10 * M
    assert "10 times" in loop.loader._feed.explain()


def test_outputs_that_the_loop_writes_over_after_the_step_are_filed_as_they_were():
    place = torch.empty(M, C)

    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, outputs):
            place.copy_(outputs)
            return torch.from_numpy(place.numpy())  # the same memory, as of a CUDA graph

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Model(nn.Sequential):
        def forward(self, x):
            return InPlace.apply(super().forward(x))

    loop = Loop(Model(*make_model())).run(epochs=3)
    assert loop.rows_taken_in == loop.rows_trained_on


def test_with_numbers_equal_training_is_that_of_observing_by_hand():
    def run(by_hand):
        model = make_model()
        loop = Loop(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        strategy = crest.RememberedGradients()
        loader = crest.CoresetLoader(
            loop.loader._train_loader, model, loss_fn=cross_entropy, strategy=strategy, budget=1
        )
        for _ in range(4):
            for x, y, w in loader:
                outputs = model(x)
                losses = cross_entropy(outputs, y)
                if by_hand:
                    loader.observe(losses, outputs)
                optimizer.zero_grad()
                crest.weighted_mean(losses, w).backward()
                optimizer.step()
        assert loader.history.records[-1]["selected"]
        return [p.detach().clone() for p in model.parameters()]

    assert all(map(torch.equal, run(True), run(False)))


def wrapped(model):
    return torch.compile(model, backend="aot_eager", fullgraph=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("handed", ["compiled", "raw", "in place", "step"])
def test_compiled_models_are_seen(handed):
    torch._dynamo.reset()
    model = make_model()
    if handed == "in place":
        model.compile(backend="aot_eager", fullgraph=True)
    called = wrapped(model) if handed in ("compiled", "raw") else model
    loop = Loop(model, handed=called if handed == "compiled" else model)

    def forward(x, y, w):
        return crest.weighted_mean(cross_entropy(called(x), y), w)

    if handed == "step":
        forward = torch.compile(forward, backend="aot_eager")

    def step(loop, x, y, w):
        loop.truth.note(x)
        forward(x, y, w).backward()
        loop.update()

    loop.run(step)
    assert loop.rows_taken_in == loop.rows_trained_on


def test_a_compiled_model_is_seen_by_one_loader_after_another():
    torch._dynamo.reset()
    model = make_model()
    called = wrapped(model)

    def step(loop, x, y, w):
        loop.truth.note(x)
        crest.weighted_mean(cross_entropy(called(x), y), w).backward()
        loop.update()

    for _ in range(3):
        loop = Loop(model).run(step)
        assert loop.rows_taken_in == loop.rows_trained_on
        loop.loader._feed.close()  # the graph stays


def test_a_model_in_distributed_data_parallel_is_seen(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = make_model()
        called = nn.parallel.DistributedDataParallel(model)

        def step(loop, x, y, w):
            loop.truth.note(x)
            backward(loop, called(x), y, w)
            loop.update()

        loop = Loop(model, handed=called).run(step)
        assert loop.rows_taken_in == loop.rows_trained_on
    finally:
        torch.distributed.destroy_process_group()
