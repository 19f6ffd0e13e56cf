"""What CREST is worth, and what it costs: accuracy against cost, beside random mini-batches.

    python benchmarks/equal_time.py train --data-dir DIR --out results/equal-time.json
    python benchmarks/equal_time.py time  --data-dir DIR --out results/equal-time-seconds.json
    python benchmarks/equal_time.py show results/equal-time.json results/first-cifar10.json

`train` trains random mini-batches at half to three times the steps, and CREST with several
settings, on some seeds. `time` takes turns with short runs of every setting, for seconds as a ratio
to random mini-batches. Both keep each finished run and go on where they stopped; `--minutes` ends
them in time. `show` prints the tables of docs/results/equal-time.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import crest
from crest.lab.data.datasets import load_dataset
from crest.lab.data.image_data import ImageData
from crest.lab.data.views import shift_and_flip
from crest.lab.optional import require
from crest.lab.run.results import Results
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import train
from crest.report.comparison_figure import log_axis
from crest.report.summary import selected_share

HEAD = {"features": "weight", "curvature": "head", "curvature_coresets": 1}
# Each lever on top of those before it.
LEVERS = {
    "paper": crest.Crest.paper(),
    "paper, whole last layer": crest.Crest.paper(features="weight"),
    "+ head curvature": crest.Crest.paper(**HEAD),
    "+ paired check": crest.Crest.paper(**HEAD, check="candidates"),
    "new coresets each step": crest.Crest(switch_off=False),
    "default, switches off": crest.Crest(),
}
# Not part of the default: what else was tried.
OTHERS = {
    "one coreset a step, kept": crest.Crest.paper(
        **HEAD, check="candidates", coreset_multiplier=1, interval_multiplier=4.0
    ),
    "384 candidates for 4 steps": crest.Crest(
        subset_size=256, num_candidates=384, interval_multiplier=4.0, switch_off=False
    ),
    "automatic tau": crest.Crest.paper(**HEAD, check="candidates", error_threshold="auto"),
}
RANDOM_SHARES = {f"random x {share:g}": share for share in (0.5, 1, 1.5, 2, 3)}
TRAINED = [
    *RANDOM_SHARES,
    "greedy",
    "paper",
    "default, switches off",
    "384 candidates for 4 steps",
    "one coreset a step, kept",
]
VARIANTS = ["clean", "cifar100", "redundant", "long-tailed", "noisy"]
TIMED = ["random x 1", "greedy", *LEVERS, *OTHERS]


def run_settings(name: str, arguments: argparse.Namespace, seed: int) -> RunSettings:
    """Settings of one run by the name of its row."""
    common = RunSettings(
        data=source_of(arguments.variant),
        network=arguments.network,
        strategy="random",
        seed=seed,
        epochs=arguments.epochs,
        evaluations=1,
        device=arguments.device,
        threads=arguments.threads,
    )
    if name in RANDOM_SHARES:
        if RANDOM_SHARES[name] == 1:
            return common
        budget = common.budget * RANDOM_SHARES[name]
        return dataclasses.replace(common, budget=budget)
    if name == "greedy":
        return dataclasses.replace(common, strategy="greedy")
    strategy = (LEVERS | OTHERS)[name]
    return dataclasses.replace(
        common, strategy="crest", strategy_options=dataclasses.asdict(strategy)
    )


def source_of(variant: str) -> str:
    """Name of the data set that a variant is made from."""
    return "cifar100" if variant == "cifar100" else "cifar10"


def make_data(data_dir: str, variant: str) -> ImageData:
    """CIFAR as it is, or a train set made from CIFAR-10; the test set is never touched."""
    data = load_dataset(source_of(variant), data_dir)
    generator = torch.Generator().manual_seed(0)
    images, labels = data.train_images, data.train_labels
    if variant == "redundant":
        # A tenth of the images, each ten times, shifted by up to two pixels and mirrored.
        rows = torch.randperm(len(images), generator=generator)[: len(images) // 10].repeat(10)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            images = shift_and_flip(images[rows], 2, flip=True)
        labels = labels[rows]
    elif variant == "long-tailed":
        # Class c keeps 100^(-c / 9) of its images, so that the rarest has a hundredth.
        order = torch.randperm(len(images), generator=generator)
        share = 100.0 ** (-torch.arange(10) / 9)
        kept = [
            of_class[: int(len(of_class) * share[label])]
            for label in range(10)
            for of_class in [order[labels[order] == label]]
        ]
        rows = torch.cat(kept)
        images, labels = images[rows], labels[rows]
    elif variant == "noisy":
        # A fifth of the labels is moved to another class.
        moved = torch.rand(len(labels), generator=generator) < 0.2
        other = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
        labels = torch.where(moved, other, labels)
    return dataclasses.replace(data, train_images=images, train_labels=labels)


def run_all(arguments: argparse.Namespace, data: ImageData, results: Results) -> None:
    """Train every row on every seed, unless it is there already or time is up."""
    ends = time.monotonic() + 60 * arguments.minutes
    for seed in arguments.seeds:
        for name in arguments.rows or TRAINED:
            settings = run_settings(name, arguments, seed)
            if results.find(settings.to_record(data.fingerprint)) is not None:
                continue
            if time.monotonic() > ends:
                print("time is up; the same command goes on from here")
                return
            record = results.add(
                train(settings, data) | {"row": name, "variant": arguments.variant}
            )
            print(
                f"seed {seed}, {name}: {100 * record['accuracy']:.2f} %, {record['steps']} steps, "
                f"cost {record['cost']:.0f}, {record['seconds']:.0f} s",
                flush=True,
            )


def time_all(arguments: argparse.Namespace, data: ImageData, results: Results) -> None:
    """Take turns with short runs; a turn is told apart by its seed."""
    few = dataclasses.replace(
        data, test_images=data.test_images[:10], test_labels=data.test_labels[:10]
    )
    arguments.rows = arguments.rows or TIMED
    arguments.epochs = 1000  # a long run, of which only the first steps are taken
    ends = time.monotonic() + 60 * arguments.minutes
    for seed in arguments.seeds:
        for name in arguments.rows:
            settings = dataclasses.replace(
                run_settings(name, arguments, seed), num_steps=arguments.steps
            )
            if results.find(settings.to_record(few.fingerprint)) is not None:
                continue
            if time.monotonic() > ends:
                print("time is up; the same command goes on from here")
                return
            record = results.add(train(settings, few) | {"row": name, "variant": "timing"})
            print(f"turn {seed}, {name}: {record['seconds']:.1f} s", flush=True)


def show(arguments: argparse.Namespace) -> None:
    found = [record for path in arguments.results for record in read(path)]
    records = list({(r["variant"], r["row"], r["seed"]): r for r in found}.values())
    for variant in dict.fromkeys(record["variant"] for record in records):
        some = [record for record in records if record["variant"] == variant]
        print(f"\n{variant}: {some[0]['network']}\n")
        print(timing_table(some) if variant == "timing" else accuracy_table(some))
        if variant == "clean" and arguments.plot:
            plot(some, arguments.plot)


def read(path: Path) -> list[dict[str, Any]]:
    """Records of this script, or those of `crest compare` on clean images, without equal time."""
    records = [
        record for record in Results(path).records if not record["equal_time"] or "row" in record
    ]
    for record in records:
        if "row" not in record:
            strategy = record["settings"]["strategy_settings"]
            found = [name for name, of in LEVERS.items() if agrees(strategy, of)]
            names = {"random": "random x 1", "greedy": "greedy"}
            record["row"] = found[0] if found else names[record["strategy"]]
            record["variant"] = "clean"
    return records


def agrees(settings: dict[str, Any], strategy: crest.Crest) -> bool:
    """Whether the settings of a record are those of a strategy; newer fields do not count."""
    fields = {
        name: value for name, value in dataclasses.asdict(strategy).items() if name in settings
    }
    fields["betas"] = list(strategy.betas)
    return settings == fields


def rows_of(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in dict.fromkeys([*RANDOM_SHARES, *TIMED])
    }
    for record in records:
        rows[record["row"]].append(record)
    return {name: found for name, found in rows.items() if found}


def accuracy_table(records: list[dict[str, Any]]) -> str:
    rows = rows_of(records)
    base = {record["seed"]: record for record in rows.get("random x 1", [])}
    curve = sorted(
        (mean(rows[n], "cost"), mean(rows[n], "accuracy")) for n in RANDOM_SHARES if n in rows
    )
    lines = [
        "| | seeds | accuracy % | minus random, same steps | cost in random steps "
        "| random at that cost % | minus random, same cost | steps on coresets |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, some in rows.items():
        accuracies = [100 * record["accuracy"] for record in some]
        pairs = [
            100 * (r["accuracy"] - base[r["seed"]]["accuracy"]) for r in some if r["seed"] in base
        ]
        cost = mean(some, "cost")
        level = interpolate(curve, cost)
        cells = [
            name,
            str(len(some)),
            plus_minus(accuracies),
            plus_minus(pairs, sign=True) if pairs else "-",
            f"{cost:.0f}",
            "-" if level is None else f"{100 * level:.2f}",
            "-" if level is None else f"{statistics.fmean(accuracies) - 100 * level:+.2f}",
            f"{100 * statistics.fmean(map(selected_share, some)):.0f} %"
            if some[0]["strategy"] == "crest" and "selected" in some[0]["history"]["records"][0]
            else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def timing_table(records: list[dict[str, Any]]) -> str:
    rows = rows_of(records)
    base = {record["seed"]: record for record in rows["random x 1"]}
    lines = [
        "| | turns | seconds in random steps | passes in random steps | features | select "
        "| quadratic | check | data |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, some in rows.items():
        ratios = [r["seconds"] / base[r["seed"]]["seconds"] for r in some]
        step = statistics.median(r["seconds"] for r in base.values())
        parts = [
            f"{statistics.median(r['history']['seconds'][part] for r in some) / step:.2f}"
            for part in ("features", "select", "quadratic", "check", "data")
        ]
        cells = [
            name,
            str(len(some)),
            f"{statistics.median(ratios):.2f}",
            f"{mean(some, 'cost') / mean(some, 'steps'):.2f}",
            *parts,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interpolate(curve: list[tuple[float, float]], cost: float) -> float | None:
    """Accuracy of random mini-batches at a cost between two that were measured."""
    for (left, low), (right, high) in itertools.pairwise(curve):
        if left <= cost <= right:
            return low + (high - low) * (cost - left) / (right - left)
    return None


def plot(records: list[dict[str, Any]], path: Path) -> None:
    figure_module = require("matplotlib.figure", "the figure")
    figure = figure_module.Figure(figsize=(7, 5.2), layout="constrained")
    panel = figure.subplots()
    rows = rows_of(records)
    random = [rows[name] for name in RANDOM_SHARES if name in rows]
    panel.errorbar(
        [mean(some, "cost") for some in random],
        [100 * mean(some, "accuracy") for some in random],
        yerr=[deviation(some) for some in random],
        color="#0072b2",
        marker="o",
        capsize=3,
        label="random mini-batches, 0.5 to 3 times the steps",
    )
    colours = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#333333")
    others = [name for name in rows if name not in RANDOM_SHARES]
    for name, colour in zip(others, colours, strict=False):
        some = rows[name]
        panel.errorbar(
            [mean(some, "cost")],
            [100 * mean(some, "accuracy")],
            yerr=[deviation(some)],
            color=colour,
            marker="s",
            capsize=3,
            linestyle="none",
            label=name,
        )
    log_axis(panel)
    panel.set_xlabel("cost in random steps (passes)")
    panel.set_ylabel("test accuracy, %")
    first = records[0]
    seeds = len({record["seed"] for record in records})
    panel.set_title(f"{first['data']}, {first['network']}, {seeds} seeds, bars: standard deviation")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)


def mean(records: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(record[key] for record in records)


def deviation(records: list[dict[str, Any]]) -> float:
    values = [100 * record["accuracy"] for record in records]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def plus_minus(values: list[float], *, sign: bool = False) -> str:
    middle = f"{statistics.fmean(values):{'+' if sign else ''}.2f}"
    return f"{middle} ± {statistics.stdev(values):.2f}" if len(values) > 1 else middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("train", run_all), ("time", time_all)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--data-dir", required=True, help="folder of CIFAR")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--network", default="resnet8" if name == "train" else "resnet20")
        command.add_argument("--epochs", type=int, default=4, help="of full training")
        command.add_argument("--steps", type=int, default=24, help="of a run that is timed")
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
        command.add_argument("--rows", nargs="+", choices=[*TRAINED, *TIMED], metavar="ROW")
        command.add_argument("--variant", choices=VARIANTS, default="clean")
        command.add_argument("--device", default="cpu")
        command.add_argument("--threads", type=int, default=torch.get_num_threads())
        command.add_argument("--minutes", type=float, default=1e9, help="stop after about these")
    command = commands.add_parser("show")
    command.add_argument("results", type=Path, nargs="+")
    command.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "show":
        show(arguments)
        return
    arguments.run(
        arguments, make_data(arguments.data_dir, arguments.variant), Results(arguments.out)
    )


if __name__ == "__main__":
    main()
