"""Algorithm 1: CREST, with its loop turned inside out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crest.exclusion import LearnedExamples
from crest.pool import Pool, random_subsets
from crest.quadratic import (
    QuadraticModel,
    SmoothedMoments,
    flatten,
    gradient_and_hessian_diagonal,
    rademacher_probes,
    relative_error,
)
from crest.schedule import AdaptiveSchedule
from crest.strategies.coresets import (
    Features,
    Selection,
    default_subset_size,
    select_coresets,
)
from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task

__all__ = ["Crest"]


# What a smaller gradient error is worth: with the e-th part of the squared error of random batches
# a step counts for e^-1/5 random steps. Measured in short runs: e = 0.29 at the last layer was
# worth 1.29 random steps (docs/results/equal-time.md).
_WORTH_EXPONENT = 0.2
_ROUNDS_FOR_THRESHOLD = 5  # rounds whose mean relative error becomes an automatic tau
_MAX_BACKOFF = 8  # times the probe interval, after selection has failed to pay again and again


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
        check_size: Examples in the check subset V_r, >= 1. None: m if paired, else r.
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
        num_probes: Rademacher probes for Eq. (7), >= 1.
        curvature_coresets: Coresets that the quadratic model is fitted to, >= 1. None: all P.
        max_check_interval: Upper bound of T_1, in steps.
        max_coresets: Upper bound of P.
        min_pool: Exclusion stops at this many examples, in [r, n]. None: a tenth of the data set,
            at least what a round draws.
        stratify: Draw random subsets with every class in proportion; needs labels.
        select_until: Optimizer steps, >= 1, from which on mini-batches are random and nothing is
            observed, such as the step where the learning rate drops. None: to the end of the run.
        switch_off: Whether to train on random mini-batches where selection does not pay: where the
            gradient error that was measured at the last layer is not worth the passes it took.
            Selection is then tried again every `probe_interval` steps, and less often the more
            often it fails.
        probe_interval: Steps of random mini-batches before selection is tried again, >= 1.
        forward_price: Time of one observed example over that of one example in a training step,
            > 0, what `switch_off` weighs passes by; `history.forward_price` tells what it was on
            your machine. A setting, not measured on the way, so that a seed always gives the same
            run. 1/3 where the backward pass costs two forward passes.

    Raises:
        ValueError: If a value is out of its range, or two contradict each other.

    Example:
        >>> Crest(error_threshold=0.05, curvature="head", interval_multiplier=4.0).switch_off
        True
    """

    subset_size: int | None = None
    num_candidates: int | None = None
    coreset_multiplier: float = 1
    error_threshold: float | Literal["auto"] = 0.0
    paired_check: bool = True
    check_size: int | None = None
    interval_multiplier: float = 1.0
    exclusion_interval: int | None = None
    loss_threshold: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    features: Features = "weight"
    curvature: Literal["trainable", "head", "none"] = "none"
    num_probes: int = 1
    curvature_coresets: int | None = 1
    max_check_interval: int = 100
    max_coresets: int = 50
    min_pool: int | None = None
    stratify: bool = False
    select_until: int | None = None
    switch_off: bool = True
    probe_interval: int = 50
    forward_price: float = 1 / 3

    def __post_init__(self) -> None:
        _check_ranges(self)

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
        """Begin Algorithm 1 with all examples in play.

        Args:
            task: Sizes, labels and randomness of the run.

        Returns:
            A planner at step 0.

        Raises:
            ValueError: If the settings do not fit the task.
        """
        return _CrestPlanner(self, task)


