"""Milliseconds of a training step, in float32 and bfloat16, as it is and compiled.

    python benchmarks/training_speed.py --data-dir DIR --networks resnet8 resnet20
    python benchmarks/training_speed.py --data-dir DIR --networks resnet20 --device cuda --steps 500

Trains on random mini-batches of CIFAR-10 through `crest.lab.run.training.train`, as `crest run`
does: views, loader, optimizer and schedule are in the step. The ways take turns in one process;
medians over turns are printed, with the ratio to float32 of the same turn and the minutes that 200
epochs would take. Compiling comes before the clock starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

from crest.lab.data.datasets import load_dataset
from crest.lab.run.settings import COMPILE_MODES, RunSettings
from crest.lab.run.training import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", choices=COMPILE_MODES, default=None, help="default: by device")
    arguments = parser.parse_args()
    mode = arguments.compile or ("reduce-overhead" if arguments.device == "cuda" else "default")
    ways = {
        "float32": {},
        "bfloat16": {"autocast": "bfloat16"},
        f"float32, compiled ({mode})": {"compile": mode},
        f"bfloat16, compiled ({mode})": {"autocast": "bfloat16", "compile": mode},
    }
    data = load_dataset("cifar10", arguments.data_dir)
    # The one evaluation is off the clock, but takes its time.
    data = dataclasses.replace(
        data, test_images=data.test_images[:250], test_labels=data.test_labels[:250]
    )
    print(f"m = {arguments.batch_size}, {arguments.turns} turns of {arguments.steps} steps\n")
    print("| network | | ms | to float32 | minutes of 200 epochs |\n|---|---|---|---|---|")
    for network in arguments.networks:
        milliseconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.turns):
            for name, options in ways.items():
                settings = RunSettings(
                    "cifar10",
                    network,
                    "random",
                    seed=turn,
                    batch_size=arguments.batch_size,
                    num_steps=arguments.steps,
                    evaluations=1,
                    device=arguments.device,
                    threads=arguments.threads,
                    **options,
                )
                record = train(settings, data)
                milliseconds[name].append(1000 * record["seconds"] / arguments.steps)
        for name, some in milliseconds.items():
            ratios = [mine / base for mine, base in zip(some, milliseconds["float32"], strict=True)]
            median = statistics.median(some)
            minutes = 200 * (data.num_train // arguments.batch_size) * median / 60_000
            print(
                f"| {network} | {name} | {median:.2f} | {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}-{max(ratios):.2f}) | {minutes:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
