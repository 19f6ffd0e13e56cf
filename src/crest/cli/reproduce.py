"""`crest reproduce`: runs a table or figure of the paper; sets it beside the paper's numbers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from crest.checks import check_choice
from crest.cli.machine import add_data_dir, add_machine, find_device, make_folder
from crest.cli.training import refuse_failures
from crest.cli.words import integers, listed, positive_float, shard, words
from crest.lab.optional import require
from crest.lab.paper import ITEMS, SCALES, reproduce
from crest.lab.run.files import replace_file
from crest.report.paper_figure import plot_item
from crest.report.paper_table import format_item
from crest.report.progress import make_progress

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the whole.
    """
    parser = commands.add_parser(
        "reproduce",
        help="run a table or figure of the paper; set it beside the paper's numbers",
        epilog="items:\n" + "\n".join(f"  {name:8}{item.what}" for name, item in ITEMS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=_reproduce)
    add = parser.add_argument
    add("item", metavar="ITEM", help="see below")
    add(
        "--scale",
        default="smoke",
        metavar="S",
        help="smoke, seconds on digits, and on the part of SNLI where an item holds it; small, a "
        "minute or two for most runs on one core; paper, as published (default: smoke)",
    )
    add("--seeds", type=integers, default=[0], metavar="A,B", help="default: 0")
    add(
        "--tasks",
        type=words,
        metavar="A,B",
        help=f"only these rows: {listed(SCALES['paper'])} (default: all of the item)",
    )
    add("--minutes", type=positive_float, default=math.inf, metavar="N", help="stop after these")
    add(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/K",
        help="train every K-th run of the item, for K processes side by side",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="DIR",
        help="where runs are kept and continued, tables and figures written, in a folder for each "
        "scale (default: runs/reproduce)",
    )
    add_data_dir(parser)
    add_machine(parser)


def _reproduce(chosen: argparse.Namespace) -> None:
    check_choice("item", chosen.item, ITEMS)
    check_choice("scale", chosen.scale, SCALES)
    is_figure = chosen.item.startswith("fig")
    if is_figure:
        require("matplotlib.figure", f"crest reproduce {chosen.item}")
    out = chosen.out / chosen.scale
    make_folder(out)
    with make_progress() as progress:
        outcome = reproduce(
            chosen.item,
            chosen.scale,
            data_dir=chosen.data_dir,
            out=out,
            progress=progress,
            seeds=chosen.seeds,
            tasks=chosen.tasks,
            machine={
                "device": find_device(chosen.device),
                "threads": chosen.threads or torch.get_num_threads(),
                "autocast": chosen.autocast,
                "compile": chosen.compile,
            },
            shard=chosen.shard,
            minutes=chosen.minutes,
        )
    text = format_item(outcome)
    written = [out / f"{chosen.item}.md"]
    replace_file(written[0], f"{text}\n".encode())
    if is_figure:
        written.append(out / f"{chosen.item}.png")
        plot_item(outcome, written[1])
    print(text)
    print(f"\nWritten: {', '.join(map(str, written))}")
    if outcome.left:
        print(
            f"{outcome.left} run(s) of {chosen.item} are left; give the same command again to go "
            "on where it stopped."
        )
    if outcome.others:
        print(f"{outcome.others} run(s) of {chosen.item} are left to other shards.")
    refuse_failures(outcome.failed)
