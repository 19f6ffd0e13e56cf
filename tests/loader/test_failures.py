"""Bad input gets one clear error."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

import crest
from toys import CRITERION, make_loader, make_model, make_tensors, train


def test_an_iterable_dataset_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match="must be map-style.* got an IterableDataset, Stream"):
        crest.CoresetLoader(DataLoader(Stream(), batch_size=2), make_model(), loss_fn=CRITERION)


def test_an_empty_dataset_is_refused():
    train_loader = DataLoader(TensorDataset(torch.empty(0, 20)), batch_size=2)
    with pytest.raises(ValueError, match="must hold at least one example"):
        crest.CoresetLoader(train_loader, make_model(), loss_fn=CRITERION)


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, 10, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget):
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\]"):
        make_loader(budget=budget)


@pytest.mark.parametrize("strategy", [b"crest", crest.Crest, 3], ids=str)
def test_what_is_no_strategy_is_refused(strategy):
    with pytest.raises(
        TypeError, match=r"strategy must be a strategy of crest, such as crest\.Crest\(\)"
    ):
        make_loader(strategy)


def test_a_sampler_that_chooses_examples_is_refused():
    dataset = TensorDataset(*make_tensors(40))
    train_loader = DataLoader(dataset, batch_size=8, sampler=SubsetRandomSampler(range(20)))
    with pytest.raises(ValueError, match="got SubsetRandomSampler. Wrap the examples in .*Subset"):
        crest.CoresetLoader(train_loader, make_model(), loss_fn=CRITERION)
    crest.CoresetLoader(train_loader, make_model(), loss_fn=CRITERION, strategy=crest.Full())


def test_a_loader_that_does_not_batch_is_refused():
    train_loader = DataLoader(TensorDataset(*make_tensors(40)), batch_size=None)
    with pytest.raises(ValueError, match="must batch its examples; got one with batch_size=None"):
        crest.CoresetLoader(train_loader, make_model(), loss_fn=CRITERION)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 401}, r"batch_size must be in \[1, 400\]"),
        ({"accumulation_steps": 0}, "accumulation_steps must be >= 1"),
        ({"labels": torch.zeros(3)}, r"labels must have one class per example, shape \(400,\)"),
        ({"labels": torch.full((400,), -1)}, "labels must be integers from 0, .* got -1"),
        (
            {"labels": torch.full((400,), 0.5)},
            "labels must be integers from 0, .* got torch.float32",
        ),
        ({"head": "nowhere"}, "head must name a module of the model; got 'nowhere'"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(**options)


def test_labels_of_any_integer_type_are_accepted():
    make_loader(labels=torch.full((400,), 3, dtype=torch.uint16))


def test_a_dtype_by_its_name_is_refused():
    with pytest.raises(TypeError, match="dtype must be a torch.dtype.*got 'bfloat16'"):
        make_loader(look=crest.Look(dtype="bfloat16"))


@pytest.mark.parametrize("strategy", [crest.Crest.paper(), crest.GreedyMiniBatch()])
def test_a_scalar_loss_is_refused(strategy):
    loader = make_loader(strategy, loss_fn=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match='Set reduction="none"'):
        next(iter(loader))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_step_and_examples(bad):
    inputs, targets = make_tensors()
    inputs[[7, 123]] = bad
    loader = make_loader(
        crest.Crest.paper(subset_size=400, advanced=crest.CrestAdvanced(min_pool=400)),
        dataset=TensorDataset(inputs, targets),
        batch_size=400,
        budget=1,
    )
    with pytest.raises(
        ValueError, match=r"losses must be finite; got .* at step 0 .*\[7(, 123)?\]"
    ):
        next(iter(loader))


def test_a_model_that_diverges_names_the_step():
    model = make_model()
    loader = make_loader(crest.Crest.paper(), model=model, budget=1)

    def poison(*_):
        if loader.history.steps == 3:
            model[0].weight.data.fill_(float("nan"))

    with pytest.raises(
        ValueError, match="losses must be finite; got nan at step 3 .*learning rate"
    ):
        train(loader, model, on_step=poison)


def test_a_dataset_that_shrinks_is_noticed():
    class Shrinking(TensorDataset):
        length = 400

        def __len__(self):
            return self.length

    model, dataset = make_model(), Shrinking(*make_tensors())
    loader = make_loader(crest.Crest.paper(), model=model, dataset=dataset, budget=1)

    def shrink(*_):
        dataset.length = 300

    with pytest.raises(ValueError, match="must keep its length, 400; it has 300 now"):
        train(loader, model, on_step=shrink)


class Broken(TensorDataset):
    def __getitem__(self, index):
        if index == 33:
            raise OSError("bad sector")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("strategy", [crest.Random(), crest.Full()], ids=lambda s: type(s).__name__)
def test_an_example_that_cannot_be_read_is_named(strategy, num_workers):
    loader = make_loader(
        strategy, dataset=Broken(*make_tensors()), num_workers=num_workers, budget=1
    )
    with pytest.raises(RuntimeError, match="give example 33; it raised OSError: bad sector"):
        list(loader)


def test_a_model_without_a_linear_layer_is_refused_and_random_still_trains():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(20))
    with pytest.raises(ValueError, match="must have a linear layer"):
        next(iter(make_loader(crest.Crest.paper(), model=model)))
    train(make_loader(crest.Random(), model=model), model)


def test_a_frozen_model_is_refused():
    model = make_model().requires_grad_(False)
    with pytest.raises(ValueError, match="needs parameters that require grad"):
        next(iter(make_loader(crest.Crest.paper(), model=model)))


class SmallMemory(torch.nn.Module):
    """Runs out of memory on more than `limit` examples at once, outside of training."""

    def __init__(self, limit):
        super().__init__()
        self.head = nn.Linear(20, 5)
        self.limit = limit

    def forward(self, inputs):
        if len(inputs) > self.limit and not self.training:
            raise torch.OutOfMemoryError("out of memory")
        return self.head(inputs)


def test_a_pass_that_runs_out_of_memory_is_halved_once_with_one_warning():
    plain = make_loader(crest.GreedyMiniBatch(subset_size=300), model=SmallMemory(1000))
    expected = next(iter(plain))
    model = SmallMemory(64)
    model.load_state_dict(plain._model.state_dict())
    loader = make_loader(crest.GreedyMiniBatch(subset_size=300), model=model)
    batches = iter(loader)
    with pytest.warns(ResourceWarning, match="ran out of memory.* passes hold 64") as warned:
        batch = next(batches)
    assert len(warned) == 1
    assert all(map(torch.equal, batch, expected))


def test_memory_too_small_for_half_a_pass_is_an_error():
    loader = make_loader(crest.GreedyMiniBatch(subset_size=300), model=SmallMemory(10))
    with pytest.warns(ResourceWarning), pytest.raises(torch.OutOfMemoryError):
        next(iter(loader))


def steps_taken(every, accumulation_steps, *, ahead=0, write_back=False):
    """Epochs of a loop that steps after so many batches, and fetches some ahead."""
    loader = make_loader(crest.Random(), budget=0.5, accumulation_steps=accumulation_steps)
    model, steps = loader._model, 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        waiting, count, iterator = [], 0, iter(loader)
        while True:
            while len(waiting) <= ahead and (batch := next(iterator, None)) is not None:
                waiting.append(batch)
            if not waiting:
                break
            inputs, targets, weights = waiting.pop(0)
            if write_back:  # as an optimizer that looks ahead does in each batch
                with torch.no_grad():
                    before = [parameter.clone() for parameter in model.parameters()]
                    for parameter, value in zip(model.parameters(), before, strict=True):
                        parameter.add_(1.0)
                        parameter.copy_(value)
            crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
            count += 1
            if count % every == 0:
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
    return steps


@pytest.mark.filterwarnings("ignore:a region was planned")
@pytest.mark.parametrize(("every", "accumulation_steps"), [(1, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_in_the_midst_of_a_group_is_refused(every, accumulation_steps, ahead):
    message = f"got {accumulation_steps}, but within {accumulation_steps} batches the parameters"
    with pytest.raises(ValueError, match=message):
        steps_taken(every, accumulation_steps, ahead=ahead)


@pytest.mark.filterwarnings("ignore:a region was planned")
@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("write_back", [False, True])
def test_a_step_after_each_group_is_let_be(ahead, write_back):
    assert steps_taken(4, 4, ahead=ahead, write_back=write_back) == 2 * 12 // 4
    assert steps_taken(8, 4, ahead=ahead, write_back=write_back) == 2  # fewer than announced
