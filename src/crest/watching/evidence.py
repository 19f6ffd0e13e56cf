"""Which batch a call of the model was for, told by its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crest.watching.calls import Call, HandedOut

__all__ = ["find_by_inputs"]

_COLUMNS = 8  # compared of each row


def find_by_inputs(call: Call, batches: Sequence[HandedOut]) -> tuple[HandedOut, int] | None:
    """Find the batch whose memory, or else whose values, the model was called with.

    Where values are compared, all inputs that a batch has a counterpart of must fit one batch
    alone: equal attention masks are no evidence.

    Args:
        call: A forward pass.
        batches: Those it may be of, the newest first.

    Returns:
        The batch and its first row in the call; None if the inputs tell nothing.
    """
    inputs = [given for given in call.inputs if given.ndim]
    for one in batches:
        for given in inputs:
            for base in one.tensors:
                start = _row_in_memory(given, base)
                if start is not None:
                    return one, start
    compared = [(given, _some_columns(given)) for given in inputs if given.ndim > 1 and len(given)]
    if not any(_has_distinct_rows(rows) for _, rows in compared):
        return None
    fits: list[tuple[HandedOut, set[int]]] = []
    for one in batches:
        starts = _rows_by_value(compared, one)
        if starts:
            fits.append((one, starts))
    if len(fits) != 1 or len(fits[0][1]) != 1:
        return None
    one, (start,) = fits[0]
    return one, start


def _row_in_memory(given: Tensor, base: Tensor) -> int | None:
    """Tell at which row of `base` a tensor begins, if it is a part of it."""
    if given is base:
        return 0
    if (
        given.device != base.device
        or given.dtype != base.dtype
        or given.shape[1:] != base.shape[1:]
        or given.stride() != base.stride()
        or not given.stride(0)
    ):
        return None
    offset = given.data_ptr() - base.data_ptr()
    row, rest = divmod(offset, given.stride(0) * given.element_size())
    return row if rest == 0 and 0 <= row <= base.shape[0] - given.shape[0] else None


def _some_columns(given: Tensor) -> Tensor:
    return given.flatten(1)[:, :: max(given[0].numel() // _COLUMNS, 1)]


def _has_distinct_rows(rows: Tensor) -> bool:
    return len({tuple(row) for row in rows.tolist()}) >= min(len(rows), 2)


def _rows_by_value(compared: list[tuple[Tensor, Tensor]], one: HandedOut) -> set[int]:
    """Give the rows of a batch at which all comparable inputs agree with it."""
    starts: set[int] | None = None
    for given, rows in compared:
        bases = [
            base
            for base in one.tensors
            if base.shape[1:] == given.shape[1:]
            and len(given) <= len(base)
            and base.is_floating_point() == given.is_floating_point()
        ]
        if not bases:
            continue
        k = len(given)
        found = set()
        for base in bases:
            theirs = _some_columns(base).to(given.device, given.dtype)
            found |= {
                start
                for start in range(0, len(base) - k + 1, k)
                if torch.equal(rows, theirs[start : start + k])
            }
        starts = found if starts is None else starts & found
    return starts or set()
