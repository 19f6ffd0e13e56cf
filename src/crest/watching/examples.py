"""What training showed of each example, in a few bytes each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crest.watching.audit import Predictions

__all__ = ["ExampleMemory"]

_COLUMNS = 32  # of a derivative that are kept; more outputs are sketched
_KEPT = 0.5  # of an old average, when an example is seen again

_FIELDS: dict[str, tuple[torch.dtype, float]] = {
    "times_seen": (torch.int32, 0),
    "seen_at": (torch.int64, -1),
    "loss": (torch.float32, math.nan),
    "norm": (torch.float32, math.nan),
    "given": (torch.int32, -1),
    "other": (torch.int32, -1),
    "p_given": (torch.float32, math.nan),
    "p_other": (torch.float32, math.nan),
    "behind": (torch.float16, math.nan),
}


class ExampleMemory:
    """Losses, probabilities and derivatives that training showed last, and their averages.

    Where the loss is cross-entropy, a derivative by the logits is p - y: the entry below 0 tells
    the given class, and the others the predicted distribution. Of that two entries are kept, the
    given class and its strongest rival, averaged over the times that an example was seen.

    What is told stays on its device until it is asked for, so that no step waits for the device.

    Attributes:
        times_seen: int32, shape (n,).
        seen_at: Number of the pass in which it was seen last, -1 before, int64, shape (n,).
        loss: Smoothed loss, NaN before, float32, shape (n,).
        norm: Of the last derivative of the loss by the outputs, float32, shape (n,).
        given: Class that the loss was computed with, -1 if unknown, int32, shape (n,).
        other: Strongest rival of that class, int32, shape (n,).
        p_given: Smoothed probability of `given`, float32, shape (n,).
        p_other: Smoothed probability of `other`, float32, shape (n,).
        behind: Smoothed share of the other classes that were likelier than `given`, float16, shape
            (n,).
        sketch: The last derivative by the outputs: as it is up to 32 entries, else its products
            with random signs, which keep distances (Johnson & Lindenstrauss 1984); float16, shape
            (n, at most 32).
        num_outputs: Entries of a derivative, 0 if there are none or several positions.

    Args:
        num_examples: n.
    """

    times_seen: Tensor
    seen_at: Tensor
    loss: Tensor
    norm: Tensor
    given: Tensor
    other: Tensor
    p_given: Tensor
    p_other: Tensor
    behind: Tensor

    def __init__(self, num_examples: int) -> None:
        self._num_examples = num_examples
        for name, (dtype, empty) in _FIELDS.items():
            setattr(self, name, torch.full((num_examples,), empty, dtype=dtype))
        self.sketch = torch.empty(num_examples, 0, dtype=torch.float16)
        self.num_outputs = 0
        self.is_cross_entropy = True  # as far as was seen
        self._signs: Tensor | None = None
        self._losses: list[tuple[Tensor, Tensor]] = []
        self._errors: list[tuple[Tensor, dict[str, Tensor]]] = []

    @property
    def known(self) -> Tensor:
        """Of which examples something was taken in, bool, shape (n,)."""
        return self.times_seen > 0

    @property
    def margin(self) -> Tensor:
        """Smoothed probability of the given class less that of its rival, shape (n,).

        As the area under the margin of Pleiss et al. (NeurIPS 2020), of probabilities and with
        older passes counting less.
        """
        return self.p_given - self.p_other

    def predictions(self, rows: Tensor) -> Predictions:
        """Collect what is kept of the predictions for some examples.

        Args:
            rows: Of examples that were seen, int64, shape (k,).

        Returns:
            Shapes (k,).
        """
        return Predictions(
            given=self.given[rows],
            other=self.other[rows],
            p_given=self.p_given[rows],
            p_other=self.p_other[rows],
            behind=self.behind[rows],
            num_classes=self.num_outputs,
        )

    def tell(self, indices: Tensor, losses: Tensor) -> None:
        """Hear the losses of a mini-batch.

        Args:
            indices: Example indices, int64, shape (m,).
            losses: Detached, on any device, shape (m,).
        """
        self._losses.append((indices, losses))

    def tell_errors(self, indices: Tensor, errors: Tensor) -> None:
        """Hear the derivatives of the losses of a mini-batch by its outputs, after `tell`.

        Derivatives at several positions of an example, as of sequences, are not kept: losses alone
        serve as well there.

        Args:
            indices: Example indices, int64, shape (m,).
            errors: Detached, on any device, shape (m, ...).
        """
        errors = errors.reshape(len(errors), -1) if errors.ndim < 3 else errors
        if errors.ndim > 2 or (self.num_outputs and errors.shape[1] != self.num_outputs):
            return
        self.num_outputs = errors.shape[1]
        self._errors.append((indices, self._digest(errors.float())))

    def take_in(self, now: int) -> int:
        """Bring the fields up to date.

        Args:
            now: Number of the pass.

        Returns:
            How many examples were heard of.

        Raises:
            ValueError: If a loss is not finite.
        """
        heard = self._losses
        count = sum(len(indices) for indices, _ in heard)
        if not count:
            return 0
        for indices, losses in _runs_of_distinct(heard):
            self._take_losses(indices, losses, now)
        self._losses = []
        told, self._errors = self._errors, []
        for indices, digest in told:
            self._take_digest(indices, digest)
        return count

    def _digest(self, errors: Tensor) -> dict[str, Tensor]:
        """Make of derivatives what is kept, on their device."""
        digest = {"norm": errors.norm(dim=1)}
        digest["sketch"] = self._sketched(errors).half()
        if errors.shape[1] > 1:
            least, given = errors.min(dim=1)
            rivals = errors.scatter(1, given[:, None], -math.inf)
            most, other = rivals.max(dim=1)
            digest |= {"given": given, "p_given": 1 + least, "other": other, "p_other": most}
            # Rows of p - y sum to 0, and have one entry below it.
            off = (
                errors.sum(1).abs()
                + (rivals.clamp(max=0).where(rivals > -math.inf, 0)).sum(1).abs()
            )
            digest["off"] = off
            likelier = (rivals > 1 + least[:, None]).sum(1)
            digest["behind"] = likelier.float() / (errors.shape[1] - 1)
        return digest

    def sketch_of_classes(self) -> Tensor:
        """Sketch the one-hot vector of each class, float32, shape (C, columns of `sketch`)."""
        if self.num_outputs <= _COLUMNS:
            return torch.eye(self.num_outputs)
        return self._draw_signs(self.num_outputs)

    def _sketched(self, errors: Tensor) -> Tensor:
        c = errors.shape[1]
        if c <= _COLUMNS:
            return errors
        if self._signs is None or self._signs.device != errors.device:
            self._signs = self._draw_signs(c).to(errors.device)
        return errors @ self._signs

    def _draw_signs(self, c: int) -> Tensor:
        generator = torch.Generator().manual_seed(c)
        signs = torch.randint(2, (c, _COLUMNS), generator=generator).float() * 2 - 1
        return signs / math.sqrt(_COLUMNS)

    def _take_losses(self, indices: Tensor, losses: Tensor, now: int) -> None:
        losses = losses.float().cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            raise ValueError(
                f"losses of training must be finite; got {float(losses[bad[0, 0]])} for example "
                f"{int(indices[bad[0, 0]])}. Lower the learning rate or set a warmup."
            )
        old = self.loss[indices]
        self.loss[indices] = torch.where(old.isnan(), losses, _KEPT * old + (1 - _KEPT) * losses)
        self.times_seen[indices] += 1
        self.seen_at[indices] = now

    def _take_digest(self, indices: Tensor, digest: dict[str, Tensor]) -> None:
        digest = {name: value.cpu() for name, value in digest.items()}
        if not len(self.sketch[0]):
            columns = digest["sketch"].shape[1]
            self.sketch = torch.zeros(self._num_examples, columns, dtype=torch.float16)
        self.norm[indices] = digest["norm"]
        self.sketch[indices] = digest["sketch"]
        if "given" not in digest:
            self.is_cross_entropy = False
            return
        if float(digest["off"].median()) > 1e-2:
            self.is_cross_entropy = False
        same_label = self.given[indices] == digest["given"].int()
        new = ~same_label  # never seen, or its label was corrected
        self.given[indices] = digest["given"].int()
        self._average("p_given", indices, digest["p_given"], new)
        self._average("behind", indices, digest["behind"].half(), new)
        self._follow_rival(indices, digest["other"].int(), digest["p_other"], new)

    def _average(self, name: str, indices: Tensor, values: Tensor, new: Tensor) -> None:
        field: Tensor = getattr(self, name)
        old = field[indices]
        field[indices] = torch.where(new, values, _KEPT * old + (1 - _KEPT) * values)

    def _follow_rival(self, indices: Tensor, other: Tensor, p: Tensor, new: Tensor) -> None:
        """Average the strongest rival; another takes its place once it has become stronger."""
        kept = torch.where(new, 0.0, _KEPT * self.p_other[indices])
        same = self.other[indices] == other
        share = torch.where(new, p, (1 - _KEPT) * p)
        takes_over = new | (~same & (share > kept))
        self.other[indices] = torch.where(takes_over, other, self.other[indices])
        self.p_other[indices] = torch.where(takes_over, share, kept + torch.where(same, share, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """Return all fields, with what was told taken in."""
        self.take_in(int(self.seen_at.max()) if self._num_examples else 0)
        fields = {name: getattr(self, name).clone() for name in _FIELDS}
        return {
            **fields,
            "sketch": self.sketch.clone(),
            "num_outputs": self.num_outputs,
            "is_cross_entropy": self.is_cross_entropy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name in _FIELDS:
            setattr(self, name, state[name].clone())
        self.sketch = state["sketch"].clone()
        self.num_outputs = state["num_outputs"]
        self.is_cross_entropy = state["is_cross_entropy"]
        self._losses, self._errors = [], []


def _runs_of_distinct(told: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Join batches as long as no example comes twice: averages need their order."""
    indices = torch.cat([some for some, _ in told])
    if len(indices.unique()) == len(indices):
        return [(indices, torch.cat([values for _, values in told]))]
    return told
