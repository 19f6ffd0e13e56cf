"""The command `crest`: parses words, calls experiments and report."""

from __future__ import annotations

import argparse
import ast
import difflib
import math
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import crest
from crest.checks import ArgumentTypeError, check_choice
from crest.lab.data.datasets import DATASETS, load_dataset
from crest.lab.networks.text import TEXT_NETWORKS
from crest.lab.networks.vision import NETWORKS
from crest.lab.optional import require
from crest.lab.paper import ITEMS, SCALES, reproduce
from crest.lab.run.comparison import compare
from crest.lab.run.diagnosis import DIAGNOSTICS, check_diagnostics
from crest.lab.run.planning import plan_runs
from crest.lab.run.results import Results
from crest.lab.run.settings import AUTOCAST, COMPILE_MODES, STRATEGIES, RunSettings
from crest.report.paper_figure import plot_item
from crest.report.paper_table import format_item
from crest.report.plot import plot_comparison
from crest.report.progress import make_progress
from crest.report.summary import verdict
from crest.report.table import format_table

__all__ = ["main"]

_FAILED = 2
_INTERRUPTED = 130  # what a shell expects after Ctrl-C

_COMMANDS = ("compare", "reproduce", "run")

_EPILOG = """\
examples:
  crest compare digits
  crest compare cifar10 --data-dir data --network resnet8 --epochs 2 --seeds 0,1,2 --time-matched
  crest reproduce table1 --scale small --data-dir data --tasks cifar10 --minutes 9
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Words after `crest`; those of the process if None.

    Returns:
        Exit status: 0, or 2 after an error, or 130 after Ctrl-C.
    """
    parser = _make_parser()
    out: Path | None = None
    chosen = None
    try:
        chosen = _parse(parser, sys.argv[1:] if arguments is None else arguments)
        out = chosen.out
        chosen.command(chosen)
    except KeyboardInterrupt:
        kept = "" if out is None else f" What was saved is kept in {out};"
        again = " give the same command again to go on." if kept else ""
        print(f"crest: interrupted.{kept}{again}", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if getattr(chosen, "traceback", False):
            traceback.print_exc()
        print(f"crest: error: {_describe(error)}", file=sys.stderr)
        return _FAILED
    return 0


def _compare(chosen: argparse.Namespace) -> None:
    require("matplotlib.figure", "crest compare")  # now, not after hours of training
    plan = _plan(chosen, chosen.strategies, chosen.seeds)
    records, failed = _train_all(chosen, plan, time_matched=chosen.time_matched)
    if not records:
        _report_failures(failed)
    figure = chosen.out / "comparison.png"
    plot_comparison(records, figure)
    print(format_table(records))
    lines = [verdict(records), f"Written: {chosen.out / 'results.json'}, {figure}"]
    print("\n" + "\n".join(line for line in lines if line))
    _report_failures(failed)


def _run(chosen: argparse.Namespace) -> None:
    records, _ = _train_all(chosen, _plan(chosen, [chosen.strategy], [chosen.seed]))
    print(format_table(records))
    print(f"\nWritten: {chosen.out / 'results.json'}")


def _reproduce(chosen: argparse.Namespace) -> None:
    check_choice("item", chosen.item, ITEMS)
    check_choice("scale", chosen.scale, SCALES)
    is_figure = chosen.item.startswith("fig")
    if is_figure:
        require("matplotlib.figure", f"crest reproduce {chosen.item}")
    out = chosen.out / chosen.scale
    _make_folder(out)
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
                "device": _device(chosen.device),
                "threads": chosen.threads or torch.get_num_threads(),
                "autocast": chosen.autocast,
                "compile": chosen.compile,
            },
            shard=chosen.shard,
            minutes=chosen.minutes,
        )
    text = format_item(outcome)
    written = [out / f"{chosen.item}.md"]
    written[0].write_text(text + "\n", encoding="utf-8")
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
    _report_failures(outcome.failed)


def _report_failures(count: int) -> None:
    if count:
        raise ValueError(f"{count} run(s) failed, as told above.")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--out must be a folder; {error.filename} is a file.") from error
    if not os.access(out, os.W_OK):
        raise PermissionError(f"--out must be a folder to write to; {out} is not.")


