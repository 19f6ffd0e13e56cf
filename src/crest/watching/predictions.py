"""What a model predicts of each example: read off derivatives, averaged over the times."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crest.watching.audit import Predictions

__all__ = ["OFF", "PREDICTED", "SmoothedPredictions", "averaged", "read_errors"]

OFF = 1e-2  # by which p - y may miss the form that cross-entropy gives it
_KEPT = 0.5  # of an old average, when an example is seen again

PREDICTED: dict[str, tuple[torch.dtype, float]] = {
    "given": (torch.int32, -1),
    "other": (torch.int32, -1),
    "p_given": (torch.float32, math.nan),
    "p_other": (torch.float32, math.nan),
    "behind": (torch.float16, math.nan),
}


def read_errors(errors: Tensor) -> dict[str, Tensor] | None:
    """Read classes and probabilities off derivatives of losses by outputs.

    Where the loss is cross-entropy with one class each, the derivative by the logits is p - y: one
    entry below 0, that of the given class, and a sum of 0.

    Args:
        errors: Shape (m, ...).

    Returns:
        `given_label`, `predicted_label`, and `other`, the strongest rival of the given class,
        int64; `p_given` and `p_other`; `behind`, the share of the other classes that are likelier
        than the given one; and `off`, by which the form is missed; all of shape (m,). None where
        the derivatives are of another form.
    """
    if errors.ndim != 2 or errors.shape[1] < 2 or not len(errors):
        return None
    errors = errors.float()
    least, given = errors.min(dim=1)
    others = errors.scatter(1, given[:, None], -math.inf)
    most, rival = others.max(dim=1)
    below = errors.clamp(max=0).sum(1) - least.clamp(max=0)
    off = errors.sum(1).abs() + below.abs()
    p_given = 1 + least
    return {
        "given_label": given,
        "predicted_label": torch.where(p_given >= most, given, rival),
        "p_given": p_given,
        "other": rival,
        "p_other": most,
        "behind": (others > p_given[:, None]).sum(1) / (errors.shape[1] - 1),
        "off": off,
    }


def averaged(old: Tensor, new: Tensor) -> Tensor:
    """Move averages on; one that is not finite begins anew.

    Args:
        old: Averages, NaN before the first.
        new: What comes in, same shape.

    Returns:
        Averages in which an older value counts half of the next.
    """
    return torch.where(old.isfinite(), _KEPT * old + (1 - _KEPT) * new, new)


class SmoothedPredictions:
    """Two classes of each example, the given one and its strongest rival, over the times.

    Attributes:
        given: Class that the loss was computed with, -1 if unknown, int32, shape (n,).
        other: Strongest rival of that class, int32, shape (n,).
        p_given: Smoothed probability of `given`, float32, shape (n,).
        p_other: Smoothed probability of `other`, float32, shape (n,).
        behind: Smoothed share of the other classes that were likelier than `given`, float16, shape
            (n,).

    Args:
        num_examples: n.
    """

    given: Tensor
    other: Tensor
    p_given: Tensor
    p_other: Tensor
    behind: Tensor

    def __init__(self, num_examples: int) -> None:
        for name, (dtype, empty) in PREDICTED.items():
            setattr(self, name, torch.full((num_examples,), empty, dtype=dtype))

    def predictions(self, rows: Tensor, num_classes: int) -> Predictions:
        """Collect what is kept for some examples.

        Args:
            rows: Of examples that were seen, int64, shape (k,).
            num_classes: C.

        Returns:
            Shapes (k,).
        """
        return Predictions(
            given=self.given[rows],
            other=self.other[rows],
            p_given=self.p_given[rows],
            p_other=self.p_other[rows],
            behind=self.behind[rows],
            num_classes=num_classes,
        )

    def take_predictions(self, rows: Tensor, digest: dict[str, Tensor]) -> None:
        """Average in what was read; of a label that was another one, begin anew.

        Args:
            rows: Distinct examples, int64, shape (k,).
            digest: What `read_errors` gave, on the CPU.
        """
        given = digest["given_label"].int()
        is_new = self.given[rows] != given  # never seen, or its label was corrected
        self.given[rows] = given
        for name in ("p_given", "behind"):
            field: Tensor = getattr(self, name)
            field[rows] = averaged(field[rows].where(~is_new, math.nan), digest[name].to(field))
        self._follow_rival(rows, digest["other"].int(), digest["p_other"], is_new)

    def _follow_rival(self, rows: Tensor, other: Tensor, p: Tensor, is_new: Tensor) -> None:
        """Average the strongest rival; another takes its place once it has become stronger."""
        kept = torch.where(is_new, 0.0, _KEPT * self.p_other[rows])
        same = self.other[rows] == other
        share = torch.where(is_new, p, (1 - _KEPT) * p)
        takes_over = is_new | (~same & (share > kept))
        self.other[rows] = torch.where(takes_over, other, self.other[rows])
        self.p_other[rows] = torch.where(takes_over, share, kept + torch.where(same, share, 0.0))
