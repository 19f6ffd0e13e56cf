"""Why batches were not taken in, in words."""

from __future__ import annotations

from collections import Counter

__all__ = ["Reasons"]

_UNSEEN = "unseen"

_WORDS = {
    _UNSEEN: "no backward pass was seen that went through an output of the model with a row for "
    "each of their examples. Hand the loader the model that the loop calls (the compiled one, if "
    "it is compiled)",
    "rows": "the outputs have other rows than the batch: {note}",
    "direction": "the gradient of training is not that of loss_fn ({note}): label smoothing, "
    "mixup, another or a second loss, or shuffled rows. Give loss_fn the loss that the loop "
    "minimizes",
    "scale": "rows count otherwise than loss_fn and the weights say ({note})",
    "weights": "the weights of the batch were left out of the loss. Use "
    "crest.weighted_mean(losses, weights)",
    "replay": "loss_fn cannot be computed from the output of the model: {note}",
    "not finite": "gradients were not finite",
    "several": "several batches that wait fit the same gradient",
    "labels": "the inputs were changed between loader and model, and labels alone do not tell "
    "which batch a gradient is of",
    "in place": "the loop changed the output of the model in place",
}


class Reasons:
    """Counts why batches were refused."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._notes: dict[str, str] = {}

    def add(self, reason: str, note: str = "") -> None:
        """Count one.

        Args:
            reason: A key of the words.
            note: Numbers for the message; the newest counts.
        """
        self._counts[reason] += 1
        self._notes[reason] = note or self._notes.get(reason, "")

    def explain(self, handed_out: int, taken_in: float) -> str:
        """Put the commonest reason into words.

        Args:
            handed_out: Batches.
            taken_in: Of these.

        Returns:
            A sentence or two.
        """
        counts = self._counts.copy()
        counts[_UNSEEN] = max(int(handed_out - taken_in) - sum(counts.values()), 0)
        (reason, times), *_ = counts.most_common(1)
        why = _WORDS[reason].format(note=self._notes.get(reason, ""))
        return (
            f"Of {handed_out} batches {taken_in:.0f} were seen in training; most often "
            f"({times} times) {why}; or call loader.observe(losses, outputs)."
        )
