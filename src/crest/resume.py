"""The state of a run: its version, and what must be as it was for a run to go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["STATE_VERSION", "check_same", "check_state", "take_up"]

STATE_VERSION = 3

_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def check_state(
    state: Any, settings: dict[str, Any], dataset_length: int, present: dict[str, Any]
) -> None:
    """Refuse a state of something else.

    Args:
        state: What `CoresetLoader.state_dict` returned, it is hoped.
        settings: Of the loader that shall go on from it.
        dataset_length: n of that loader.
        present: State of that loader, which has the same entries.

    Raises:
        TypeError: If it is no state of a loader.
        ValueError: If it comes from another version, data set length or setting, or an entry is
            missing or of another kind; names it.
    """
    if not isinstance(state, dict) or "version" not in state:
        raise TypeError(
            f"state must be what CoresetLoader.state_dict() returned, a dict; got {_kind(state)}."
        )
    if state["version"] != STATE_VERSION:
        raise ValueError(
            f"the checkpoint must be of version {STATE_VERSION}; got {state['version']}. "
            "Continue it with the crest that it was saved with."
        )
    _check_entry("", state, present)
    check_same("dataset_length", state["dataset_length"], dataset_length)
    for name in sorted(settings.keys() | state["settings"].keys()):
        check_same(name, state["settings"].get(name), settings.get(name))
    for name in ("position", "total"):
        if not isinstance(state[name], int) or state[name] < 0:
            raise ValueError(
                f"{name} of the state must be an integer >= 0; got {state[name]!r}. The "
                "checkpoint is damaged; take an earlier one."
            )


def check_same(name: str, saved: Any, present: Any) -> None:
    """Refuse a setting that is not that of the checkpoint.

    Args:
        name: Of the setting.
        saved: Its value in the checkpoint.
        present: Its value now.

    Raises:
        ValueError: If they differ.
    """
    if saved != present:
        raise ValueError(
            f"{name} must be that of the checkpoint, {saved!r}; got {present!r}. "
            "Make the loader with the settings it was saved with."
        )


def take_up(state: dict[str, Any], parts: Mapping[str, Callable[[Any], object]]) -> None:
    """Hand the entries of a state to the parts of a loader.

    Args:
        state: Of a loader.
        parts: What takes each entry up, by its name.

    Raises:
        ValueError: If one cannot be taken up, such as a tensor of another size; names it.
    """
    for name, take in parts.items():
        try:
            take(state[name])
        except _FAULTS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            fault = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")
            raise ValueError(
                _damaged(name, f"be what this loader can go on from; {fault}")
            ) from error


def _check_entry(name: str, saved: Any, present: Any) -> None:
    """Compare the kinds of two entries, and of all within; what may be None is let be."""
    if present is None or saved is None:
        return
    kind = next((kind for kind in _KINDS if isinstance(present, _KINDS[kind])), None)
    if kind is not None and not isinstance(saved, _KINDS[kind]):
        raise ValueError(_damaged(name, f"be {kind}; got {_kind(saved)}"))
    if kind == "a dict" and name != "settings":  # those have a check of their own
        for key, value in present.items():
            inner = f"{name}.{key}" if name else str(key)
            if key not in saved:
                raise ValueError(_damaged(inner, "be there; it is missing"))
            _check_entry(inner, saved[key], value)


_KINDS: dict[str, Any] = {
    "a tensor": torch.Tensor,
    "a dict": dict,
    "a list": (list, tuple),
    "a number, or True or False": (int, float),
}


def _damaged(name: str, must: str) -> str:
    return f"{name} of the state must {must}. The checkpoint is damaged; take an earlier one."


def _kind(state: Any) -> str:
    if isinstance(state, dict):
        return f"a dict with the keys {', '.join(map(str, list(state)[:5])) or '(none)'}"
    return type(state).__name__ if not isinstance(state, torch.Tensor) else "a tensor"
