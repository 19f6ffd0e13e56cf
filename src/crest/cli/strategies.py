"""`crest strategies`: what there is to choose from."""

from __future__ import annotations

import argparse
from typing import Any

from crest.cli.machine import add_traceback
from crest.cli.user_code import add_import
from crest.report.strategy_table import format_strategies, strategies_as_markdown

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the whole.
    """
    parser = commands.add_parser(
        "strategies",
        help="list the strategies: what they do, what they need, where they are from",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--markdown", action="store_true", help="with the titles of the papers, as in the README"
    )
    parser.set_defaults(command=_strategies)
    add_import(parser)
    add_traceback(parser)


def _strategies(chosen: argparse.Namespace) -> None:
    print(strategies_as_markdown() if chosen.markdown else format_strategies())