def _train_all(
    chosen: argparse.Namespace, plan: list[RunSettings], *, time_matched: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """Check what can be checked before the first step, then train."""
    check_diagnostics(chosen.diagnostics)
    _make_folder(chosen.out)
    results = Results(chosen.out / "results.json")
    data = load_dataset(
        chosen.data, chosen.data_dir, image_size=chosen.image_size, network=plan[0].network
    )
    with make_progress() as progress:
        return compare(
            plan,
            data,
            results,
            progress,
            time_matched=time_matched,
            diagnostics=chosen.diagnostics,
        )


def _plan(
    chosen: argparse.Namespace, strategies: Sequence[str], seeds: Sequence[int]
) -> list[RunSettings]:
    fields = "network epochs batch_size lr budget weight_decay augment evaluations threads "
    fields += "autocast compile"
    return plan_runs(
        chosen.data,
        strategies,
        seeds,
        options=dict(chosen.option),
        device=_device(chosen.device),
        **{name: getattr(chosen, name) for name in fields.split()},
    )


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that torch can use; there is none. Use cpu.")
    return name


def _describe(error: Exception) -> str:
    """Put an error on one line; one that nobody foresaw keeps its type."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror is not None:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (ArgumentTypeError, ValueError, ImportError, OSError)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--traceback shows where)"


class _Parser(argparse.ArgumentParser):
    """Raises its complaints, so that every error looks the same."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].lower()}{message[1:]}. See {self.prog} --help.")


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="crest",
        description=crest.__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"crest {crest.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command_name")

    one = commands.add_parser("run", help="train once", allow_abbrev=False)
    one.add_argument("--strategy", metavar="NAME", default="crest", help=_list(STRATEGIES))
    one.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    one.set_defaults(command=_run)
    _add_common(one, out="runs")

    many = commands.add_parser(
        "compare",
        help="train several strategies on several seeds; make a table and a figure",
        allow_abbrev=False,
    )
    many.add_argument(
        "--strategies",
        type=_words,
        default=["crest", "random", "full"],
        metavar="A,B",
        help=f"{_list(STRATEGIES)} (default: crest,random,full)",
    )
    many.add_argument(
        "--seeds",
        type=_integers,
        default=[0, 1, 2],
        metavar="A,B",
        help="one run of each strategy for each (default: 0,1,2)",
    )
    many.add_argument(
        "--time-matched",
        action="store_true",
        help="add random batches that train for as many seconds as crest took, or remembered",
    )
    many.set_defaults(command=_compare)
    _add_common(many, out="runs")

    paper = commands.add_parser(
        "reproduce",
        help="run a table or figure of the paper; set it beside the paper's numbers",
        epilog="items:\n" + "\n".join(f"  {name:8}{item.what}" for name, item in ITEMS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    paper.set_defaults(command=_reproduce)
    _add_reproduce(paper)
    return parser


def _add_common(parser: argparse.ArgumentParser, out: str) -> None:
    add = parser.add_argument
    own = "default: depends on the data"
    add("data", metavar="DATA", help=_list(DATASETS))
    add("--network", metavar="NAME", help=f"{_list([*NETWORKS, *TEXT_NETWORKS])} ({own})")
    add("--budget", type=float, default=0.1, metavar="B", help="share of steps (default: 0.1)")
    add("--epochs", type=_positive, metavar="N", help=f"of full training ({own})")
    add("--batch-size", type=_positive, metavar="M", help=own)
    add("--lr", type=_positive_float, metavar="LR", help=f"peak learning rate ({own})")
    add("--weight-decay", type=float, default=5e-4, metavar="WD", help="default: 0.0005")
    add(
        "--no-augment",
        dest="augment",
        action="store_false",
        help="leave out random shifts and mirroring",
    )
    add(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of the strategies, as in subset_size=500; may be repeated",
    )
    add(
        "--evaluations",
        type=_positive,
        default=20,
        metavar="N",
        help="how often test accuracy is measured, off the clock (default: 20)",
    )
    add(
        "--diagnostics",
        type=_words,
        default=[],
        metavar="A,B",
        help=f"what else to measure, off the clock: {_list(DIAGNOSTICS)} (default: nothing)",
    )
    add("--image-size", type=_positive, default=64, metavar="PX", help="for images (default: 64)")
    add(
        "--out",
        type=Path,
        default=Path(out),
        metavar="DIR",
        help=f"where results.json is kept and continued (default: {out})",
    )
    _add_machine(parser)
    _add_data_dir(parser)


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("item", metavar="ITEM", help="see below")
    add(
        "--scale",
        default="smoke",
        metavar="S",
        help="smoke, seconds on digits, and on the part of SNLI where an item holds it; small, a "
        "minute or two for most runs on one core; paper, as published (default: smoke)",
    )
    add("--seeds", type=_integers, default=[0], metavar="A,B", help="default: 0")
    add(
        "--tasks",
        type=_words,
        metavar="A,B",
        help=f"only these rows: {_list(SCALES['paper'])} (default: all of the item)",
    )
    add("--minutes", type=_positive_float, default=math.inf, metavar="N", help="stop after these")
    add(
        "--shard",
        type=_shard,
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
    _add_data_dir(parser)
    _add_machine(parser)


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="DIR", help="default: data"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--threads", type=_positive, metavar="N", help="of the CPU (default: all, digits one)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    add(
        "--autocast",
        choices=AUTOCAST,
        help="passes over the network in fewer bits, where the processor is fast at it "
        "(default: float32)",
    )
    add(
        "--compile",
        choices=COMPILE_MODES,
        help="mode of torch.compile for the pass of training; a minute before each run, in which "
        "the clock stands still (default: not compiled)",
    )
    add("--traceback", action="store_true", help="show where an error comes from")


def _parse(parser: _Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse, and suggest the closest option for one that is unknown."""
    if arguments and not arguments[0].startswith("-"):
        check_choice("command", arguments[0], _COMMANDS)
    chosen, unknown = parser.parse_known_args(arguments)
    if chosen.command_name is None and not unknown:
        parser.print_help()
        raise SystemExit(_FAILED)
    if unknown:
        given = [word for word in unknown if word.startswith("-")] or unknown
        options = [f"--{name.replace('_', '-')}" for name in vars(chosen)]
        closest = difflib.get_close_matches(given[0].split("=")[0], options, n=1)
        hint = f" Did you mean {closest[0]}?" if closest else ""
        raise ValueError(
            f"{given[0]} is no option of crest {chosen.command_name or ''}.{hint} See --help."
        )
    return chosen


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _list(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(names)


def _integers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be integers with commas between; got {text!r}"
        ) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1; got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number > 0; got {text!r}")
    return value


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"must look like 1/4, 1 to 4 of 4; got {text!r}")
    return int(index), int(count)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must look like subset_size=500; got {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value
