"""Algorithm 1: CREST, with its loop turned inside out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from crest.exclusion import LearnedExamples
from crest.pool import Pool
from crest.quadratic import (
    QuadraticModel,
    SmoothedMoments,
    flatten,
    gradient_and_hessian_diagonal,
    rademacher_probes,
    relative_error,
)
from crest.schedule import AdaptiveSchedule
from crest.strategies.coresets import Features, default_subset_size, select_coresets
from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task

__all__ = ["Crest"]


@dataclass(frozen=True)
class Crest:
    """CREST, Algorithm 1 of the paper, with the paper's settings as defaults.

    Args:
        subset_size: r, examples in each random subset V_p and in the check subset V_r, in [m, n].
            None: 1 % of the data set, at least three mini-batches.
        coreset_multiplier: b > 0; P = b T_1 coresets are picked in a round.
        error_threshold: tau >= 0, largest relative error of the quadratic model that keeps the
            coresets. The paper takes 0.05 for CIFAR-10 and SNLI, 0.01 for CIFAR-100 and 0.005 for
            TinyImageNet.
        interval_multiplier: h > 0 in T_1 = h ||H_0|| / ||H_t||. The paper takes 1 for CIFAR-10 and
            TinyImageNet, 10 for CIFAR-100, 4 for SNLI.
        exclusion_interval: T_2 >= 1, steps in a window of loss watching. None: never exclude.
        loss_threshold: alpha >= 0, in the unit of the loss; an example whose losses in a window are
            all at or below it is learned.
        betas: beta_1 of Eq. (8) and beta_2 of Eq. (9), each in [0, 1); (0, 0) smooths nothing.
        features: Gradients that are compared: `"weight"` for the whole last layer, `"input"` for
            dL/dh (the paper's wording), `"logits"` for p - y.
        curvature: Parameters of the quadratic model: `"trainable"`, or `"head"` for the last layer
            alone (the paper's choice for RoBERTa), or `"none"` for a linear model of the trainable
            ones (the paper's CREST-FIRST, without the second derivative).
        num_probes: Rademacher probes for Eq. (7), >= 1.
        curvature_coresets: Coresets that the quadratic model is fitted to, >= 1. None: all P.
        max_check_interval: Upper bound of T_1, in steps.
        max_coresets: Upper bound of P.
        min_pool: Exclusion stops at this many examples, in [r, n]. None: a tenth of the data set,
            at least r.
        stratify: Draw random subsets with every class in proportion; needs labels.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> Crest(error_threshold=0.01, interval_multiplier=10.0).coreset_multiplier
        5
    """

    subset_size: int | None = None
    coreset_multiplier: float = 5
    error_threshold: float = 0.05
    interval_multiplier: float = 1.0
    exclusion_interval: int | None = 20
    loss_threshold: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    features: Features = "weight"
    curvature: Literal["trainable", "head", "none"] = "trainable"
    num_probes: int = 1
    curvature_coresets: int | None = None
    max_check_interval: int = 100
    max_coresets: int = 50
    min_pool: int | None = None
    stratify: bool = False

    def __post_init__(self) -> None:
        _check_ranges(self)

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
        min_pool = settings.min_pool
        if min_pool is None:
            min_pool = max(self._subset_size, math.ceil(0.1 * n))
        if not self._subset_size <= min_pool <= n:
            raise ValueError(
                f"min_pool must be in [{self._subset_size}, {n}], subset_size to the number of "
                f"examples; got {min_pool}."
            )
        if settings.stratify and task.labels is None:
            raise ValueError("stratify=True needs the class of each example; pass labels=.")
        self._pool = Pool(n, min_pool=min_pool)
        self._learned = (
            None
            if settings.exclusion_interval is None
            else LearnedExamples(n, settings.exclusion_interval, settings.loss_threshold)
        )
        self._schedule = AdaptiveSchedule(
            settings.interval_multiplier,
            settings.coreset_multiplier,
            settings.max_check_interval,
            settings.max_coresets,
        )
        self._moments = SmoothedMoments(settings.betas)
        self._coresets: list[MiniBatch] = []
        self._deck: list[int] = []  # coresets not yet used since the last shuffle
        self._anchor: Tensor | None = None
        self._model: QuadraticModel | None = None

    def next_region(self, examples: Examples, step: int) -> Region:
        """Check the quadratic model, pick new coresets if it is off, and plan T_1 steps.

        Args:
            examples: The data set at the current parameters.
            step: t, optimizer steps taken so far.

        Returns:
            T_1 steps of coresets.
        """
        record: dict[str, Any] = {}
        if self._learned is not None:
            self._pool.exclude(*self._learned.collect(step), examples.labels)
        update = self._model is None
        if self._model is not None:
            record |= self._check(examples, self._model)
            update = record["relative_error"] > self._settings.error_threshold
            if update:
                self._schedule.adapt(float(self._model.curvature.norm()))
        if update:
            record |= self._select(examples)
        record |= {
            "updated": update,
            "check_interval": self._schedule.check_interval,
            "num_coresets": len(self._coresets),
            "active": self._pool.num_active,
        }
        count = self._schedule.check_interval * self._task.batches_per_step
        return Region([self._draw_coreset() for _ in range(count)], held=True, record=record)

    def _check(self, examples: Examples, model: QuadraticModel) -> dict[str, Any]:
        """Compare F(delta) with the loss of a random check subset, Eq. (10)."""
        with examples.timed("check"):
            (check_subset,) = self._draw_subsets(1)
            losses = examples.fresh_losses(check_subset)
            self._watch(check_subset, losses)
            assert self._anchor is not None
            displacement = self._parameters(examples) - self._anchor
            predicted, measured = model(displacement), float(losses.mean())
            return {
                "relative_error": relative_error(predicted, measured),
                "predicted_loss": predicted,
                "check_loss": measured,
                "check_loss_error": float(losses.std(correction=0)) / math.sqrt(len(losses)),
                "anchor_loss": model.loss,
                "linear_term": model.linear_term(displacement),
                "quadratic_term": model.quadratic_term(displacement),
                "displacement_norm": float(displacement.norm()),
            }

    def _select(self, examples: Examples) -> dict[str, Any]:
        """Pick P mini-batch coresets at the current parameters and model the loss around them."""
        subsets = self._draw_subsets(self._schedule.num_coresets * self._task.batches_per_step)
        self._coresets, losses = select_coresets(
            examples, subsets, self._task.batch_size, self._settings.features
        )
        self._deck = []
        self._watch(subsets.flatten(), losses.flatten())
        with examples.timed("quadratic"):
            self._model = self._fit_quadratic(examples, float(losses.mean()))
            self._anchor = self._parameters(examples)
            curvature_norm = float(self._model.curvature.norm())
            self._schedule.observe(curvature_norm)
        weights = torch.stack([batch.weights for batch in self._coresets])
        return {
            "selected_loss": float(losses.mean()),
            "curvature_norm": curvature_norm,
            "effective_batch": float(weights.sum(1).square().div(weights.square().sum(1)).mean()),
        }

    def _fit_quadratic(self, examples: Examples, loss: float) -> QuadraticModel:
        """Smooth gradient and Hessian diagonal of the coresets, Eq. (6) to (9)."""
        # L0 is the unweighted mean over the random subsets, as L^r is over the check subset: both
        # estimate the mean loss of the pool, so that rho is 0 where the model is right.
        scope = "head" if self._settings.curvature == "head" else "trainable"
        parameters = examples.parameters(scope)
        num_probes = 0 if self._settings.curvature == "none" else self._settings.num_probes
        probes = rademacher_probes(parameters, num_probes, self._task.generator)
        coresets = self._coresets[: self._settings.curvature_coresets]
        gradient: Tensor | float = 0.0
        diagonal: Tensor | float = 0.0
        for coreset in coresets:
            with examples.weighted_loss(coreset, num_probes) as coreset_loss:
                moments = gradient_and_hessian_diagonal(coreset_loss, parameters, probes)
            gradient = gradient + moments[0] / len(coresets)
            diagonal = diagonal + moments[1] / len(coresets)
        assert isinstance(gradient, Tensor)
        assert isinstance(diagonal, Tensor)
        return QuadraticModel(loss, *self._moments.update(gradient, diagonal))

    def _parameters(self, examples: Examples) -> Tensor:
        scope = "head" if self._settings.curvature == "head" else "trainable"
        return flatten(examples.parameters(scope))

    def _draw_subsets(self, count: int) -> Tensor:
        labels = self._task.labels if self._settings.stratify else None
        return self._pool.draw(count, self._subset_size, self._task.generator, labels=labels)

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
        self._anchor = state["anchor"]
        self._model = None if state["model"] is None else QuadraticModel(*state["model"])


def _check_ranges(settings: Crest) -> None:
    """Refuse settings out of range, naming the field."""
    rules: list[tuple[str, bool, str]] = [
        ("subset_size", settings.subset_size is None or settings.subset_size >= 1, ">= 1"),
        ("coreset_multiplier", settings.coreset_multiplier > 0, "> 0"),
        ("error_threshold", settings.error_threshold >= 0, ">= 0"),
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
    ]
    for name, holds, rule in rules:
        if not holds:
            raise ValueError(f"{name} must be {rule}; got {getattr(settings, name)!r}.")
