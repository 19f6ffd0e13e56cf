"""How long the baselines take to pick a tenth of CIFAR-10, and how well they do what they promise.

    python benchmarks/baselines.py --data-dir DIR

trains a small residual network on random batches for a while, reads what enters its last layer for
all 50,000 train images, and lets each strategy pick from there through the loader, as in training:
what is picked depends on nothing else. Prints the table of docs/results/baselines.md: seconds for
one selection, forward passes left out, and the goal of each method with random examples as 1.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.lab.data.datasets import load_dataset
from crest.lab.data.views import ImageViews
from crest.lab.networks.vision import build_network
from crest.lab.run.learning_rate import learning_rate_factor
from crest.looking.gradients import LastLayerGradients
from crest.looking.observer import Observer

CRITERION = nn.CrossEntropyLoss(reduction="none")
BATCH_SIZE = 128
RANDOM_SUBSETS = 5

Picks = tuple[Tensor, Tensor]  # example indices and weights


def last_layer_data(arguments: argparse.Namespace) -> tuple[nn.Linear, TensorDataset]:
    """Train, and give the last layer with what enters it for every image."""
    data = load_dataset("cifar10", arguments.data_dir)
    torch.manual_seed(arguments.seed)
    model = build_network(arguments.network, 3, 32, 10)
    loader = crest.CoresetLoader(
        DataLoader(ImageViews(data), batch_size=BATCH_SIZE, shuffle=True),
        model,
        loss_fn=CRITERION,
        strategy=crest.Random(),
        budget=1,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, (images, labels, weights) in enumerate(itertools.islice(epochs, arguments.steps)):
        optimizer.param_groups[0]["lr"] = 0.1 * learning_rate_factor(step, arguments.steps)
        optimizer.zero_grad()
        crest.weighted_mean(CRITERION(model(images), labels), weights).backward()
        optimizer.step()
    observer, clean = Observer(model, CRITERION), ImageViews(data, augment=False)
    parts = [
        observer.last_layer_gradients((clean.normalize(images), labels))
        for images, labels in zip(
            data.train_images.split(500), data.train_labels.split(500), strict=True
        )
    ]
    seen = LastLayerGradients.concatenate(parts)
    loss = float(seen.losses.mean())
    print(f"{arguments.network} after {arguments.steps} steps: mean loss {loss:.2f}", flush=True)
    head = observer.find_head(None)
    assert isinstance(head, nn.Linear)
    return head, TensorDataset(seen.inputs, data.train_labels)


def pick(strategy: crest.strategies.Strategy, head: nn.Linear, data) -> tuple[Picks, float]:
    """Let a strategy pick once; give its subset and the seconds it took."""
    steps = strategy.reselect_steps
    loader = crest.CoresetLoader(
        DataLoader(data, batch_size=BATCH_SIZE, shuffle=True),
        head,
        loss_fn=CRITERION,
        strategy=strategy,
        budget=1,
        attach=lambda _, weights, indices: (indices, weights),
    )
    parts = itertools.islice(loader, steps)
    indices, weights = map(torch.cat, zip(*parts, strict=True))
    order = indices.argsort(stable=True)  # examples that came twice
    distinct, counts = indices[order].unique_consecutive(return_counts=True)
    first = order[counts.cumsum(0) - counts]
    seconds = loader.history.seconds
    return (distinct, weights[first]), seconds["select"] + seconds["quadratic"]


def spread(gradients: LastLayerGradients, picks: Picks) -> float:
    """Mean distance of p - y to the nearest pick, what facility location makes small."""
    errors = gradients.errors
    chosen = errors[picks[0]]
    return float(
        torch.cat([torch.cdist(some, chosen).amin(1) for some in errors.split(2000)]).mean()
    )


def mismatch(gradients: LastLayerGradients, picks: Picks) -> float:
    """Distance of the weighted mean gradient of the last layer to that of all examples."""
    n, k = len(gradients.losses), len(picks[0])
    weights = torch.full((n,), -1 / n)
    weights[picks[0]] += picks[1] / k
    return float(gradients.weighted_sum(weights).norm())


def fall(head: nn.Linear, data: TensorDataset, held_out: TensorDataset) -> Callable[[Picks], float]:
    """Fall of the held-out loss as the last layer takes a pass over the picks, lr 0.1, m = 128."""
    inputs, targets = data.tensors

    def measure(picks: Picks) -> float:
        moved = copy.deepcopy(head)
        optimizer = torch.optim.SGD(moved.parameters(), lr=0.1)
        shuffled = torch.randperm(len(picks[0]), generator=torch.Generator().manual_seed(0))
        for rows in picks[0][shuffled].split(128):
            optimizer.zero_grad()
            CRITERION(moved(inputs[rows]), targets[rows]).mean().backward()
            optimizer.step()
        with torch.no_grad():
            before, after = (
                CRITERION(layer(held_out.tensors[0]), held_out.tensors[1]).mean()
                for layer in (head, moved)
            )
        return float(before - after)

    return measure


def observe(head: nn.Linear, data: TensorDataset) -> LastLayerGradients:
    return Observer(head, CRITERION).last_layer_gradients(data.tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--network", default="resnet8")
    parser.add_argument("--steps", type=int, default=300, help="of training before the selection")
    parser.add_argument("--fraction", type=float, default=0.1, help="share to pick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--features", type=Path, help="keep what was trained and read here")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count seconds of the processor: on a machine that does other work, with --threads 1",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.processor_time:
        time.perf_counter = time.process_time  # what the history of a loader reads
    if arguments.features and arguments.features.exists():
        saved = torch.load(arguments.features, weights_only=True)
        head = nn.Linear(saved["weight"].shape[1], len(saved["bias"]))
        head.load_state_dict({"weight": saved["weight"], "bias": saved["bias"]})
        data = TensorDataset(saved["inputs"], saved["targets"])
    else:
        head, data = last_layer_data(arguments)
        if arguments.features:
            inputs, targets = data.tensors
            torch.save(
                {**head.state_dict(), "inputs": inputs, "targets": targets}, arguments.features
            )

    n = len(data)
    size = round(arguments.fraction * n)
    settings = {
        "subset_fraction": arguments.fraction,
        "reselect_steps": -(-size // BATCH_SIZE),
    }
    order = torch.randperm(n, generator=torch.Generator().manual_seed(arguments.seed))
    # Glister alone leaves a tenth out, to validate on.
    inputs, targets = data.tensors
    held_out = TensorDataset(inputs[order[: n // 10]], targets[order[: n // 10]])
    rest = TensorDataset(inputs[order[n // 10 :]], targets[order[n // 10 :]])
    gradients = observe(head, data)
    fall_of = fall(head, rest, held_out)

    def spread_of(picks: Picks) -> float:
        return spread(gradients, picks)

    def mismatch_of(picks: Picks) -> float:
        return mismatch(gradients, picks)

    validation_loader = DataLoader(held_out, batch_size=BATCH_SIZE)
    rows = []
    for per_class in (True, False):
        chosen = {**settings, "per_class": per_class}
        rows += [
            ("CRAIG", per_class, crest.Craig(**chosen), data, "spread", spread_of),
            (
                "GradMatch",
                per_class,
                crest.GradMatch(match_scale=True, **chosen),
                data,
                "gradient mismatch",
                mismatch_of,
            ),
            (
                "GLISTER",
                per_class,
                crest.Glister(validation_loader, **chosen),
                rest,
                "fall of held-out loss",
                fall_of,
            ),
        ]
        if per_class:
            rows.append(("AdaCore", True, crest.AdaCore(**chosen), data, "", None))

    few = TensorDataset(*(part[:: n // 2000] for part in data.tensors))
    for strategy in (crest.Craig(**settings | {"reselect_steps": 1}), crest.AdaCore(**settings)):
        pick(strategy, head, few)  # compiles what is compiled once
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    print(
        f"{n} examples of {inputs.shape[1]} features, {size} picks; {arguments.threads} thread(s)"
    )
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores\n")
    print("| method | picked from | seconds | goal | random examples = 1 |")
    print("|---|---|---|---|---|")
    for name, per_class, strategy, given, goal, value_of in rows:
        picks, seconds = pick(strategy, head, given)
        assert len(picks[0]) == round(arguments.fraction * len(given))
        share = ""
        if value_of is not None:
            random = statistics.fmean(
                value_of((torch.randperm(len(given), generator=generator)[:k], torch.ones(k)))
                for k in [len(picks[0])] * RANDOM_SUBSETS
            )
            share = f"{value_of(picks) / random:.3g}"
        group = "each class" if per_class else "all at once"
        print(f"| {name} | {group} | {seconds:.1f} | {goal} | {share} |", flush=True)


if __name__ == "__main__":
    main()
