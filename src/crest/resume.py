"""The state of a run: its version, and what must be as it was for a run to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from crest.checks import ArgumentTypeError, boolean, instance, number, tensor, whole
from crest.data_checks import check_entries

__all__ = ["STATE_VERSION", "check_same", "check_state", "damage_named"]

STATE_VERSION = 3

_DICT = instance(dict, text="a dict")
_LIST = instance(list, tuple, text="a list")
_STATE = {
    "settings": _DICT,
    "dataset_length": whole(1),
    "position": whole(0),
    "in_epoch": boolean(),
    "total": whole(0),
    "region": _DICT,
    "plan_generator": tensor(),
    "view_generator": tensor(),
    "order_generators": _LIST,
    "examples": _DICT,
    "planner": _DICT,
    "history": _DICT,
}
_PARTS = {
    "region": {
        **dict.fromkeys(("indices", "weights", "seeds"), _LIST),
        **dict.fromkeys(("held", "seeded"), boolean()),
    },
    "examples": {
        **dict.fromkeys(("indices", "kept", "labels"), tensor()),
        "seeds": _LIST,
        "price": number(0),
    },
    "history": {
        "records": _LIST,
        **dict.fromkeys(("updates", "steps", "lag"), whole(0)),
        **dict.fromkeys(("seconds", "passes"), _DICT),
    },
}


def check_state(state: Any, settings: dict[str, Any], dataset_length: int) -> None:
    """Refuse a state of something else.

    Args:
        state: What `CoresetLoader.state_dict` returned, it is hoped.
        settings: Of the loader that shall go on from it.
        dataset_length: n of that loader.

    Raises:
        ArgumentTypeError: If it is no state of a loader, or a part of it is of a wrong kind.
        ValueError: If it comes from another version, data set length or setting, which is named,
            or a part of it is missing or out of its range.
    """
    if not isinstance(state, dict) or "version" not in state:
        raise ArgumentTypeError(
            f"state must be what CoresetLoader.state_dict() returned, a dict; got {_kind(state)}."
        )
    if state["version"] != STATE_VERSION:
        raise ValueError(
            f"the checkpoint must be of version {STATE_VERSION}; got {state['version']}. "
            "Continue it with the crest that it was saved with."
        )
    check_entries("the state", state, _STATE)
    for part, rules in _PARTS.items():
        check_entries(f"{part} of the state", state[part], rules)
    check_same("dataset_length", state["dataset_length"], dataset_length)
    for name in sorted(settings.keys() | state["settings"].keys()):
        check_same(name, state["settings"].get(name), settings.get(name))


@contextmanager
def damage_named() -> Iterator[None]:
    """Tell that a checkpoint is damaged where something in it does not fit.

    Yields:
        Nothing.

    Raises:
        ValueError: If loading fails inside.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            "the state must be what CoresetLoader.state_dict() returned for this strategy; got one "
            f"that does not fit ({type(error).__name__}: {error}). Take an earlier checkpoint."
        ) from error


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
