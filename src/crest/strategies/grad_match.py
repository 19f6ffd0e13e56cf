"""GRAD-MATCH: a subset that matches the gradient of all (Killamsetty et al., ICML 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crest.checks import boolean, check_fields, number
from crest.looking.gradients import LastLayerGradients
from crest.selection.matching_pursuit import matching_pursuit
from crest.strategies.protocol import Examples, Planner, Task
from crest.strategies.registry import Paper, register_strategy
from crest.strategies.subsets import Share, SubsetPlanner, SubsetSettings

__all__ = ["GradMatch"]

_RULES = {"ridge": number(0, above=True), "match_scale": boolean()}


@register_strategy(
    "grad_match",
    line="A weighted subset for each epoch whose gradient matches that of the data set",
    needs=("passes",),
    paper=Paper(
        "GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient Deep Model "
        "Training",
        "Killamsetty, Sivasubramanian, Ramakrishnan, De, Iyer",
        "ICML",
        2021,
    ),
    follows={"subset_fraction": "budget"},
    is_baseline=True,
)
@dataclass(frozen=True, kw_only=True)
class GradMatch(SubsetSettings):
    """Match the sum of all last-layer gradients by orthogonal matching pursuit.

    Gradients are those of the whole last layer and never formed; weights are not negative. A
    picked example of weight 0 says that fewer than k examples match as well as k can.

    Args:
        ridge: lambda > 0, price of large weights, in the unit of a squared gradient.
        match_scale: Whether mini-batch gradients keep the size of the mean gradient that they
            match. Weights then have a mean below 1, as the pursuit prefers large gradients. False
            scales them to mean 1, as is usual: steps are as many times longer.

    `subset_fraction`, `reselect_steps`, `per_class` and `keep_views` are those of `SubsetSettings`.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> GradMatch(subset_fraction=0.2).ridge
        0.5
    """

    ridge: float = 0.5
    match_scale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, _RULES)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        return SubsetPlanner(self, task, self._pick)

    def _pick(
        self, examples: Examples, gradients: LastLayerGradients, shares: list[Share]
    ) -> tuple[Tensor, Tensor]:
        whole = gradients.errors.ndim > 2  # several positions: no product of two factors
        errors = gradients.weight_gradients() if whole else gradients.errors
        inputs = None if whole else gradients.inputs
        picks, all_weights = [], []
        for rows, size in shares:
            picked, weights = matching_pursuit(
                errors[rows],
                size,
                inputs=None if inputs is None else inputs[rows],
                bias=gradients.bias,
                ridge=self.ridge,
            )
            picks.append(rows[picked])
            all_weights.append(weights)
        return torch.cat(picks), self._scaled(torch.cat(all_weights), len(errors))

    def _scaled(self, weights: Tensor, num_examples: int) -> Tensor:
        total = float(weights.sum())
        if total == 0:  # every gradient is 0
            return torch.full_like(weights, num_examples / len(weights))
        return weights if self.match_scale else weights * (num_examples / total)
