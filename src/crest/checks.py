"""Rules for arguments, and one way to refuse what breaks them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

__all__ = [
    "SEED",
    "SIZE",
    "ArgumentTypeError",
    "Rule",
    "boolean",
    "check",
    "check_choice",
    "check_fields",
    "function",
    "instance",
    "many",
    "number",
    "one_of",
    "optional",
    "pair",
    "plain",
    "tensor",
    "whole",
    "word_or",
]

_EXACT = 2**53  # integers up to it are floats, too
_MOST = 10**6  # of what is planned at once: more would not end, or not fit the memory


class ArgumentTypeError(TypeError):
    """An argument is of a wrong kind; the message names it and says how to mend it."""


class Rule(NamedTuple):
    """What an argument must be.

    Attributes:
        range: What a value of the right kind must satisfy, as in "in (0, 1]"; it reads after
            "must be".
        kind: The kind, as in "an integer".
        take: Gives the value as Python's own; raises `TypeError` for a wrong kind and `ValueError`
            out of the range, whatever their text.
        hint: How to mend it, a sentence.
    """

    range: str
    kind: str
    take: Callable[[Any], Any]
    hint: str = ""


def check(name: str, value: Any, rule: Rule, hint: str = "") -> Any:
    """Take an argument, or refuse it.

    Args:
        name: Of the argument.
        value: What was given. Numbers of NumPy, and of torch in tensors without dimensions, count
            as numbers.
        rule: What it must be.
        hint: How to mend it, a sentence, if there is more to say than the rule does.

    Returns:
        The value, numbers as Python's own.

    Raises:
        ArgumentTypeError: If it is of a wrong kind.
        ValueError: If it is out of the range.

    Example:
        >>> check("batch_size", 0, whole(1))
        Traceback (most recent call last):
        ValueError: batch_size must be >= 1; got 0.
    """
    hint = hint or rule.hint
    end = f" {hint}" if hint else ""
    try:
        return rule.take(value)
    except TypeError:
        must = rule.kind if rule.kind.endswith(rule.range) else f"{rule.kind} {rule.range}"
        raise ArgumentTypeError(
            f"{name} must be {must.strip()}; got {_shown(value)}.{end}"
        ) from None
    except ValueError:
        raise ValueError(f"{name} must be {rule.range}; got {_shown(value)}.{end}") from None


def check_fields(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Take the fields of a frozen dataclass, numbers as Python's own.

    Args:
        settings: The dataclass; its fields are set to what was taken.
        rules: What each must be, by name.

    Raises:
        ArgumentTypeError: If a field is of a wrong kind.
        ValueError: If one is out of its range.
    """
    for name, rule in rules.items():
        object.__setattr__(settings, name, check(name, getattr(settings, name), rule))


