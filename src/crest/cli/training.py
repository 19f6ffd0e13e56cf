"""What `crest run` and `crest compare` share: options, and how runs are planned and trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crest.cli.machine import add_data_dir, add_machine, find_device, make_folder
from crest.cli.user_code import add_import
from crest.cli.words import listed, option, positive, positive_float, share, words
from crest.lab.data.datasets import DATASETS, load_dataset
from crest.lab.data.wrong_labels import with_wrong_labels
from crest.lab.networks.text import TEXT_NETWORKS
from crest.lab.networks.vision import NETWORKS
from crest.lab.run.comparison import compare
from crest.lab.run.diagnosis import DIAGNOSTICS, check_diagnostics
from crest.lab.run.planning import plan_runs
from crest.lab.run.results import Results
from crest.lab.run.under_way import stopped_runs
from crest.report.progress import make_progress

__all__ = ["FIELDS", "add_options", "refuse_failures", "train_all"]

FIELDS = (  # of `RunSettings`, each an option of its own
    *("network", "epochs", "batch_size", "lr", "budget", "weight_decay", "augment"),
    *("evaluations", "threads", "autocast", "compile"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what defines a run, but for its strategy and its seed."""
    add = parser.add_argument
    own = "default: depends on the data"
    add("data", metavar="DATA", help=listed(DATASETS))
    add(
        "--network",
        metavar="NAME",
        help=f"{listed([*NETWORKS, *TEXT_NETWORKS])}, or for text the folder of a pre-trained one, "
        f"as Hugging Face saves it ({own})",
    )
    add("--budget", type=float, default=0.1, metavar="B", help="share of steps (default: 0.1)")
    add("--epochs", type=positive, metavar="N", help=f"of full training ({own})")
    add("--batch-size", type=positive, metavar="M", help=own)
    add("--lr", type=positive_float, metavar="LR", help=f"peak learning rate ({own})")
    add("--weight-decay", type=float, default=5e-4, metavar="WD", help="default: 0.0005")
    add(
        "--no-augment",
        dest="augment",
        action="store_false",
        help="leave out random shifts and mirroring",
    )
    add(
        "--wrong-labels",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="make this share of the train labels any other class, to see what comes of it",
    )
    add(
        "--option",
        type=option,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of the strategies, as in subset_size=500; may be repeated",
    )
    add_import(parser)
    add(
        "--evaluations",
        type=positive,
        default=20,
        metavar="N",
        help="how often test accuracy is measured, off the clock (default: 20)",
    )
    add(
        "--diagnostics",
        type=words,
        default=[],
        metavar="A,B",
        help=f"what else to measure, off the clock: {listed(DIAGNOSTICS)} (default: nothing)",
    )
    add("--image-size", type=positive, default=64, metavar="PX", help="for images (default: 64)")
    add(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where results.json is kept and continued (default: runs)",
    )
    add_machine(parser)
    add_data_dir(parser)


def train_all(
    chosen: argparse.Namespace,
    strategies: Sequence[str],
    seeds: Sequence[int],
    *,
    time_matched: bool = False,
) -> tuple[list[dict[str, Any]], int]:
    """Check what can be checked before the first step, then train.

    Args:
        chosen: What the options say.
        strategies: Their words.
        seeds: One run of each strategy for each.
        time_matched: Whether to add random batches of equal time.

    Returns:
        Records, and the number of runs that failed.

    Raises:
        ValueError: If an option does not fit.
    """
    plan = plan_runs(
        chosen.data,
        strategies,
        seeds,
        options=dict(chosen.option),
        device=find_device(chosen.device),
        **{name: getattr(chosen, name) for name in FIELDS},
    )
    check_diagnostics(chosen.diagnostics)
    make_folder(chosen.out)
    results = Results(chosen.out / "results.json")
    data = load_dataset(
        chosen.data, chosen.data_dir, image_size=chosen.image_size, network=plan[0].network
    )
    if chosen.wrong_labels:
        data = with_wrong_labels(data, chosen.wrong_labels)
    with make_progress() as progress:
        records, failed = compare(
            plan,
            data,
            results,
            progress,
            time_matched=time_matched,
            diagnostics=chosen.diagnostics,
        )
    _name_stopped_runs(results)
    return records, failed


def _name_stopped_runs(results: Results) -> None:
    """Tell of what would else lie there for ever, such as runs of settings given up since."""
    stopped = stopped_runs(results.path)
    if stopped:
        print(
            f"{len(stopped)} run(s) that were stopped or failed are kept in {stopped[0].parent}; "
            "their commands go on with them. Delete what is not wanted.",
            file=sys.stderr,
        )


def refuse_failures(count: int) -> None:
    """End the command with an error, once all that could be shown was shown.

    Args:
        count: Runs that failed.

    Raises:
        ValueError: If there are any.
    """
    if count:
        raise ValueError(f"{count} run(s) failed, as told above.")
