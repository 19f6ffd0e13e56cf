"""Online selection against random mini-batches, in every situation that it claims to read.

    python benchmarks/default.py train --data-dir DIR --out results/default.json --set held-out
    python benchmarks/default.py train --data-dir DIR --out results/default.json --set test
    python benchmarks/default.py show results/default.json --seeds 0,1,2
    python benchmarks/default.py draw results/default.json --out docs/results/default.png
    python benchmarks/default.py time --data-dir DIR --network mlp --batch-size 128
    python benchmarks/default.py read --data-dir DIR --situations "clean,noise 20" --seeds 10

Trains ResNet-8 on CIFAR images at half the resolution, in batches of 64, at the peak rate 0.2 that
was best for random mini-batches and for remembered gradients on held-out images
(docs/results/remembered.md). `--set held-out` holds out the last 5,000 train images and measures on
these: what settings are chosen by. `--set test` trains on all and measures on the test images.
`--situations` and `--rows` take some of them, `--seeds` which, `--passes` how many passes. Each
finished run is kept, and the same command goes on where it stopped; `--shard I/K` takes every K-th
run, for K processes with files of their own. `time` times steps of the default against random ones,
in turns. `read` trains on random batches with `--set held-out`, and tells after each pass what is
read of the labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cheap_forward import keep, read
from equal_time import plus_minus
from torch import Tensor, nn
from torch.utils.data import DataLoader

import crest
from crest import OnlineSelection
from crest.lab.data.datasets import load_dataset
from crest.lab.data.image_data import ImageData
from crest.lab.data.views import ImageViews
from crest.lab.data.wrong_labels import make_wrong
from crest.lab.networks.vision import build_network
from crest.lab.run.freed_memory import keep_freed_memory
from crest.lab.run.learning_rate import learning_rate_factor
from crest.report.summary import half_interval
from crest.watching.audit import estimate_label_noise, wrong_label_chance

CRITERION = nn.CrossEntropyLoss(reduction="none")
NUM_HELD_OUT, BATCH_SIZE, LR = 5000, 64, 0.2

PAIRED, STATISTICS = {"check": "paired"}, {"batch_statistics": True}
AT_FIRST: dict[str, Any] = {
    "check": "fresh",
    "batch_statistics": False,
    "loss_model": "quadratic",
    "max_coreset_uses": None,
    "per_class": False,
}

ROWS: dict[str, Callable[[int], Any]] = {
    "random": lambda steps: crest.Random(),
    "default": lambda steps: OnlineSelection(),
    "remembered gradients": lambda steps: crest.RememberedGradients(),
    "loss pruning": lambda steps: crest.LossPruning(num_steps=steps),
    "only filter": lambda steps: OnlineSelection(rule="chance", balance=0),
    "only balance": lambda steps: OnlineSelection(rule="chance", noise=0),
    "without filter": lambda steps: OnlineSelection(noise=0),
    "without balance": lambda steps: OnlineSelection(balance=0),
    "cover": lambda steps: OnlineSelection(rule="cover"),
    "norm": lambda steps: OnlineSelection(rule="norm"),
    "cover, balanced": lambda steps: OnlineSelection(rule="cover", balance=1),
    "norm, balanced": lambda steps: OnlineSelection(rule="norm", balance=1),
    "norm, half balanced": lambda steps: OnlineSelection(rule="norm", balance=0.5),
    "half balanced": lambda steps: OnlineSelection(rule="chance", balance=0.5),
    "cover, half balanced": lambda steps: OnlineSelection(rule="cover", balance=0.5),
    "random, 1.03 of the steps": lambda steps: crest.Random(),  # in as many seconds, see `time`
    "random, 0.9 of the steps": lambda steps: crest.Random(),
    "default, 0.9 of the steps": lambda steps: OnlineSelection(),
    "default, 0.8 of the steps": lambda steps: OnlineSelection(),
    "default, 0.7 of the steps": lambda steps: OnlineSelection(),
    "CREST, no bound on uses": lambda steps: coresets(max_coreset_uses=None, per_class=False),
    "CREST, each coreset once": lambda steps: coresets(per_class=False),
    "CREST as at first": lambda steps: coresets(**AT_FIRST),
    "CREST, paired check": lambda steps: coresets(**AT_FIRST | PAIRED),
    "CREST, batch statistics": lambda steps: coresets(**AT_FIRST | STATISTICS),
    "CREST, both": lambda steps: coresets(**AT_FIRST | PAIRED | STATISTICS),
    "CREST, per class": lambda steps: coresets(),
    "CREST, per class, each twice": lambda steps: coresets(max_coreset_uses=2),
}
SITUATIONS = (
    *("clean", "cifar100", "redundant"),
    *("noise 5", "noise 20", "noise 40", "flipped 20"),
    *("tail 10", "tail 100"),
)


def coresets(**changes: Any) -> crest.Crest:
    """CREST without exclusion."""
    return crest.Crest.paper(exclusion_interval=None, subset_size=250, **changes)


def long_tail(labels: Tensor, classes: int, ratio: float) -> Tensor:
    """Choose rows so that class sizes fall geometrically to 1 / ratio."""
    most = int(labels.bincount().min())
    rows = []
    for label in range(classes):
        size = round(most * ratio ** (-label / (classes - 1)))
        rows.append((labels == label).nonzero().squeeze(1)[:size])
    return torch.cat(rows).sort().values


def load(situation: str, data_dir: Path, held_out: bool) -> tuple[ImageData, Tensor]:
    """Make the data of a situation, and the labels as they were before some were made wrong."""
    data: ImageData = load_dataset("cifar100" if situation == "cifar100" else "cifar10", data_dir)
    if held_out:
        data = dataclasses.replace(
            data,
            test_images=data.train_images[-NUM_HELD_OUT:],
            test_labels=data.train_labels[-NUM_HELD_OUT:],
            train_images=data.train_images[:-NUM_HELD_OUT],
            train_labels=data.train_labels[:-NUM_HELD_OUT],
        )
    kind, _, amount = situation.partition(" ")
    labels, classes = data.train_labels, len(data.classes)
    true = labels
    if kind in ("noise", "flipped"):
        labels = make_wrong(labels, classes, float(amount) / 100, moved=kind == "flipped")
        data = dataclasses.replace(data, train_labels=labels)
    elif kind == "tail":
        rows = long_tail(labels, classes, float(amount))
        data = dataclasses.replace(
            data, train_images=data.train_images[rows], train_labels=labels[rows]
        )
        true = data.train_labels
    elif kind == "redundant":  # a quarter of the images, each four times
        rows = torch.arange(len(labels) // 4).repeat(4)
        data = dataclasses.replace(
            data, train_images=data.train_images[rows], train_labels=labels[rows]
        )
        true = data.train_labels
    return data.halve(), true


def training(
    data: ImageData,
    dataset: Any,
    strategy: Any,
    seed: int,
    steps: int,
    lr: float,
    *,
    record: bool = False,
    network: str = "resnet8",
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[nn.Module, crest.CoresetLoader]]:
    """Train once on views of some data, in the loop of the README; yield after each step."""
    torch.manual_seed(seed)
    model = build_network(network, 3, data.train_images.shape[-1], len(data.classes))
    model = model.to(memory_format=torch.channels_last)
    loader = crest.CoresetLoader(
        DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True),
        model,
        loss_fn=CRITERION,
        strategy=strategy,
        budget=1,
        seed=seed,
        record=record,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    done = 0
    while done < steps:
        for inputs, targets, weights in loader:
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate_factor(done, steps)
            loss = crest.weighted_mean(CRITERION(model(inputs), targets), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            yield model, loader
            if done == steps:
                break


def train(
    data: ImageData, true: Tensor, row: str, seed: int, passes: float, lr: float
) -> dict[str, Any]:
    views = ImageViews(data, torch.device("cpu"))
    steps = int(passes * (data.num_train // BATCH_SIZE))
    if "of the steps" in row:
        steps = round(steps * float(row.split(", ")[1].split()[0]))
    start = time.perf_counter()
    *_, (model, loader) = training(data, views, ROWS[row](steps), seed, steps, lr)
    seconds = time.perf_counter() - start
    records = loader.history.records
    noise = {r["step"]: r["noise"] for r in records if r.get("noise") is not None}
    intervals = [r["check_interval"] for r in records if "check_interval" in r]
    return {
        "accuracy": accuracy(model, views, data),
        "steps": steps,
        "seconds": seconds,
        "select": loader.history.seconds["select"],
        "updates": loader.history.updates,
        "cost": loader.history.cost,
        **({"longest_T_1": max(intervals)} if intervals else {}),
        "rules": sorted({r["rule"] for r in records if "rule" in r}),
        "noise": {str(k): round(v, 4) for k, v in noise.items()},
        **audit(loader, data, true),
    }


def audit(loader: crest.CoresetLoader, data: ImageData, true: Tensor) -> dict[str, float]:
    """How well wrong labels were found: AUROC of the margin, and what was left out."""
    memory = getattr(loader._planner, "_memory", None)
    wrong = data.train_labels != true
    if memory is None or not wrong.any():
        return {}
    known = memory.known
    return {"auroc": auroc(-memory.margin[known], wrong[known]), **found(~loader.active, wrong)}


def auroc(score: Tensor, wrong: Tensor) -> float:
    """Chance that a wrong label is ranked above a right one, ties counting half."""
    _values, inverse, counts = score.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]
    positives, negatives = int(wrong.sum()), int((~wrong).sum())
    total = float(ranks[wrong].sum())
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def found(listed: Tensor, wrong: Tensor) -> dict[str, float]:
    hit = int((listed & wrong).sum())
    precision, recall = hit / max(int(listed.sum()), 1), hit / int(wrong.sum())
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    return {"precision": precision, "recall": recall, "f1": f1, "listed": int(listed.sum())}


def read_labels(arguments: argparse.Namespace) -> None:
    """Say after each pass of random batches what is read of the labels, and how well they rank."""
    torch.set_num_threads(1)
    keep_freed_memory()
    strategy = OnlineSelection(rule="chance", noise=0, balance=0)
    for situation in arguments.situations:
        data, true = load(situation, arguments.data_dir, held_out=True)
        wrong, per_pass = data.train_labels != true, data.num_train // BATCH_SIZE
        views = ImageViews(data, torch.device("cpu"))
        for seed in arguments.seeds:
            print(f"{situation}, seed {seed}")
            steps = training(data, views, strategy, seed, 5 * per_pass, arguments.lr)
            for done, (_, loader) in enumerate(steps, 1):
                if done % per_pass == 0:
                    print(f"  {done // per_pass} passes: {reading(loader, wrong)}")


def reading(loader: crest.CoresetLoader, wrong: Tensor) -> str:
    loader.examples()  # takes in what was seen
    memory = loader._planner._memory
    rows = memory.known.nonzero().squeeze(1)
    seen, bad = memory.predictions(rows, memory.num_outputs), wrong[rows]
    noise = estimate_label_noise(seen)
    if noise is None:
        return "not told"
    told = f"{noise.share:.1%} wrong"
    if bad.any():
        chance = auroc(wrong_label_chance(seen, noise), bad)
        told += f"; AUROC {chance:.3f}, of the margin {auroc(-memory.margin[rows], bad):.3f}"
    return told


def time_steps(arguments: argparse.Namespace) -> None:
    """Time a region of the default, past its first pass, and as many random steps, in turns.

    Seconds are those of the processor, so that other work on the machine counts little.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    data, _ = load("clean", arguments.data_dir, held_out=False)
    views = ImageViews(data, torch.device("cpu"))
    how: dict[str, Any] = {"network": arguments.network, "batch_size": arguments.batch_size}
    per_pass = data.num_train // arguments.batch_size
    end = (4 + arguments.turns) * per_pass  # is not reached
    runs = {
        row: training(data, views, ROWS[row](0), 0, end, LR / 10, **how)
        for row in ("random", "default")
    }
    for row, warmup in (("random", 20), ("default", 2 * per_pass + 20)):
        for _ in range(warmup):
            next(runs[row])
    taken: dict[str, list[float]] = {row: [] for row in runs}
    steps = per_pass // 4  # one plan is among them
    for turn in range(arguments.turns):
        for row in sorted(runs, reverse=turn % 2 == 1):
            start = time.process_time()
            for _ in range(steps):
                next(runs[row])
            taken[row].append(1000 * (time.process_time() - start) / steps)
    for what, of in (("least", min), ("median", statistics.median), ("mean", statistics.mean)):
        random, default = of(taken["random"]), of(taken["default"])
        print(f"{what}: random {random:.2f} ms, default {default:.2f} ms, {default / random:.3f}")
    more = [default - random for random, default in zip(*taken.values(), strict=True)]
    print(f"default minus random, in turns: {plus_minus(more, sign=True)} ms")


