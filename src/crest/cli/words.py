"""What the words behind an option must look like, and the values they stand for."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Sequence
from typing import Any

from crest.lab.data.datasets import DATASETS
from crest.strategies import registered_strategies

__all__ = [
    "check_commas",
    "device",
    "integers",
    "listed",
    "option",
    "positive",
    "positive_float",
    "shard",
    "share",
    "words",
]

_LISTS = ("--strategies", "--seeds", "--tasks", "--diagnostics")  # take words with commas between

_MOST_DIGITS = 18  # Python itself refuses some thousands

_DEVICES = ("auto", "cpu", "cuda")


def check_commas(
    arguments: Sequence[str], unknown: Sequence[str], chosen: argparse.Namespace
) -> None:
    """Refuse a list whose words are separated by spaces, and show how it is written.

    Args:
        arguments: All words of the command.
        unknown: Those that the parser had no use for.
        chosen: What it made of the others; the second word of a list may pass for the data.

    Raises:
        ValueError: If one of them stands behind a list.
    """
    data: str = getattr(chosen, "data", "")
    passes_for_data = data.isdecimal() or data in registered_strategies()
    for word in [*unknown, *([data] if passes_for_data else [])]:
        if word.startswith("-") or word not in arguments:
            continue
        before = [part for given in arguments for part in given.split("=", 1)]  # --seeds=0 is two
        before = before[: before.index(word)]
        start = next((i for i in reversed(range(len(before))) if before[i][:2] == "--"), 0)
        if before and before[start] in _LISTS and start + 1 < len(before):
            several = [*before[start + 1 :], word]
            if data:  # which may stand behind the list
                several = [name for name in several if name not in DATASETS]
            raise ValueError(
                f"{before[start]} takes several words as one: separate them by commas, as in "
                f"{before[start]} {','.join(several)}."
            )


def listed(names: Iterable[str]) -> str:
    """Put names in a row, for the help of an option."""
    return ", ".join(names)


def words(text: str) -> list[str]:
    """Take words with commas between."""
    return [word.strip() for word in text.split(",")]


def integers(text: str) -> list[int]:
    """Take integers with commas between.

    Args:
        text: The words.

    Returns:
        The integers.

    Raises:
        argparse.ArgumentTypeError: If one is no integer.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be integers with commas between; got {text!r}"
        ) from error


def positive(text: str) -> int:
    """Take an integer from 1 on.

    Args:
        text: The word.

    Returns:
        The integer.

    Raises:
        argparse.ArgumentTypeError: If it is none, less, or has too many digits.
    """
    if len(text) > _MOST_DIGITS and text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at most {_MOST_DIGITS} digits")
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1; got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Take a number above 0.

    Args:
        text: The word.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is none, or not above 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a number > 0; got {text!r}")
    return value


def share(text: str) -> float:
    """Take a share of a whole.

    Args:
        text: The word.

    Returns:
        In [0, 1].

    Raises:
        argparse.ArgumentTypeError: If it is no such number.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], as 0.2 for a fifth; got {text!r}")
    return value


def shard(text: str) -> tuple[int, int]:
    """Take a part of all runs, such as 1/4.

    Args:
        text: The word.

    Returns:
        Which part, from 1 on, and of how many.

    Raises:
        argparse.ArgumentTypeError: If it is no such part.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"must look like 1/4, 1 to 4 of 4; got {text!r}")
    return int(index), int(count)


def option(text: str) -> tuple[str, Any]:
    """Take a field of a strategy and its value, such as subset_size=500.

    Args:
        text: The word.

    Returns:
        Name and value: a word, or what Python reads in it.

    Raises:
        argparse.ArgumentTypeError: If there is no value.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must look like subset_size=500; got {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested too deep
        return name, value


def device(text: str) -> str:
    """Take the name of a device.

    Args:
        text: The word.

    Returns:
        The word.

    Raises:
        argparse.ArgumentTypeError: If it is no device.
    """
    if text not in _DEVICES:
        hint = "" if text.lower().startswith("cp") else " Did you mean cuda?"  # gpu, nvidia, cuda:0
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(_DEVICES)}; got {text!r}.{hint}"
        )
    return text
