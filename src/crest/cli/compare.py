"""`crest compare`: trains several strategies on several seeds; makes a table and a figure."""

from __future__ import annotations

import argparse
from typing import Any

from crest.cli.training import add_options, refuse_failures, train_all
from crest.cli.words import integers, listed, words
from crest.lab.optional import require
from crest.report.comparison_figure import plot_comparison
from crest.report.comparison_table import format_table
from crest.report.summary import verdict
from crest.strategies import Full, OnlineSelection, Random, registered_strategies
from crest.strategies.registry import word_of

__all__ = ["add_to"]

_DEFAULT = [word_of(OnlineSelection), word_of(Random), word_of(Full)]


def add_to(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the whole.
    """
    parser = commands.add_parser(
        "compare",
        help="train several strategies on several seeds; make a table and a figure",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--strategies",
        type=words,
        default=_DEFAULT,
        metavar="A,B",
        help=f"{listed(registered_strategies())} (default: {','.join(_DEFAULT)})",
    )
    parser.add_argument(
        "--seeds",
        type=integers,
        default=[0, 1, 2],
        metavar="A,B",
        help="one run of each strategy for each (default: 0,1,2)",
    )
    parser.add_argument(
        "--time-matched",
        action="store_true",
        help="add random batches that train for as many seconds as the first strategy took that "
        "is no baseline",
    )
    parser.set_defaults(command=_compare)
    add_options(parser)


def _compare(chosen: argparse.Namespace) -> None:
    require("matplotlib.figure", "crest compare")  # now, not after hours of training
    records, failed = train_all(
        chosen, chosen.strategies, chosen.seeds, time_matched=chosen.time_matched
    )
    if not records:
        refuse_failures(failed)
    figure = chosen.out / "comparison.png"
    plot_comparison(records, figure)
    print(format_table(records))
    lines = [verdict(records), f"Written: {chosen.out / 'results.json'}, {figure}"]
    print("\n" + "\n".join(line for line in lines if line))
    refuse_failures(failed)
