"""Coresets that cost little against random mini-batches, each at its own learning rate.

    python benchmarks/learning_rates.py tune --data-dir DIR --out results/learning-rates.json
    python benchmarks/learning_rates.py test --data-dir DIR --out results/learning-rates.json
    python benchmarks/learning_rates.py show results/learning-rates.json
    python benchmarks/learning_rates.py time --data-dir DIR

`tune` trains ResNet-8 on all but the last 5,000 train images and measures accuracy on these, with
their labels as they are, for each row and learning rate. `test` trains on all train images at the
rate that was best for the row and measures accuracy on the test images, on other seeds. `--times`
makes the runs of both as many times longer; what was not tuned at that length takes the rate of
short runs. `--variant` is that of equal_time.py, or adversarial, where the best rate is that of the
highest accuracy under attack. For strategies that need no pass of their own it begins with few,
small or whole: ten passes over an eighth of the images, five over all images at half the
resolution, or five over all images; what was not tuned takes the rate of small. Both keep each
finished run and go on where they stopped; `--minutes` ends them in time. `show` prints the tables
of docs/results/learning-rates.md and remembered.md. `time` takes turns with short runs of all rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cheap_forward import (
    ATTACKED,
    CHEAPER,
    GREEDY_512,
    PLAIN,
    RANDOM,
    Row,
    add_machine_options,
    read,
    train,
    train_all,
)
from equal_time import VARIANTS as DATA
from equal_time import make_data, plus_minus

import crest
from crest.lab.data.image_data import ImageData

NUM_HELD_OUT = 5000
SEEN = partial(CHEAPER, strategy=GREEDY_512, observer="half resolution", batch_statistics=True)


def early(share: float) -> Row:
    """Coresets in the first steps only."""
    crest_of = partial(crest.Crest, subset_size=512, switch_off=False)
    return SEEN(strategy=lambda steps: crest_of(select_until=round(share * steps)))


ROWS = {
    "random": CHEAPER(RANDOM),
    "random, 1.08 times the steps": CHEAPER(RANDOM, steps=169),
    "random, 1.10 times the steps": CHEAPER(RANDOM, steps=172),
    "random, 1.20 times the steps": CHEAPER(RANDOM, steps=188),
    "random, 1.33 times the steps": CHEAPER(RANDOM, steps=208),
    "random, 1.41 times the steps": CHEAPER(RANDOM, steps=220),
    "coresets at a quarter of the resolution": SEEN(observer="quarter resolution"),
    "coresets at half the resolution": SEEN(),
    "- by running statistics": SEEN(batch_statistics=False),
    "- for the first quarter": early(0.25),
    "- for the first half": early(0.5),
}
ATTACKED_ROWS = {
    "random, 1.25 times the steps": ATTACKED(RANDOM, steps=195),
    "coresets of 64 from 256": ATTACKED(crest.GreedyMiniBatch(subset_size=256), steps=156),
}


class DrawnByNorm(crest.RememberedGradients):
    """Draws each mini-batch in proportion to the norm of remembered gradients: hard, no cover."""

    def start(self, task: Any) -> Any:
        """Begin as remembered gradients do."""
        planner = super().start(task)
        planner._pick = lambda gradients, size: gradients.norm(dim=2).multinomial(
            size, generator=task.generator
        )
        return planner


FREE = partial(PLAIN, "no pass of their own", batch_size=64, lr=0.1, steps=1)  # of FREE_STEPS
FREE_ROWS = {
    "random": FREE(RANDOM),
    "random, classes balanced": FREE(RANDOM, balanced=True),
    "remembered gradients": FREE(crest.RememberedGradients()),
    "- from half the candidates": FREE(crest.RememberedGradients(num_candidates=128)),
    "- from twice the candidates": FREE(crest.RememberedGradients(num_candidates=512)),
    "- classes balanced": FREE(crest.RememberedGradients(), balanced=True),
    "- drawn by their norm": FREE(DrawnByNorm()),
    "random, 1.03 times the steps": FREE(RANDOM, steps=1.03),
    "loss pruning": FREE(lambda steps: crest.LossPruning(num_steps=steps)),
}
SAME_RATE = {  # not tuned, as good as the same
    "random, 1.03 times the steps": "random",
    "random, classes balanced": "random",
    "- classes balanced": "remembered gradients",
}
FREE_STEPS = {"few": 976, "small": 3906, "whole": 3906}  # ten passes over an eighth, or five
RIVALS = {  # random mini-batches of the same cost
    "coresets at a quarter of the resolution": "random, 1.08 times the steps",
    "coresets at half the resolution": "random, 1.33 times the steps",
    "- by running statistics": "random, 1.33 times the steps",
    "- for the first quarter": "random, 1.08 times the steps",
    "coresets of 64 from 256": "random, 1.25 times the steps",
    "random, classes balanced": "random",
    "remembered gradients": "random",
    "- classes balanced": "random, classes balanced",
    "- from half the candidates": "random",
    "- from twice the candidates": "random",
    "- drawn by their norm": "random",
    "loss pruning": "random",
}
AS_LONG = {  # random mini-batches that take as many seconds, by `time`
    "remembered gradients": "random, 1.03 times the steps",
    "coresets at half the resolution": "random, 1.41 times the steps",
    "- for the first quarter": "random, 1.10 times the steps",
    "- for the first half": "random, 1.20 times the steps",
}
VARIANTS = [
    *DATA,
    "adversarial",
    *(f"{size}-{source}".removesuffix("-clean") for size in FREE_STEPS for source in DATA),
]


def split(variant: str) -> tuple[str, str]:
    """How much of the data, one of FREE_STEPS or nothing, and which data."""
    size, _, source = variant.partition("-")
    return (size, source or "clean") if size in FREE_STEPS else ("", variant)


def rows_of(variant: str) -> dict[str, Row]:
    size, source = split(variant)
    if size:
        return {
            name: dataclasses.replace(row, steps=round(row.steps * FREE_STEPS[size]))
            for name, row in FREE_ROWS.items()
            if source == "long-tailed" or not row.balanced  # else it is the row above
        }
    return ATTACKED_ROWS if variant == "adversarial" else ROWS


def rates_of(variant: str) -> tuple[float, ...]:
    if split(variant)[0] in ("small", "whole"):
        return (0.05, 0.1, 0.2, 0.4)
    return (0.1, 0.2, 0.4) if rows_of(variant) is ROWS else (0.05, 0.1, 0.2)


def measures_of(variant: str) -> list[str]:
    """What is measured; the first is what learning rates are chosen by."""
    return ["under_attack", "accuracy"] if variant == "adversarial" else ["accuracy"]


def load(arguments: argparse.Namespace) -> ImageData:
    """Make the data of a variant; while rates are tuned the test images are not in it."""
    size, source = split(arguments.variant)
    data = make_data(arguments.data_dir, source)
    if arguments.command == "tune":
        if source in {"redundant", "long-tailed"}:
            raise SystemExit(f"tune cannot hold out a fair sample of {source} images.")
        data = hold_out(data)
    if size == "few":
        return dataclasses.replace(
            data, train_images=data.train_images[::8], train_labels=data.train_labels[::8]
        )
    if size == "small":
        return data.halve()
    return data


def hold_out(data: ImageData) -> ImageData:
    """Split the train images; the test images are not in what is given back."""
    images, labels = data.train_images, data.train_labels
    return dataclasses.replace(
        data,
        train_images=images[:-NUM_HELD_OUT],
        train_labels=labels[:-NUM_HELD_OUT],
        test_images=images[-NUM_HELD_OUT:],
        test_labels=labels[-NUM_HELD_OUT:],
    )


def chosen_rows(arguments: argparse.Namespace) -> dict[str, Row]:
    """All rows of the variant, or those named by --rows."""
    rows = rows_of(arguments.variant)
    names = arguments.rows or [*rows]
    if unknown := [name for name in names if name not in rows]:
        raise SystemExit(f"--rows must be among {', '.join(rows)}; got {', '.join(unknown)}.")
    return {name: rows[name] for name in names}


def run_all(arguments: argparse.Namespace) -> None:
    """Train the chosen rows on every seed: at every rate, or at the best one."""
    rows = chosen_rows(arguments)
    if arguments.command == "tune":
        runs = [(name, lr) for name in rows for lr in rates_of(arguments.variant)]
    else:
        best = best_rates(read(arguments.out), arguments.variant, arguments.times)
        if missing := [name for name in rows if name not in best]:
            raise SystemExit(f"tune first; no learning rate is known for {', '.join(missing)}.")
        runs = [(name, best[name]) for name in rows]
    common = {
        "kind": arguments.command,
        "variant": arguments.variant,
        "times": arguments.times,
    }
    train_all(
        (
            (
                {**common, "row": name, "lr": lr, "seed": seed},
                dataclasses.replace(rows[name], lr=lr, steps=arguments.times * rows[name].steps),
            )
            for seed in arguments.seeds
            for name, lr in runs
        ),
        load(arguments),
        arguments,
    )


def tuned(
    records: list[dict[str, Any]], variant: str, times: int
) -> dict[tuple[str, float], list[float]]:
    """What was measured on held-out images, in percent, by row and rate."""
    found: dict[tuple[str, float], list[float]] = {}
    for record in records:
        if (record["kind"], record["variant"], record["times"]) == ("tune", variant, times):
            key = record["row"], record["lr"]
            found.setdefault(key, []).append(100 * record[measures_of(variant)[0]])
    return found


def best_rates(records: list[dict[str, Any]], variant: str, times: int) -> dict[str, float]:
    """Rate of the highest mean on held-out images, by row; else of short runs; else of small."""
    best: dict[str, float] = {}
    fallback = [("small", 1)] if split(variant)[0] else []
    for some, length in dict.fromkeys([*fallback, (variant, 1), (variant, times)]):
        found = tuned(records, some, length)
        means = {key: statistics.fmean(values) for key, values in found.items()}
        for name in dict.fromkeys(name for name, _ in means):
            best[name] = max((mean, lr) for (row, lr), mean in means.items() if row == name)[1]
    return {name: best[twin] for name, twin in SAME_RATE.items() if twin in best} | best


def show(records: list[dict[str, Any]]) -> None:
    for variant in dict.fromkeys(record["variant"] for record in records):
        some = [record for record in records if record["variant"] == variant]
        for times in dict.fromkeys(record["times"] for record in some if record["kind"] == "tune"):
            held_out, rates = tuned(records, variant, times), rates_of(variant)
            measure = measures_of(variant)[0]
            print(f"\n{variant}, {times} x the steps: {measure} on held-out images %\n")
            print(f"| | {' | '.join(f'{lr:g}' for lr in rates)} |\n|---{'|---' * len(rates)}|")
            for name in rows_of(variant):
                if any(row == name for row, _ in held_out):
                    cells = [plus_minus(held_out.get((name, lr), [float("nan")])) for lr in rates]
                    print(f"| {name} | {' | '.join(cells)} |")
        tested = [record for record in some if record["kind"] == "test"]
        for times in dict.fromkeys(record["times"] for record in tested):
            for measure in measures_of(variant):
                print(f"\n{variant}, {times} x the steps: {measure} on test images %\n")
                of = [record for record in tested if record["times"] == times]
                print(test_table(of, [*rows_of(variant)], measure))


def test_table(records: list[dict[str, Any]], names: list[str], measure: str) -> str:
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for record in records:
        found[record["row"]][record["seed"]] = record
    lines = [
        "| | lr | seeds | % | cost in random steps | minus random, same cost "
        "| minus random, same seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by_seed in found.items():
        if not by_seed:
            continue
        leads = []
        for rivals in (RIVALS, AS_LONG):
            rival = found.get(rivals.get(name, ""), {})
            pairs = [
                100 * (record[measure] - rival[seed][measure])
                for seed, record in by_seed.items()
                if seed in rival
            ]
            leads.append(plus_minus(pairs, sign=True) if pairs else "-")
        cells = [
            name,
            f"{next(iter(by_seed.values()))['lr']:g}",
            str(len(by_seed)),
            plus_minus([100 * record[measure] for record in by_seed.values()]),
            f"{statistics.fmean(record['cost'] for record in by_seed.values()):.0f}",
            *leads,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def time_all(arguments: argparse.Namespace) -> None:
    """Print the seconds of a step of each row, as a ratio to random mini-batches."""
    data = load(arguments)
    few = dataclasses.replace(
        data, test_images=data.test_images[:250], test_labels=data.test_labels[:250]
    )
    rows = {"random": rows_of(arguments.variant)["random"]} | {
        name: row for name, row in chosen_rows(arguments).items() if row.strategy is not RANDOM
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(arguments.turns + 1):  # the first is a rehearsal
        for name, row in rows.items():
            row = dataclasses.replace(row, steps=arguments.steps)
            seconds[name].append(train(few, row, turn, arguments)["seconds"])
    print(f"{arguments.turns} turns of {arguments.steps} steps\n")
    print("| | a step in random steps |\n|---|---|")
    for name, some in seconds.items():
        ratios = [mine / base for mine, base in zip(some, seconds["random"], strict=True)][1:]
        print(f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("tune", "test", "time"):
        add_machine_options(commands.add_parser(name))
        commands.choices[name].add_argument("--rows", nargs="+", metavar="ROW")
    commands.choices["time"].add_argument("--turns", type=int, default=3)
    commands.choices["time"].add_argument("--steps", type=int, default=40)
    commands.choices["time"].add_argument(
        "--variant",
        choices=[name for name in VARIANTS if "random" in rows_of(name)],
        default="clean",
        metavar="VARIANT",
    )
    commands.choices["time"].set_defaults(run=time_all)
    for name, seeds in (("tune", [10, 11]), ("test", [0, 1, 2, 3, 4])):
        command = commands.choices[name]
        command.set_defaults(run=run_all)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--seeds", type=int, nargs="+", default=seeds)
        command.add_argument("--variant", choices=VARIANTS, default="clean", metavar="VARIANT")
        command.add_argument("--times", type=int, default=1)
        command.add_argument("--minutes", type=float, default=1e9, help="stop after about these")
    commands.add_parser("show").add_argument("results", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "show":
        show([record for path in arguments.results for record in read(path)])
        return
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
