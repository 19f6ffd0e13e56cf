"""`crest run`: trains once."""

from __future__ import annotations

import argparse
from typing import Any

from crest.cli.training import add_options, train_all
from crest.cli.words import listed
from crest.report.comparison_table import format_table
from crest.strategies import OnlineSelection, registered_strategies
from crest.strategies.registry import word_of

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the whole.
    """
    parser = commands.add_parser("run", help="train once", allow_abbrev=False)
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        default=word_of(OnlineSelection),
        help=f"{listed(registered_strategies())} (default: {word_of(OnlineSelection)})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.set_defaults(command=_run)
    add_options(parser)


def _run(chosen: argparse.Namespace) -> None:
    records, _ = train_all(chosen, [chosen.strategy], [chosen.seed])
    print(format_table(records))
    print(f"\nWritten: {chosen.out / 'results.json'}")
