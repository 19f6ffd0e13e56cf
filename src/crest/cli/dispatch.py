"""The command `crest` as a whole: finds what to call, and puts errors on one line."""

from __future__ import annotations

import argparse
import difflib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import crest
from crest.checks import ArgumentTypeError, check_choice
from crest.cli import compare, demo, doctor, report, reproduce, run, strategies
from crest.cli.user_code import import_user_code
from crest.cli.words import check_commas

__all__ = ["main"]

_FAILED = 2
_MOST_LETTERS = 1000
_INTERRUPTED = 130  # what a shell expects after Ctrl-C

_EPILOG = """\
examples:
  crest demo
  crest compare digits
  crest compare cifar10 --data-dir data --network resnet8 --epochs 2 --seeds 0,1,2 --time-matched
  crest reproduce table1 --scale small --data-dir data --tasks cifar10 --minutes 9
  crest strategies
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Words after `crest`; those of the process if None.

    Returns:
        Exit status: 0, or 2 after an error, or 130 after Ctrl-C.
    """
    parser, commands = _make_parser()
    out: Path | None = None
    chosen = None
    try:
        chosen = _parse(parser, commands, sys.argv[1:] if arguments is None else arguments)
        out = getattr(chosen, "out", None)
        for place in getattr(chosen, "imports", ()):
            import_user_code(place)
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


def _describe(error: Exception) -> str:
    """Put an error on one line; one that nobody foresaw keeps its type."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror is not None:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if len(text) > _MOST_LETTERS:  # of an odd value, which is shown
        text = f"{text[: _MOST_LETTERS // 2]} ... {text[-_MOST_LETTERS // 2 :]}"
    if isinstance(error, (ArgumentTypeError, ValueError, ImportError, OSError)):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text} (--traceback shows where)"


class _Parser(argparse.ArgumentParser):
    """Raises its complaints, so that every error looks the same."""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise ValueError(f"{message[:1].lower()}{message[1:]}{end} See {self.prog} --help.")


def _make_parser() -> tuple[_Parser, Sequence[str]]:
    """Make the parser, and name its commands."""
    parser = _Parser(
        prog=crest.__name__,
        description=crest.__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"crest {crest.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command_name")
    for command in (demo, run, compare, report, doctor, reproduce, strategies):
        command.add_to(commands)
    return parser, sorted(commands.choices)


def _parse(
    parser: _Parser, commands: Sequence[str], arguments: Sequence[str]
) -> argparse.Namespace:
    """Parse, and suggest the closest option for one that is unknown."""
    if arguments and not arguments[0].startswith("-"):
        check_choice("command", arguments[0], commands)
    chosen, unknown = parser.parse_known_args(arguments)
    if chosen.command_name is None and not unknown:
        parser.print_help()
        raise SystemExit(_FAILED)
    check_commas(arguments, unknown, chosen)
    if unknown:
        given = [word for word in unknown if word.startswith("-")] or unknown
        options = [f"--{name.replace('_', '-')}" for name in vars(chosen)]
        closest = difflib.get_close_matches(given[0].split("=")[0], options, n=1)
        hint = f" Did you mean {closest[0]}?" if closest else ""
        raise ValueError(
            f"{given[0]} is no option of crest {chosen.command_name or ''}.{hint} See --help."
        )
    return chosen
