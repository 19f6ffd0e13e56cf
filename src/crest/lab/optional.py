"""Imports of packages that only experiments and reports need."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, purpose: str, *, extra: str = "cli") -> Any:
    """Import a module of an extra.

    Args:
        module: Dotted name.
        purpose: What it is needed for, as in "the data set digits".
        extra: The extra that it comes with.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{purpose} needs the package {error.name}, which is not installed. "
            f"Run: pip install 'crest-coresets[{extra}]'"
        ) from error
