"""Imports the user's own code, whose strategies register themselves."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path

__all__ = ["add_import", "import_user_code"]


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the option that names what to import."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE",
        help="import a Python file, or a module, whose strategies then have a word; may be "
        "repeated",
    )


def import_user_code(place: str) -> None:
    """Import a file or a module.

    Args:
        place: Path of a Python file, or the dotted name of a module, which is looked for in the
            folder of the call, too. What stands beside a file can be imported by it.

    Raises:
        ValueError: If there is no such thing, it shares its name with another module, or it raises
            an error.
    """
    is_file = place.endswith(".py") or os.sep in place
    if is_file and not Path(place).is_file():
        raise ValueError(f"--import must be a Python file or a module; there is no file {place}.")
    _add_to_path(Path(place).resolve().parent if is_file else Path.cwd())
    try:
        if is_file:
            _import_file(Path(place).resolve())
        elif importlib.util.find_spec(place) is None:
            raise ValueError(f"there is no module {place}")
        else:
            importlib.import_module(place)
    except Exception as error:
        raise ValueError(
            f"--import {place} must be Python that can be imported; {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> None:
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return
        raise ValueError(f"a module {name} is there already; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError("it does not end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up the types of their fields
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _add_to_path(folder: Path) -> None:
    """Let code find what stands beside it, after all that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
