"""CRAIG: one coreset of the whole data set each epoch (Mirzasoleiman et al., ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crest.looking.gradients import LastLayerGradients
from crest.selection import facility_location
from crest.strategies.protocol import Examples, Planner, Task
from crest.strategies.registry import Paper, register_strategy
from crest.strategies.subsets import Share, SubsetPlanner, SubsetSettings

__all__ = ["Craig"]


@register_strategy(
    "craig",
    line="A coreset of the whole data set for each epoch, by facility location",
    needs=("passes",),
    paper=Paper(
        "Coresets for Data-efficient Training of Machine Learning Models",
        "Mirzasoleiman, Bilmes, Leskovec",
        "ICML",
        2020,
    ),
    follows={"subset_fraction": "budget"},
    is_baseline=True,
)
@dataclass(frozen=True, kw_only=True)
class Craig(SubsetSettings):
    """Pick the examples whose gradients stand best for all others, Eq. (5) over the whole data.

    Greedy facility location on p - y, exact at any size of the data set, with cluster sizes as
    weights. `subset_fraction`, `reselect_steps`, `per_class` and `keep_views` are those of
    `SubsetSettings`.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> Craig(subset_fraction=0.2).per_class is None  # per class where classes are known
        True
    """

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        return SubsetPlanner(self, task, _pick, reads_inputs=False)


def _pick(
    examples: Examples, gradients: LastLayerGradients, shares: list[Share]
) -> tuple[Tensor, Tensor]:
    errors = gradients.errors.flatten(1)
    picks, sizes = [], []
    for rows, size in shares:
        coreset = facility_location(errors[rows], size)
        picks.append(rows[coreset.indices])
        sizes.append(coreset.cluster_sizes)
    return torch.cat(picks), torch.cat(sizes)
