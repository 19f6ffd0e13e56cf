"""The loss approximation of one mini-batch, Eq. (6) and (7): its time, and what fewer bits cost.

    python benchmarks/quadratic.py --data-dir DIR --networks resnet8 resnet20
    python benchmarks/quadratic.py --data-dir DIR --networks resnet20 resnet18 --device cuda

Each network is trained for some steps on random mini-batches of CIFAR-10 first. Then gradient and
Hessian diagonal of a mini-batch are taken in float32 and under autocast to bfloat16, in turns;
medians are printed, and how far the estimates of bfloat16 are from those of float32, beside how
far those of another probe and of another mini-batch are: relative, in the Euclidean norm.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import chain, islice, repeat

import torch
from torch import nn
from torch.utils.data import DataLoader

from crest.lab.data.datasets import load_dataset
from crest.lab.run.freed_memory import keep_freed_memory
from crest.looking.observer import Observer
from crest.quadratic import gradient_and_hessian_diagonal, rademacher_probes
from crest.reader import place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=150, help="of training before (default: 150)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    data = load_dataset("cifar10", arguments.data_dir)
    views = data.make_views(arguments.device, augment=True)
    print(
        "| network | | gradient ms | and diagonal ms | gradient off by | diagonal off by |\n"
        "|---|---|---|---|---|---|"
    )
    for name in arguments.networks:
        torch.manual_seed(0)
        model = data.build_network(name).to(arguments.device, memory_format=torch.channels_last)
        loader = DataLoader(views, arguments.batch_size, shuffle=True, drop_last=True)
        _train(model, loader, arguments.steps)
        batches = [place(batch, torch.device(arguments.device)) for batch in islice(loader, 2)]
        for row in _measure(model, batches, arguments.turns):
            print(f"| {name} | {' | '.join(row)} |", flush=True)


def _train(model: nn.Module, loader: DataLoader, steps: int) -> None:
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in islice(chain.from_iterable(repeat(loader)), steps):
        loss = nn.functional.cross_entropy(model(inputs), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _measure(model: nn.Module, batches: list, turns: int) -> list[list[str]]:
    criterion = nn.CrossEntropyLoss(reduction="none")
    observers = {
        "float32": Observer(model, criterion),
        "bfloat16": Observer(model, criterion, dtype=torch.bfloat16),
    }
    parameters = observers["float32"].parameters("trainable")
    probe, other = rademacher_probes(parameters, 2, torch.Generator().manual_seed(0))

    def take(observer: Observer, batch: tuple, probes: list) -> tuple:
        _synchronize(parameters[0].device)
        before = time.perf_counter()
        with observer.differentiable_losses(batch) as losses:
            found = gradient_and_hessian_diagonal(losses.mean(), parameters, probes)
        _synchronize(parameters[0].device)
        return *found, 1000 * (time.perf_counter() - before)

    first, second = batches
    times: dict[tuple[str, int], list[float]] = {}
    taken = {}
    for turn in range(turns + 1):
        for name, observer in observers.items():
            for probes in ([], [probe]):
                *found, milliseconds = take(observer, first, probes)
                taken[name] = found
                if turn:  # the first is a rehearsal
                    times.setdefault((name, len(probes)), []).append(milliseconds)
    exact = taken["float32"]
    rows = [
        [
            name,
            *(f"{statistics.median(times[name, count]):.1f}" for count in (0, 1)),
            *_distances(taken[name], exact),
        ]
        for name in observers
    ]
    same = take(observers["float32"], first, [other])[:2]
    fresh = take(observers["float32"], second, [probe])[:2]
    rows.append(["float32, another probe", "-", "-", *_distances(same, exact)])
    rows.append(["float32, another mini-batch", "-", "-", *_distances(fresh, exact)])
    return rows


def _distances(seen: tuple, exact: tuple) -> list[str]:
    return [
        f"{float((one - other).norm() / other.norm()):.3f}"
        for one, other in zip(seen, exact, strict=True)
    ]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
