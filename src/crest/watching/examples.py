"""What training showed of each example, in a few bytes each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crest.watching.predictions import OFF, PREDICTED, SmoothedPredictions, averaged, read_errors

__all__ = ["ExampleMemory"]

_COLUMNS = 32  # of a derivative that are kept; more outputs are sketched

_FIELDS: dict[str, tuple[torch.dtype, float]] = {
    "times_seen": (torch.int32, 0),
    "loss": (torch.float32, math.nan),
    "norm": (torch.float32, math.nan),
}


class ExampleMemory(SmoothedPredictions):
    """Losses, probabilities and derivatives that training showed last, and their averages.

    Where the loss is cross-entropy, a derivative by the logits is p - y: the entry below 0 tells
    the given class, and the others the predicted distribution. Of that two entries are kept, the
    given class and its strongest rival, averaged over the times that an example was seen.

    What is told stays on its device until it is asked for, so that no step waits for the device.

    Attributes:
        times_seen: int32, shape (n,).
        loss: Smoothed loss, NaN before, float32, shape (n,).
        norm: Of the last derivative of the loss by the outputs, float32, shape (n,).
        sketch: The last derivative by the outputs: as it is up to 32 entries, else its products
            with random signs, which keep distances (Johnson & Lindenstrauss 1984); float16, shape
            (n, at most 32).
        num_outputs: Entries of a derivative, 0 if there are none or several positions.

    Args:
        num_examples: n.
    """

    times_seen: Tensor
    loss: Tensor
    norm: Tensor

    def __init__(self, num_examples: int) -> None:
        super().__init__(num_examples)
        self._num_examples = num_examples
        for name, (dtype, empty) in _FIELDS.items():
            setattr(self, name, torch.full((num_examples,), empty, dtype=dtype))
        self.sketch = torch.empty(num_examples, 0, dtype=torch.float16)
        self.num_outputs = 0
        self.is_cross_entropy = True  # as far as was seen
        self._signs: dict[torch.device, Tensor] = {}
        self._losses: list[tuple[Tensor, dict[str, Tensor]]] = []
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

    def tell(self, indices: Tensor, losses: Tensor) -> None:
        """Hear the losses of a mini-batch.

        Args:
            indices: Example indices, int64, shape (m,).
            losses: Detached, on any device, shape (m,).
        """
        self._losses.append((indices, {"losses": losses}))

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
        told = {"errors": errors.float()}
        # Few outputs are kept as they are, and read together: a step has better things to do.
        self._errors.append((indices, told if errors.shape[1] <= _COLUMNS else self._digest(told)))

    def take_in(self) -> int:
        """Bring the fields up to date.

        Returns:
            How many examples were heard of.

        Raises:
            ValueError: If a loss is not finite.
        """
        heard = self._losses
        count = sum(len(indices) for indices, _ in heard)
        if not count:
            return 0
        for indices, values, _ in _runs_of_distinct(heard):
            self._take_losses(indices, values["losses"])
        self._losses = []
        told, self._errors = self._errors, []
        for indices, values, sizes in _runs_of_distinct(told):
            digest = self._digest(values) if "errors" in values else values
            self._take_digest(indices, digest, sizes)
        return count

    def _digest(self, told: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make of derivatives what is kept, on their device."""
        errors = told["errors"]
        kept = {"norm": errors.norm(dim=1), "sketch": self._sketched(errors).half()}
        return kept | (read_errors(errors) or {})

    def sketch_of_classes(self) -> Tensor:
        """Sketch the one-hot vector of each class, float32, shape (C, columns of `sketch`)."""
        if self.num_outputs <= _COLUMNS:
            return torch.eye(self.num_outputs)
        return self._signs_on(torch.device("cpu"))

    def _sketched(self, errors: Tensor) -> Tensor:
        if errors.shape[1] <= _COLUMNS:
            return errors
        return errors @ self._signs_on(errors.device)

    def _signs_on(self, device: torch.device) -> Tensor:
        """Draw the signs of a sketch once for a device, shape (C, columns)."""
        if device not in self._signs:
            c = self.num_outputs
            generator = torch.Generator().manual_seed(c)
            signs = torch.randint(2, (c, _COLUMNS), generator=generator).float() * 2 - 1
            self._signs[device] = (signs / math.sqrt(_COLUMNS)).to(device)
        return self._signs[device]

    def _take_losses(self, indices: Tensor, losses: Tensor) -> None:
        losses = losses.float().cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            raise ValueError(
                f"losses of training must be finite; got {float(losses[bad[0, 0]])} for example "
                f"{int(indices[bad[0, 0]])}. Lower the learning rate or set a warmup."
            )
        self.loss[indices] = averaged(self.loss[indices], losses)
        self.times_seen[indices] += 1

    def _take_digest(self, indices: Tensor, digest: dict[str, Tensor], sizes: list[int]) -> None:
        digest = {name: value.cpu() for name, value in digest.items()}
        if not len(self.sketch[0]):
            columns = digest["sketch"].shape[1]
            self.sketch = torch.zeros(self._num_examples, columns, dtype=torch.float16)
        self.norm[indices] = digest["norm"]
        self.sketch[indices] = digest["sketch"]
        if "off" not in digest:
            self.is_cross_entropy = False
            return
        if any(float(off.median()) > OFF for off in digest["off"].split(sizes)):
            self.is_cross_entropy = False
        self.take_predictions(indices, digest)

    def state_dict(self) -> dict[str, Any]:
        """Return all fields, with what was told taken in."""
        self.take_in()
        fields = {name: getattr(self, name).clone() for name in (*_FIELDS, *PREDICTED)}
        return {
            **fields,
            "sketch": self.sketch.clone(),
            "num_outputs": self.num_outputs,
            "is_cross_entropy": self.is_cross_entropy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name in (*_FIELDS, *PREDICTED):
            setattr(self, name, state[name].clone())
        self.sketch = state["sketch"].clone()
        self.num_outputs = state["num_outputs"]
        self.is_cross_entropy = state["is_cross_entropy"]
        self._losses, self._errors = [], []


def _runs_of_distinct(
    told: list[tuple[Tensor, dict[str, Tensor]]],
) -> list[tuple[Tensor, dict[str, Tensor], list[int]]]:
    """Join batches as long as no example comes twice: averages need their order.

    Args:
        told: Example indices of each batch, and what was told of it.

    Returns:
        The same, joined or not, with the sizes of the batches that were joined.
    """
    if not told:
        return []
    indices = torch.cat([some for some, _ in told])
    if int(indices.bincount().max()) > 1:
        return [(some, values, [len(some)]) for some, values in told]
    joined = {name: torch.cat([values[name] for _, values in told]) for name in told[0][1]}
    return [(indices, joined, [len(some) for some, _ in told])]
