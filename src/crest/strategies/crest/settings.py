"""Settings of CREST: what the paper leaves open, and what it set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from crest.checks import (
    boolean,
    check_fields,
    instance,
    many,
    number,
    one_of,
    optional,
    pair,
    whole,
    word_or,
)
from crest.strategies.coresets import FEATURES, Features
from crest.strategies.crest.planner import CrestPlanner
from crest.strategies.protocol import Planner, Task
from crest.strategies.registry import THIS_PAPER, register_strategy

__all__ = ["Crest", "CrestAdvanced"]


@dataclass(frozen=True, kw_only=True)
class CrestAdvanced:
    """Settings of `Crest` that there is rarely a reason to change: its bounds, and its own prices.

    Args:
        check_size: Examples in the check subset V_r, >= 1. None: m if paired, else r.
        num_probes: Rademacher probes for Eq. (7), >= 1.
        max_check_interval: Upper bound of T_1, in steps.
        max_coresets: Upper bound of P.
        min_pool: Exclusion stops at this many examples, in [r, n]. None: a tenth of the data set,
            at least what a round draws.
        stratify: Draw random subsets with every class in proportion; needs labels.
        probe_interval: Steps of random mini-batches before selection is tried again, >= 1.
        forward_price: Time of one observed example over that of one example in a training step,
            > 0, what `switch_off` weighs passes by; `history.forward_price` tells what it was on
            your machine. A setting, not measured on the way, so that a seed always gives the same
            run. 1/3 where the backward pass costs two forward passes.

    Raises:
        TypeError: If a field is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> Crest(advanced=CrestAdvanced(num_probes=4)).advanced.max_coresets
        50
    """

    check_size: int | None = None
    num_probes: int = 1
    max_check_interval: int = 100
    max_coresets: int = 50
    min_pool: int | None = None
    stratify: bool = False
    probe_interval: int = 50
    forward_price: float = 1 / 3

    def __post_init__(self) -> None:
        check_fields(self, _ADVANCED_RULES)


@register_strategy(
    "crest",
    line="CREST at the lowest cost: coresets of random subsets, random batches where none pay",
    needs=("passes",),
    paper=THIS_PAPER,
    style=("#d55e00", "-"),
    unselected="coresets did not pay there (--option switch_off=False keeps it selecting)",
)
@dataclass(frozen=True)
class Crest:
    """CREST, Algorithm 1 of the paper, at the lowest cost that was found to lose nothing.

    `Crest.paper()` has the settings of the paper. The defaults pick a new coreset for each step, as
    that gave the same accuracy at a quarter of the cost (docs/results/first-cifar10.md): without
    coresets to keep, there is no quadratic model to make and to check. They exclude nothing, as
    exclusion drained the pool of a long run (docs/results/paper.md). And they train on random
    mini-batches as long as selection costs more than it is worth (`switch_off`).

    Args:
        subset_size: r, examples in each random subset V_p, in [m, n]. None: 1 % of the data set, at
            least three mini-batches.
        num_candidates: Examples that a round reads and observes and that all V_p are drawn from,
            in [r, n]. None: each V_p is drawn from the whole pool. Sharing saves forward passes,
            but coresets then share their sampling error.
        coreset_multiplier: b > 0; P = b T_1 coresets are picked in a round.
        error_threshold: tau >= 0, largest relative error of the quadratic model that keeps the
            coresets. 0 picks anew after every region and checks nothing; together with
            `curvature="none"` no quadratic model is made at all. The paper takes 0.05 for CIFAR-10
            and SNLI, 0.01 for CIFAR-100 and 0.005 for TinyImageNet. `"auto"`: the mean error after
            each of the first five regions, as the paper tells how it chose.
        paired_check: Whether L^r is measured on the same views before and after, some of the
            round's own candidates, so that rho does not contain the sampling noise of two subsets
            (about 4.5 % for r = 500, enough to trip tau = 0.05). Those that were also trained on
            make the change of the loss look somewhat larger. False draws a fresh V_r, as the paper.
        interval_multiplier: h > 0 in T_1 = h ||H_0|| / ||H_t||. The paper takes 1 for CIFAR-10 and
            TinyImageNet, 10 for CIFAR-100, 4 for SNLI. T_1 is 1 in the first round.
        exclusion_interval: T_2 >= 1, steps in a window of loss watching. The paper takes 20. None:
            never exclude.
        loss_threshold: alpha >= 0, in the unit of the loss; an example whose losses in a window are
            all at or below it is learned.
        betas: beta_1 of Eq. (8) and beta_2 of Eq. (9), each in [0, 1); (0, 0) smooths nothing.
        features: Gradients that are compared: `"weight"` for the whole last layer, `"input"` for
            dL/dh (the paper's wording), `"logits"` for p - y.
        curvature: Parameters of the quadratic model: `"trainable"`, or `"head"` for the last layer
            alone (the paper's choice for RoBERTa), or `"none"` for a linear model of the trainable
            ones (the paper's CREST-FIRST, without the second derivative; T_1 is then h).
        curvature_coresets: Coresets that the quadratic model is fitted to, >= 1. None: all P.
        select_until: Optimizer steps, >= 1, from which on mini-batches are random and nothing is
            observed, such as the step where the learning rate drops. None: to the end of the run.
        switch_off: Whether to train on random mini-batches where selection does not pay: where the
            gradient error that was measured at the last layer is not worth the passes it took.
            Selection is then tried again every `advanced.probe_interval` steps, and less often the
            more often it fails.
        advanced: Bounds and prices that there is rarely a reason to change, see
            `crest.CrestAdvanced`.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range, or two contradict each other.

    Example:
        >>> Crest(error_threshold=0.05, curvature="head", interval_multiplier=4.0).switch_off
        True
    """

    subset_size: int | None = None
    num_candidates: int | None = None
    coreset_multiplier: float = 1
    error_threshold: float | Literal["auto"] = 0.0
    paired_check: bool = True
    interval_multiplier: float = 1.0
    exclusion_interval: int | None = None
    loss_threshold: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    features: Features = "weight"
    curvature: Literal["trainable", "head", "none"] = "none"
    curvature_coresets: int | None = 1
    select_until: int | None = None
    switch_off: bool = True
    advanced: CrestAdvanced = field(default_factory=CrestAdvanced)

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        if self.num_candidates is not None and self.num_candidates < (self.subset_size or 1):
            raise ValueError(
                f"num_candidates must be at least subset_size, {self.subset_size}; got "
                f"{self.num_candidates}."
            )

    @classmethod
    def paper(cls, **changes: Any) -> Crest:
        """Make Algorithm 1 as the paper describes it, with its settings for CIFAR-10.

        Args:
            **changes: Fields that shall differ: `error_threshold` and `interval_multiplier` for
                other data sets.

        Returns:
            The strategy. It never switches off.

        Example:
            >>> Crest.paper(error_threshold=0.01, interval_multiplier=10.0).coreset_multiplier
            5
        """
        settings: dict[str, Any] = {
            "coreset_multiplier": 5,
            "error_threshold": 0.05,
            "paired_check": False,
            "exclusion_interval": 20,
            "features": "input",
            "curvature": "trainable",
            "curvature_coresets": None,
            "switch_off": False,
        }
        return cls(**{**settings, **changes})

    @property
    def models_nothing(self) -> bool:
        """Whether no quadratic model is made: coresets are picked anew after every region."""
        return self.curvature == "none" and self.error_threshold == 0

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        return CrestPlanner(self, task)


register_strategy(
    "crest_paper",
    line="CREST as published: coresets of random subsets, kept while a quadratic model holds",
    needs=("passes",),
    paper=THIS_PAPER,
    style=("#e69f00", "-"),
)(Crest.paper)


_ADVANCED_RULES = {
    "check_size": optional(whole(1)),
    "num_probes": many(),
    "max_check_interval": many(),
    "max_coresets": many(),
    "min_pool": optional(whole(1)),
    "stratify": boolean(),
    "probe_interval": many(),
    "forward_price": number(0, above=True),
}

_RULES = {
    "subset_size": optional(whole(1)),
    "num_candidates": optional(whole(1)),
    "coreset_multiplier": number(0, above=True),
    "error_threshold": word_or("auto", number(0)),
    "paired_check": boolean(),
    "interval_multiplier": number(0, above=True),
    "exclusion_interval": optional(whole(1)),
    "loss_threshold": number(0),
    "betas": pair(number(0, 1, below=True)),
    "features": FEATURES,
    "curvature": one_of("trainable", "head", "none"),
    "curvature_coresets": optional(whole(1)),
    "select_until": optional(whole(1)),
    "switch_off": boolean(),
    "advanced": instance(CrestAdvanced, text="a crest.CrestAdvanced"),
}
