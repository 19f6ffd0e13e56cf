"""What a run did and what it cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["COMPONENTS", "History"]

COMPONENTS = ("select", "features", "quadratic", "check", "data", "train")

# Passes of one example, in forward passes. A Hessian pass, the derivative of g . z, goes back
# through forward and backward: twice three (measured on ResNet-8: 6.9 to 8.2).
_UNITS = {"forward": 1.0, "backward": 2.0, "hessian": 6.0}
_KEPT_RECORDS = 1000  # in a checkpoint


class History:
    """Records, clocks and counters of one loader.

    Attributes:
        records: One dict for each region that was planned: `step` it starts at and `length` in
            steps; `seconds` and `cost` so far; for `Crest` also `updated`, `check_interval` (T_1),
            `num_coresets` (P), `active` examples, and with a check `relative_error` (rho) and its
            parts `predicted_loss`, `check_loss` with its standard error `check_loss_error`,
            `anchor_loss`, `linear_term`, `quadratic_term`.
        updates: How often new coresets were picked.
        steps: Optimizer steps for which batches were handed out.
        seconds: Seconds for each of `select`, `features`, `quadratic`, `check`, `data`, `train`;
            each second counts once. Where the strategy does not look at the model, `check` has
            those of one look at the first batch, which shows whether the loss is one per example;
            `passes` and `cost` do not count it, as it serves no choice.
        passes: Forward, backward and Hessian passes of single examples, for each component.
        lag: Steps by which fetching ran ahead of training at the end of a region, at worst.

    Args:
        examples_per_step: Examples of one step of random mini-batches, the unit of cost.
        device: Where the model lives; its queue is awaited when a clock is read.
    """

    def __init__(self, examples_per_step: int, device: torch.device) -> None:
        self.records: list[dict[str, Any]] = []
        self.updates = 0
        self.steps = 0
        self.lag = 0
        self.seconds = dict.fromkeys(COMPONENTS, 0.0)
        self.passes: dict[str, dict[str, float]] = {
            name: dict.fromkeys(_UNITS, 0) for name in COMPONENTS
        }
        self._examples_per_step = examples_per_step
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @property
    def costs(self) -> dict[str, float]:
        """Cost of each component in units of one random training step, from counted passes."""
        unit = self._examples_per_step * (_UNITS["forward"] + _UNITS["backward"])
        return {name: self.forward_passes(name) / unit for name in COMPONENTS}

    @property
    def cost(self) -> float:
        """Cost of the run in units of one random training step, from counted passes."""
        return sum(self.costs.values())

    @property
    def overhead(self) -> float:
        """Cost beyond training itself, as a fraction of training; 0 for random batches."""
        train = self.costs["train"]
        return self.cost / train - 1 if train else 0.0

    @property
    def break_even(self) -> float:
        """Random steps that a step must be worth for the strategy to pay; 1 for random batches."""
        return 1 + self.overhead

    @property
    def forward_price(self) -> float | None:
        """Seconds of one observed example over those of one example in a training step.

        About 1/3 where the backward pass costs two forward passes; None before both were timed.
        `Crest(forward_price=)` weighs selection by it.
        """
        observed = self.passes["features"]["forward"]
        trained = self.passes["train"]["forward"]
        if not (observed and trained and self.seconds["train"]):
            return None
        return self.seconds["features"] / observed / (self.seconds["train"] / trained)

    def forward_passes(self, component: str) -> float:
        """Count the passes of a component, a backward pass as two and a Hessian pass as six.

        Args:
            component: One of `COMPONENTS`.

        Returns:
            In forward passes of one example.
        """
        return sum(count * _UNITS[kind] for kind, count in self.passes[component].items())

    def count(self, component: str, **passes: float) -> None:
        """Add passes of single examples.

        Args:
            component: One of `COMPONENTS`.
            **passes: Number of `forward`, `backward` and `hessian` passes; a pass of a cheaper
                model or view is a part of one.
        """
        for kind, number in passes.items():
            self.passes[component][kind] += number

    @contextmanager
    def timed(self, component: str) -> Iterator[None]:
        """Book the seconds spent inside under `component`, less those of a clock within.

        Args:
            component: One of `COMPONENTS`.

        Yields:
            Nothing.
        """
        self._read_clock()
        self._running.append(component)
        try:
            yield
        finally:
            self._read_clock()
            self._running.pop()

    @contextmanager
    def timed_on_host(self, component: str) -> Iterator[None]:
        """Book the seconds spent inside under `component`, without waiting for the device.

        For what happens at every step; no other clock may run within or around it.

        Args:
            component: One of `COMPONENTS`.

        Yields:
            Nothing.
        """
        since = time.perf_counter()
        yield
        self.seconds[component] += time.perf_counter() - since

    def await_training(self) -> None:
        """Wait until the device has finished the steps in its queue, and book it as training."""
        if self._device.type == "cuda":
            with self.timed_on_host("train"):
                torch.cuda.synchronize(self._device)

    def report_lag(self, lag: int) -> None:
        """Remember by how much fetching ran ahead of training, and warn the first time.

        Args:
            lag: Steps not yet taken when the next region was planned.
        """
        if self.lag == 0:
            warnings.warn(
                f"a region was planned before {lag} step(s) on the last one were taken: batches "
                "are fetched ahead of training, or optimizer steps were skipped. Selection works "
                "on older parameters; history.lag tells how far.",
                stacklevel=5,  # the user's loop
            )
        self.lag = max(self.lag, lag)

    def add_record(self, record: dict[str, Any]) -> None:
        """Append what a region planned.

        Args:
            record: Primitives only.
        """
        self.updates += bool(record.get("updated"))
        self.records.append({**record, "cost": self.cost, "seconds": sum(self.seconds.values())})

    def to_dict(self) -> dict[str, Any]:
        """Return everything as primitives, ready for JSON."""
        return {
            "records": self.records,
            "updates": self.updates,
            "steps": self.steps,
            "lag": self.lag,
            "seconds": self.seconds,
            "passes": self.passes,
            "costs": self.costs,
            "cost": self.cost,
            "overhead": self.overhead,
            "break_even": self.break_even,
            "forward_price": self.forward_price,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return totals and the newest records."""
        return {
            "records": [dict(record) for record in self.records[-_KEPT_RECORDS:]],
            "updates": self.updates,
            "steps": self.steps,
            "lag": self.lag,
            "seconds": dict(self.seconds),
            "passes": {name: dict(counts) for name, counts in self.passes.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.records = [dict(record) for record in state["records"]]
        self.updates = state["updates"]
        self.steps = state["steps"]
        self.lag = state["lag"]
        self.seconds = dict(state["seconds"])
        self.passes = {name: dict(counts) for name, counts in state["passes"].items()}

    def _read_clock(self) -> None:
        """Book the time since the last reading under the innermost running component."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
