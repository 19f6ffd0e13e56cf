"""Packages that only the experiments need."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, purpose: str) -> Any:
    """Import a module of the extra `cli`.

    Args:
        module: Dotted name.
        purpose: What it is needed for, as in "the data set digits".

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
            "Run: pip install 'crest-coresets[cli]'"
        ) from error