def accuracy(model: nn.Module, views: ImageViews, data: ImageData) -> float:
    model.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in views.test_batches(250):
            correct += int((model(images).argmax(1) == labels).sum())
    model.train()
    return correct / len(data.test_labels)


def run_all(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    ends = time.monotonic() + 60 * arguments.minutes
    records = read(arguments.out)
    plan = [
        (situation, row, seed)
        for seed in arguments.seeds
        for situation in arguments.situations
        for row in arguments.rows
    ]
    index, count = arguments.shard
    kept: dict[str, tuple[ImageData, Tensor]] = {}
    for situation, row, seed in plan[index - 1 :: count]:
        of = {"set": arguments.set, "situation": situation, "row": row, "seed": seed}
        of |= {"passes": arguments.passes, "lr": arguments.lr}
        if any(of.items() <= record.items() for record in records):
            continue
        if time.monotonic() > ends:
            print("time is up; the same command goes on from here")
            return
        if situation not in kept:
            kept[situation] = load(situation, arguments.data_dir, arguments.set == "held-out")
        data, true = kept[situation]
        records.append(of | train(data, true, row, seed, arguments.passes, arguments.lr))
        keep(records, arguments.out)


Runs = dict[int, dict[str, Any]]  # of one row, by seed


def grouped(records: list[dict[str, Any]]) -> dict[tuple[str, float, str], dict[str, Runs]]:
    """Sort records by set, passes and situation, and there by row and seed."""
    groups: dict[tuple[str, float, str], dict[str, Runs]] = {}
    for record in records:
        key = (record["set"], record["passes"], record["situation"])
        row = record["row"]
        if row != "random" and "version" in record:  # of the code, in records kept before a change
            row = f"{row} ({record['version']})"
        groups.setdefault(key, {}).setdefault(row, {})[record["seed"]] = record
    return groups


def gains(runs: Runs, base: Runs) -> list[float]:
    """Points of accuracy that runs gain over others of the same seed, by seed."""
    return [
        100 * (run["accuracy"] - base[seed]["accuracy"])
        for seed, run in sorted(runs.items())
        if seed in base
    ]


def show(records: list[dict[str, Any]]) -> None:
    """Each row's mean over seeds ± standard deviation, and what it gains over others."""
    for (held, passes, situation), rows in sorted(grouped(records).items(), key=str):
        print(f"\n{held}, {passes:g} passes, {situation}")
        for row, runs in rows.items():
            values = [100 * run["accuracy"] for run in runs.values()]
            seconds = statistics.fmean(run["seconds"] for run in runs.values())
            print(
                f"  {row:45} {plus_minus(values):14} ({len(values)})  {seconds:5.0f} s{told(runs)}"
            )
            for other in ("random", "default"):
                gained = gains(runs, rows.get(other, {}))
                if row in (other, "random") or not gained:
                    continue
                interval = f" (95 % ± {half_interval(gained):.1f})" if len(gained) > 1 else ""
                by_seed = ", ".join(f"{points:+.2f}" for points in gained)
                print(f"    minus {other} {plus_minus(gained, sign=True)}{interval}: {by_seed}")


def told(runs: Runs) -> str:
    """Means over seeds of what else was measured; noise a third into the run, and last."""
    text = "".join(
        f"  {name} {statistics.fmean(run[name] for run in runs.values()):.5g}"
        for name in ("auroc", "precision", "recall", "updates", "cost", "longest_T_1")
        if all(name in run for run in runs.values())
    )
    read_off = [run for run in runs.values() if run["noise"]]
    if read_off:
        third, last = (
            100 * statistics.fmean(values)
            for values in zip(*(map(noise_read, read_off)), strict=True)
        )
        text += f"  noise {third:.1f} / {last:.1f} %"
    return text


def noise_read(run: dict[str, Any]) -> tuple[float, float]:
    """The estimated share of wrong labels, a third into a run and at its end."""
    noise = {int(step): share for step, share in run["noise"].items()}
    late = [share for step, share in noise.items() if step >= run["steps"] / 3]
    last = [*noise.values()][-1]
    return (late or [last])[0], last


NAMES = {
    "clean": "clean labels",
    "cifar100": "CIFAR-100, clean labels",
    "redundant": "a quarter of the images, four times each",
    "noise 5": "5 % of the labels any other class",
    "noise 20": "20 % of the labels any other class",
    "noise 40": "40 % of the labels any other class",
    "flipped 20": "20 % of the labels moved to the next class",
    "tail 10": "long tail, 1 to 10",
    "tail 100": "long tail, 1 to 100",
}


def draw(records: list[dict[str, Any]], out: Path) -> None:
    """Points gained over random mini-batches of the same seed: each seed, mean, 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    panel = figure.subplots()
    rows = {key[2]: rows for key, rows in grouped(records).items() if key[:2] == ("test", 5)}
    names = [name for name in NAMES if name in rows]
    for place, name in enumerate(reversed(names)):
        gained = gains(rows[name]["default"], rows[name]["random"])
        panel.plot(gained, [place] * len(gained), "o", color="#cc79a7", alpha=0.5, markersize=5)
        mean, interval = statistics.fmean(gained), half_interval(gained)
        panel.errorbar(mean, place, xerr=interval, fmt="D", color="black", markersize=5, capsize=3)
        panel.annotate(
            f"{mean:+.1f}", (mean, place), xytext=(0, 6), textcoords="offset points", ha="center"
        )
    panel.axvline(0, color="#0072b2", linestyle="--", linewidth=1)
    panel.set_yticks(range(len(names)), [NAMES[name] for name in reversed(names)])
    panel.set_xscale("symlog", linthresh=3)
    panel.set_xticks([-1, 0, 1, 2, 3, 5, 10, 20], ["-1", "0", "1", "2", "3", "5", "10", "20"])
    panel.set_xlabel("points of test accuracy over random mini-batches, as many steps")
    panel.set_ylim(-0.6, len(names) - 0.2)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", alpha=0.3)
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    words = lambda text: text.split(",")  # noqa: E731
    one.add_argument("--data-dir", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--set", choices=["held-out", "test"], required=True)
    one.add_argument("--situations", type=words, default=[*SITUATIONS])
    one.add_argument("--rows", type=lambda text: text.split(";"), default=["random", "default"])
    one.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0])
    one.add_argument("--passes", type=float, default=5)
    one.add_argument("--lr", type=float, default=LR)
    one.add_argument("--minutes", type=float, default=math.inf)
    one.add_argument("--shard", type=lambda text: tuple(map(int, text.split("/"))), default=(1, 1))
    shown = commands.add_parser("show")
    shown.add_argument("results", type=Path, nargs="+")
    shown.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))])
    timed = commands.add_parser("time")
    timed.add_argument("--data-dir", type=Path, required=True)
    timed.add_argument("--turns", type=int, default=20)
    timed.add_argument("--network", choices=["resnet8", "resnet20", "mlp"], default="resnet8")
    timed.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    seen = commands.add_parser("read")
    seen.add_argument("--data-dir", type=Path, required=True)
    seen.add_argument("--situations", type=words, default=["clean", "noise 20", "flipped 20"])
    seen.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[10])
    seen.add_argument("--lr", type=float, default=LR)
    picture = commands.add_parser("draw")
    picture.add_argument("results", type=Path, nargs="+")
    picture.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "show":
        records = [record for path in arguments.results for record in read(path)]
        show([r for r in records if arguments.seeds is None or r["seed"] in arguments.seeds])
    elif arguments.command == "time":
        time_steps(arguments)
    elif arguments.command == "read":
        read_labels(arguments)
    elif arguments.command == "draw":
        draw([record for path in arguments.results for record in read(path)], arguments.out)
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
