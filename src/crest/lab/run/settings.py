"""What defines a run: its settings, checked, and the strategy that they make."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, TensorDataset

from crest.checks import (
    SEED,
    boolean,
    check_choice,
    check_fields,
    instance,
    many,
    number,
    optional,
    whole,
)
from crest.lab.data.datasets import DATASETS, TEXT_DATASETS
from crest.lab.networks.text import check_text_network
from crest.lab.networks.vision import NETWORKS
from crest.options import flat_settings
from crest.strategies import Strategy, StrategyEntry
from crest.strategies.registry import find_strategy

__all__ = [
    "AUTOCAST",
    "COMPILE_MODES",
    "OPTIMIZERS",
    "VALIDATION_FRACTION",
    "WHOLE_STEP",
    "RunSettings",
    "build_strategy",
]

OPTIMIZERS = ("sgd", "adamw")

AUTOCAST = ("bfloat16",)  # float16 would need its losses scaled

WHOLE_STEP = "whole-step"

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", WHOLE_STEP)  # but for it, of torch

# Of the train examples: a strategy that needs a validation loader trains on the others.
VALIDATION_FRACTION = 0.1

# Each is made at once, and where the system refuses one, the process ends in a segmentation fault.
_MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))

_RULES = {
    "seed": SEED,
    "budget": number(0, 1, above=True, text="in (0, 1], the share of steps; write 0.1 for 10 %"),
    "epochs": many(),
    "batch_size": many(),
    "lr": number(0, above=True),
    "weight_decay": number(0),
    "momentum": number(0, 1, below=True),
    "augment": boolean(),
    "evaluations": many(),
    "device": instance(str, text="a word"),
    "threads": whole(1, _MOST_THREADS, f"in [1, {_MOST_THREADS}]"),
    "strategy_options": instance(Mapping, text="a mapping of fields to values"),
    "num_steps": optional(whole(1, 10**15, ">= 1 and <= 10**15")),
}


@dataclass(frozen=True)
class RunSettings:
    """Everything that one training run depends on, but the pixels.

    Args:
        data: One of `lab.data.datasets.DATASETS`.
        network: One of `lab.networks.vision.NETWORKS`, or for text of
            `lab.networks.text.TEXT_NETWORKS` or the folder of a pre-trained one.
        strategy: Word of a strategy, see `crest.registered_strategies`.
        seed: Of the first weights, the order and the views, >= 0.
        budget: Share of the full steps, in (0, 1]; some strategies always take them all.
        epochs: Epochs of full training, >= 1.
        batch_size: m, >= 1.
        lr: Peak learning rate, > 0.
        weight_decay: >= 0.
        momentum: In [0, 1), of `"sgd"`.
        optimizer: `"sgd"` with warm-up and two drops of the learning rate, or `"adamw"` with a
            constant one.
        augment: Whether to shift and mirror train images.
        evaluations: How often test accuracy is measured, >= 1.
        device: `"cpu"`, `"cuda"` or the like.
        threads: Threads that torch computes with, at most 64 or four for each CPU.
        strategy_options: Fields of the strategy that are not at their default.
        num_steps: N, in place of the budget's share: a run for equal time.
        autocast: Dtype of `torch.autocast` for all passes, one of `AUTOCAST`. None: float32
            throughout.
        compile: Mode of `torch.compile` for the pass of training, one of `COMPILE_MODES`;
            `"reduce-overhead"` takes CUDA graphs on a GPU. `"whole-step"` compiles nothing but
            takes the step from views to update, for images, as one CUDA graph on a GPU, and on
            buffers that stay elsewhere. None: not compiled.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If a name is unknown or a value out of its range.
    """

    data: str
    network: str
    strategy: str
    seed: int = 0
    budget: float = 0.1
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    augment: bool = True
    evaluations: int = 20
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    optimizer: str = "sgd"
    autocast: str | None = None
    compile: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        check_choice("data", self.data, DATASETS)
        if self.data in TEXT_DATASETS:
            check_text_network(self.network)
        else:
            check_choice("network", self.network, NETWORKS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.autocast is not None:
            check_choice("autocast", self.autocast, AUTOCAST)
        if self.compile is not None:
            check_choice("compile", self.compile, COMPILE_MODES)
            if self.compile == WHOLE_STEP and self.data in TEXT_DATASETS:
                raise ValueError(
                    f"compile={WHOLE_STEP!r} needs images, all of one shape; {self.data} is text. "
                    "Leave it out, or take another mode."
                )
        entry = self.entry
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(
                f'device must be "cpu", "cuda" or the like; got {self.device!r}.'
            ) from None
        if entry.takes_all_steps:
            object.__setattr__(self, "budget", 1.0)
        self.make_strategy()

    @property
    def entry(self) -> StrategyEntry:
        """What is known of the strategy."""
        return find_strategy(self.strategy)

    def count_steps(self, steps_per_epoch: int) -> int:
        """Compute N, the steps that the whole schedule is compressed into.

        Args:
            steps_per_epoch: Of full training.

        Returns:
            N >= 1.
        """
        if self.num_steps is not None:
            return self.num_steps
        return max(int(self.budget * self.epochs * steps_per_epoch + 0.5), 1)

    def count_schedule_steps(self, steps_per_epoch: int) -> int:
        """Compute the steps that the learning-rate schedule spans.

        Args:
            steps_per_epoch: Of full training.

        Returns:
            N, or the full steps for a strategy whose run stops before the schedule ends.
        """
        if self.entry.compresses_schedule:
            return self.count_steps(steps_per_epoch)
        return self.epochs * steps_per_epoch

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Dtype of `torch.autocast`, None for none."""
        return None if self.autocast is None else getattr(torch, self.autocast)

    @property
    def torch_mode(self) -> str | None:
        """Mode of `torch.compile`, None where nothing is compiled."""
        return None if self.compile == WHOLE_STEP else self.compile

    def make_strategy(
        self, *, validation_loader: DataLoader[Any] | None = None, num_steps: int | None = None
    ) -> Strategy:
        """Make the strategy of the run, some of whose fields follow the run.

        Args:
            validation_loader: Held-out examples, for a strategy that needs them.
            num_steps: N, once it is known.

        Returns:
            The strategy.
        """
        run = {"budget": self.budget, "lr": self.lr, "num_steps": num_steps}
        options = self.entry.followed(run) | dict(self.strategy_options)
        return build_strategy(self.strategy, options, validation_loader)

    def to_record(self, fingerprint: str) -> dict[str, Any]:
        """List everything that makes two runs the same run.

        Args:
            fingerprint: Of the data, `ImageData.fingerprint`.

        Returns:
            Primitives, with every field of the strategy in place of `strategy_options`; where it
            needs a validation loader also the share of the train examples that is held out.
        """
        record = dataclasses.asdict(self)
        del record["strategy_options"]
        fields = flat_settings(self.make_strategy())
        for name, followed in self.entry.follows.items():
            if followed == "num_steps" and fields[name] is None:
                del fields[name]  # N, which follows from the rest and the data
        if self.entry.needs_validation:
            fields["validation_fraction"] = VALIDATION_FRACTION
        # As JSON gives it back: lists for tuples.
        record["strategy_settings"] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }
        return {**record, "data_fingerprint": fingerprint}


