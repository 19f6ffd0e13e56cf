"""Passes on to a strategy what training shows: seen by hooks in the loop, or told by it."""

from __future__ import annotations

import contextlib
import itertools
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from crest.ledger import Ledger
from crest.looking.observer import Observer
from crest.ranks import Ranks
from crest.reader import place
from crest.strategies.protocol import (
    LearnsFromTraining,
    MiniBatch,
    Planner,
    RemembersGradients,
    call_observe,
)
from crest.watching.errors import output_gradients
from crest.watching.hook import Watch
from crest.watching.replay import Replay

__all__ = ["Feed"]


class Seen(NamedTuple):
    """What training showed of a batch.

    Attributes:
        step: Optimizer steps taken.
        indices: Of its examples, int64, shape (m,).
        losses: Shape (m,).
        errors: Their derivatives by the outputs, shape (m, ...), None if unknown or not needed.
    """

    step: int
    indices: Tensor
    losses: Tensor
    errors: Tensor | None


class Feed:
    """What a planner hears of training.

    Nothing is watched for a planner that does not learn from training, and nothing more once the
    loop tells by itself.

    Args:
        planner: Of the strategy.
        ledger: Records what is seen, if it is to.
        model: The model that the loop calls.
        observer: Finds the last layer of a model that is never called itself.
        loss_fn: One loss per example.
        name: Of the strategy, for messages.
        ranks: The processes of the run; of several, each keeps what it has seen until `exchange`.
    """

    def __init__(
        self,
        planner: Planner,
        ledger: Ledger,
        model: nn.Module,
        observer: Observer,
        loss_fn: Callable[..., Tensor],
        name: str,
        ranks: Ranks,
    ) -> None:
        self._planner = planner
        self._ledger = ledger
        self._model = model
        self._observer = observer
        self._loss_fn = loss_fn
        self._name = name
        # Asked once: at each step it would take as long as a small one.
        self._learns_losses = isinstance(planner, LearnsFromTraining)
        self._learns_gradients = isinstance(planner, RemembersGradients)
        # Of sequences: their derivatives are of several positions, and too large to be kept.
        self._losses_serve = self._learns_losses or not self._learns_gradients
        self._listens = self._learns_losses or self._learns_gradients or ledger.record is not None
        self._ranks = ranks
        self._pending: list[Seen] = []  # since the processes last told each other
        self._is_told = False
        self.watch: Watch | None = None

    def hand_out(self, planned: MiniBatch, batch: Any) -> None:
        """Hear of a batch that the loop gets now, and watch what it makes of it.

        Args:
            planned: Its examples and weights.
            batch: Without weights.
        """
        if self.watch is None:
            if self._is_told or not self._listens:
                return
            replay = Replay(self._model, self._loss_fn, takes_model=self._observer.takes_model)
            self.watch = Watch(self._model, replay, _Weakly(self))
        self.watch.hand_out(self._ledger.step, planned.indices, planned.weights, batch)

    def settle(self) -> None:
        """Pass on what was seen so far."""
        # A loop that stands still when Python ends is closed late, where torch computes no more.
        if self.watch is not None and not sys.is_finalizing():
            self.watch.settle()

    def look(self) -> None:
        """See what the last step showed; it is passed on some steps later, or by `settle`."""
        if self.watch is None:
            return
        self.watch.look()
        batch = self.watch.unseen_batch
        if batch is not None:  # the loop calls parts of the model by themselves
            # There may be no layer to be found, or the loop prepares batches by itself.
            with contextlib.suppress(Exception):
                head = self._observer.find_head(place(batch, self._observer.device))
                self.watch.watch_head(head)

    def tell(self, indices: Tensor, losses: Tensor, outputs: Tensor | None) -> None:
        """Pass on what the loop tells.

        Args:
            indices: Of the examples, int64, shape (m,).
            losses: Shape (m,), with their graph.
            outputs: What they were computed from, shape (m, ...).
        """
        self.close()
        errors = None
        if self._learns_gradients:
            errors = output_gradients(losses, outputs, self._name)
        elif self._ledger.record is not None and outputs is not None:
            with contextlib.suppress(ValueError):  # losses alone are recorded then
                errors = output_gradients(losses, outputs, self._name)
        # A copy: the loop may weight the losses in place, a CUDA graph write over them.
        self._pass_on(self._ledger.step, indices, losses.detach().clone(), errors)

    def note_refused(self) -> None:
        """Let the log say how many batches were not matched with what training did, and why."""
        if self.watch is not None and self.watch.missed:
            self._ledger.note_refused(
                self.watch.handed_out, self.watch.missed, self.watch.explain()
            )

    def close(self) -> None:
        """Watch no more."""
        self._is_told = True
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    def explain(self) -> str:
        """Say in words why nothing, or not all, was seen."""
        return call_observe() if self.watch is None else self.watch.explain()

    def exchange(self) -> None:
        """Tell planner and ledger what all processes have seen, in the order of the batches."""
        if self._ranks.world == 1 or not self._listens:
            return
        own, self._pending = [_to_tell(seen) for seen in self._pending], []
        for batch in itertools.zip_longest(*self._ranks.gather("what was seen", own)):
            for seen in batch:
                if seen is not None:
                    self._take_in(Seen(*seen))

    def state_dict(self) -> dict[str, Any]:
        """Return what this process has seen and not told yet."""
        columns = {name: [getattr(seen, name) for seen in self._pending] for name in Seen._fields}
        return {"rank": self._ranks.rank, **columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; what another process saw is its own to tell."""
        self._pending = []
        if state["rank"] == self._ranks.rank:
            for entry in zip(*(state[name] for name in Seen._fields), strict=True):
                self._keep(Seen(*entry))

    def _pass_on(self, step: int, indices: Tensor, losses: Tensor, errors: Tensor | None) -> None:
        self._keep(Seen(step, indices, losses, errors))

    def _keep(self, seen: Seen) -> None:
        if self._ranks.world == 1:
            self._take_in(seen)
        else:
            wants_errors = self._learns_gradients or self._ledger.record is not None
            if not wants_errors:
                seen = seen._replace(errors=None)
            elif seen.errors is not None and seen.errors.ndim > 2 and self._losses_serve:
                seen = seen._replace(errors=seen.errors[:, :0].clone())
            self._pending.append(seen)

    def _take_in(self, seen: Seen) -> None:
        self._ledger.tell(*seen)
        _, indices, losses, errors = seen
        if self._learns_losses:
            cast(LearnsFromTraining, self._planner).observe(indices, losses)
        if errors is not None and self._learns_gradients:
            cast(RemembersGradients, self._planner).remember(indices, errors)


class _Weakly:
    """Passes on what a watch files, but does not keep the feed, which keeps the watch."""

    def __init__(self, feed: Feed) -> None:
        self._feed = weakref.ref(feed)

    def __call__(self, step: int, indices: Tensor, losses: Tensor, errors: Tensor) -> None:
        feed = self._feed()
        if feed is not None:
            feed._pass_on(step, indices, losses, errors)


def _to_tell(seen: Seen) -> tuple[int, Tensor, Tensor, Tensor | None]:
    """Bring what was seen into the form that travels: int64 and float32, on the CPU."""
    errors = None if seen.errors is None else seen.errors.float().cpu()
    return seen.step, seen.indices.cpu(), seen.losses.float().cpu(), errors
