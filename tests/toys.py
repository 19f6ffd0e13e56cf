"""Small data, models and loops that the tests share."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import crest
from crest.lab.run import comparison

NUM_CLASSES = 5
CRITERION = nn.CrossEntropyLoss(reduction="none")


def make_tensors(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs (n, 20) and the classes that a random linear map gives them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 20, generator=generator)
    return inputs, (inputs @ torch.randn(20, NUM_CLASSES, generator=generator)).argmax(1)


class NoisyData(Dataset):
    """Draws a new view at every read, from all three random states."""

    def __init__(self, n: int = 400) -> None:
        self.inputs, self.targets = make_tensors(n)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(20) + float(np.random.randn()) + random.gauss(0, 1)
        return self.inputs[index] + 0.1 * noise, int(self.targets[index])


def make_model(seed: int = 0, *, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, 32),
        nn.BatchNorm1d(32) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(32, NUM_CLASSES),
    )


def make_loader(
    strategy=None, *, model=None, dataset=None, num_workers=0, batch_size=16, **options
) -> crest.CoresetLoader:
    dataset = TensorDataset(*make_tensors()) if dataset is None else dataset
    train_loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=num_workers)
    options.setdefault("loss_fn", CRITERION)
    strategy = crest.Crest() if strategy is None else strategy  # which looks, trains and checks
    return crest.CoresetLoader(
        train_loader, make_model() if model is None else model, strategy=strategy, **options
    )


def train(
    loader, model, *, epochs=1, lr=0.1, on_step=None, optimizer=None, criterion=CRITERION, group=1
):
    """The loop of the README, with a hook after each batch; `group` batches make a step."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for k, (inputs, targets, weights) in enumerate(loader):
            loss = crest.weighted_mean(criterion(model(inputs), targets), weights)
            if k % group == 0:
                optimizer.zero_grad()
            loss.backward()
            if (k + 1) % group == 0:
                optimizer.step()
            if on_step is not None:
                on_step(inputs, targets, weights)


def equal_parameters(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def let_diverge(monkeypatch, which) -> None:
    """Make the runs whose settings `which` picks out fail as those that diverge do."""
    train_run = comparison.train

    def diverging(settings, *arguments, **options):
        if which(settings):
            raise ValueError("losses must be finite; got nan")
        return train_run(settings, *arguments, **options)

    monkeypatch.setattr(comparison, "train", diverging)
