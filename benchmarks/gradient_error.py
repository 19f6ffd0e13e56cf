"""Squared gradient error of coresets against random batches, on real CIFAR-10.

A small residual network trains on random batches. At some steps its parameters are frozen and the
gradient of all parameters is measured, in eval mode and on clean images, over all 50,000 examples,
over random batches, and over weighted coresets of the same size picked from random subsets. The
table gives the mean squared distance to the full gradient, relative to random batches of size m.

    python benchmarks/gradient_error.py --data-dir DIR

prints the table for the three features, as in docs/results/gradient-error.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import crest
from crest.lab.data.datasets import load_dataset
from crest.lab.data.views import ImageViews
from crest.lab.networks.vision import build_network
from crest.lab.run.learning_rate import learning_rate_factor
from crest.looking.observer import Observer
from crest.quadratic import flatten
from crest.selection import last_layer_distances

CRITERION = nn.CrossEntropyLoss(reduction="none")
FEATURES = ("logits", "input", "weight")


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean gradient of all parameters in eval mode, shape (q,)."""
    observer = Observer(model, CRITERION)
    parameters = observer.parameters("trainable")
    total = torch.zeros(sum(parameter.numel() for parameter in parameters), device=inputs.device)
    for rows in torch.arange(len(inputs)).split(500):
        with observer.differentiable_losses((inputs[rows], targets[rows])) as losses:
            loss = (losses * weights[rows]).sum() / len(inputs)
            total += flatten(torch.autograd.grad(loss, parameters))
    return total


def pick(model: nn.Module, inputs: Tensor, targets: Tensor, m: int) -> dict[str, crest.Coreset]:
    """One coreset of a random subset for each kind of last-layer gradient."""
    seen = Observer(model, CRITERION).last_layer_gradients((inputs, targets))
    return {
        "logits": crest.facility_location(seen.errors, m),
        "input": crest.facility_location(seen.input_gradients, m),
        "weight": crest.facility_location(
            distances=last_layer_distances(seen.errors, seen.inputs), batch_size=m
        ),
    }


def measure(model: nn.Module, inputs: Tensor, targets: Tensor, arguments, seed: int) -> dict:
    """Mean squared errors, and effective sample sizes, over many draws."""
    generator = torch.Generator().manual_seed(seed)
    n, m, r = len(inputs), arguments.batch_size, arguments.subset_size
    full = gradient(model, inputs, targets, torch.ones(n, device=inputs.device))
    errors: dict[str, list[float]] = {}
    sizes: dict[str, list[float]] = {}

    def error_of(rows: Tensor, weights: Tensor) -> float:
        rows, weights = rows.to(inputs.device), weights.to(inputs.device)
        return float((gradient(model, inputs[rows], targets[rows], weights) - full).square().sum())

    for _ in range(arguments.draws):
        subset = torch.randperm(n, generator=generator)[:r]
        for size in (m, 2 * m, r):
            errors.setdefault(f"random {size}", []).append(
                error_of(subset[:size], torch.ones(size))
            )
        for name, coreset in pick(model, inputs[subset], targets[subset], m).items():
            weights = coreset.cluster_sizes.cpu() * m / r
            rows = subset[coreset.indices.cpu()]
            errors.setdefault(name, []).append(error_of(rows, weights))
            errors.setdefault(f"{name}, weights 1", []).append(error_of(rows, torch.ones(m)))
            sizes.setdefault(name, []).append(float(weights.sum() ** 2 / weights.square().sum()))
    means = {name: sum(values) / len(values) for name, values in errors.items()}
    return {
        "gradient_norm": float(full.norm()),
        "relative_error": {name: value / means[f"random {m}"] for name, value in means.items()},
        "effective_sample_size": {name: sum(v) / len(v) for name, v in sizes.items()},
    }


def run(arguments, seed: int, log: Callable[[str], None]) -> list[dict]:
    """Train on random batches and measure on the way."""
    data = load_dataset("cifar10", arguments.data_dir)
    device = torch.device(arguments.device)
    clean = ImageViews(data, device, augment=False)
    inputs = clean.normalize(data.train_images.to(device))
    targets = data.train_labels.to(device)
    torch.manual_seed(seed)
    model = build_network(arguments.network, 3, 32, 10)
    model = model.to(device, memory_format=torch.channels_last)
    train_loader = DataLoader(
        ImageViews(data, device), batch_size=arguments.batch_size, shuffle=True
    )
    loader = crest.CoresetLoader(
        train_loader, model, loss_fn=CRITERION, strategy=crest.Random(), seed=seed
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    records, step = [], 0
    while step < max(arguments.at):
        for images, labels, weights in loader:
            optimizer.param_groups[0]["lr"] = 0.1 * learning_rate_factor(step, arguments.steps)
            loss = crest.weighted_mean(CRITERION(model(images), labels.to(device)), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step in arguments.at:
                start = time.perf_counter()
                measured = measure(model, inputs, targets, arguments, seed)
                records.append({"seed": seed, "step": step, **measured})
                log(f"seed {seed}, step {step}: measured in {time.perf_counter() - start:.0f} s")
            if step >= max(arguments.at):
                break
    return records


def table(records: list[dict], m: int, r: int) -> str:
    """Mean over seeds, one row for each step."""
    columns = [f"random {2 * m}", f"random {r}", *FEATURES]
    head = " | ".join(["step", *columns, "weights 1", "ESS"])
    lines = [f"| {head} |", "|" + "---|" * (len(columns) + 3)]
    for step in sorted({record["step"] for record in records}):
        rows = [record for record in records if record["step"] == step]

        def mean(kind: str, name: str, rows: list[dict] = rows) -> float:
            return sum(row[kind][name] for row in rows) / len(rows)

        cells = [f"{mean('relative_error', name):.2f}" for name in columns]
        uniform = " / ".join(f"{mean('relative_error', f'{n}, weights 1'):.1f}" for n in FEATURES)
        sizes = " / ".join(f"{mean('effective_sample_size', name):.0f}" for name in FEATURES)
        lines.append(f"| {' | '.join([str(step), *cells, uniform, sizes])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--network", default="resnet8")
    parser.add_argument("--steps", type=int, default=2000, help="steps that the schedule spans")
    parser.add_argument(
        "--at", type=int, nargs="+", default=[100, 500, 1000, 1300, 1990], help="steps to measure"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--draws", type=int, default=20, help="random subsets for each step")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--subset-size", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the records here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    records: list[dict] = []
    for seed in arguments.seeds:
        records += run(arguments, seed, lambda line: print(line, flush=True))
        if arguments.out:
            settings = {**vars(arguments), "out": None, "data_dir": None}
            machine = {"torch": torch.__version__, "machine": platform.machine()}
            text = json.dumps({"settings": settings, **machine, "records": records}, indent=1)
            arguments.out.write_text(text + "\n")
    print(table(records, arguments.batch_size, arguments.subset_size))


if __name__ == "__main__":
    main()
