"""A loader that goes out of use is freed by its last reference, and its workers with it.

Workers that a collector of cycles finds are waited for, five seconds each: what they would be told
to end by is gone by then.
"""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch.utils.data import DataLoader

import crest
from toys import CRITERION, NoisyData, make_loader, make_model, train

STRATEGIES = [
    crest.Crest(),
    crest.Crest.paper(),
    crest.OnlineSelection(),
    crest.RememberedGradients(),
    crest.GreedyMiniBatch(),
    crest.Random(),
    crest.Full(),
]


@pytest.fixture(autouse=True)
def _by_references_alone():
    torch.optim.SGD(make_model().parameters())  # the first one leaves cycles, of torch itself
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("record", [False, True])
def test_the_last_reference_frees_a_loader(strategy, record):
    loader = make_loader(strategy, budget=0.3, record=record)
    train(loader, loader._model)
    freed = [weakref.ref(part) for part in (loader, loader._planner, loader._region._reader)]
    del loader
    assert [ref() for ref in freed] == [None] * 3


def test_a_loop_that_was_left_frees_its_loader():
    loader = make_loader(crest.OnlineSelection())
    for _ in loader:
        break
    freed = weakref.ref(loader)
    del loader
    assert freed() is None


def test_persistent_workers_end_with_the_last_reference():
    train_loader = DataLoader(NoisyData(), batch_size=16, num_workers=1, persistent_workers=True)
    loader = crest.CoresetLoader(
        train_loader, make_model(), loss_fn=CRITERION, strategy=crest.OnlineSelection()
    )
    train(loader, loader._model)
    (worker,) = loader._region._reader._iterator._workers
    assert worker.is_alive()
    del loader
    assert not worker.is_alive()


def test_a_backward_pass_may_come_after_its_loader_is_gone():
    loader = make_loader(crest.OnlineSelection())
    model = loader._model
    for inputs, targets, weights in loader:
        loss = crest.weighted_mean(CRITERION(model(inputs), targets), weights)
        break
    del loader
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_loop_that_stands_still_when_python_ends_does_not_end_it_by_force():
    script = """
import torch, crest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.randn(64, 20), torch.randint(10, (64,)))
def training():
    model = nn.Linear(20, 10)
    criterion = nn.CrossEntropyLoss(reduction="none")
    loader = crest.CoresetLoader(DataLoader(data, 8), model, loss_fn=criterion, budget=1)
    while True:
        for inputs, targets, weights in loader:
            crest.weighted_mean(criterion(model(inputs), targets), weights).backward()
            yield
steps = training()
for _ in range(12):
    next(steps)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
