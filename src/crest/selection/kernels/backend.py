"""The one place that decides between plain torch and compiled kernels."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["compiled_for", "pick_on_gpu"]

_refused: set[torch.device] = set()  # on which Triton failed, or picked wrong


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


def pick_on_gpu(
    given: Tensor, batch_size: int, *, are_features: bool, weights: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Pick from P subsets by one program each, if they are on a GPU and fit one.

    Args:
        given: Features (P, r, d), d few, or distances (P, r, r).
        batch_size: m.
        are_features: Which of the two `given` is.
        weights: Of the rows, in (0, 1], shape (P, r), or None.

    Returns:
        Indices and cluster sizes, (P, m); None: use plain torch. Where Triton is missing, fails, or
        does not pick a small known example right, a warning says so once for each device.

    Raises:
        torch.OutOfMemoryError: If the memory of the GPU does not suffice.
    """
    device = given.device
    if device.type != "cuda" or device in _refused:
        return None
    try:
        from crest.selection.kernels import triton_facility_location as kernels

        if not kernels.takes(given, batch_size):
            return None
        if _picks_right(device):
            return kernels.greedy(given, batch_size, are_features=are_features, weights=weights)
        reason = "a known example came out wrong"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind, from a missing module to the compiler's own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    _refused.add(device)
    warnings.warn(
        f"selection on {device} goes without Triton, pick by pick and slower, for this process: "
        f"{reason}. Install the triton that your torch asks for.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


@functools.cache
def _picks_right(device: torch.device) -> bool:
    from crest.selection.kernels import triton_facility_location

    return triton_facility_location.picks_right(device)
