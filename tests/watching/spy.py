"""A strategy that keeps what it hears, and the truth that it is compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import crest
from crest.strategies.protocol import MiniBatch, Region
from crest.strategies.random import Random

N, M, C, D = 96, 8, 4, 10


@dataclass(frozen=True)
class Spy:
    """Random batches; keeps what training shows."""

    heard: list = field(default_factory=list, compare=False)
    uneven_weights: bool = False

    def start(self, task):
        planner = Random().start(task)
        heard = self.heard
        heard.clear()

        def next_region(examples, step):
            region = planner.next_region(examples, step)
            if not self.uneven_weights:
                return region
            batches = [
                MiniBatch(batch.indices, torch.linspace(0, 2, len(batch.indices)))
                for batch in region.batches
            ]
            return Region(batches)

        class Planner:
            state_dict = planner.state_dict
            load_state_dict = planner.load_state_dict

            def next_region(self, examples, step):
                return next_region(examples, step)

            def observe(self, indices, losses):
                self.losses = losses

            def remember(self, indices, errors):
                heard.append((indices.clone(), self.losses, errors))

        return Planner()


class Rows(Dataset):
    """Rows of numbers, all different, and targets of several kinds."""

    def __init__(self, kind: str = "classes", classes: int = C, n: int = N) -> None:
        generator = torch.Generator().manual_seed(0)
        self.kind = kind
        self.inputs = torch.randn(n, D, generator=generator)
        scores = self.inputs @ torch.randn(D, classes, generator=generator)
        self.targets = {
            "classes": scores.argmax(1),
            "several": (scores > 0).float(),
            "numbers": scores,
        }[kind]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


LOSSES = {"classes": cross_entropy, "several": binary, "numbers": squared}


def errors_by_hand(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Derivative of each loss by its outputs, from its formula in float64."""
    outputs = outputs.double()
    if kind == "classes":
        return outputs.softmax(1) - functional.one_hot(targets, outputs.shape[1])
    if kind == "several":
        return (outputs.sigmoid() - targets) / outputs.shape[1]
    return 2 * (outputs - targets.double()) / outputs.shape[1]


def make_model(outputs: int = C, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, outputs))


class Truth:
    """What was trained on, from the numbers alone: which rows, and the outputs at that moment."""

    def __init__(self, data: Rows, model: nn.Module) -> None:
        self._data = data
        self._model = model
        self._places = {row.numpy().tobytes(): k for k, row in enumerate(data.inputs)}
        self.errors: dict[int, list[Tensor]] = {}

    def note(self, inputs: Tensor, outputs: Tensor | None = None) -> None:
        """Call it before a forward pass of rows as they are in the data, or with its outputs."""
        rows = [self._places[row.detach().numpy().tobytes()] for row in inputs]
        if outputs is None:
            twin = copy.deepcopy(self._model)
            with torch.no_grad():
                outputs = twin(self._data.inputs[rows])
        outputs = outputs.detach()
        errors = errors_by_hand(self._data.kind, outputs, self._data.targets[rows])
        for row, error in zip(rows, errors, strict=True):
            self.errors.setdefault(row, []).append(error)

    def judge(self, heard: list, tolerance: float = 1e-4) -> int:
        """See that each gradient that was heard is one of its example; return how many rows."""
        count = 0
        for indices, _, errors in heard:
            for index, error in zip(indices.tolist(), errors.double(), strict=True):
                missed = [float((error - one).norm()) for one in self.errors[index]]
                assert min(missed) <= tolerance, f"example {index}: off by {min(missed):.2g}"
                count += 1
        return count


class Loop:
    """One loop over a watched loader, with its truth."""

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        kind: str = "classes",
        data: Rows | None = None,
        handed: nn.Module | None = None,
        batch_size: int = M,
        uneven_weights: bool = False,
        **options: Any,
    ) -> None:
        self.data = Rows(kind) if data is None else data
        self.model = make_model() if model is None else model
        self.criterion = LOSSES[kind]
        self.spy = Spy(uneven_weights=uneven_weights)
        options.setdefault("loss_fn", self.criterion)
        self.loader = crest.CoresetLoader(
            DataLoader(self.data, batch_size, shuffle=True),
            self.model if handed is None else handed,
            strategy=self.spy,
            budget=1,
            **options,
        )
        self.truth = Truth(self.data, self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05)
        self.steps = 0

    def run(self, step: Any = None, epochs: int = 2) -> Loop:
        """Run `step(loop, inputs, targets, weights)`, by default the plain one, and settle."""
        for _ in range(epochs):
            for inputs, targets, weights in self.loader:
                self.steps += 1
                (step or plain)(self, inputs, targets, weights)
        return self

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def rows_taken_in(self) -> int:
        return self.truth.judge(self.spy.heard)

    @property
    def rows_trained_on(self) -> int:
        return self.steps * M


def plain(loop: Loop, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
    loop.truth.note(inputs)
    crest.weighted_mean(loop.criterion(loop.model(inputs), targets), weights).backward()
    loop.update()
