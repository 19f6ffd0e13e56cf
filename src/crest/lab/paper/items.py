"""The runs behind each table and figure of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crest.lab.paper.tasks import PaperTask
from crest.lab.run.settings import RunSettings
from crest.strategies import Craig, Crest, Full, Glister, GradMatch, GreedyMiniBatch, Random
from crest.strategies.random import random_that_stops_early
from crest.strategies.registry import find_strategy, word_of

__all__ = ["ITEMS", "Item", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One column or row of a table.

    Args:
        label: As the paper calls it.
        strategy: Its word.
        options: Fields of the strategy beside those that the task gives.
        budget: Share of the full steps.
        batch_multiplier: Times the m of the task.
    """

    label: str
    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: float = 0.1
    batch_multiplier: int = 1

    def settings(
        self, task: PaperTask, num_train: int, seed: int, machine: Mapping[str, Any]
    ) -> RunSettings:
        """Make the settings of one run.

        Args:
            task: Gives data, network and hyper-parameters.
            num_train: n, which r is a share of.
            seed: Of the run.
            machine: Fields of `RunSettings` that say where and how to compute.

        Returns:
            The settings.
        """
        of_the_task: dict[str, Any] = {
            "subset_size": round(task.subset_share * num_train),
            "features": "input",
            "error_threshold": task.error_threshold,
            "interval_multiplier": task.interval_multiplier,
            "curvature": task.curvature,
        }
        known = find_strategy(self.strategy).fields
        options = {name: value for name, value in of_the_task.items() if name in known}
        return RunSettings(
            data=task.data,
            network=task.network,
            strategy=self.strategy,
            seed=seed,
            budget=self.budget,
            epochs=task.epochs,
            batch_size=task.batch_size * self.batch_multiplier,
            lr=task.lr,
            weight_decay=task.weight_decay,
            optimizer=task.optimizer,
            evaluations=task.evaluations,
            strategy_options={**options, **self.options},
            **machine,
        )


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Args:
        what: One line.
        tasks: Names in `tasks.SCALES` that the paper shows.
        variants: Runs for each task and seed.
        diagnostics: What else is measured, see `lab.run.diagnosis.DIAGNOSTICS`.
        trains: False if kept runs are shown and none is trained.
    """

    what: str
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    diagnostics: tuple[str, ...] = ()
    trains: bool = True


_FULL = Variant("Full", word_of(Full))
_DAGGER = Variant("SGD-dagger", word_of(random_that_stops_early))
_RANDOM = Variant("Random", word_of(Random))
_CRAIG = Variant("CRAIG", word_of(Craig))
_GRAD_MATCH = Variant("GradMatch", word_of(GradMatch))
_GLISTER = Variant("GLISTER", word_of(Glister))
_GREEDY = Variant("Greedy mini-batch", word_of(GreedyMiniBatch))
_CREST = Variant("CREST", word_of(Crest.paper))
# As many steps as the others, so four times the budget: with a quarter of the steps, the printed
# error of 4.0 %, below that of Random, could hardly be.
_RANDOM_4 = Variant("Random, m x 4", _RANDOM.strategy, budget=0.4, batch_multiplier=4)
_KEEPS_ALL = Variant("CREST w/o excluding", _CREST.strategy, {"exclusion_interval": None})
_PARTS = (
    Variant("CREST-first", _CREST.strategy, {"curvature": "none"}),
    Variant("CREST w/o smooth", _CREST.strategy, {"betas": (0.0, 0.0)}),
    _KEEPS_ALL,
    _CREST,
)
_TWICE = tuple(
    Variant(kind.label, kind.strategy, budget=0.2) for kind in (_CREST, _RANDOM, _DAGGER)
)

_IMAGES = ("cifar10", "cifar100", "tinyimagenet")
_ALL = (*_IMAGES, "snli")

ITEMS: dict[str, Item] = {
    "table1": Item(
        "relative error of all methods at a budget of 10 %",
        _ALL,
        (_FULL, _DAGGER, _RANDOM, _CRAIG, _GRAD_MATCH, _GLISTER, _CREST),
    ),
    "table2": Item("seconds of each component of CREST", ("cifar100",), (_CRAIG, _CREST)),
    "table3": Item("what each part of CREST adds", ("cifar10",), (_FULL, *_PARTS)),
    "table4": Item("data sets and networks; trains nothing", _ALL, (_FULL,), trains=False),
    "table5": Item("relative error at a budget of 20 %", _IMAGES, (_FULL, *_TWICE)),
    "table6": Item("hyper-parameters; trains nothing", _ALL, (), trains=False),
    "fig1": Item(
        "accuracy, gradient bias and variance of CRAIG, CREST and random batches",
        ("cifar10",),
        (_CRAIG, _RANDOM, _CREST),
        ("gradient_error",),
    ),
    "fig2": Item("run time and accuracy relative to full training", _ALL, (_FULL, _RANDOM, _CREST)),
    "fig3": Item("accuracy and updates relative to greedy mini-batches", _ALL, (_GREEDY, _CREST)),
    "fig4": Item("updates over training, and accuracy over updates", ("cifar10",), _PARTS),
    "fig5": Item(
        "forgetting scores of what is picked, over training",
        ("cifar10",),
        (_RANDOM, _KEEPS_ALL, _CREST),
        ("forgetting",),
    ),
    "fig6": Item(
        "gradient bias of coresets, alone and together",
        ("cifar10",),
        (_CRAIG, _CREST),
        ("gradient_error",),
    ),
    "fig7": Item(
        "accuracy of excluded examples, and how often examples are picked",
        ("cifar10",),
        (_CREST,),
        ("excluded", "forgetting", "selections"),
    ),
    "fig8": Item(
        "CREST beside random batches four times as large",
        ("cifar10",),
        (_FULL, _CREST, _RANDOM, _RANDOM_4),
    ),
    "fig9": Item(
        "gradient variance of coresets, random batches and random subsets",
        ("cifar10",),
        (_CREST,),
        ("gradient_error",),
    ),
}
