"""Selective back-propagation: of many candidates, train on those with a high loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crest.checks import check_fields, number, optional, whole
from crest.pool import Deck, systematic_sample
from crest.strategies.coresets import resolve_num_candidates
from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task
from crest.strategies.registry import Paper, register_strategy

__all__ = ["SelectiveBackprop"]

_RULES = {
    "num_candidates": optional(whole(1)),
    "exponent": number(0),
    "uniform_share": number(
        0, 1, above=True, hint="Without it the weight of an example has no bound."
    ),
}


@register_strategy(
    "selective_backprop",
    line="Of many random candidates, those with a high loss",
    needs=("passes",),
    paper=Paper(
        "Accelerating Deep Learning by Focusing on the Biggest Losers",
        "Jiang, Wong, Zhou, Andersen, Dean, Ganger, Joshi, Kaminsky, Kozuch, Lipton, Pillai",
        "arXiv",
        2019,
    ),
    is_baseline=True,
)
@dataclass(frozen=True)
class SelectiveBackprop:
    """Keep m of r random candidates, each with a probability that grows with its loss.

    Candidates come in shuffled passes over the data, and each is passed forward once. With the
    probability pi_i that candidate i is kept, its weight is m / (r pi_i): the weighted mean
    gradient of the batch is unbiased, and weights have mean 1 over many batches. Jiang et al.
    (Accelerating deep learning by focusing on the biggest losers, 2019) keep a random number of
    examples and no weights, which minimises another loss.

    Args:
        num_candidates: r, in [m, n]. None: three mini-batches, or n if that is less.
        exponent: beta >= 0; probabilities grow with loss^beta, 0 picks uniformly.
        uniform_share: Part of the probability that is the same for all, in (0, 1]; no weight
            exceeds its inverse.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> SelectiveBackprop(num_candidates=512).exponent
        1.0
    """

    num_candidates: int | None = None
    exponent: float = 1.0
    uniform_share: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, _RULES)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        task.refuse_cheaper_looks("SelectiveBackprop")
        r = resolve_num_candidates(self.num_candidates, task, batches=3)
        return _SelectivePlanner(self, task, r)


class _SelectivePlanner:
    def __init__(self, settings: SelectiveBackprop, task: Task, num_candidates: int) -> None:
        self._settings = settings
        self._task = task
        self._num_candidates = num_candidates
        self._deck = Deck(task.num_examples, task.generator)

    def next_region(self, examples: Examples, step: int) -> Region:
        task = self._task
        candidates = torch.stack(
            [self._deck.draw(self._num_candidates) for _ in range(task.batches_per_step)]
        )
        distinct, rows = torch.unique(candidates, return_inverse=True)
        with examples.timed("check"):
            examples.hold(distinct)
            losses = examples.held_losses(distinct)[rows]
        with examples.timed("select"):
            batches = [
                self._keep(*candidates_and_losses)
                for candidates_and_losses in zip(candidates, losses, strict=True)
            ]
        examples.release(torch.unique(torch.cat([batch.indices for batch in batches])))
        return Region(
            batches, held=True, record={"updated": True, "selected_loss": float(losses.mean())}
        )

    def _keep(self, candidates: Tensor, losses: Tensor) -> MiniBatch:
        m, r = self._task.batch_size, self._num_candidates
        probabilities = inclusion_probabilities(
            losses, m, self._settings.exponent, self._settings.uniform_share
        )
        kept = systematic_sample(probabilities, m, self._task.generator)
        return MiniBatch(candidates[kept], (m / r / probabilities[kept]).float())

    def state_dict(self) -> dict[str, Any]:
        return {"deck": self._deck.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._deck.load_state_dict(state["deck"])


def inclusion_probabilities(
    losses: Tensor, batch_size: int, exponent: float, uniform_share: float
) -> Tensor:
    """Give the probability that each candidate is kept.

    Args:
        losses: Shape (r,).
        batch_size: m, which the probabilities sum to.
        exponent: Of the loss.
        uniform_share: Part that is the same for all.

    Returns:
        In (0, 1], float64, shape (r,).
    """
    r = len(losses)
    scores = losses.double().clamp(min=0)
    largest = float(scores.max())
    scores = (scores / largest).pow(exponent) if largest > 0 else torch.ones_like(scores)
    scores = (1 - uniform_share) * scores / scores.sum() + uniform_share / r
    # min(1, c * score), with the c that makes the sum m: the largest are kept for sure.
    sure = torch.zeros(r, dtype=torch.bool)
    while True:
        probabilities = scores * ((batch_size - sure.sum()) / scores[~sure].sum())
        probabilities[sure] = 1.0
        if not (probabilities > 1).any():
            return probabilities
        sure |= probabilities > 1
