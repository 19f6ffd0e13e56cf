"""The first batch of a run shows whether `loss_fn` gives one loss per example."""

from __future__ import annotations

from typing import Any

from crest.history import COMPONENTS, History
from crest.looking.losses import NotPerExampleError
from crest.looking.observer import Observer
from crest.reader import place

__all__ = ["FirstBatch"]


class FirstBatch:
    """Looks at the first batch that is handed out, unless the strategy has looked at the model.

    A strategy that looks finds a wrong loss by itself. Under one that does not, training would go
    on with a mean that no weight can reach.

    Args:
        observer: Looks at the model without a trace.
        history: Is told the seconds, as a check; the pass is no cost of the strategy.
    """

    def __init__(self, observer: Observer, history: History) -> None:
        self._observer = observer
        self._history = history
        self._is_done = False

    def check(self, batch: Any, size: int) -> None:
        """Look at the batch if it is the first.

        Args:
            batch: As the user's collate_fn makes it, before weights are attached.
            size: Examples in it, m.

        Raises:
            NotPerExampleError: A `ValueError`, if `loss_fn` does not return one loss per example.
        """
        if self._is_done:
            return
        self._is_done = True
        if any(self._history.forward_passes(name) for name in COMPONENTS if name != "train"):
            return
        with self._history.timed("check"):
            losses = self._look(batch)
        if losses is not None and len(losses) != size:
            raise NotPerExampleError(
                f"loss_fn must return one loss per example, shape ({size},); got "
                f"{tuple(losses.shape)}. Take the mean over the other dimensions."
            )

    def _look(self, batch: Any) -> Any:
        try:
            return self._observer.losses(place(batch, self._observer.device))
        except NotPerExampleError:
            raise
        except Exception:
            # The loop may prepare its batches in a way that loss_fn does not know. A strategy that
            # depends on loss_fn has met this error before, in a look of its own.
            return None
