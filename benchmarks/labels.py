"""Wrong labels found by one training run, against out-of-fold predictions of the same network.

    python benchmarks/labels.py train --data-dir DIR --out results/labels.json
    python benchmarks/labels.py show results/labels.json
    python benchmarks/labels.py rank runs/results.json --data-dir DIR --wrong-labels 0.2

Trains ResNet-8 on CIFAR-10 at half the resolution, as `benchmarks/default.py` does, with some
labels wrong, and ranks labels in several ways:

- one run: `loader.examples()` of random or online batches with `record=True`: `label_score` (mean
  margin over the run), the same of the smoothed margin, and the loss at the end;
- folds: the way of confident learning (Northcutt et al., JAIR 2021). `--folds` networks are each
  trained on all but one part, for as many passes, and predict that part. Ranked by
  self-confidence and by margin; issues are those of the confident joint, written here, and those of
  cleanlab itself where it is installed.

`--situations` takes some of `noise 5`, `noise 20`, `noise 40`, `flipped 20`; `--methods` some of
`random`, `online`, `folds`; `--seeds` which; `--examples` only so many images. Each finished run is
kept, and the same command goes on where it stopped.

`rank` tells the same of runs of `crest compare cifar10 --wrong-labels SHARE --diagnostics
label_issues,label_scores`, of any network.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cheap_forward import keep, read
from default import BATCH_SIZE, LR, auroc, found, load, training
from torch import Tensor, nn
from torch.utils.data import Subset

import crest
from crest.lab.data.datasets import load_dataset
from crest.lab.data.image_data import ImageData
from crest.lab.data.views import ImageViews
from crest.lab.data.wrong_labels import with_wrong_labels
from crest.lab.run.freed_memory import keep_freed_memory
from crest.lab.run.results import Results

SITUATIONS = ("noise 5", "noise 20", "noise 40", "flipped 20")
METHODS = ("random", "online", "folds")
STRATEGIES = {"random": crest.Random, "online": crest.OnlineSelection}


def fit(
    data: ImageData, rows: list[int], strategy: Any, seed: int, passes: float, *, record: bool
) -> tuple[nn.Module, crest.CoresetLoader]:
    """Train once on some rows."""
    views = Subset(ImageViews(data, torch.device("cpu")), rows)
    steps = int(passes * (len(rows) // BATCH_SIZE))
    *_, trained = training(data, views, strategy, seed, steps, LR, record=record)
    return trained


def one_run(
    data: ImageData, wrong: Tensor, method: str, seed: int, passes: float
) -> dict[str, Any]:
    """Rank labels by what one run showed."""
    start = time.perf_counter()
    rows = list(range(data.num_train))
    _, loader = fit(data, rows, STRATEGIES[method](), seed, passes, record=True)
    table = loader.examples()
    seconds = time.perf_counter() - start
    known = loader._ledger.record.knowledge()
    observed = torch.from_numpy(np.asarray(table["observed"]))
    score = torch.from_numpy(np.asarray(table["label_score"]))
    rankings = {
        "label_score": score,
        "smoothed margin": known["p_given"] - known["p_other"],
        "last loss": -known["last_loss"],
        "smoothed loss": -known["smoothed_loss"],
        "forgotten": -known["forgotten"].float(),
    }
    return {
        "seconds": seconds,
        "observed": float(observed.float().mean()),
        "auroc": {name: auroc(-one[observed], wrong[observed]) for name, one in rankings.items()},
        "found": {
            "is_label_issue": found(torch.from_numpy(np.asarray(table["is_label_issue"])), wrong)
        },
    }


def out_of_fold(
    data: ImageData, wrong: Tensor, folds: int, seed: int, passes: float
) -> dict[str, Any]:
    """Rank labels by what networks predict that were not trained on them."""
    start = time.perf_counter()
    n = data.num_train
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    probabilities = torch.empty(n, len(data.classes))
    plain = ImageViews(data, torch.device("cpu"), augment=False)
    for fold in order.chunk(folds):
        mask = torch.ones(n, dtype=torch.bool)
        mask[fold] = False
        rows = mask.nonzero().squeeze(1).tolist()
        model, _ = fit(data, rows, crest.Random(), seed, passes, record=False)
        model.eval()
        with torch.inference_mode():
            parts = [model(images) for images, _ in plain.plain_batches(fold.tolist(), 250)]
        probabilities[fold] = torch.cat(parts).softmax(1)
    seconds = time.perf_counter() - start
    labels = data.train_labels
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    others = probabilities.scatter(1, labels[:, None], -math.inf).amax(1)
    issues = {"confident joint": confident_joint(probabilities, labels)}
    if importlib.util.find_spec("cleanlab") is not None:
        from cleanlab.filter import find_label_issues

        listed = find_label_issues(labels.numpy(), probabilities.numpy())
        issues["cleanlab"] = torch.from_numpy(listed)
    return {
        "seconds": seconds,
        "observed": 1.0,
        "auroc": {
            "self-confidence": auroc(-own, wrong),
            "margin": auroc(others - own, wrong),
        },
        "found": {name: found(one, wrong) for name, one in issues.items()},
    }


def confident_joint(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Name the labels off the diagonal of the confident joint (Northcutt et al., Eq. (1)).

    A class is confident of an example where its probability is at least the mean that it has over
    the examples that are labelled with it.
    """
    classes = probabilities.shape[1]
    thresholds = torch.stack([probabilities[labels == k, k].mean() for k in range(classes)])
    confident = probabilities.where(probabilities >= thresholds, -math.inf)
    best = confident.max(1)
    return (best.values > -math.inf) & (best.indices != labels)


