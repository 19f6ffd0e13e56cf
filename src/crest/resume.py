"""The state of a run: its version, and what must be as it was for a run to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from crest.checks import ArgumentTypeError, boolean, instance, number, tensor, whole
from crest.data_checks import check_entries
from crest.randomness import order_generators

__all__ = [
    "STATE_VERSION",
    "GeneratorState",
    "NotCopied",
    "OrderState",
    "check_state",
    "new_state",
    "take_up",
]

STATE_VERSION = 3

_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_KINDS: tuple[Any, ...] = (torch.Tensor, dict, (list, tuple), (int, float))

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
    "ledger": _DICT,
    "seen": _DICT,
}
_PARTS = {
    "region": {
        **dict.fromkeys(("indices", "weights", "seeds"), _LIST),
        **dict.fromkeys(("held", "seeded"), boolean()),
    },
    "seen": {
        **dict.fromkeys(("step", "indices", "losses", "errors"), _LIST),
        "rank": whole(0),
    },
    "examples": {
        **dict.fromkeys(("indices", "kept", "labels"), tensor()),
        "seeds": _LIST,
        "price": number(0),
    },
    "ledger": {
        **dict.fromkeys(("trained", "selected", "left_out_since"), tensor()),
        **dict.fromkeys(("selects", "has_selected"), boolean()),
    },
    "history": {
        "records": _LIST,
        **dict.fromkeys(("updates", "steps", "lag"), whole(0)),
        **dict.fromkeys(("seconds", "passes"), _DICT),
    },
}


class NotCopied:
    """Refuses copies, and batches skipped as if in a sampler's order, with what to do instead."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse `copy.copy`, `copy.deepcopy` and `pickle`, which ask here."""
        raise TypeError(
            f"a {type(self).__name__} must not be copied or pickled, as it belongs to the model "
            "that it was made with. Make a new loader for the other model; state_dict() and "
            "load_state_dict() carry the state over."
        )

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse `dataset`, which `accelerate.skip_first_batches` makes another loader of."""
        if name == "dataset":
            raise AttributeError(
                "a CoresetLoader has no dataset to skip batches in: it resumes from its own state. "
                "Use crest.adapters.hf_trainer, or set ignore_data_skip=True and call "
                "loader.load_state_dict."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class _HasState(Protocol):
    """Part of a loader that keeps a state."""

    def state_dict(self) -> Any:
        """Return tensors and primitives that `load_state_dict` continues from."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Continue from what `state_dict` returned."""
        ...


class GeneratorState:
    """The state of a generator.

    Args:
        generator: The generator.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> Tensor:
        """Return it."""
        return self._generator.get_state()

    def load_state_dict(self, state: Tensor) -> None:
        """Continue from it, wherever it was loaded to."""
        self._generator.set_state(state.cpu())


class OrderState:
    """The states of what the order of a user's loader is drawn from.

    Args:
        loader: The loader.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._generators = [GeneratorState(one) for one in order_generators(loader)]

    def state_dict(self) -> list[Tensor]:
        """Return them."""
        return [generator.state_dict() for generator in self._generators]

    def load_state_dict(self, states: Sequence[Tensor]) -> None:
        """Continue from them."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.load_state_dict(state)


def new_state(
    settings: Mapping[str, Any], dataset_length: int, parts: Mapping[str, _HasState]
) -> dict[str, Any]:
    """Collect what a loader continues from, but for its own counters.

    Args:
        settings: Of the loader.
        dataset_length: n.
        parts: What keeps a state of its own, by its entry.

    Returns:
        Tensors and primitives.
    """
    return {
        "version": STATE_VERSION,
        "settings": dict(settings),
        "dataset_length": dataset_length,
        **{name: part.state_dict() for name, part in parts.items()},
    }


def check_state(
    state: Any, settings: dict[str, Any], dataset_length: int, parts: Mapping[str, _HasState]
) -> None:
    """Refuse a state of something else.

    Args:
        state: What `CoresetLoader.state_dict` returned, it is hoped.
        settings: Of the loader that shall go on from it.
        dataset_length: n of that loader.
        parts: What keeps a state of its own in that loader, by its entry.

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
    orders = parts["order_generators"].state_dict()
    check_same("generators of the order", len(state["order_generators"]), len(orders))
    examples: Any = parts["examples"]
    examples.check_labels(state["examples"]["labels"])
    planner = parts["planner"]
    if type(planner).__module__.startswith("crest."):  # a user's own may change kinds in time
        _check_kinds("planner", state["planner"], planner.state_dict())


def take_up(parts: Mapping[str, _HasState], state: Mapping[str, Any]) -> None:
    """Let the parts of a loader continue from their entries of a state, or all stay as they were.

    Args:
        parts: Part by entry.
        state: Of a loader.

    Raises:
        ValueError: If one cannot be taken up, such as a tensor of another size; names it.
    """
    before: dict[str, Any] = {}
    for name, part in parts.items():
        before[name] = part.state_dict()
        try:
            part.load_state_dict(state[name])
        except _FAULTS as error:
            for changed, saved in before.items():
                parts[changed].load_state_dict(saved)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            fault = " ".join(str(error).split())
            raise ValueError(_damaged(name, f"({type(error).__name__}: {fault})")) from error


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
        counted = " batch_size counts those of all processes." if name == "batch_size" else ""
        raise ValueError(
            f"{name} must be that of the checkpoint, {saved!r}; got {present!r}. "
            f"Make the loader with the settings it was saved with.{counted}"
        )


def _check_kinds(name: str, saved: Any, present: Any) -> None:
    """Compare the kinds of two entries, and of all within; what may be None is let be."""
    if present is None or saved is None:
        return
    kind: Any = next((kind for kind in _KINDS if isinstance(present, kind)), object)
    if not isinstance(saved, kind):
        raise ValueError(_damaged(name, f"got {_kind(saved)}"))
    if kind is dict:
        for key in present.keys() & saved.keys():
            _check_kinds(f"{name}.{key}", saved[key], present[key])


def _damaged(name: str, fault: str) -> str:
    return (
        f"{name} of the state must be what CoresetLoader.state_dict() returned for this strategy; "
        f"{fault}. Take an earlier checkpoint."
    )


def _kind(state: Any) -> str:
    if isinstance(state, dict):
        return f"a dict with the keys {', '.join(map(str, list(state)[:5])) or '(none)'}"
    return type(state).__name__ if not isinstance(state, torch.Tensor) else "a tensor"
