"""The runs of a comparison, from what a user says and the defaults of the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crest.checks import check_choice
from crest.lab.data.datasets import DATASETS
from crest.lab.networks.pretrained import PRETRAINED, is_folder
from crest.lab.run.settings import RunSettings
from crest.strategies.registry import find_strategy

__all__ = ["DEFAULTS", "plan_runs"]

# Batches of 128, 200 epochs and a peak of 0.1 are the paper's. Small data sets are learned sooner,
# digits has but 1437 images, so that smaller batches leave it steps to save, and cnn has no
# normalization to bear 0.1. Images of 8 x 8 pixels gain nothing from a second thread.
_TEXT: dict[str, Any] = {
    **{"network": "bag", "epochs": 8, "batch_size": 32, "lr": 1e-3},
    "optimizer": "adamw",
}

# What a network asks for, wherever it is trained.
_OF_NETWORK: dict[str, dict[str, Any]] = {"encoder": {"lr": 5e-4}}
_OF_PRETRAINED: dict[str, Any] = {"epochs": 3, "lr": 5e-5}

DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"network": "resnet8", "epochs": 20, "batch_size": 32, "lr": 0.1, "threads": 1},
    "mnist": {"network": "cnn", "epochs": 10, "batch_size": 128, "lr": 0.03},
    "fashion_mnist": {"network": "resnet8", "epochs": 20, "batch_size": 128, "lr": 0.1},
    "cifar10": {"network": "resnet20", "epochs": 200, "batch_size": 128, "lr": 0.1},
    "cifar100": {"network": "resnet18", "epochs": 200, "batch_size": 128, "lr": 0.1},
    "tinyimagenet": {"network": "resnet50", "epochs": 200, "batch_size": 128, "lr": 0.1},
    "images": {"network": "resnet18", "epochs": 50, "batch_size": 128, "lr": 0.1},
    "snli": _TEXT,
    "snli_part": _TEXT,
    "sst2": _TEXT,
}


def plan_runs(
    data: str,
    strategies: Sequence[str],
    seeds: Sequence[int],
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> list[RunSettings]:
    """List one run for each strategy and seed, seed by seed; what comes twice is taken once.

    Args:
        data: One of `lab.data.datasets.DATASETS`.
        strategies: Words of strategies, see `crest.registered_strategies`.
        seeds: Integers >= 0.
        options: Fields of strategies; each goes to the strategies that have it.
        **given: Other fields of `RunSettings`. None, or nothing, takes the default of the network,
            or of the data set (see `DEFAULTS`), or else that of `RunSettings`.

    Returns:
        The settings of each run.

    Raises:
        ValueError: If a name is unknown, a value is out of its range, or no strategy has an option.

    Example:
        >>> [run.strategy for run in plan_runs("digits", ["random", "full"], [0], epochs=2)]
        ['random', 'full']
    """
    check_choice("data", data, DATASETS)
    for what, given_ones in (("strategies", strategies), ("seeds", seeds)):
        if not given_ones:
            raise ValueError(f"{what} must be at least one; got none.")
    known: dict[str, list[str]] = {}
    for strategy in strategies:
        known[strategy] = find_strategy(strategy).fields
    options = options or {}
    for option in options:
        together = {name for names in known.values() for name in names}
        if not together:
            raise ValueError(f"{', '.join(known)} must go without options; got {option!r}.")
        check_choice("option", option, sorted(together))
    chosen = {name: value for name, value in given.items() if value is not None}
    values = DEFAULTS[data] | _of_network(chosen.get("network", "")) | chosen
    return [
        RunSettings(
            data=data,
            strategy=strategy,
            seed=seed,
            strategy_options={k: v for k, v in options.items() if k in names},
            **values,
        )
        for seed in dict.fromkeys(seeds)
        for strategy, names in known.items()
    ]


def _of_network(name: str) -> dict[str, Any]:
    is_pretrained = name in PRETRAINED or is_folder(name)
    return _OF_PRETRAINED if is_pretrained else _OF_NETWORK.get(name, {})
