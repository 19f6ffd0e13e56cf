"""Tuples, lists and mappings made anew with other parts: the type and the attributes stay."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["attributes_of", "own_slots", "remade", "shallow"]


def remade(sequence: Any, parts: Sequence[Any]) -> Any:
    """Make a tuple or list of the same type from other parts.

    Args:
        sequence: A tuple or list, or of a subclass with attributes and a constructor of its own.
        parts: What it shall hold.

    Returns:
        The new one.

    Raises:
        TypeError: If the type is made in C and takes no other number of parts.
    """
    kind = type(sequence)
    if kind is tuple or kind is list:
        return kind(parts)
    if isinstance(sequence, list):
        made = shallow(sequence)
        made[:] = parts
        return made
    try:
        made = tuple.__new__(kind, parts)  # a constructor may ask for other arguments
    except TypeError:
        return kind(parts)  # such as torch.return_types.max
    attributes = attributes_of(sequence)
    if attributes:
        vars(made).update(attributes)
    return made


def shallow(container: Any) -> Any:
    """Copy a container, not what it holds.

    Args:
        container: Any object that `copy.copy` takes.

    Returns:
        The copy.
    """
    made = copy.copy(container)
    if attributes_of(container) is container:
        made.__dict__ = made  # a dict whose keys are its attributes
    return made


def attributes_of(thing: Any) -> Any:
    """Return the `__dict__` of an object, None without one.

    Args:
        thing: Any object, also one whose `__getattr__` raises a `KeyError`.

    Returns:
        A dict, or None.
    """
    try:
        return thing.__dict__
    except Exception:
        return None


def own_slots(kind: type) -> Iterator[Any]:
    """List the descriptors of what a class keeps in slots.

    Args:
        kind: A class.

    Yields:
        Objects with `__get__` and `__set__`.
    """
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            member = vars(base).get(name)
            if hasattr(member, "__set__"):
                yield member