def build_strategy(
    name: str, options: Mapping[str, Any], validation_loader: DataLoader[Any] | None = None
) -> Strategy:
    """Make a strategy.

    Args:
        name: Word of the strategy, see `crest.registered_strategies`.
        options: Fields that differ from the strategy's defaults.
        validation_loader: Held-out examples, if the strategy needs them. Without, settings are
            checked but the strategy cannot start.

    Returns:
        The strategy.

    Raises:
        ValueError: If the name, a field or a value does not fit.

    Example:
        >>> build_strategy("greedy", {"subset_size": 500})
        GreedyMiniBatch(subset_size=500, features='weight')
    """
    entry = find_strategy(name)
    hints = entry.option_types
    known = list(hints)
    for option, value in options.items():
        if not known:
            raise ValueError(f"{name} must go without options, it has none; got {option!r}.")
        check_choice(f"option of {name}", option, known)
        if not _fits(value, hints[option]):
            hint = hints[option]
            wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            is_none = isinstance(value, str) and value.lower() in ("none", "null")
            none = " None is written with a capital letter." if is_none else ""
            raise ValueError(f"{option} must be of type {wanted}; got {value!r}.{none}")
    held_out = {}
    if entry.needs_validation:
        empty: DataLoader[Any] = DataLoader(TensorDataset(torch.empty(0)))
        held_out["validation_loader"] = empty if validation_loader is None else validation_loader
    return entry.with_options(options, **held_out)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the type of a field; which words a field knows, it says itself."""
    of = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str)
    if typing.get_origin(hint) is tuple:
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(of)
            and all(map(_fits, value, of))
        )
    if of:
        return any(_fits(value, one) for one in of)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
