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
        check_size: Examples in the check subset V_r, >= 1. None: m of the candidates, else r.
        num_probes: Rademacher probes for Eq. (7), >= 1.
        curvature_interval: Rounds from one Hessian product to the next, >= 1; gradients are taken
            in each. Eq. (9) averages over all rounds, so that after the first ones a new one
            changes little; of a ResNet-20 it takes as long as ten gradients on a CPU. The paper
            takes one in each round.
        max_check_interval: Upper bound of T_1, in steps.
        max_coresets: Upper bound of P.
        min_pool: Exclusion stops at this many examples, in [r, n]. None: four fifths of the data
            set, as in the authors' released code, at least what a round draws. The paper does not
            say; down to a tenth, what is out is forgotten (docs/results/paper.md).
        readmit_after: Windows of `exclusion_interval` steps after which an excluded example comes
            back and is watched anew, >= 1. None: it never does, as in the paper.
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
    curvature_interval: int = 1
    max_check_interval: int = 100
    max_coresets: int = 50
    min_pool: int | None = None
    readmit_after: int | None = None
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
        check: What L^r is measured on. `"paired"`: a random V_r that is drawn from the pool once a
            round, the same examples and views at the anchor and in each check, those that were
            excluded in between among them; L0 is its loss at the anchor, for r forward passes
            more. `"fresh"`: another V_r for each check, whose sampling noise (5 to 11 % of the loss
            for r = 500) alone trips tau = 0.05. Eq. (10) does not say which. `"candidates"`:
            paired, on some of the round's own candidates, which reads nothing; those that were
            also trained on make the change of the loss look somewhat larger.
        loss_model: What predicts the loss in Eq. (10). `"quadratic"`: F of Eq. (6), as the paper
            has it. `"best"`: the constant part of F, that with the linear term, or all of it,
            whichever predicted best in some ten checks before; all of it at first. At a large
            learning rate F is several times further off than its constant part, after a few steps
            already (docs/results/paper.md).
        interval_multiplier: h > 0 in T_1 = h ||H_0|| / ||H_t||. The paper takes 1 for CIFAR-10 and
            TinyImageNet, 10 for CIFAR-100, 4 for SNLI. T_1 is 1 in the first round.
        max_coreset_uses: Times that each of the P coresets may be trained on before others are
            picked, however well the loss is predicted, >= 1; it bounds T_1, too. None: no bound, as
            in the paper. Without one, coresets served for hundreds of steps where the loss model
            held, and a ResNet-8 ended 5.4 points below random batches (docs/results/paper.md).
        exclusion_interval: T_2 >= 1, steps in a window of loss watching. The paper takes 20. None:
            never exclude.
        loss_threshold: alpha >= 0, in the unit of the loss; a look at an example is low if its loss
            is at or below it.
        low_looks: Low looks in a row, at as many different parameters and by losses of selection
            alone, after which an example is learned and leaves at the end of a window, >= 1. Our
            reading of "consistently have a loss smaller than a threshold" (Sec. 4.3) and "during
            multiple consecutive training iterations" (Sec. 1): a streak goes on over windows,
            since in 20 steps an example is seldom looked at twice. Of what one look excluded from
            CIFAR-10, with greedy coresets, 96.3 % were classified rightly after 1,560 steps, of
            what three did 99.9 %; after 7,800 steps of `Crest.paper()` 99.6 %
            (docs/results/paper.md).
        betas: beta_1 of Eq. (8) and beta_2 of Eq. (9), each in [0, 1); (0, 0) smooths nothing.
        features: Gradients that are compared: `"weight"` for the whole last layer, `"input"` for
            dL/dh (the paper's wording), `"logits"` for p - y.
        per_class: Pick from each class of a subset on its own, in proportion; True needs labels,
            None does so where the classes are known, told or read, and no more than m. It bounds
            the effective batch from below: where each pick stands at least for itself, one pick of
            128 can stand for all but 127 of 500, and the effective batch fall to 1.8; per class not
            below 17 for ten classes. The paper does not say; the authors' released code picks per
            class (docs/results/paper.md).
        curvature: Parameters of the quadratic model: `"trainable"`, or `"head"` for the last layer
            alone (the paper's choice for RoBERTa), or `"none"` for a linear model of the trainable
            ones (the paper's CREST-FIRST, without the second derivative; T_1 is then h).
        curvature_coresets: Coresets that the quadratic model is fitted to, >= 1. None: all P, as in
            the paper, which takes longer than all else together; one is an unbiased sample of them.
        batch_statistics: Whether losses, features and curvature take the statistics of each pass
            where the model has batch normalization, as training does; training's running statistics
            are left alone. The paper does not say. In eval mode the running statistics of the first
            steps are those of no data, so that H_0 is far too small and T_1 stays 1: H_0 is then
            taken from the first round at which they are settled. Models without batch
            normalization, or with all of it frozen, are looked at as they are.
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
    check: Literal["paired", "fresh", "candidates"] = "candidates"
    loss_model: Literal["quadratic", "best"] = "best"
    interval_multiplier: float = 1.0
    max_coreset_uses: int | None = 1
    exclusion_interval: int | None = None
    loss_threshold: float = 0.1
    low_looks: int = 3
    betas: tuple[float, float] = (0.9, 0.999)
    features: Features = "weight"
    per_class: bool | None = False
    curvature: Literal["trainable", "head", "none"] = "none"
    curvature_coresets: int | None = 1
    batch_statistics: bool = False
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

        Two choices are those of the authors' released code, which the paper does not tell, and
        make exclusion harmless: coresets are picked per class, and four fifths of the data stay in
        play. Without them ResNet-20 on CIFAR-10 ended two points below random mini-batches
        (docs/results/paper.md).

        Args:
            **changes: Fields that shall differ: `error_threshold` and `interval_multiplier` for
                other data sets. Where the paper leaves a choice, or is not followed, the fields
                `low_looks`, `check`, `batch_statistics`, `loss_model`, `curvature_coresets`,
                `max_coreset_uses`, `per_class` and `advanced.min_pool` say what was chosen and why.

        Returns:
            The strategy. It never switches off.

        Example:
            >>> Crest.paper(error_threshold=0.01, interval_multiplier=10.0).coreset_multiplier
            5
        """
        settings: dict[str, Any] = {
            "coreset_multiplier": 5,
            "error_threshold": 0.05,
            "check": "paired",
            "exclusion_interval": 20,
            "features": "input",
            "per_class": None,
            "curvature": "trainable",
            "batch_statistics": True,
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
    "curvature_interval": many(),
    "max_check_interval": many(),
    "max_coresets": many(),
    "min_pool": optional(whole(1)),
    "readmit_after": optional(many()),
    "stratify": boolean(),
    "probe_interval": many(),
    "forward_price": number(0, above=True),
}

_RULES = {
    "subset_size": optional(whole(1)),
    "num_candidates": optional(whole(1)),
    "coreset_multiplier": number(0, above=True),
    "error_threshold": word_or("auto", number(0)),
    "check": one_of("paired", "fresh", "candidates"),
    "loss_model": one_of("quadratic", "best"),
    "interval_multiplier": number(0, above=True),
    "max_coreset_uses": optional(many()),
    "exclusion_interval": optional(whole(1)),
    "loss_threshold": number(0),
    "low_looks": many(),
    "betas": pair(number(0, 1, below=True)),
    "features": FEATURES,
    "per_class": optional(boolean()),
    "curvature": one_of("trainable", "head", "none"),
    "curvature_coresets": optional(whole(1)),
    "batch_statistics": boolean(),
    "select_until": optional(whole(1)),
    "switch_off": boolean(),
    "advanced": instance(CrestAdvanced, text="a crest.CrestAdvanced"),
}
