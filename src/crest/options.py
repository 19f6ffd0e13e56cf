"""What each argument of a loader must be, and the options of a look."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crest.checks import (
    SEED,
    ArgumentTypeError,
    Rule,
    boolean,
    check,
    check_fields,
    function,
    instance,
    many,
    number,
    optional,
    whole,
)

__all__ = ["BUDGET", "LoaderOptions", "Look", "flat_settings"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a strategy looks at the model, where that shall cost less than a training forward pass.

    Args:
        transform: `transform(batch)` makes a collated batch cheaper to select on, by lower
            resolution or truncated text; it is trained on as it is.
        model: A cheaper model to select with, on the device of the trained one: an early exit that
            shares its layers, or a small network that your loop trains beside it. Its head is found
            by itself.
        dtype: Dtype of autocast for all passes that look at the model, but for its head, such as
            `torch.bfloat16`. None: the precision of the parameters.
        batch_statistics: Whether batch normalization takes the statistics of each of these passes,
            as in training, and not the running ones. These lag behind at a large learning rate,
            and are not those of a transformed batch.
        chunk: Most examples in one of these passes, >= 1; large ones suit a GPU. None: m, or 128
            if that is more.

    Raises:
        TypeError: If a field is of a wrong kind.
        ValueError: If `chunk` is out of its range.

    Note:
        The losses that `transform` and `model` give are not those of the model on its data. With
        one of them `Crest` excludes no example, and refuses to check a quadratic model. With
        `batch_statistics` alone it does both, on the losses and curvature that they give.

    Example:
        >>> Look(dtype=torch.bfloat16, chunk=512).is_exact
        True
    """

    transform: Callable[[Any], Any] | None = None
    model: nn.Module | None = None
    dtype: torch.dtype | None = None
    batch_statistics: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        module = instance(nn.Module, text="a torch.nn.Module")
        dtype = instance(torch.dtype, text="a torch.dtype such as torch.bfloat16")
        check_fields(
            self,
            {
                "transform": optional(function()),
                "model": optional(module),
                "dtype": optional(dtype),
                "batch_statistics": boolean(),
                "chunk": optional(whole(1, 2**31, text=">= 1 and <= 2**31")),
            },
        )
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                "dtype must be a floating-point dtype of autocast, torch.bfloat16 or "
                f"torch.float16, or None; got {self.dtype}."
            )

    @property
    def is_exact(self) -> bool:
        """Whether the losses are those of the model on its data, by whatever statistics."""
        return self.transform is None and self.model is None

    def to_settings(self) -> dict[str, Any]:
        """List what a checkpoint compares, as primitives."""
        return {
            "look.transform": self.transform is not None,
            "look.model": self.model is not None,
            "look.dtype": None if self.dtype is None else str(self.dtype),
            "look.batch_statistics": self.batch_statistics,
            "look.chunk": self.chunk,
        }


