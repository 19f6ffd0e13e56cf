"""Keeps the books of a loader: how often each example was trained on, and what is told of it."""

from __future__ import annotations

import logging
import numbers
from typing import Any

import torch
from torch import Tensor

from crest.history import History
from crest.strategies.protocol import Excludes, Planner, Region
from crest.trackers import Tracker
from crest.watching.record import ExampleRecord

__all__ = ["Ledger"]

_AT_ONCE = 256  # batches that are counted together

_log = logging.getLogger(__package__)


class Ledger:
    """Counts, and tells loggers and trackers what happens.

    A batch costs the append to a list, unless every example is recorded.

    Attributes:
        record: What was seen of each example, None if that is not asked for.
        trained: How often each example was handed out, int32, shape (n,).
        selected: How often of these as part of a region that was selected, int32, shape (n,).
        left_out_since: Step from which on an example is out of play, -1 for one that is in it,
            int32, shape (n,).

    Args:
        num_examples: n.
        history: Of the loader.
        records: Whether to record every example.
        tracker: Is told numbers of each region.
    """

    def __init__(
        self, num_examples: int, history: History, *, records: bool, tracker: Tracker | None
    ) -> None:
        self.record = ExampleRecord(num_examples) if records else None
        self.left_out_since = torch.full((num_examples,), -1, dtype=torch.int32)
        self._trained = torch.zeros(num_examples, dtype=torch.int32)
        self._selected = torch.zeros(num_examples, dtype=torch.int32)
        self._history = history
        self._trackers = [] if tracker is None else [tracker]
        self._is_silent = False
        self._pending: list[Tensor] = []
        self._selects = False  # in the region under way
        self._has_selected = False
        self._told_refused = 0

    @property
    def trained(self) -> Tensor:
        """As the attribute."""
        self._take_in()
        return self._trained

    @property
    def selected(self) -> Tensor:
        """As the attribute."""
        self._take_in()
        return self._selected

    def tell_also(self, tracker: Tracker) -> None:
        """Tell another one, such as the logger of a framework, in place of one of its kind."""
        others = [one for one in self._trackers if type(one) is not type(tracker)]
        self._trackers = [*others, tracker]

    def silence(self) -> None:
        """Tell nobody anything, as nothing is trained on."""
        self._is_silent = True

    def hand_out(self, indices: Tensor) -> None:
        """Count a batch that the loop gets now.

        Args:
            indices: Of its examples, of all processes together, int64, shape (k,).
        """
        self._pending.append(indices)
        if len(self._pending) >= _AT_ONCE:
            self._take_in()

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self._history.steps

    def tell(self, step: int, indices: Tensor, losses: Tensor, errors: Tensor | None) -> None:
        """Record what training showed, if it is recorded.

        Args:
            step: Optimizer steps taken by then.
            indices: Of the examples, int64, shape (m,).
            losses: Detached, shape (m,).
            errors: Their derivatives by the outputs, shape (m, ...), None if unknown.
        """
        if self.record is not None:
            self.record.tell(step, indices, losses, errors)

    def open(self, region: Region, planner: Planner, step: int) -> None:
        """Hear of a region that begins.

        Args:
            region: What was planned.
            planner: Of the strategy.
            step: Optimizer steps taken so far.
        """
        self._take_in()
        self._selects = bool(region.record.get("selected", region.record.get("updated", False)))
        if isinstance(planner, Excludes):
            self._note_left_out(planner.active, step)
        if self._is_silent:
            return
        if self._selects and not self._has_selected:
            _log.info("step %d: batches are selected from here on", step)
        self._has_selected |= self._selects
        if self._trackers:
            metrics = self._metrics(region)
            for tracker in self._trackers:
                tracker.log(metrics, step)

    def note_refused(self, handed_out: int, missed: int, why: str) -> None:
        """Tell of batches that could not be matched with what training did, each share once.

        Args:
            handed_out: Batches.
            missed: Of these.
            why: In words.
        """
        if missed > max(2 * self._told_refused, 0.01 * handed_out) and not self._is_silent:
            self._told_refused = missed
            _log.warning("%d of %d batches were not seen in training. %s", missed, handed_out, why)

    def _metrics(self, region: Region) -> dict[str, float]:
        history = self._history
        numbers_ = {
            "selected": float(self._selects),
            "cost": history.cost,
            "overhead": history.overhead,
            **{f"seconds/{name}": value for name, value in history.seconds.items()},
            **{
                name: float(value)
                for name, value in region.record.items()
                if isinstance(value, numbers.Real)
            },
        }
        if self.record is not None and self.record.curve:
            _, loss, right = self.record.curve[-1]
            numbers_["loss"] = loss
            if right is not None:
                numbers_["train_accuracy"] = right
        return {f"crest/{name}": value for name, value in numbers_.items()}

    def _note_left_out(self, active: Tensor, step: int) -> None:
        if torch.equal(self.left_out_since < 0, active):
            return
        before = int((self.left_out_since >= 0).sum())
        since = self.left_out_since.where(self.left_out_since >= 0, step)
        self.left_out_since = since.where(~active, -1).int()
        now = int((~active).sum())
        if not self._is_silent:
            share = now / len(active)
            _log.debug("step %d: %d examples left out (%.1f %%)", step, now, 100 * share)
            if not before:
                _log.info("step %d: the first examples are left out, %.1f %%", step, 100 * share)

    def _take_in(self) -> None:
        if not self._pending:
            return
        counts = torch.cat(self._pending).cpu().bincount(minlength=len(self._trained)).int()
        self._pending = []
        self._trained += counts
        if self._selects:
            self._selected += counts

    def state_dict(self) -> dict[str, Any]:
        """Return all counts, and the record if there is one."""
        return {
            "trained": self.trained.clone(),
            "selected": self.selected.clone(),
            "left_out_since": self.left_out_since.clone(),
            "selects": self._selects,
            "has_selected": self._has_selected,
            "record": None if self.record is None else self.record.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; a record that there was none of begins anew."""
        saved = state["record"]
        self._pending = []
        self._trained = state["trained"].clone()
        self._selected = state["selected"].clone()
        self.left_out_since = state["left_out_since"].clone()
        self._selects = state["selects"]
        self._has_selected = state["has_selected"]
        if self.record is not None:
            if saved is None:
                self.record = ExampleRecord(len(self._trained))
            else:
                self.record.load_state_dict(saved)
