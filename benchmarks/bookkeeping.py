"""What the books of a loader cost: counts, records and trackers, switched off and on.

    python benchmarks/bookkeeping.py --data-dir DIR --turns 30

Trains ResNet-8 on CIFAR-10 at half the resolution in batches of 64, and a two-layer net on noise in
batches of 128, on random mini-batches of a `CoresetLoader`. Turns of steps of all variants follow
each other in one process, in an order that is reversed each time; seconds are those of the
processor. Printed are milliseconds a step, and the median over turns of the ratio to a loader whose
books are taken away:

- off: nothing is asked for, as by default;
- record: `record=True`, which watches training and keeps what it shows of each example;
- record and tracker: and a file of JSON lines.

Differences of a per cent drown in the noise of a machine, so that what is done for each batch while
all is off is also timed by itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cheap_forward import halve
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import crest
from crest.history import History
from crest.lab.data.datasets import load_dataset
from crest.lab.networks.vision import build_network
from crest.lab.run.freed_memory import keep_freed_memory
from crest.ledger import Ledger

CRITERION = nn.CrossEntropyLoss(reduction="none")
VARIANTS = ("without books", "off", "record", "record and tracker")


def steps_of(variant: str, model: nn.Module, data: Dataset[Any], batch_size: int) -> Iterator[None]:
    """Train for ever, a step at a time."""
    tracker = crest.JsonLines(Path(tempfile.mkdtemp()) / "run.jsonl")
    loader = crest.CoresetLoader(
        DataLoader(data, batch_size, shuffle=True, drop_last=True),
        model,
        loss_fn=CRITERION,
        strategy="random",
        budget=1,
        record=variant.startswith("record"),
        tracker=tracker if variant.endswith("tracker") else None,
    )
    if variant == "without books":
        loader._ledger.hand_out = lambda indices: None  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    while True:
        for inputs, targets, weights in loader:
            loss = crest.weighted_mean(CRITERION(model(inputs), targets), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def images(folder: str) -> TensorDataset:
    data = load_dataset("cifar10", folder)
    inputs, labels = next(
        iter(data.make_views("cpu", augment=False).plain_batches(range(5120), 5120))
    )
    return TensorDataset(halve((inputs, labels))[0], labels)


def time_hand_out() -> float:
    """Microseconds to count a batch of 128, the least of three times 5,120."""
    ledger = Ledger(50_000, History(128, torch.device("cpu")), records=False, tracker=None)
    batches = [torch.randint(50_000, (128,)) for _ in range(256)]
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(20):
            for indices in batches:
                ledger.hand_out(indices)
        taken.append(1e6 * (time.perf_counter() - start) / (20 * len(batches)))
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--turns", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"off, by itself: {time_hand_out():.2f} microseconds a batch", flush=True)
    small = TensorDataset(torch.randn(5120, 64), torch.randint(10, (5120,)))
    for name, data, batch_size, count in (
        ("ResNet-8, 16 x 16", images(arguments.data_dir), 64, 20),
        ("two layers", small, 128, 400),
    ):
        runs = {}
        for variant in VARIANTS:
            torch.manual_seed(0)
            model = (
                nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
                if name == "two layers"
                else build_network("resnet8", 3, 16, 10).to(memory_format=torch.channels_last)
            )
            runs[variant] = steps_of(variant, model, data, batch_size)
            for _ in range(2 * 5120 // batch_size):  # all that is done once is behind it
                next(runs[variant])
        taken: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for turn in range(arguments.turns):
            for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
                start = time.process_time()
                for _ in range(count):
                    next(runs[variant])
                taken[variant].append(1000 * (time.process_time() - start) / count)
        for variant in VARIANTS:
            ratios = [a / b for a, b in zip(taken[variant], taken[VARIANTS[0]], strict=True)]
            print(
                f"{name}, {variant}: {statistics.median(taken[variant]):.3f} ms a step, "
                f"{statistics.median(ratios):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
