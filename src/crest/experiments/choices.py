"""Things chosen by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["check_choice"]


def check_choice(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse an unknown name, listing the known ones and suggesting the closest.

    Args:
        kind: What is chosen, as in "network".
        name: What was asked for.
        known: What there is.

    Raises:
        ValueError: If `name` is not among `known`.

    Example:
        >>> check_choice("network", "resnet21", ["cnn", "resnet20"])
        Traceback (most recent call last):
        ValueError: network must be one of cnn, resnet20; got 'resnet21'. Did you mean resnet20?
    """
    if name in known:
        return
    closest = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {closest[0]}?" if closest else ""
    raise ValueError(f"{kind} must be one of {', '.join(known)}; got {name!r}.{hint}")