class _CrestPlanner:
    """What Algorithm 1 carries from one region to the next."""

    def __init__(self, settings: Crest, task: Task) -> None:
        n = task.num_examples
        self._settings = settings
        self._task = task
        self._subset_size = default_subset_size(settings.subset_size, task)
        drawn = settings.num_candidates or self._subset_size
        if not self._subset_size <= drawn <= n:
            raise ValueError(
                f"num_candidates must be in [{self._subset_size}, {n}], subset_size to the number "
                f"of examples; got {drawn}."
            )
        min_pool = settings.min_pool
        if min_pool is None:
            min_pool = max(drawn, math.ceil(0.1 * n))
        if not drawn <= min_pool <= n:
            raise ValueError(
                f"min_pool must be in [{drawn}, {n}], what a round draws to the number of "
                f"examples; got {min_pool}."
            )
        if settings.stratify and task.labels is None:
            raise ValueError("stratify=True needs the class of each example; pass labels=.")
        self._check_size = settings.check_size or (
            task.batch_size if settings.paired_check else self._subset_size
        )
        if not self._check_size <= drawn:
            raise ValueError(
                f"check_size must be in [1, {drawn}], at most what a round draws; "
                f"got {self._check_size}."
            )
        if not task.exact_losses and not settings.models_nothing:
            raise ValueError(
                "error_threshold must be 0 and curvature 'none' with observer_transform, "
                "observer_model or observer_batch_statistics, whose losses are not those that a "
                f"quadratic model is checked with; got {settings.error_threshold!r} and "
                f"{settings.curvature!r}."
            )
        self._pool = Pool(n, min_pool=min_pool)
        self._learned = (
            None
            if settings.exclusion_interval is None or not task.exact_losses
            else LearnedExamples(n, settings.exclusion_interval, settings.loss_threshold)
        )
        self._schedule = self._new_schedule()
        self._moments = SmoothedMoments(settings.betas)
        self._coresets: list[MiniBatch] = []
        self._deck: list[int] = []  # coresets not yet used since the last shuffle
        self._check_subset = torch.empty(0, dtype=torch.int64)
        self._anchor_losses = torch.empty(0)  # of the check subset, if paired
        self._anchor: Tensor | None = None
        self._modelled: list[nn.Parameter] | None = None  # what the quadratic model is made of
        self._model: QuadraticModel | None = None
        self._first_errors: list[float] = []  # relative errors that an automatic tau is made of
        self._model_passes = 0.0  # what the last quadratic model and check cost, in forward passes
        self._backoff = 1  # times the probe interval, while switched off
        self._random_order = torch.empty(0, dtype=torch.int64)

    @property
    def active(self) -> Tensor:
        """Which examples are in play, bool, shape (n,)."""
        return self._pool.active

    def next_region(self, examples: Examples, step: int) -> Region:
        """Check the quadratic model, pick new coresets if it is off, and plan T_1 steps.

        Args:
            examples: The data set at the current parameters.
            step: t, optimizer steps taken so far.

        Returns:
            T_1 steps of coresets; or random mini-batches, where coresets do not pay.
        """
        record: dict[str, Any] = {}
        if self._learned is not None:
            self._pool.exclude(*self._learned.collect(step), examples.labels)
        if self._settings.select_until is not None and step >= self._settings.select_until:
            self._drop_coresets(examples)
            record = {"updated": False, "selected": False, "active": self._pool.num_active}
            return Region(self._random_batches(), record=record)
        self._begin_anew_with_other_parameters(examples)
        update = self._model is None or self._settings.error_threshold == 0
        if self._model is not None and not update:
            before = examples.passes_beside_training
            record |= self._check(examples, self._model)
            self._model_passes += examples.passes_beside_training - before
            update = record["relative_error"] > self._threshold(record["relative_error"])
        if update and self._model is not None:
            self._schedule.adapt(self._curvature_norm(self._model))
        if update:
            record |= self._select(examples)
        record |= {
            "updated": update and self._model is not None,
            "selected": self._model is not None,
            "active": self._pool.num_active,
        }
        if self._model is None:
            return Region(self._random_batches(), record=record)
        record |= {
            "check_interval": self._schedule.check_interval,
            "num_coresets": len(self._coresets),
        }
        return Region(
            [self._draw_coreset() for _ in range(self._region_length())], held=True, record=record
        )

    def _new_schedule(self) -> AdaptiveSchedule:
        settings = self._settings
        return AdaptiveSchedule(
            settings.interval_multiplier,
            settings.coreset_multiplier,
            settings.max_check_interval,
            settings.max_coresets,
        )

    def _begin_anew_with_other_parameters(self, examples: Examples) -> None:
        """Drop the quadratic model and its past if layers were frozen or unfrozen."""
        if self._model is None or self._anchor is None:
            return
        parameters = examples.parameters(self._scope)
        if self._modelled is None:  # after load_state_dict
            same = sum(parameter.numel() for parameter in parameters) == len(self._anchor)
        else:
            same = list(map(id, parameters)) == list(map(id, self._modelled))
        if not same:
            self._model, self._anchor = None, None
            self._moments = SmoothedMoments(self._settings.betas)
            self._schedule = self._new_schedule()

    def _check(self, examples: Examples, model: QuadraticModel) -> dict[str, Any]:
        """Compare F(delta) with the loss of the check subset, Eq. (10)."""
        with examples.timed("check"):
            if self._settings.paired_check:
                check_subset = self._check_subset
                losses = examples.held_losses(check_subset)
                noise = losses - self._anchor_losses
            else:
                (check_subset,) = self._draw_subsets(1, self._check_size)
                losses = noise = examples.fresh_losses(check_subset)
            self._watch(check_subset, losses)
            assert self._anchor is not None
            # A checkpoint may have come back on another device, anchor and model together.
            displacement = self._parameters(examples).to(self._anchor.device) - self._anchor
            predicted, measured = model(displacement), float(losses.mean())
            return {
                "relative_error": relative_error(predicted, measured),
                "predicted_loss": predicted,
                "check_loss": measured,
                "check_loss_error": float(noise.std(correction=0)) / math.sqrt(len(losses)),
                "anchor_loss": model.loss,
                "linear_term": model.linear_term(displacement),
                "quadratic_term": model.quadratic_term(displacement),
                "displacement_norm": float(displacement.norm()),
            }

    def _threshold(self, relative_error: float) -> float:
        """Give tau; an automatic one is below every error until it has seen enough of them."""
        if self._settings.error_threshold != "auto":
            return self._settings.error_threshold
        if len(self._first_errors) < _ROUNDS_FOR_THRESHOLD:
            self._first_errors.append(relative_error)
            return -1.0
        return sum(self._first_errors) / _ROUNDS_FOR_THRESHOLD

    def _select(self, examples: Examples) -> dict[str, Any]:
        """Pick P mini-batch coresets at the current parameters and model the loss around them."""
        before = examples.passes_beside_training
        subsets = self._draw_subsets_of_round()
        check_subset = None
        if self._settings.paired_check:
            candidates = torch.unique(subsets)
            order = torch.randperm(len(candidates), generator=self._task.generator)
            check_subset = candidates[order[: self._check_size]].sort().values
        selection = select_coresets(
            examples, subsets, self._task.batch_size, self._settings.features, keep=check_subset
        )
        self._watch(selection.candidates, selection.losses)
        spent = examples.passes_beside_training - before
        record = {
            "selected_loss": float(selection.losses.mean()),
            "gradient_error": selection.gradient_error,
            **self._weigh(selection, spent),
        }
        if self._settings.switch_off and record["worth"] < record["price"]:
            self._drop_coresets(examples)
            return record
        self._backoff = 1
        self._coresets, self._deck = selection.coresets, []
        # L0 is the unweighted mean over the random subsets, as L^r is over the check subset: both
        # estimate the mean loss of the pool, so that rho is 0 where the model is right.
        loss = float(selection.losses[selection.rows].mean())
        if check_subset is not None:
            self._check_subset = check_subset
            places = torch.searchsorted(selection.candidates, check_subset)
            self._anchor_losses = selection.losses[places]
            loss = float(self._anchor_losses.mean())
        before = examples.passes_beside_training
        with examples.timed("quadratic"):
            self._model = self._fit_quadratic(examples, loss)
            self._schedule.observe(self._curvature_norm(self._model))
        self._model_passes = examples.passes_beside_training - before
        weights = torch.stack([batch.weights for batch in self._coresets])
        return record | {
            "curvature_norm": self._curvature_norm(self._model),
            "effective_batch": float(weights.sum(1).square().div(weights.square().sum(1)).mean()),
        }

    def _drop_coresets(self, examples: Examples) -> None:
        self._coresets, self._model, self._anchor = [], None, None
        examples.release(torch.empty(0, dtype=torch.int64))

    def _weigh(self, selection: Selection, spent: float) -> dict[str, float]:
        """Compare what a step on these coresets is worth with its price, both in random steps."""
        count = self._region_length()
        reused = max(1.0, count / len(selection.coresets))
        trained = count * self._task.batch_size
        spent = spent + self._model_passes
        return {
            "worth": (selection.gradient_error * reused + 1e-12) ** -_WORTH_EXPONENT,
            "price": 1 + self._settings.forward_price * spent / trained,
        }

    def _random_batches(self) -> list[MiniBatch]:
        """Draw random mini-batches until the next probe, in shuffled passes over the pool."""
        m = self._task.batch_size
        count = self._settings.probe_interval * self._backoff * self._task.batches_per_step
        self._backoff = min(2 * self._backoff, _MAX_BACKOFF)
        batches = []
        self._random_order = self._random_order[self._pool.active[self._random_order]]
        for _ in range(count):
            if len(self._random_order) < m:
                members = self._pool.active.nonzero().squeeze(1)
                order = torch.randperm(len(members), generator=self._task.generator)
                self._random_order = members[order]
            batches.append(MiniBatch.unweighted(self._random_order[:m]))
            self._random_order = self._random_order[m:]
        return batches

    def _fit_quadratic(self, examples: Examples, loss: float) -> QuadraticModel:
        """Smooth gradient and Hessian diagonal of the coresets, Eq. (6) to (9)."""
        if self._settings.models_nothing:
            return QuadraticModel(loss, torch.empty(0), torch.empty(0))  # nobody will ask it
        parameters = self._modelled = examples.parameters(self._scope)
        self._anchor = flatten(parameters)
        num_probes = 0 if self._settings.curvature == "none" else self._settings.num_probes
        probes = rademacher_probes(parameters, num_probes, self._task.generator)
        coresets = self._coresets[: self._settings.curvature_coresets]
        gradient: Tensor | float = 0.0
        diagonal: Tensor | float = 0.0
        for coreset in coresets:
            with examples.weighted_loss(coreset, num_probes, self._scope) as coreset_loss:
                moments = gradient_and_hessian_diagonal(coreset_loss, parameters, probes)
            gradient = gradient + moments[0] / len(coresets)
            diagonal = diagonal + moments[1] / len(coresets)
        assert isinstance(gradient, Tensor)
        assert isinstance(diagonal, Tensor)
        return QuadraticModel(loss, *self._moments.update(gradient, diagonal))

    @property
    def _scope(self) -> str:
        return "head" if self._settings.curvature == "head" else "trainable"

    def _parameters(self, examples: Examples) -> Tensor:
        return flatten(examples.parameters(self._scope))

    def _curvature_norm(self, model: QuadraticModel) -> float:
        # Without curvature nothing is known to change: ||H_0|| / ||H_t|| is 1.
        return 1.0 if self._settings.curvature == "none" else float(model.curvature.norm())

    def _region_length(self) -> int:
        return self._schedule.check_interval * self._task.batches_per_step

    def _draw_subsets_of_round(self) -> Tensor:
        """Draw V_1, ..., V_P, from the pool or from candidates that they share."""
        count = self._schedule.num_coresets * self._task.batches_per_step
        if self._settings.num_candidates is None:
            return self._draw_subsets(count, self._subset_size)
        (candidates,) = self._draw_subsets(1, self._settings.num_candidates)
        return random_subsets(
            candidates, count, self._subset_size, self._task.generator, labels=self._strata
        )

    def _draw_subsets(self, count: int, size: int) -> Tensor:
        return self._pool.draw(count, size, self._task.generator, labels=self._strata)

    @property
    def _strata(self) -> Tensor | None:
        return self._task.labels if self._settings.stratify else None

    def _watch(self, indices: Tensor, losses: Tensor) -> None:
        if self._learned is not None:
            self._learned.observe(indices, losses)

    def _draw_coreset(self) -> MiniBatch:
        """Take a coreset at random, none twice until all were used."""
        if not self._deck:
            order = torch.randperm(len(self._coresets), generator=self._task.generator)
            self._deck = order.tolist()
        return self._coresets[self._deck.pop()]

    def state_dict(self) -> dict[str, Any]:
        """Return pool, windows, T_1, P, moments, coresets, anchor and quadratic model."""
        model = self._model
        return {
            "pool": self._pool.state_dict(),
            "learned": self._learned.state_dict() if self._learned else None,
            "schedule": self._schedule.state_dict(),
            "moments": self._moments.state_dict(),
            "coreset_indices": [batch.indices for batch in self._coresets],
            "coreset_weights": [batch.weights for batch in self._coresets],
            "deck": list(self._deck),
            "check_subset": self._check_subset,
            "anchor_losses": self._anchor_losses,
            "first_errors": list(self._first_errors),
            "model_passes": self._model_passes,
            "backoff": self._backoff,
            "random_order": self._random_order,
            "anchor": self._anchor,
            "model": model and [model.loss, model.gradient, model.curvature],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._pool.load_state_dict(state["pool"])
        if self._learned is not None:
            self._learned.load_state_dict(state["learned"])
        self._schedule.load_state_dict(state["schedule"])
        self._moments.load_state_dict(state["moments"])
        self._coresets = [
            MiniBatch(indices, weights)
            for indices, weights in zip(
                state["coreset_indices"], state["coreset_weights"], strict=True
            )
        ]
        self._deck = list(state["deck"])
        self._check_subset = state["check_subset"]
        self._anchor_losses = state["anchor_losses"]
        self._first_errors = list(state["first_errors"])
        self._model_passes = state["model_passes"]
        self._backoff = state["backoff"]
        self._random_order = state["random_order"]
        self._anchor, self._modelled = state["anchor"], None
        self._model = None if state["model"] is None else QuadraticModel(*state["model"])


def _is_threshold(value: object) -> bool:
    return value == "auto" or (isinstance(value, (int, float)) and value >= 0)


def _check_ranges(settings: Crest) -> None:
    """Refuse settings out of range, naming the field."""
    rules: list[tuple[str, bool, str]] = [
        ("subset_size", settings.subset_size is None or settings.subset_size >= 1, ">= 1"),
        ("coreset_multiplier", settings.coreset_multiplier > 0, "> 0"),
        ("error_threshold", _is_threshold(settings.error_threshold), '>= 0 or "auto"'),
        ("interval_multiplier", settings.interval_multiplier > 0, "> 0"),
        (
            "exclusion_interval",
            settings.exclusion_interval is None or settings.exclusion_interval >= 1,
            ">= 1 or None",
        ),
        ("loss_threshold", settings.loss_threshold >= 0, ">= 0"),
        ("betas", all(0 <= beta < 1 for beta in settings.betas), "two values in [0, 1)"),
        ("features", settings.features in ("logits", "input", "weight"), "logits, input or weight"),
        (
            "curvature",
            settings.curvature in ("trainable", "head", "none"),
            "trainable, head or none",
        ),
        ("num_probes", settings.num_probes >= 1, ">= 1"),
        (
            "curvature_coresets",
            settings.curvature_coresets is None or settings.curvature_coresets >= 1,
            ">= 1 or None",
        ),
        ("max_check_interval", settings.max_check_interval >= 1, ">= 1"),
        ("max_coresets", settings.max_coresets >= 1, ">= 1"),
        ("check_size", settings.check_size is None or settings.check_size >= 1, ">= 1 or None"),
        (
            "select_until",
            settings.select_until is None or settings.select_until >= 1,
            ">= 1 or None",
        ),
        ("probe_interval", settings.probe_interval >= 1, ">= 1"),
        ("forward_price", settings.forward_price > 0, "> 0"),
        (
            "num_candidates",
            settings.num_candidates is None
            or settings.num_candidates >= (settings.subset_size or 1),
            "at least subset_size",
        ),
    ]
    for name, holds, rule in rules:
        if not holds:
            raise ValueError(f"{name} must be {rule}; got {getattr(settings, name)!r}.")
