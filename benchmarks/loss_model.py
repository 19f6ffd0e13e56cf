"""What predicts the loss along the way of SGD: F of Eq. (6), its parts, and what F leaves out.

    python benchmarks/loss_model.py --data-dir DIR --threads 1

ResNet-20 is trained on CIFAR-10 with random mini-batches, under the paper's schedule compressed
into `--steps`. At some steps of each learning rate an anchor is set: five coresets of 500 examples
each, their mean gradient g and one Rademacher probe of the Hessian for each. SGD then takes 20
steps on these coresets in turn, as CREST does, and predictions are compared with the loss of 500
other examples, which are the same with the same views at both ends: rho of Eq. (10), in percent,
means over the anchors of a learning rate. g and diag(H) are smoothed over anchors by Eq. (8), (9).

- constant: the loss at the anchor.
- linear: with g . delta; "of others": with the gradient of the 500 other examples.
- F: Eq. (6) as printed, curvature from the root of the smoothed squares of one probe.
- pairs: the same with products of two independent probes in place of squares, which have no noise.
- exact: delta . H . delta of the first coreset, by a Hessian product once delta is known.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from crest.lab.data.datasets import load_dataset
from crest.lab.run.freed_memory import keep_freed_memory
from crest.lab.run.learning_rate import learning_rate_factor
from crest.looking.observer import Observer
from crest.quadratic import (
    SmoothedMoments,
    flatten,
    gradient_and_hessian_diagonal,
    rademacher_probes,
)
from crest.selection import facility_location

BATCH_SIZE, SUBSET_SIZE, CORESETS, LR = 128, 500, 5, 0.1
HORIZONS = (1, 2, 3, 5, 10, 20)
STAGES = {"0.03 to 0.1": 0.05, "0.1": 0.4, "0.01": 0.68, "0.001": 0.9}  # when, of all steps
Errors = dict[str, list[float]]
CRITERION = nn.CrossEntropyLoss(reduction="none")


class Study:
    """Trains, and stops for anchors."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        data = load_dataset("cifar10", arguments.data_dir)
        self.views = data.make_views("cpu", augment=True)
        torch.manual_seed(arguments.seed)
        self.model = data.build_network("resnet20").to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, arguments.steps)
        )
        self.observer = Observer(self.model, CRITERION, dtype=torch.bfloat16, batch_statistics=True)
        self.parameters = list(self.model.parameters())
        self.generator = torch.Generator().manual_seed(arguments.seed)
        passes = DataLoader(self.views, BATCH_SIZE, shuffle=True, drop_last=True)
        self.batches = itertools.chain.from_iterable(itertools.repeat(passes))

    def step(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Take one step of SGD, with weights on a coreset."""
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.model(inputs).float()
        losses = CRITERION(outputs, targets)
        self.optimizer.zero_grad()
        (losses if weights is None else losses * weights).mean().backward()
        self.optimizer.step()
        self.schedule.step()

    def anchor(self, gradients: SmoothedMoments, pairs: SmoothedPairs) -> dict[str, list[float]]:
        """Set an anchor, go 20 steps, and give rho by what predicted, a value for each horizon."""
        others = self._read()
        coresets = [self._coreset() for _ in range(CORESETS)]
        found, probed = [], []
        for coreset in coresets:
            (probe,) = rademacher_probes(self.parameters, 1, self.generator)
            gradient, diagonal = self._derivatives(coreset, probe)
            found.append(gradient)
            probed.append(diagonal)
        gradient = torch.stack(found).mean(0)
        smooth, curvature = gradients.update(gradient, probed[0])
        without_noise = pairs.update(torch.stack(probed))
        with self.observer.differentiable_losses(others) as losses:
            of_others = flatten(torch.autograd.grad(losses.mean(), self.parameters))
        loss = float(self.observer.losses(others).mean())
        before, start = flatten(self.parameters), [p.detach().clone() for p in self.parameters]
        ways, measured = [], []
        for k in range(1, HORIZONS[-1] + 1):
            self.step(*coresets[(k - 1) % CORESETS])
            if k in HORIZONS:
                ways.append(flatten(self.parameters) - before)
                measured.append(float(self.observer.losses(others).mean()))
        errors = defaultdict(list)
        for delta, now in zip(ways, measured, strict=True):
            squares = delta.square() / 2
            linear = loss + float(smooth @ delta)
            exact = self._curvature_along(start, coresets[0], delta)
            for name, predicted in {
                "constant": loss,
                "linear": linear,
                "linear, of others": loss + float(of_others @ delta),
                "F": linear + float(curvature @ squares),
                "F, pairs of probes": linear + float(without_noise @ squares),
                "linear, of this round": loss + float(gradient @ delta),
                "linear, of this round, and exact curvature": loss
                + float(gradient @ delta)
                + exact / 2,
            }.items():
                errors[name].append(100 * abs(predicted - now) / now)
            of_diagonal = 2 * float(torch.stack(probed).mean(0) @ squares)
            errors["share of the diagonal in exact curvature"].append(100 * of_diagonal / exact)
        return errors

    def _read(self) -> tuple[Tensor, Tensor]:
        rows = torch.randperm(len(self.views), generator=self.generator)[:SUBSET_SIZE].tolist()
        inputs, targets = default_collate([self.views[row] for row in rows])
        return inputs, targets

    def _coreset(self) -> tuple[Tensor, Tensor, Tensor]:
        inputs, targets = self._read()
        rows, weights = self._pick((inputs, targets))
        return inputs[rows], targets[rows], weights

    def _features(self, subset: tuple[Tensor, ...]) -> Tensor:
        return self.observer.last_layer_gradients(subset).input_gradients.flatten(1)

    def _pick(self, subset: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        rows, sizes = facility_location(self._features(subset), BATCH_SIZE)
        return rows, sizes.float() * BATCH_SIZE / SUBSET_SIZE

    def measure(
        self, stages: dict[str, float], steps: int, at_anchor: Callable[[], Errors], anchors: int
    ) -> Iterator[tuple[str, Errors]]:
        """Train, and give for each learning rate the means over its anchors."""
        step = 0
        for name, share in stages.items():
            while step < round(share * steps):
                self.step(*next(self.batches))
                step += 1
            found = [at_anchor() for _ in range(anchors)]
            step += anchors * HORIZONS[-1]
            columns = {row: zip(*(one[row] for one in found), strict=True) for row in found[0]}
            yield name, {row: [*map(statistics.fmean, at)] for row, at in columns.items()}

    def _derivatives(
        self, coreset: tuple[Tensor, Tensor, Tensor], direction: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Give the gradient of a coreset, and a direction times the Hessian's product with it."""
        inputs, targets, weights = coreset
        with self.observer.differentiable_losses((inputs, targets)) as losses:
            return gradient_and_hessian_diagonal(
                (losses * weights).mean(), self.parameters, [direction]
            )

    def _curvature_along(
        self, start: list[Tensor], coreset: tuple[Tensor, Tensor, Tensor], delta: Tensor
    ) -> float:
        now = [parameter.detach().clone() for parameter in self.parameters]
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = delta.split(sizes)
        direction = [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
        self._set(start)
        _, products = self._derivatives(coreset, direction)
        self._set(now)
        return float(products.sum())

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


class SmoothedPairs:
    """Eq. (9) on products of independent probes, which have no noise of a single one."""

    def __init__(self, beta: float) -> None:
        self._beta, self._round = beta, 0
        self._squares: Tensor | None = None

    def update(self, probed: Tensor) -> Tensor:
        """Take in the probes of a round, shape (k, q); give the curvature, shape (q,)."""
        k = len(probed)
        products = (probed.sum(0).square() - probed.square().sum(0)) / (k * (k - 1))
        before = torch.zeros_like(products) if self._squares is None else self._squares
        self._squares = before.lerp(products, 1 - self._beta)
        self._round += 1
        return (self._squares / (1 - self._beta**self._round)).clamp(min=0).sqrt()


def read_arguments(description: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--steps", type=int, default=1560, help="of all training (default: 1560)")
    parser.add_argument("--anchors", type=int, default=4, help="of each rate (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments(__doc__.splitlines()[0])
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    study = Study(arguments)
    gradients, pairs = SmoothedMoments((0.9, 0.999)), SmoothedPairs(0.999)
    at_anchor = functools.partial(study.anchor, gradients, pairs)
    for name, errors in study.measure(STAGES, arguments.steps, at_anchor, arguments.anchors):
        print(f"\n| learning rate {name}, rho % after | {' | '.join(map(str, HORIZONS))} steps |")
        print("|---" * (len(HORIZONS) + 1) + "|")
        for row, means in errors.items():
            print(f"| {row} | {' | '.join(f'{mean:.1f}' for mean in means)} |", flush=True)


if __name__ == "__main__":
    main()
