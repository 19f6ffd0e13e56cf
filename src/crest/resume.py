"""The state of a run: its version, and what must be as it was for a run to go on."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["STATE_VERSION", "check_same", "check_state"]

STATE_VERSION = 3


def check_state(state: Any, settings: dict[str, Any], dataset_length: int) -> None:
    """Refuse a state of something else.

    Args:
        state: What `CoresetLoader.state_dict` returned, it is hoped.
        settings: Of the loader that shall go on from it.
        dataset_length: n of that loader.

    Raises:
        TypeError: If it is no state of a loader.
        ValueError: If it comes from another version, data set length or setting; names it.
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


def _kind(state: Any) -> str:
    if isinstance(state, dict):
        return f"a dict with the keys {', '.join(map(str, list(state)[:5])) or '(none)'}"
    return type(state).__name__ if not isinstance(state, torch.Tensor) else "a tensor"
