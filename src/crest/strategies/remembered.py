"""Mini-batches picked by gradients that training has shown before: no passes of their own."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crest.checks import check_fields, optional, whole
from crest.pool import Deck
from crest.strategies.coresets import resolve_num_candidates, split_subsets
from crest.strategies.online.rules import pick_cover
from crest.strategies.protocol import Examples, MiniBatch, Planner, Region, Task
from crest.strategies.registry import register_strategy
from crest.watching.memory import LastSeen
from crest.watching.predictions import OFF, read_errors

__all__ = ["RememberedGradients"]

_RULES = {"num_candidates": optional(whole(1))}

_RANDOM_STEPS = 64  # planned at once: a loop that observes nothing hears of it soon
_PATIENCE = 1.5  # passes until examples that were not observed are missed


@register_strategy(
    "remembered",
    line="Coresets by the gradients that training has shown before, at no cost",
    needs=("losses", "outputs"),
    style=("#cc79a7", "-"),
    unselected="it selects once every example was trained on, after a pass",
)
@dataclass(frozen=True)
class RememberedGradients:
    """Pick each mini-batch by facility location on gradients that training has shown before.

    Not in the paper. Whenever an example is trained on, the derivative of its loss by the output is
    known, p - y for cross-entropy. Of r random candidates m are picked that cover these remembered
    derivatives best, Eq. (5). So selection needs no pass over the data, and a step costs what a
    random one costs. The loader sees what the loop computes by itself; loops that it cannot see
    call `loader.observe(losses, outputs)` after each forward pass and before `backward()`.

    Measured in docs/results/remembered.md: ahead of random mini-batches of the same cost in runs of
    a few passes, less far in longer ones, and level where labels are wrong.

    Weights are 1: cluster sizes of gradients that old led astray. So examples with rare gradients
    are trained on more often than others, and the mean gradient of a mini-batch is not an unbiased
    estimate of that of all examples.

    The first pass is whole and in random order, and mini-batches are random while an example has no
    gradient yet: a run of one pass is as with `Random`. Records of the history tell what was
    `selected`. The gradients of all n examples stay in memory, and in checkpoints.

    Args:
        num_candidates: r, in [m, n]. None: four mini-batches, or n if that is less. A mini-batch of
            more than 64 is covered in parts, so that time grows with m and not with its square.

    Raises:
        TypeError: If a value is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> RememberedGradients(num_candidates=512)
        RememberedGradients(num_candidates=512)
    """

    num_candidates: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`."""
        r = resolve_num_candidates(self.num_candidates, task, batches=4)
        return _RememberingPlanner(task, r)


class _RememberingPlanner:
    """Remembers the last gradient of each example, and cuts each pass into groups of r."""

    def __init__(self, task: Task, num_candidates: int) -> None:
        self._task = task
        self._num_candidates = num_candidates
        self._deck = Deck(task.num_examples, task.generator)
        self._gradients = LastSeen(task.num_examples, "outputs' gradients")
        self._device = torch.device("cpu")  # where gradients come from, and are picked by
        self._drawn = 0  # examples of random mini-batches
        self._missed = 0  # examples that should have been observed by now
        self._unheard: int | None = None  # examples planned since something was observed, if ever
        self._has_warned = False

    def remember(self, indices: Tensor, errors: Tensor) -> None:
        self._gradients.tell(indices, errors)
        self._device = errors.device
        self._unheard = 0
        if self._missed:
            self._warn(
                f"has not heard of {self._missed} of {self._task.num_examples} examples after more "
                "than a pass, and trains on random mini-batches until then."
            )

    @property
    def first_selected_step(self) -> int:
        return self._task.steps_of_a_pass

    def knowledge(self) -> dict[str, Tensor]:
        self._gradients.take_in()
        known = self._gradients.known
        digest = read_errors(self._gradients.values.nan_to_num())
        seen = {"num_observations": known.int()}  # at least
        if digest is None or not known.any() or float(digest["off"][known].max()) > OFF:
            return seen
        for name in ("given_label", "predicted_label"):
            seen[name] = digest[name].where(known, -1)
        for name in ("p_given", "p_other"):
            seen[name] = digest[name].where(known, torch.nan)
        return seen

    def next_region(self, examples: Examples, step: int) -> Region:
        self._gradients.take_in()
        unknown = int((~self._gradients.known).sum())
        n = self._task.num_examples
        if self._drawn and unknown == n and not self._task.is_preview:
            raise ValueError(
                "RememberedGradients needs what training computes; nothing was observed so far. "
                f"{self._task.explain_silence()}"
            )
        self._missed = unknown if self._drawn >= _PATIENCE * n else 0
        silent = self._unheard is not None and self._unheard >= _PATIENCE * n
        if silent and not self._task.is_preview:
            self._warn("has heard nothing for more than a pass.")
        with examples.timed("select"):
            picks = self._random_batches() if unknown else self._picks()
        if self._unheard is not None:
            self._unheard += sum(len(pick) for pick in picks)
        return Region(
            [MiniBatch.unweighted(pick) for pick in picks],
            record={"updated": not unknown, "selected": not unknown},
        )

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"RememberedGradients {what} {self._task.explain_silence()}",
                stacklevel=3,
            )

    def _random_batches(self) -> list[Tensor]:
        """Draw the mini-batches of a pass that come next, some of them: then look again."""
        task = self._task
        left = task.num_examples - self._drawn % task.num_examples
        steps = min(math.ceil(left / (task.batch_size * task.batches_per_step)), _RANDOM_STEPS)
        count = steps * task.batches_per_step
        self._drawn += count * task.batch_size
        return [self._deck.draw(task.batch_size) for _ in range(count)]

    def _picks(self) -> list[Tensor]:
        """Cut a pass into random groups of candidates, and pick a mini-batch from each."""
        groups = self._task.num_examples // self._num_candidates
        accumulated = self._task.batches_per_step
        count = max(groups // accumulated, 1) * accumulated
        subsets = torch.stack([self._deck.draw(self._num_candidates) for _ in range(count)])
        picks: list[Tensor] = []
        for some in split_subsets(subsets):
            gradients = self._gradients.values[some].reshape(*some.shape, -1).to(self._device)
            rows = self._pick(gradients, self._task.batch_size).cpu()
            picks += some.gather(1, rows)
        return picks

    def _pick(self, gradients: Tensor, size: int) -> Tensor:
        """Pick rows of each set of gradients, shape (sets, r, d); int64, shape (sets, size)."""
        return pick_cover(gradients, size)

    def state_dict(self) -> dict[str, Any]:
        self._gradients.take_in()
        return {
            "deck": self._deck.state_dict(),
            "gradients": self._gradients.values.clone(),
            "drawn": self._drawn,
            "unheard": self._unheard,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._deck.load_state_dict(state["deck"])
        self._gradients.replace(state["gradients"])
        self._drawn = state["drawn"]
        self._unheard = state["unheard"]
