"""What the tests of the baselines share."""

from __future__ import annotations

import copy
import io
import itertools

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.looking.observer import Observer
from crest.strategies.protocol import Task
from toys import CRITERION, NoisyData, equal_parameters, make_loader, make_model, make_tensors

N, M, K = 400, 16, 40  # examples, mini-batch, subset at 10 %


def make_trained_model(steps: int = 60):
    """A network between the first step and the last: some examples learned, some not."""
    inputs, targets = make_tensors(N)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for rows in torch.randint(N, (steps, M), generator=torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        CRITERION(model(inputs[rows]), targets[rows]).mean().backward()
        optimizer.step()
    return model


def observe(model, inputs: Tensor, targets: Tensor):
    return Observer(model, CRITERION).last_layer_gradients((inputs, targets))


def planned(strategy, model, *, batches=3, **options) -> list[tuple[Tensor, Tensor]]:
    """Indices and weights of the first mini-batches; three of them hold the whole subset."""
    loader = make_loader(
        strategy,
        model=model,
        budget=1,
        batch_size=M,
        attach=lambda _, weights, indices: (indices, weights),
        **options,
    )
    found = []
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), batches):
        found.append(batch)
        with torch.no_grad():
            next(model.parameters()).add_(0)  # a step that goes nowhere
    return found


def subset_of(strategy, model, **options) -> dict[int, float]:
    """The first subset a strategy picks: weight by example."""
    batches = planned(strategy, model, **options)
    return {
        int(index): float(weight)
        for indices, weights in batches
        for index, weight in zip(indices, weights, strict=True)
    }


def shares(targets: Tensor, per_class: bool, size: int = K) -> list[tuple[Tensor, int]]:
    """Rows and picks of each class by largest remainder, or of all."""
    if not per_class:
        return [(torch.arange(len(targets)), size)]
    counts = targets.bincount().double() * size / len(targets)
    sizes = counts.floor()
    for label in (counts - sizes).argsort(descending=True, stable=True)[: size - int(sizes.sum())]:
        sizes[label] += 1
    return [((targets == c).nonzero().squeeze(1), int(s)) for c, s in enumerate(sizes) if s]


def make_task(num_examples: int = N, batch_size: int = M, dataset=None, labels=None) -> Task:
    return Task(
        num_examples=num_examples,
        batch_size=batch_size,
        batches_per_step=1,
        drop_last=False,
        generator=torch.Generator().manual_seed(0),
        labels=labels,
        user_order=list,
        batches_per_pass=num_examples // batch_size,
        dataset=dataset,
    )


def observing(loader, model, *, epochs=1, lr=0.1, observe_every=1):
    """Train, and tell the loader what training computes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    step = 0
    for _ in range(epochs):
        for inputs, targets, weights in loader:
            outputs = model(inputs)
            losses = CRITERION(outputs, targets)
            if step % observe_every == 0:
                loader.observe(losses, outputs)
            optimizer.zero_grad()
            crest.weighted_mean(losses, weights).backward()
            optimizer.step()
            step += 1


def held_out_loader(n: int = 100, **options) -> DataLoader:
    """Examples of the rule that `make_tensors` draws first, which training does not hold."""
    inputs, targets = make_tensors(N + n)
    return DataLoader(TensorDataset(inputs[N:], targets[N:]), batch_size=32, **options)


def assert_resumes(strategy, *, stops=(1, 2, 3, 4, 8), batches=10, observes=False) -> None:
    """Stop after some batches, resume from a file, and find the same parameters and records."""

    def run(stop_at=batches, checkpoint=None):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        loader = make_loader(strategy, model=model, dataset=NoisyData(), budget=0.1)
        done = 0
        if checkpoint is not None:
            saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["loader"])
            done = saved["done"]
        while True:
            for inputs, targets, weights in loader:
                outputs = model(inputs)
                losses = CRITERION(outputs, targets)
                if observes:
                    loader.observe(losses, outputs)
                crest.weighted_mean(losses, weights).backward()
                optimizer.step()
                optimizer.zero_grad()
                done += 1
                if done == stop_at:
                    state = {"model": model, "optimizer": optimizer, "loader": loader}
                    state = {name: part.state_dict() for name, part in state.items()}
                    file = io.BytesIO()
                    torch.save({**state, "done": done}, file)
                    return model, loader, file.getvalue()

    def plan(loader):
        return [copy.copy(r) | {"seconds": 0} for r in loader.history.records]

    model, loader, _ = run()
    assert loader.history.updates > 1
    for stop_at in stops:
        resumed, resumed_loader, _ = run(checkpoint=run(stop_at)[2])
        assert equal_parameters(model, resumed), stop_at
        assert plan(loader) == plan(resumed_loader), stop_at
