"""How long a coreset stays better than a random mini-batch, while SGD goes on.

    python benchmarks/staleness.py --data-dir DIR --threads 1

ResNet-20 is trained on CIFAR-10 as in `loss_model.py`. At some steps of each learning rate coresets
of 500 examples each are picked, five to be measured and twenty to be trained on, each once, as
CREST does. After 0 to 20 of these steps the gradient of each measured one, which was not trained
on, is compared with that of 2,000 other examples, over all parameters. Given is the mean squared
error, divided by that of random mini-batches of as many examples at the same parameters: below 1 a
coreset is worth its weights, above 1 it is worse than chance. Means over the anchors of a rate.

- coresets: as picked, with their weights.
- weights alone renewed: the same examples, weighted by the candidates that are nearest to them now.
- picked anew: coresets of the same candidates, picked at the parameters of the moment.
"""

from __future__ import annotations

import statistics

import torch
from loss_model import BATCH_SIZE, CORESETS, STAGES, SUBSET_SIZE, Study, read_arguments
from torch import Tensor

from crest.lab.run.freed_memory import keep_freed_memory
from crest.quadratic import flatten

HORIZONS = (0, 3, 10, 20)
NUM_RANDOM, NUM_OTHERS = 6, 4  # mini-batches of 128; parts of 500

Batch = tuple[Tensor, ...]


class Staleness(Study):
    """Trains, and stops to see coresets grow old."""

    def age(self) -> dict[str, list[float]]:
        """Pick coresets, go 20 steps, and give the error of each kind for each horizon."""
        candidates = [self._read() for _ in range(CORESETS)]
        picked = [self._pick(subset) for subset in candidates]
        way = [self._coreset() for _ in range(HORIZONS[-1])]
        random = [tuple(part[:BATCH_SIZE] for part in self._read()) for _ in range(NUM_RANDOM)]
        others = [self._read() for _ in range(NUM_OTHERS)]
        errors: dict[str, list[float]] = {}
        for k in range(HORIZONS[-1] + 1):
            if k in HORIZONS:
                truth = torch.stack([self._gradient(part) for part in others]).mean(0)
                kinds: dict[str, list[Batch]] = {
                    "coresets": [self._take(*of) for of in zip(candidates, picked, strict=True)],
                    "weights alone renewed": [
                        self._take(subset, self._weigh(subset, rows))
                        for subset, (rows, _) in zip(candidates, picked, strict=True)
                    ],
                    "picked anew": [
                        self._take(subset, self._pick(subset)) for subset in candidates
                    ],
                }
                chance = self._error(random, truth)
                for name, batches in kinds.items():
                    errors.setdefault(name, []).append(self._error(batches, truth) / chance)
            if k < HORIZONS[-1]:
                self.step(*way[k])
        return errors

    def _weigh(self, subset: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        features = self._features(subset)
        nearest = torch.cdist(features, features[rows]).argmin(1)
        sizes = nearest.bincount(minlength=len(rows))
        return rows, sizes.float() * BATCH_SIZE / SUBSET_SIZE

    @staticmethod
    def _take(subset: Batch, picked: tuple[Tensor, Tensor]) -> Batch:
        rows, weights = picked
        return subset[0][rows], subset[1][rows], weights

    def _gradient(self, batch: Batch) -> Tensor:
        inputs, targets, *weights = batch
        with self.observer.differentiable_losses((inputs, targets)) as losses:
            mean = (losses * weights[0]).mean() if weights else losses.mean()
            return flatten(torch.autograd.grad(mean, self.parameters))

    def _error(self, batches: list[Batch], truth: Tensor) -> float:
        return statistics.fmean(
            float((self._gradient(batch) - truth).square().sum()) for batch in batches
        )


def main() -> None:
    arguments = read_arguments(__doc__.splitlines()[0])
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    study = Staleness(arguments)
    stages = dict([*STAGES.items()][1:])  # rates that stay for a while
    for name, errors in study.measure(stages, arguments.steps, study.age, arguments.anchors):
        print(f"\n| learning rate {name}, after | {' | '.join(map(str, HORIZONS))} steps |")
        print("|---" * (len(HORIZONS) + 1) + "|")
        for row, means in errors.items():
            print(f"| {row} | {' | '.join(f'{mean:.2f}' for mean in means)} |", flush=True)


if __name__ == "__main__":
    main()