def flat_settings(strategy: Any) -> dict[str, Any]:
    """List the fields of a strategy, those of a group such as `CrestAdvanced` among them.

    Args:
        strategy: A dataclass.

    Returns:
        Values by name of the field.
    """
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(strategy).items():
        is_group = dataclasses.is_dataclass(getattr(strategy, name))
        found |= value if is_group else {name: value}
    return found


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """The arguments of a `CoresetLoader` beside its loader and model, see there.

    Raises:
        TypeError: If one is of a wrong kind.
        ValueError: If one is out of its range.
    """

    loss_fn: Callable[..., Tensor]
    strategy: Any
    budget: float
    batch_size: int
    accumulation_steps: int
    seed: int
    labels: Tensor | Sequence[int] | None
    head: nn.Module | str | None
    selection_dataset: Any
    look: Look
    attach: Callable[[Any, Tensor, Tensor], Any] | None
    record: bool
    tracker: Any
    shard: bool

    def __post_init__(self) -> None:
        is_settings = dataclasses.is_dataclass(self.strategy) and not isinstance(
            self.strategy, type
        )
        if not is_settings or not callable(getattr(self.strategy, "start", None)):
            raise ArgumentTypeError(
                "strategy must be a strategy of crest, such as crest.Crest(), crest.Craig() or "
                f"crest.Random(), or the word of one; got {self.strategy!r}."
            )
        check_fields(self, _LOADER_RULES)

    @property
    def keeps_user_order(self) -> bool:
        """Whether the strategy takes the batches of the user's loader as they come."""
        return getattr(self.strategy, "keeps_user_order", False)

    def check_against(self, num_examples: int, world: int) -> None:
        """Refuse what does not fit the data set.

        Args:
            num_examples: n.
            world: Processes that train on each batch together.

        Raises:
            ArgumentTypeError: If labels are no integers, or the selection data set is none.
            ValueError: If batches, labels or the selection data set do not have its size.
        """
        within = whole(1, num_examples, f"in [1, {num_examples}], the number of examples")
        check("batch_size", self.batch_size, within)
        if self.batch_size * world > num_examples:
            raise ValueError(
                f"batch_size must be at most {num_examples // world}, as {world} processes train "
                f"on {num_examples} examples; got {self.batch_size}. Use smaller batches."
            )
        if self.labels is not None:
            labels = _checked_labels(self.labels, num_examples)
            object.__setattr__(self, "labels", labels)
        if self.selection_dataset is not None:
            length = check("selection_dataset", self.selection_dataset, _LENGTH)
            if length != num_examples:
                raise ValueError(
                    f"selection_dataset must have the examples of the dataset, {num_examples}; it "
                    f"has {length}."
                )

    def to_arguments(self) -> dict[str, Any]:
        """Give the arguments that make the same loader again."""
        return dict(vars(self))

    def to_settings(self) -> dict[str, Any]:
        """List what a checkpoint compares, as primitives."""
        return {
            "strategy": type(self.strategy).__name__,
            **{f"strategy.{k}": v for k, v in flat_settings(self.strategy).items()},
            "budget": self.budget,
            "batch_size": self.batch_size,
            "accumulation_steps": self.accumulation_steps,
            "seed": self.seed,
            "selection_dataset": self.selection_dataset is not None,
            **self.look.to_settings(),
        }


BUDGET = number(0, 1, above=True, text="in (0, 1], the share of steps to take; write 0.1 for 10 %")


def _tracker(given: Any) -> Any:
    is_one = callable(getattr(given, "log", None)) and callable(getattr(given, "close", None))
    if not is_one or isinstance(given, type):
        raise TypeError
    return given


_HAS_LOG = "a tracker such as crest.JsonLines(path), with log(metrics, step) and close(),"

_LOADER_RULES = {
    "loss_fn": function(),
    "budget": BUDGET,
    "batch_size": whole(1),
    "accumulation_steps": many(),
    "seed": SEED,
    "head": optional(instance(nn.Module, str, text="a module or its name")),
    "look": instance(Look, text="a crest.Look"),
    "attach": optional(function()),
    "record": boolean(),
    "tracker": optional(Rule(_HAS_LOG, _HAS_LOG, _tracker)),
    "shard": boolean(),
}


def _length_of(dataset: Any) -> int:
    if not hasattr(dataset, "__getitem__"):
        raise TypeError
    return len(dataset)


_LENGTH = Rule("a map-style dataset", "a map-style dataset", _length_of)


def _as_tensor(given: Any) -> Tensor:
    """Take any sequence or array of numbers, in its order."""
    if isinstance(given, Tensor):
        return given.detach()
    try:
        # Not torch.as_tensor at once: it asks a pandas.Series for its labels 0, 1, 2, ...
        array = np.asarray(given)
        if array.dtype == object and all(isinstance(label, int) for label in array.flat):
            array = array.astype(np.int64)
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    try:
        return torch.as_tensor(given)  # tensors on a device
    except (TypeError, ValueError, RuntimeError, OverflowError):
        is_list = isinstance(given, (list, tuple, np.ndarray))
        odd = [one for one in given if not isinstance(one, (int, np.integer))] if is_list else []
        of = f" with {odd[0]!r:.40}" if odd else ""
        raise ArgumentTypeError(
            "labels must be integers from 0, the class of each example, in a tensor, array or "
            f"list; got a {type(given).__name__}{of}. Number the classes, with "
            "np.unique(labels, return_inverse=True)[1] say."
        ) from None


def _checked_labels(given: Any, length: int) -> Tensor:
    """Take one class per example, integers from 0."""
    labels = _as_tensor(given)
    if tuple(labels.shape) != (length,):
        raise ValueError(
            f"labels must have one class per example, shape ({length},); got {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        what = str(labels.dtype)
    else:
        least = int(labels.to(torch.int64).min())  # not every integer type has a minimum
        what = str(least) if least < 0 else ""
    if what:
        raise ValueError(f"labels must be integers from 0, the class of each example; got {what}.")
    return labels
