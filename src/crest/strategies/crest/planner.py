"""Algorithm 1: CREST, with its loop turned inside out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crest.exclusion import LearnedExamples
from crest.pool import Pool, random_subsets
from crest.quadratic import (
    QuadraticModel,
    SmoothedMoments,
    flat_size,
    flatten,
    gradient_and_hessian_diagonal,
    rademacher_probes,
)
from crest.schedule import AdaptiveSchedule
from crest.strategies.coresets import Selection, default_subset_size, select_coresets
from crest.strategies.crest.check import ErrorThreshold, TrackRecord, compare
from crest.strategies.crest.worth import RandomPasses, weigh
from crest.strategies.protocol import Examples, MiniBatch, Region, Task

if TYPE_CHECKING:
    from crest.strategies.crest.settings import Crest

__all__ = ["CrestPlanner"]

_MAX_BACKOFF = 8  # times the probe interval, after selection has failed to pay again and again


class CrestPlanner:
    """What Algorithm 1 carries from one region to the next.

    Args:
        settings: Of CREST.
        task: Sizes, labels and randomness of the run.

    Raises:
        ValueError: If the settings do not fit the task.
    """

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
        min_pool = settings.advanced.min_pool
        if min_pool is None:
            min_pool = max(drawn, math.ceil(0.8 * n))
        if not drawn <= min_pool <= n:
            raise ValueError(
                f"min_pool must be in [{drawn}, {n}], what a round draws to the number of "
                f"examples; got {min_pool}."
            )
        for name, is_asked in (
            ("stratify", settings.advanced.stratify),
            ("per_class", settings.per_class),
        ):
            if is_asked and task.labels is None:
                raise ValueError(f"{name}=True needs the class of each example; pass labels=.")
        self._check_size = settings.advanced.check_size or (
            task.batch_size if settings.check == "candidates" else self._subset_size
        )
        if not self._check_size <= drawn:
            raise ValueError(
                f"check_size must be in [1, {drawn}], at most what a round draws; "
                f"got {self._check_size}."
            )
        if not task.exact_losses and not settings.models_nothing:
            raise ValueError(
                "error_threshold must be 0 and curvature 'none' with transform or model of look=, "
                "whose losses are not those that a quadratic model is checked with; got "
                f"{settings.error_threshold!r} and {settings.curvature!r}."
            )
        self._pool = Pool(n, min_pool=min_pool)
        self._learned = (
            None
            if settings.exclusion_interval is None or not task.exact_losses
            else LearnedExamples(
                n,
                settings.exclusion_interval,
                settings.loss_threshold,
                low_looks=settings.low_looks,
                readmit_after=settings.advanced.readmit_after,
            )
        )
        self._schedule = self._new_schedule()
        self._moments = SmoothedMoments(settings.betas)
        self._coresets: list[MiniBatch] = []
        self._selected_at = 0  # step
        self._deck: list[int] = []  # coresets not yet used since the last shuffle
        self._check_subset = torch.empty(0, dtype=torch.int64)
        self._anchor_losses = torch.empty(0)  # of the check subset, if paired
        self._anchor: Tensor | None = None
        self._modelled: list[nn.Parameter] | None = None  # what the quadratic model is made of
        self._model: QuadraticModel | None = None
        self._threshold = ErrorThreshold(settings.error_threshold)
        self._track_record = TrackRecord()
        self._model_passes = 0.0  # what the last quadratic model and check cost, in forward passes
        self._backoff = 1  # times the probe interval, while switched off
        self._random_passes = RandomPasses(self._pool, task.batch_size, task.generator)

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
        self._exclude_learned(examples, step)
        if self._settings.select_until is not None and step >= self._settings.select_until:
            self._drop_coresets(examples)
            record = {"updated": False, "selected": False, "active": self._pool.num_active}
            return Region(self._random_batches(), record=record)
        self._begin_anew_with_other_parameters(examples)
        update = (
            self._model is None
            or self._settings.error_threshold == 0
            or self._steps_left(step) <= 0
        )
        if self._model is not None and not update:
            before = examples.passes_beside_training
            record |= self._check(examples, self._model)
            self._model_passes += examples.passes_beside_training - before
            update = self._threshold.is_exceeded(record["relative_error"])
        if update and self._model is not None:
            self._schedule.adapt(self._curvature_norm(self._model))
        if update:
            record |= self._select(examples, step)
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
        length = self._region_length(step)
        return Region([self._draw_coreset() for _ in range(length)], held=True, record=record)

    def _exclude_learned(self, examples: Examples, step: int) -> None:
        """Take the examples out of the pool whose losses were consistently low, Sec. 4.3."""
        if self._learned is None:
            return
        dropped = self._pool.exclude(*self._learned.collect(step), examples.labels)
        self._learned.note_excluded(dropped)
        self._pool.readmit(self._learned.collect_returning())

    def _new_schedule(self) -> AdaptiveSchedule:
        settings = self._settings
        return AdaptiveSchedule(
            settings.interval_multiplier,
            settings.coreset_multiplier,
            settings.advanced.max_check_interval,
            settings.advanced.max_coresets,
        )

    def _begin_anew_with_other_parameters(self, examples: Examples) -> None:
        """Drop the quadratic model and its past if layers were frozen or unfrozen."""
        if self._model is None or self._anchor is None:
            return
        parameters = examples.parameters(self._scope)
        if self._modelled is None:  # after load_state_dict
            same = flat_size(parameters) == len(self._anchor)
        else:
            same = list(map(id, parameters)) == list(map(id, self._modelled))
        if not same:
            self._model, self._anchor = None, None
            self._moments = SmoothedMoments(self._settings.betas)
            self._schedule = self._new_schedule()

    def _check(self, examples: Examples, model: QuadraticModel) -> dict[str, Any]:
        """Compare F(delta) with the loss of the check subset, Eq. (10)."""
        order = self._track_record.order if self._settings.loss_model == "best" else 2
        with examples.timed("check"):
            if self._settings.check == "fresh":
                (check_subset,) = self._draw_subsets(1, self._check_size)
                losses = noise = examples.fresh_losses(check_subset)
            else:
                losses = examples.held_losses(self._check_subset)
                noise = losses - self._anchor_losses
            assert self._anchor is not None
            # A checkpoint may have come back on another device, anchor and model together.
            displacement = self._parameters(examples).to(self._anchor.device) - self._anchor
            own, record = compare(model, displacement, losses, noise, order)
            # The rounding of one process must not send it another way than the others.
            errors = examples.mean_over_processes(torch.tensor(own, dtype=torch.float64)).tolist()
        self._track_record.observe(errors)
        constant, linear, quadratic = errors
        return record | {
            "relative_error": errors[order],
            "error_constant": constant,
            "error_linear": linear,
            "error_quadratic": quadratic,
        }

    def _select(self, examples: Examples, step: int) -> dict[str, Any]:
        """Pick P mini-batch coresets at the current parameters and model the loss around them."""
        self._selected_at = step
        before = examples.passes_beside_training
        subsets = self._draw_subsets_of_round()
        check_subset = self._draw_check_subset(subsets)
        selection = select_coresets(
            examples,
            subsets,
            self._task.batch_size,
            self._settings.features,
            keep=check_subset,
            per_class=self._settings.per_class,
        )
        if self._learned is not None:  # by selection losses alone, as Sec. 4.3 says
            self._learned.observe(selection.candidates, selection.losses, step)
        spent = examples.passes_beside_training - before
        record = {
            "selected_loss": float(selection.losses.mean()),
            "gradient_error": selection.gradient_error,
            **weigh(
                selection,
                self._region_length(step),
                self._task.batch_size,
                spent + self._model_passes,
                self._settings.advanced.forward_price,
            ),
        }
        if self._settings.switch_off and record["worth"] < record["price"]:
            self._drop_coresets(examples)
            return record
        self._backoff = 1
        self._coresets, self._deck = selection.coresets, []
        # L0 is the unweighted mean over the random subsets, as L^r is over the check subset: both
        # estimate the mean loss of the pool, so that rho is 0 where the model is right.
        before = examples.passes_beside_training
        loss = float(selection.losses[selection.rows].mean())
        if check_subset is not None:
            self._check_subset = check_subset
            self._anchor_losses = self._losses_at_anchor(examples, selection, check_subset)
            loss = float(self._anchor_losses.mean())
        with examples.timed("quadratic"):
            self._model = self._fit_quadratic(examples, loss)
            if examples.statistics_are_settled():  # else H_0 is that of a net nobody trains
                self._schedule.observe(self._curvature_norm(self._model))
        self._model_passes = examples.passes_beside_training - before
        weights = torch.stack([batch.weights for batch in self._coresets])
        return record | {
            "curvature_norm": self._curvature_norm(self._model),
            "effective_batch": float(weights.sum(1).square().div(weights.square().sum(1)).mean()),
        }

    def _draw_check_subset(self, subsets: Tensor) -> Tensor | None:
        """Draw V_r for all checks of a round, if it is one for all and anything is checked."""
        if self._settings.check == "candidates":
            candidates = torch.unique(subsets)
            order = torch.randperm(len(candidates), generator=self._task.generator)
            drawn: Tensor = candidates[order[: self._check_size]]
        elif self._settings.check == "paired" and self._settings.error_threshold != 0:
            drawn = self._draw_subsets(1, self._check_size)[0]
        else:
            return None
        return drawn[drawn.argsort()]

    def _losses_at_anchor(
        self, examples: Examples, selection: Selection, check_subset: Tensor
    ) -> Tensor:
        """Give the losses of V_r, as a check will measure them."""
        seen_already = self._settings.check == "candidates"
        if self._task.batch_statistics and self._settings.error_threshold != 0:
            seen_already = False  # a loss depends on what else is in the pass, the same in a check
        if seen_already:
            return selection.losses[torch.searchsorted(selection.candidates, check_subset)]
        with examples.timed("check"):
            return examples.held_losses(check_subset)

    def _drop_coresets(self, examples: Examples) -> None:
        self._coresets, self._model, self._anchor = [], None, None
        examples.release(torch.empty(0, dtype=torch.int64))

    def _random_batches(self) -> list[MiniBatch]:
        """Draw random mini-batches until the next probe."""
        count = self._settings.advanced.probe_interval * self._backoff * self._task.batches_per_step
        self._backoff = min(2 * self._backoff, _MAX_BACKOFF)
        return self._random_passes.draw(count)

    def _fit_quadratic(self, examples: Examples, loss: float) -> QuadraticModel:
        """Smooth gradient and Hessian diagonal of the coresets, Eq. (6) to (9)."""
        if self._settings.models_nothing:
            return QuadraticModel(loss, torch.empty(0), torch.empty(0))  # nobody will ask it
        parameters = self._modelled = examples.parameters(self._scope)
        self._anchor = flatten(parameters)
        advanced = self._settings.advanced
        is_due = self._moments.round % advanced.curvature_interval == 0
        num_probes = advanced.num_probes if is_due and self._settings.curvature != "none" else 0
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
        gradient = examples.mean_over_processes(gradient)
        measured = examples.mean_over_processes(diagonal) if num_probes else None
        return QuadraticModel(loss, *self._moments.update(gradient, measured))

    @property
    def _scope(self) -> str:
        return "head" if self._settings.curvature == "head" else "trainable"

    def _parameters(self, examples: Examples) -> Tensor:
        return flatten(examples.parameters(self._scope))

    def _curvature_norm(self, model: QuadraticModel) -> float:
        # Without curvature nothing is known to change: ||H_0|| / ||H_t|| is 1.
        return 1.0 if self._settings.curvature == "none" else float(model.curvature.norm())

    def _steps_left(self, step: int) -> float:
        """Count the steps that the coresets may still serve."""
        uses = self._settings.max_coreset_uses
        if uses is None:
            return math.inf
        return self._selected_at + uses * self._schedule.num_coresets - step

    def _region_length(self, step: int) -> int:
        steps = min(self._schedule.check_interval, self._steps_left(step))
        return int(steps) * self._task.batches_per_step

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
        return self._task.labels if self._settings.advanced.stratify else None

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
            "selected_at": self._selected_at,
            "deck": list(self._deck),
            "check_subset": self._check_subset,
            "anchor_losses": self._anchor_losses,
            "threshold": self._threshold.state_dict(),
            "track_record": self._track_record.state_dict(),
            "model_passes": self._model_passes,
            "backoff": self._backoff,
            "random_passes": self._random_passes.state_dict(),
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
        self._selected_at = state["selected_at"]
        self._deck = list(state["deck"])
        self._check_subset = state["check_subset"]
        self._anchor_losses = state["anchor_losses"]
        self._threshold.load_state_dict(state["threshold"])
        self._track_record.load_state_dict(state["track_record"])
        self._model_passes = state["model_passes"]
        self._backoff = state["backoff"]
        self._random_passes.load_state_dict(state["random_passes"])
        self._anchor, self._modelled = state["anchor"], None
        self._model = None if state["model"] is None else QuadraticModel(*state["model"])
