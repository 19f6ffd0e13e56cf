"""Options of several commands that say where to compute and where files are."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from crest.cli.words import device, positive
from crest.lab.run.settings import AUTOCAST, COMPILE_MODES

__all__ = ["add_data_dir", "add_machine", "add_traceback", "find_device", "make_folder"]


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add threads, device and how to compute there."""
    add = parser.add_argument
    add("--threads", type=positive, metavar="N", help="of the CPU (default: all, digits one)")
    add("--device", type=device, default="auto", metavar="D", help="auto, cpu or cuda")
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
    add_traceback(parser)


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add what shows an error as Python does."""
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the data."""
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="DIR", help="default: data"
    )


def find_device(name: str) -> str:
    """Resolve `auto`, and refuse a GPU that is not there.

    Args:
        name: `auto`, `cpu` or `cuda`.

    Returns:
        `cpu` or `cuda`.

    Raises:
        ValueError: If there is no GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that torch can use; there is none. Use cpu.")
    return name


def make_folder(out: Path) -> None:
    """Make the folder of the results before anything is trained.

    Args:
        out: The folder.

    Raises:
        PermissionError: If it cannot be written to.
        ValueError: If it is a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--out must be a folder; {error.filename} is a file.") from error
    if not os.access(out, os.W_OK):
        raise PermissionError(f"--out must be a folder to write to; {out} is not.")
