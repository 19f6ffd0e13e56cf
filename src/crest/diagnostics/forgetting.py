"""How often examples are forgotten, the measure of difficulty of Figures 5 and 7b."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crest.checks import SIZE, check, instance
from crest.data_checks import check_entries, check_indices, check_mask, tensor_like
from crest.diagnostics.selections import Selections

__all__ = ["Forgetting"]

_SELECTIONS = instance(Selections, text="a Selections")


class Forgetting:
    """Forgetting scores: how often an example went from right to wrong (Toneva et al., 2018).

    Looks come from training or from evaluation. Those of training alone would give examples that
    are picked more often more chances to be forgotten: to compare what strategies pick, look at the
    whole data set from time to time.

    Attributes:
        scores: Times that each example was wrong after it was right at the look before, int64,
            shape (n,). An example that was never right has none, hard as it is.
        was_ever_correct: Whether each example was right at any look, bool, shape (n,).

    Args:
        num_examples: n, >= 1.

    Raises:
        TypeError: If `num_examples` is no integer.
        ValueError: If it is out of its range.

    Example:
        >>> forgetting = Forgetting(3)
        >>> for correct in ([True, True, False], [False, True, False], [True, False, True]):
        ...     forgetting.observe(torch.arange(3), torch.tensor(correct))
        >>> forgetting.scores
        tensor([1, 1, 0])
    """

    def __init__(self, num_examples: int) -> None:
        num_examples = check("num_examples", num_examples, SIZE)
        self.scores = torch.zeros(num_examples, dtype=torch.int64)
        self.was_ever_correct = torch.zeros(num_examples, dtype=torch.bool)
        self._was_correct = torch.zeros(num_examples, dtype=torch.bool)

    def observe(self, indices: Tensor, correct: Tensor) -> None:
        """Take in a look at some examples.

        Args:
            indices: Distinct example indices, int64, shape (k,).
            correct: Whether the model has each of them right now, bool, shape (k,).

        Raises:
            TypeError: If either is no tensor.
            ValueError: If the shapes differ, one is of no example, or `correct` is not bool.
        """
        check_indices("indices", indices, len(self.scores))
        check_mask("correct", correct)
        if indices.shape != correct.shape:
            raise ValueError(
                f"correct must have the shape of indices, {tuple(indices.shape)}; "
                f"got {tuple(correct.shape)}."
            )
        indices, correct = indices.cpu(), correct.cpu()
        self.scores[indices] += (self._was_correct[indices] & ~correct).long()
        self._was_correct[indices] = correct
        self.was_ever_correct[indices] |= correct

    def of_selected(self, selections: Selections) -> list[dict[str, float]]:
        """Average the scores, as they are now, of what was picked in each period: Figure 5.

        Args:
            selections: What was picked and when.

        Returns:
            For each period its last `step`, the mean `score` of its picks, and `never_learned`, the
            share of picks of examples that were never right.

        Raises:
            TypeError: If `selections` is none.
            ValueError: If it is of another number of examples.
        """
        self._check_selections(selections)
        return [
            {
                "step": step,
                "score": float((counts * self.scores).sum() / counts.sum()),
                "never_learned": float((counts * ~self.was_ever_correct).sum() / counts.sum()),
            }
            for step, counts in selections.periods
        ]

    def histogram(self, selections: Selections | None = None) -> list[int]:
        """Count examples, or picks, by score: Figure 7b.

        Args:
            selections: Count an example as often as it was picked. None: count each once.

        Returns:
            How many have the score 0, 1, 2, ... up to the largest.

        Raises:
            TypeError: If `selections` is none.
            ValueError: If it is of another number of examples.
        """
        if selections is not None:
            self._check_selections(selections)
        counts: list[int] = (
            torch.bincount(
                self.scores, weights=None if selections is None else selections.counts.double()
            )
            .long()
            .tolist()
        )
        return counts

    def _check_selections(self, selections: Selections) -> None:
        check("selections", selections, _SELECTIONS)
        if len(selections.counts) != len(self.scores):
            raise ValueError(
                f"selections must be of the same {len(self.scores)} examples; got "
                f"{len(selections.counts)}."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return scores, and what earlier looks at each example showed."""
        return {
            "scores": self.scores.clone(),
            "was_ever_correct": self.was_ever_correct.clone(),
            "was_correct": self._was_correct.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Args:
            state: What `state_dict` returned.

        Raises:
            TypeError: If it is no dict, or an entry is of a wrong kind.
            ValueError: If an entry is missing, or of another number of examples.
        """
        rules = {name: tensor_like(value) for name, value in self.state_dict().items()}
        check_entries("state", state, rules)
        self.scores.copy_(state["scores"])
        self.was_ever_correct.copy_(state["was_ever_correct"])
        self._was_correct.copy_(state["was_correct"])
