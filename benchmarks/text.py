"""The default against random mini-batches on text, at equal steps.

    python benchmarks/text.py train --data-dir DIR --out results/text.json --rows "bag, sst2"
    python benchmarks/text.py show results/text.json

A row is a network on a data set. Each run takes three passes in batches of 32 with AdamW at a
constant rate; accuracy is measured after each pass on all test texts, of the pre-trained network
after the last alone. Rates are those that `crest compare` takes for a network: nothing was tuned.
`--rows` takes some of them, divided by semicolons, `--seeds` which, `--strategies` others than the
default and random ones. Each finished run is kept, and the same command goes on where it stopped.
`show` prints the tables of docs/results/text.md.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from crest.lab.data.datasets import load_dataset
from crest.lab.run.comparison import compare
from crest.lab.run.planning import plan_runs
from crest.lab.run.results import Results
from crest.report.progress import make_progress
from crest.report.summary import half_interval

PASSES = 3
DEFAULT, RANDOM = "online", "random"

ROWS: dict[str, tuple[str, str, int | None]] = {  # network, data, train texts or None for all
    "bag, 20,000 of sst2": ("bag", "sst2", 20_000),
    "bag, sst2": ("bag", "sst2", None),
    "bag, snli_part": ("bag", "snli_part", None),
    "encoder, sst2": ("encoder", "sst2", None),
    "encoder, snli_part": ("encoder", "snli_part", None),
    "minilm, 320 of sst2": ("minilm", "sst2", 320),
}


def train(arguments: argparse.Namespace) -> None:
    results = Results(arguments.out)
    for name in arguments.rows:
        network, dataset, count = ROWS[name]
        data = load_dataset(dataset, arguments.data_dir, network=network)
        if count is not None:
            data = data.every(count, len(data.test_labels))
        plan = plan_runs(
            *(dataset, arguments.strategies, arguments.seeds),
            **{"network": network, "epochs": PASSES, "budget": 1.0, "threads": 1},
            evaluations=1 if network == "minilm" else PASSES,
        )
        with make_progress() as progress:
            compare(plan, data, results, progress)


def row_of(record: dict[str, Any]) -> str:
    steps = record["steps"] // PASSES
    for name, (network, dataset, count) in ROWS.items():
        size = {"sst2": 67_349, "snli_part": 20_000}[dataset] if count is None else count
        if (network, dataset, size // 32) == (record["network"], record["data"], steps):
            return name
    raise ValueError(f"{record['network']} on {record['data']} in {steps} steps is no row.")


def half_width(values: list[float]) -> str:
    """Half the 95 % interval of the mean, of Student's t."""
    return f" ± {half_interval(values):.2f}" if len(values) > 1 else ""


def told(regions: list[dict[str, Any]]) -> str:
    """What the default read of the labels when it planned last, and what it did."""
    noises = [region.get("noise") for region in regions]  # None where too few were seen
    noise = ", ".join("-" if one is None else f"{100 * one:.0f}" for one in noises)
    return f"{noise} | {', '.join(str(region.get('left_out', '-')) for region in regions)}"


def show(arguments: argparse.Namespace) -> None:
    runs: dict[str, dict[tuple[str, int], dict[str, Any]]] = {name: {} for name in ROWS}
    for record in Results(arguments.out).records:
        runs[row_of(record)][record["strategy"], record["seed"]] = record
    columns = "network, data|seeds|pass|random %|default %|difference|by seed"
    columns += "|wrong labels read %|left out|seconds"
    print(f"| {columns.replace('|', ' | ')} |")
    print("|---" * (columns.count("|") + 1) + "|")
    for name, of in runs.items():
        seeds = sorted({seed for _, seed in of if {(DEFAULT, seed), (RANDOM, seed)} <= of.keys()})
        if not seeds:
            continue
        points = len(of[RANDOM, seeds[0]]["curve"])
        read = [of[DEFAULT, seed]["history"]["records"][-1] for seed in seeds]
        for k in range(points):
            curves = {
                word: [of[word, seed]["curve"][k] for seed in seeds] for word in (RANDOM, DEFAULT)
            }
            accuracy = {w: [100 * point["accuracy"] for point in c] for w, c in curves.items()}
            seconds = [
                f"{statistics.fmean(point['seconds'] for point in curves[word]):.0f}"
                for word in (RANDOM, DEFAULT)
            ]
            gained = [a - b for a, b in zip(accuracy[DEFAULT], accuracy[RANDOM], strict=True)]
            means = [f"{statistics.fmean(accuracy[word]):.2f}" for word in (RANDOM, DEFAULT)]
            print(
                f"| {name} | {len(seeds)} | {PASSES - points + k + 1} | {means[0]} | {means[1]} | "
                f"{statistics.fmean(gained):+.2f}{half_width(gained)} | "
                f"{', '.join(f'{one:+.2f}' for one in gained)} | "
                f"{told(read) if k + 1 == points else ' | '} | {' and '.join(seconds)} |"
            )
    show_others(runs)


def show_others(runs: dict[str, dict[tuple[str, int], dict[str, Any]]]) -> None:
    """Print what other strategies end with, and what they cost."""
    print(
        "\n| network, data | strategy | seeds | accuracy % | minus random | cost in random steps |"
    )
    print("|---" * 6 + "|")
    for name, of in runs.items():
        for word in sorted({word for word, _ in of} - {DEFAULT, RANDOM}):
            seeds = sorted({seed for _, seed in of if {(word, seed), (RANDOM, seed)} <= of.keys()})
            gained = [100 * (of[word, s]["accuracy"] - of[RANDOM, s]["accuracy"]) for s in seeds]
            accuracy = statistics.fmean(100 * of[word, s]["accuracy"] for s in seeds)
            cost = statistics.fmean(of[word, s]["cost"] / of[word, s]["steps"] for s in seeds)
            print(
                f"| {name} | {word} | {len(seeds)} | {accuracy:.2f} | "
                f"{statistics.fmean(gained):+.2f}{half_width(gained)} | x {cost:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.set_defaults(run=train)
    command.add_argument("--data-dir", required=True, help="folder that holds sst2 and snli")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--rows", type=lambda text: text.split(";"), default=[*ROWS])
    command.add_argument(
        "--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2]
    )
    command.add_argument(
        "--strategies", type=lambda text: text.split(","), default=[DEFAULT, RANDOM]
    )
    command = commands.add_parser("show")
    command.set_defaults(run=show)
    command.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
