"""What indices, masks and saved states must be, for `checks` to refuse what is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crest.checks import Rule, check, instance, tensor

__all__ = ["check_entries", "check_indices", "check_mask", "tensor_like"]

_DICT = instance(dict, text="a dict, what state_dict() returned")


def check_entries(name: str, entries: Any, rules: Mapping[str, Rule]) -> None:
    """Refuse a dict, such as a saved state, that lacks an entry or has a wrong one.

    Args:
        name: What it is, as in "state".
        entries: What was given.
        rules: What each entry must be, by its key; others are not looked at.

    Raises:
        ArgumentTypeError: If it is no dict, or an entry is of a wrong kind.
        ValueError: If an entry is missing or out of its range.
    """
    check(name, entries, _DICT)
    for key, rule in rules.items():
        if key not in entries:
            keys = ", ".join(map(str, list(entries)[:5])) or "none"
            raise ValueError(
                f"{name} must have the entry {key!r}, as state_dict() returns it; got {keys}."
            )
        check(f"{key} of {name}", entries[key], rule, "Take an earlier checkpoint.")


def check_indices(name: str, indices: Any, num_examples: int | None = None) -> None:
    """Refuse what are no example indices.

    Args:
        name: Of the argument.
        indices: What was given.
        num_examples: n. None: values are not looked at, as a device would have to be waited for.

    Raises:
        ArgumentTypeError: If it is no tensor.
        ValueError: If it is not one row of integers in [0, n).
    """
    check(name, indices, tensor())
    if indices.ndim != 1 or indices.dtype.is_floating_point or indices.dtype.is_complex:
        raise ValueError(
            f"{name} must be integers, shape (m,); got {indices.dtype} of shape "
            f"{tuple(indices.shape)}."
        )
    if indices.dtype == torch.bool:
        raise ValueError(f"{name} must be integers; got a mask. Write mask.nonzero().squeeze(1).")
    if num_examples is None or not len(indices):
        return
    least, most = (int(extreme) for extreme in torch.aminmax(indices.long()))
    if least < 0 or most >= num_examples:
        raise ValueError(
            f"{name} must be in [0, {num_examples - 1}], the examples; got {least} to {most}."
        )


def check_mask(name: str, mask: Any) -> None:
    """Refuse what is not True or False for each of some examples.

    Args:
        name: Of the argument.
        mask: What was given.

    Raises:
        ArgumentTypeError: If it is no tensor.
        ValueError: If it is not one row of bool.
    """
    check(name, mask, tensor())
    if mask.ndim != 1 or mask.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool, shape (k,); got {mask.dtype} of shape {tuple(mask.shape)}."
        )


def tensor_like(other: Tensor) -> Rule:
    """Ask for a tensor of the dtype and shape of another.

    Args:
        other: The other.

    Returns:
        The rule.
    """

    def take(value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise TypeError
        if value.dtype != other.dtype or value.shape != other.shape:
            raise ValueError
        return value

    return Rule(f"{other.dtype} of shape {tuple(other.shape)}", "a tensor,", take)