def run_all(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    records = read(arguments.out)
    for seed in arguments.seeds:
        for situation in arguments.situations:
            data, true = load(situation, arguments.data_dir, held_out=False)
            if arguments.examples is not None:
                some = slice(arguments.examples)
                data = dataclasses.replace(
                    data,
                    train_images=data.train_images[some],
                    train_labels=data.train_labels[some],
                )
                true = true[some]
            wrong = data.train_labels != true
            for method in arguments.methods:
                of = {"situation": situation, "method": method, "seed": seed}
                of |= {"passes": arguments.passes, "examples": data.num_train}
                if method == "folds":
                    of["folds"] = arguments.folds
                if any(of.items() <= record.items() for record in records):
                    continue
                result = (
                    out_of_fold(data, wrong, arguments.folds, seed, arguments.passes)
                    if method == "folds"
                    else one_run(data, wrong, method, seed, arguments.passes)
                )
                records.append(of | {"wrong": int(wrong.sum())} | result)
                keep(records, arguments.out)


def show(records: list[dict[str, Any]]) -> None:
    """Means over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (record["situation"], record["passes"], record["method"])
        groups.setdefault(key, []).append(record)
    for (situation, passes, method), runs in sorted(groups.items()):
        mean = statistics.fmean(run["seconds"] for run in runs)
        print(f"\n{situation}, {passes:g} passes, {method}: {mean:.0f} s, {len(runs)} seed(s)")
        for name in runs[0]["auroc"]:
            print(f"  AUROC {statistics.fmean(run['auroc'][name] for run in runs):.4f}  {name}")
        for name in runs[0]["found"]:
            values = {
                key: statistics.fmean(run["found"][name][key] for run in runs)
                for key in ("precision", "recall", "f1", "listed")
            }
            print(
                f"  precision {values['precision']:.3f}  recall {values['recall']:.3f}  "
                f"F1 {values['f1']:.3f}  {values['listed']:.0f} listed by {name}"
            )


def rank(arguments: argparse.Namespace) -> None:
    """Say how well runs of `crest compare` ranked and listed wrong labels."""
    data: ImageData = load_dataset("cifar10", arguments.data_dir)
    labels = with_wrong_labels(data, arguments.wrong_labels).train_labels
    wrong = labels != data.train_labels
    for record in Results(arguments.results).records:
        scores, issues = (record["diagnostics"].get(f"label_{of}") for of in ("scores", "issues"))
        if scores is None or issues is None:
            continue
        score = torch.tensor([math.nan if one is None else one for one in scores])
        listed = torch.zeros(len(labels), dtype=torch.bool)
        listed[[issue["index"] for issue in issues]] = True
        known = ~score.isnan()
        told = found(listed, wrong)
        print(
            f"{record['network']}, {record['strategy']}, seed {record['seed']}: "
            f"{record['steps']} steps, accuracy {record['accuracy']:.2%}; "
            f"AUROC {auroc(-score[known], wrong[known]):.4f}, {told['listed']} listed, "
            f"precision {told['precision']:.3f}, recall {told['recall']:.3f}, F1 {told['f1']:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    words = lambda text: text.split(",")  # noqa: E731
    one.add_argument("--data-dir", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--situations", type=words, default=[*SITUATIONS])
    one.add_argument("--methods", type=words, default=[*METHODS])
    one.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0])
    one.add_argument("--passes", type=float, default=10)
    one.add_argument("--folds", type=int, default=4)
    one.add_argument("--examples", type=int)
    commands.add_parser("show").add_argument("results", type=Path, nargs="+")
    one = commands.add_parser("rank")
    one.add_argument("results", type=Path)
    one.add_argument("--data-dir", type=Path, required=True)
    one.add_argument("--wrong-labels", type=float, required=True)
    arguments = parser.parse_args()
    if arguments.command == "show":
        show([record for path in arguments.results for record in read(path)])
    elif arguments.command == "rank":
        rank(arguments)
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()
