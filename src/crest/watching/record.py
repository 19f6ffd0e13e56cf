"""A record of every example: what each time showed that it was trained on, and how it went on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crest.watching.audit import estimate_label_noise, score_labels, wrong_label_chance
from crest.watching.predictions import OFF, PREDICTED, SmoothedPredictions, averaged, read_errors

__all__ = ["ExampleRecord"]

_AT_ONCE = 64  # batches; what is told stays on its device until so many came
_RECENT = 8  # losses of an example that are kept with their steps

_FIELDS: dict[str, tuple[torch.dtype, float]] = {
    "num_observations": (torch.int32, 0),
    "last_loss": (torch.float32, math.nan),
    "smoothed_loss": (torch.float32, math.nan),
    "predicted_label": (torch.int32, -1),
    "margins": (torch.float32, 0),
    "num_margins": (torch.int32, 0),
    "forgotten": (torch.int32, 0),
}


class ExampleRecord(SmoothedPredictions):
    """What training showed of each example, for tables and reports; no strategy reads it.

    A batch takes a few small operations on its device, and about 100 bytes are kept of an example.

    Attributes:
        num_observations: How often losses were seen, int32, shape (n,).
        last_loss: NaN before the first, float32, shape (n,).
        smoothed_loss: Of which an older one counts half of the next, float32, shape (n,).
        predicted_label: Class that the model preferred last, int32, shape (n,).
        margins: Sum of p_given - p_other over the times, float32, shape (n,).
        num_margins: Of so many times, int32, shape (n,).
        forgotten: How often a right prediction was followed by a wrong one (Toneva et al., ICLR
            2019), int32, shape (n,).
        is_classification: Whether all losses were cross-entropy with one class each.
        recent_losses: The newest eight, in a ring, float16, shape (n, 8).
        recent_steps: Optimizer steps that they are of, -1 if none, int32, shape (n, 8).
        curve: For each 64 batches, or what there is of them, step, mean loss, and share of right
            predictions or None.

    Args:
        num_examples: n.
    """

    num_observations: Tensor
    last_loss: Tensor
    smoothed_loss: Tensor
    predicted_label: Tensor
    margins: Tensor
    num_margins: Tensor
    forgotten: Tensor

    def __init__(self, num_examples: int) -> None:
        super().__init__(num_examples)
        for name, (dtype, empty) in _FIELDS.items():
            setattr(self, name, torch.full((num_examples,), empty, dtype=dtype))
        self.recent_losses = torch.full((num_examples, _RECENT), math.nan, dtype=torch.float16)
        self.recent_steps = torch.full((num_examples, _RECENT), -1, dtype=torch.int32)
        self.is_classification = True  # as far as was seen
        self.num_classes = 0
        self.curve: list[tuple[int, float, float | None]] = []
        self._told: list[tuple[int, Tensor, Tensor, dict[str, Tensor] | None]] = []

    @property
    def aum(self) -> Tensor:
        """Mean margin over the times, NaN before the first, float32, shape (n,).

        Area under the margin of Pleiss et al. (NeurIPS 2020), of probabilities in place of logits.
        """
        return self.margins / self.num_margins.where(self.num_margins > 0, math.nan)

    def tell(self, step: int, indices: Tensor, losses: Tensor, errors: Tensor | None) -> None:
        """Hear of a mini-batch that was trained on.

        Args:
            step: Optimizer steps taken.
            indices: Example indices, int64, shape (m,).
            losses: Detached, on any device, shape (m,).
            errors: Their derivatives by the outputs, shape (m, ...), None if unknown.
        """
        digest = None if errors is None else read_errors(errors)
        if errors is not None and digest is None:
            self.is_classification = False
        elif errors is not None:
            self.num_classes = errors.shape[1]
        self._told.append((step, indices, losses, digest))
        if len(self._told) >= _AT_ONCE:
            self.take_in()

    def take_in(self) -> None:
        """Bring all fields up to date."""
        told, self._told = self._told, []
        if not told:
            return
        sizes = [len(one[1]) for one in told]
        losses = torch.cat([one[2].float() for one in told]).cpu().split(sizes)
        digests = _on_cpu([one[3] for one in told])
        right, judged = 0, 0
        for (step, indices, _, _), some, digest in zip(told, losses, digests, strict=True):
            rows = indices.cpu()
            self._take_losses(step, rows, some)
            if digest is not None and float(digest["off"].median()) > OFF:
                self.is_classification = False
            elif digest is not None:
                right += self._take_classes(rows, digest)
                judged += len(rows)
        mean = float(torch.cat(losses).mean())
        if len(told) < _AT_ONCE // 2 and self.curve:
            return  # too few for a point
        self.curve.append((told[-1][0], mean, right / judged if judged else None))

    def history(self, index: int) -> list[tuple[int, float]]:
        """Give the newest steps in which an example was seen, and its losses there.

        Args:
            index: Of the example.

        Returns:
            Step and loss, the oldest first.
        """
        pairs = zip(
            self.recent_steps[index].tolist(), self.recent_losses[index].tolist(), strict=True
        )
        return sorted((step, loss) for step, loss in pairs if step >= 0)

    def _take_losses(self, step: int, rows: Tensor, losses: Tensor) -> None:
        slot = self.num_observations[rows] % _RECENT
        self.recent_losses[rows, slot] = losses.half()
        self.recent_steps[rows, slot] = step
        self.last_loss[rows] = losses
        self.smoothed_loss[rows] = averaged(self.smoothed_loss[rows], losses)
        self.num_observations.index_add_(0, rows, torch.ones(len(rows), dtype=torch.int32))

    def _take_classes(self, rows: Tensor, digest: dict[str, Tensor]) -> int:
        given = digest["given_label"].int()
        predicted = digest["predicted_label"].int()
        corrected = (self.given[rows] != given) & (self.num_margins[rows] > 0)
        for name in ("margins", "num_margins", "forgotten"):  # of a label that was another one
            field: Tensor = getattr(self, name)
            field[rows[corrected]] = 0
        seen = (self.num_margins[rows] > 0) & ~corrected
        was_right = seen & (self.predicted_label[rows] == self.given[rows])
        is_right = predicted == given
        self.forgotten[rows] += (was_right & ~is_right).int()
        self.take_predictions(rows, digest)
        self.predicted_label[rows] = predicted
        self.margins.index_add_(0, rows, digest["p_given"] - digest["p_other"])
        self.num_margins.index_add_(0, rows, torch.ones(len(rows), dtype=torch.int32))
        return int(is_right.sum())

    def knowledge(self) -> dict[str, Tensor]:
        """Give what is known of each example, by column, see `Knows`."""
        self.take_in()
        names = ["num_observations", "last_loss", "smoothed_loss"]
        issues = torch.zeros(len(self.last_loss), dtype=torch.bool)
        found = {"is_label_issue": issues}
        if self.is_classification:
            names += ["given", "predicted_label", "p_given", "p_other", "forgotten", "aum"]
            rows = (self.num_margins > 0).nonzero().squeeze(1)
            seen = self.predictions(rows, self.num_classes)
            noise = estimate_label_noise(seen)
            if noise is not None:  # enough examples to tell
                issues[rows] = wrong_label_chance(seen, noise) > 0.5
            score = torch.full(issues.shape, math.nan)
            score[rows] = (score_labels(seen, noise) + (1 + self.aum[rows]) / 2) / 2
            found["label_score"] = score
        columns = {"given": "given_label"}
        known = {columns.get(name, name): getattr(self, name).clone() for name in names}
        return known | found

    def state_dict(self) -> dict[str, Any]:
        """Return all fields, with what was told taken in."""
        self.take_in()
        return {
            **{name: getattr(self, name).clone() for name in (*_FIELDS, *PREDICTED)},
            "recent_losses": self.recent_losses.clone(),
            "recent_steps": self.recent_steps.clone(),
            "is_classification": self.is_classification,
            "num_classes": self.num_classes,
            "curve": [list(point) for point in self.curve],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name in (*_FIELDS, *PREDICTED, "recent_losses", "recent_steps"):
            setattr(self, name, state[name].clone())
        self.is_classification = state["is_classification"]
        self.num_classes = state["num_classes"]
        self.curve = [(step, loss, right) for step, loss, right in state["curve"]]
        self._told = []


def _on_cpu(digests: list[dict[str, Tensor] | None]) -> list[dict[str, Tensor] | None]:
    """Bring the digests of several batches over in one piece for each entry."""
    known = [digest for digest in digests if digest is not None]
    if not known:
        return digests
    sizes = [len(digest["off"]) for digest in known]
    parts = {
        name: torch.cat([digest[name] for digest in known]).cpu().split(sizes) for name in known[0]
    }
    rows = iter(range(len(known)))
    return [
        None if digest is None else {name: parts[name][k] for name in parts}
        for digest in digests
        for k in ([next(rows)] if digest is not None else [0])
    ]
