"""`crest demo`: the first screen. Random, selected and full training, on clean and wrong labels."""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import statistics
from pathlib import Path
from typing import Any, cast

from crest.cli.machine import make_folder
from crest.lab.data.datasets import load_dataset
from crest.lab.data.image_data import ImageData
from crest.lab.data.wrong_labels import with_wrong_labels
from crest.lab.optional import require
from crest.lab.run.comparison import compare
from crest.lab.run.planning import plan_runs
from crest.lab.run.results import Results
from crest.report.comparison_figure import plot_comparison
from crest.report.comparison_table import format_table
from crest.report.label_figure import plot_label_issues
from crest.report.progress import make_progress
from crest.report.summary import verdict
from crest.strategies import Full, OnlineSelection, Random
from crest.strategies.registry import word_of

__all__ = ["add_to"]

_ONLINE = word_of(OnlineSelection)
_STRATEGIES = (_ONLINE, word_of(Random), word_of(Full))
_SEEDS = (0, 1, 2)
_EPOCHS = 16  # of full training; the others take half of its steps
_WRONG = 0.2
_PARTS = {"clean labels": 0.0, "a fifth of the labels wrong": _WRONG}


def add_to(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the whole.
    """
    parser = commands.add_parser(
        "demo",
        help="what it does, in a minute and a half: digits, clean and wrong labels, no download",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="where tables, figures and results are kept (default: runs/demo)",
    )
    parser.set_defaults(command=_demo)


def _demo(chosen: argparse.Namespace) -> None:
    require("matplotlib.figure", "crest demo")
    require("sklearn.datasets", "crest demo")
    for name in _PARTS:
        make_folder(chosen.out / _folder(name))
    # A process each: two cores share the work, and digits gain nothing from a second thread.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(_PARTS), mp_context=context) as pool:
        jobs = {
            name: pool.submit(_compare, share, chosen.out / _folder(name))
            for name, share in _PARTS.items()
        }
        told = {name: job.result() for name, job in jobs.items()}
    for name, lines in told.items():
        print(f"\nDigits, {name}\n{lines}")
    print(f"\nWritten: {chosen.out}")


def _compare(share: float, out: Path) -> str:
    """Train all on one part, and say what came out."""
    data = cast(ImageData, load_dataset("digits", Path()))
    part = with_wrong_labels(data, share)
    plan = plan_runs("digits", _STRATEGIES, _SEEDS, epochs=_EPOCHS, budget=0.5, evaluations=10)
    with make_progress() as progress:
        records, _ = compare(
            plan,
            part,
            Results(out / "results.json"),
            progress,
            time_matched=True,
            diagnostics=["label_issues"],
        )
    plot_comparison(records, out / "comparison.png")
    lines = [format_table(records), verdict(records)]
    if share:
        lines.append(_tell_issues(records, data, part, out))
    return "\n".join(lines)


def _tell_issues(records: list[dict[str, Any]], data: ImageData, part: ImageData, out: Path) -> str:
    """Count the wrong labels that were found, and draw those of the first run."""
    wrong = data.train_labels != part.train_labels
    issues = [r["diagnostics"]["label_issues"] for r in records if r["strategy"] == _ONLINE]
    plot_label_issues(issues[0], part, out / "label-issues.png")
    found = [sum(bool(wrong[issue["index"]]) for issue in some) for some in issues]
    precision = statistics.fmean(
        k / max(len(some), 1) for k, some in zip(found, issues, strict=True)
    )
    return (
        f"Labels: of {int(wrong.sum())} that were made wrong it found "
        f"{statistics.fmean(found):.0f} in its own training, and {precision:.0%} of what it found "
        "was wrong (means over seeds; label-issues.png shows some)."
    )


def _folder(name: str) -> str:
    return name.replace(" ", "-")
