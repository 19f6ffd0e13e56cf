"""The one place that decides between plain torch and compiled kernels."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch

__all__ = ["compiled_for"]


def compiled_for(device: torch.device) -> ModuleType | None:
    """Give the compiled kernels for a device, loaded at first use.

    Args:
        device: Where the input lives.

    Returns:
        `crest.selection.kernels.numba_greedy` on a CPU with numba, else None: use plain torch.
    """
    return _compiled() if device.type == "cpu" else None


@functools.cache
def _compiled() -> ModuleType | None:
    try:
        from crest.selection.kernels import numba_greedy
    except ImportError as error:
        warnings.warn(
            f"selection runs some 100 times slower without numba ({error}). Install numba.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return numba_greedy
