"""AdaCore: CRAIG on gradients preconditioned by curvature (Pooladzandi et al., ICML 2022)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crest.checks import check_fields, many, number, whole
from crest.looking.gradients import LastLayerGradients
from crest.quadratic import SmoothedMoments, gradient_and_hessian_diagonal, rademacher_probes
from crest.selection import facility_location
from crest.strategies.protocol import Examples, MiniBatch, Planner, Task
from crest.strategies.registry import Paper, register_strategy
from crest.strategies.subsets import Share, SubsetPlanner, SubsetSettings

__all__ = ["AdaCore"]

_RULES = {
    "beta": number(0, 1, below=True),
    "damping": number(0, above=True),
    "curvature_size": whole(1),
    "num_probes": many(),
}


@register_strategy(
    "adacore",
    line="A coreset for each epoch, on gradients divided by the curvature of the last layer",
    needs=("passes",),
    paper=Paper(
        "Adaptive Second Order Coresets for Data-efficient Machine Learning",
        "Pooladzandi, Davini, Mirzasoleiman",
        "ICML",
        2022,
    ),
    follows={"subset_fraction": "budget"},
    is_baseline=True,
)
@dataclass(frozen=True, kw_only=True)
class AdaCore(SubsetSettings):
    """Pick the examples whose preconditioned gradients stand best for all others.

    Each last-layer gradient is divided, entry by entry, by the smoothed Hessian diagonal of the
    last layer, Eq. (7) and (9); then facility location as in `Craig`. A share of n_c examples takes
    n_c gradients of the whole last layer in memory.

    Args:
        beta: Smoothing of the squared Hessian diagonal over selections, in [0, 1); 0 takes the
            newest alone.
        damping: > 0, share of its mean that is added to the diagonal, so that flat directions do
            not outweigh all others.
        curvature_size: Random examples that the Hessian diagonal is estimated on, >= 1.
        num_probes: Rademacher probes for Eq. (7), >= 1.

    `subset_fraction`, `reselect_steps`, `per_class` and `keep_views` are those of `SubsetSettings`.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> AdaCore(subset_fraction=0.2).damping
        0.1
    """

    beta: float = 0.999
    damping: float = 0.1
    curvature_size: int = 512
    num_probes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, _RULES)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        # Gradients of a cheaper model or view would be divided by the curvature of another.
        task.refuse_cheaper_looks("AdaCore")
        return _AdaCorePlanner(self, task)


class _AdaCorePlanner(SubsetPlanner):
    """Carries the smoothed Hessian diagonal from one selection to the next."""

    def __init__(self, settings: AdaCore, task: Task) -> None:
        super().__init__(settings, task, self._pick_preconditioned)
        self._adacore = settings
        self._moments = SmoothedMoments((0.0, settings.beta))

    def _pick_preconditioned(
        self, examples: Examples, gradients: LastLayerGradients, shares: list[Share]
    ) -> tuple[Tensor, Tensor]:
        with examples.timed("quadratic"):
            scale = self._preconditioner(examples).flatten()
        picks, sizes = [], []
        for rows, size in shares:
            part = dataclasses.replace(
                gradients, errors=gradients.errors[rows], inputs=gradients.inputs[rows]
            )
            coreset = facility_location(part.weight_gradients() / scale, size)
            picks.append(rows[coreset.indices])
            sizes.append(coreset.cluster_sizes)
        return torch.cat(picks), torch.cat(sizes)

    def _observe(self, examples: Examples) -> LastLayerGradients:
        try:
            return super()._observe(examples)
        except ValueError:
            # What a look refuses of such a layer is less to the point.
            _check_shapes([part.shape for part in examples.parameters("head")])
            raise

    def _preconditioner(self, examples: Examples) -> Tensor:
        """Smooth the Hessian diagonal of the last layer's weight and bias, (c, d')."""
        settings, task = self._adacore, self._task
        size = min(settings.curvature_size, task.num_examples)
        sample = torch.randperm(task.num_examples, generator=task.generator)[:size]
        if not settings.keep_views:
            examples.hold(sample)
        parameters = examples.parameters("head")
        probes = rademacher_probes(parameters, settings.num_probes, task.generator)
        gradient, diagonal = torch.zeros(()), torch.zeros(())
        for some in sample.split(task.batch_size):
            share = len(some) / size
            batch = MiniBatch.unweighted(some)
            with examples.weighted_loss(batch, settings.num_probes, "head") as loss:
                moments = gradient_and_hessian_diagonal(loss, parameters, probes)
            gradient, diagonal = gradient + share * moments[0], diagonal + share * moments[1]
        gradient, diagonal = map(examples.mean_over_processes, (gradient, diagonal))
        if not settings.keep_views:
            examples.release(sample[:0])
        _, curvature = self._moments.update(gradient, diagonal)
        damping = settings.damping * curvature.mean()
        curvature = curvature + torch.where(damping > 0, damping, 1.0)  # 0: a flat loss
        return _as_gradients([part.shape for part in parameters], curvature)

    def state_dict(self) -> dict[str, Any]:
        """Return the smoothed Hessian diagonal."""
        return {"moments": self._moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._moments.load_state_dict(state["moments"])


def _as_gradients(shapes: list[torch.Size], flat: Tensor) -> Tensor:
    """Lay out values of a linear head's weight and bias as its gradients are, (c, d')."""
    _check_shapes(shapes)
    num_classes, num_inputs = shapes[0]
    weight = flat[: num_classes * num_inputs].view(num_classes, num_inputs)
    bias = flat[num_classes * num_inputs :]
    return torch.cat([weight, bias.unsqueeze(1)], dim=1) if len(bias) else weight


def _check_shapes(shapes: list[torch.Size]) -> None:
    if len(shapes) > 2 or len(shapes[0]) != 2:
        raise ValueError(
            "AdaCore needs a linear last layer, whose parameters are a weight and perhaps a bias; "
            f"got shapes {[tuple(shape) for shape in shapes]}. Name it with head=."
        )