def check_choice(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse an unknown name, listing the known ones and suggesting the closest.

    Args:
        kind: What is chosen, as in "network".
        name: What was asked for.
        known: What there is.

    Raises:
        ArgumentTypeError: If `name` is no word.
        ValueError: If `name` is not among `known`.

    Example:
        >>> check_choice("network", "resnet21", ["cnn", "resnet20"])
        Traceback (most recent call last):
        ValueError: network must be one of cnn, resnet20; got 'resnet21'. Did you mean resnet20?
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{kind} must be a word; got {_shown(name)}.")
    if name in known:
        return
    closest = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {closest[0]}?" if closest else ""
    raise ValueError(f"{kind} must be one of {', '.join(known)}; got {name!r}.{hint}")


def many() -> Rule:
    """Ask for a number of things that are planned or made at once: at least 1, and not too many.

    Returns:
        The rule.
    """
    return whole(1, _MOST, f">= 1 and <= {_MOST}")


def whole(least: int, most: int | None = None, text: str | None = None) -> Rule:
    """Ask for an integer, which is no bool.

    Args:
        least: Smallest.
        most: Largest, None for none.
        text: The range in words, if it has better ones.

    Returns:
        The rule.
    """

    def take(value: Any) -> int:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        if value < least or (most is not None and value > most):
            raise ValueError
        return value

    if text is None:
        text = f">= {least}" if most is None else f"in [{least}, {most}]"
    return Rule(text, "an integer", take)


SIZE = whole(1, 2**40, ">= 1 and <= 2**40")  # of a data set
SEED = whole(0, 2**63 - 2, "in [0, 2**63 - 2]")  # as a generator takes it, and one more


def number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    text: str | None = None,
    hint: str = "",
) -> Rule:
    """Ask for a finite number, which is no bool.

    Args:
        least: Smallest.
        most: Largest.
        above: Whether it must be above `least`, not equal to it.
        below: Whether it must be below `most`, not equal to it.
        text: The range in words, if it has better ones.
        hint: How to mend it, a sentence.

    Returns:
        The rule.
    """

    def take(value: Any) -> float:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        low = value > least if above else value >= least
        high = value < most if below else value <= most
        if not (low and high and abs(value) < math.inf):
            raise ValueError
        if abs(value) > _EXACT and isinstance(value, int):
            return _as_float(value)  # a tensor takes no larger integer
        return value

    if text is None:
        if most == math.inf:
            text = f"{'>' if above else '>='} {least:g}" + " and finite"
        else:
            text = f"in {'(' if above else '['}{least:g}, {most:g}{')' if below else ']'}"
    return Rule(text, "a number", take, hint)


def tensor() -> Rule:
    """Ask for a tensor.

    Returns:
        The rule.
    """
    return instance(Tensor, text="a tensor")


def boolean() -> Rule:
    """Ask for True or False.

    Returns:
        The rule.
    """

    def take(value: Any) -> bool:
        value = plain(value)
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Rule("True or False", "True or False", take)


def one_of(*words: str) -> Rule:
    """Ask for one of some words.

    Args:
        *words: The words.

    Returns:
        The rule.
    """

    def take(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        if value not in words:
            raise ValueError
        return value

    text = f"{', '.join(words[:-1])} or {words[-1]}"
    return Rule(text, text, take)


def word_or(word: str, rule: Rule) -> Rule:
    """Allow a word beside what a rule asks for.

    Args:
        word: The word.
        rule: What else it may be.

    Returns:
        The rule.
    """

    def take(value: Any) -> Any:
        if isinstance(value, str):
            if value != word:
                raise ValueError
            return value
        return rule.take(value)

    return Rule(f'{rule.range} or "{word}"', rule.kind, take)


def optional(rule: Rule) -> Rule:
    """Allow None beside what a rule asks for.

    Args:
        rule: What else it may be.

    Returns:
        The rule.
    """
    return Rule(
        f"{rule.range} or None",
        rule.kind,
        lambda value: None if value is None else rule.take(value),
    )


def pair(rule: Rule) -> Rule:
    """Ask for two values that each satisfy a rule.

    Args:
        rule: Of each.

    Returns:
        The rule, which takes lists as tuples.
    """

    def take(value: Any) -> tuple[Any, Any]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError
        first, second = value  # raises ValueError for another number of them
        return rule.take(first), rule.take(second)

    return Rule(f"two values {rule.range}", "a pair,", take)


def instance(*types: type, text: str) -> Rule:
    """Ask for an object of some types.

    Args:
        *types: The types.
        text: What they are, in words.

    Returns:
        The rule.
    """

    def take(value: Any) -> Any:
        if not isinstance(value, types):
            raise TypeError
        return value

    return Rule(text, text, take)


def function() -> Rule:
    """Ask for something that can be called.

    Returns:
        The rule.
    """

    def take(value: Any) -> Any:
        if not callable(value):
            raise TypeError
        return value

    return Rule("a function", "a function", take)


def plain(value: Any) -> Any:
    """Turn a number of NumPy, or of a tensor without dimensions, into Python's own.

    Args:
        value: Anything.

    Returns:
        The number, or the value as it is.
    """
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim == 0:
        return value.item()
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError from None


def _shown(value: Any) -> str:
    """Show a value in an error, in a few words."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else type(value).__name__
