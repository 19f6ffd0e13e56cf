"""The diagnostics of one run, by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crest.checks import check_choice
from crest.diagnostics import (
    Forgetting,
    Selections,
    excluded_accuracy,
    loss_model_errors,
    measure_gradient_error,
)
from crest.loader import CoresetLoader

__all__ = ["DIAGNOSTICS", "Diagnosis", "check_diagnostics", "evenly_spaced"]

# What to measure, and the figures of the paper that show it.
DIAGNOSTICS = (
    "gradient_error",  # 1, 6, 9
    "loss_model",
    "forgetting",  # 5, 7b
    "selections",  # 7b
    "excluded",  # 7a
    "label_issues",
    "label_scores",
)

_GRADIENT_MEASUREMENTS = 10  # at most: each passes over thousands of examples
_GRADIENT_EXAMPLES = 5000  # that the full gradient is measured on, if there are as many


class Diagnosis:
    """Measures what was asked for at evenly spaced steps of a run, and nothing else.

    Args:
        names: Some of `DIAGNOSTICS`.
        loader: Of the run.
        look: Tells which examples of the loader the model has right now, bool, shape (n,).
        num_steps: N.
        evaluations: How often to look; gradients are measured ten times at most.
        subset_size: r of the strategy, if it has one.

    Raises:
        ValueError: If a name is unknown.
    """

    def __init__(
        self,
        names: Sequence[str],
        loader: CoresetLoader,
        look: Callable[[], Tensor],
        num_steps: int,
        evaluations: int,
        subset_size: int | None = None,
    ) -> None:
        check_diagnostics(names)
        self._names = set(names)
        self._loader = loader
        self._look = look
        self._subset_size = subset_size
        self._look_at = evenly_spaced(num_steps, evaluations)
        self._gradients_at = evenly_spaced(num_steps, min(evaluations, _GRADIENT_MEASUREMENTS))
        self._forgetting = Forgetting(loader.num_examples)
        self._selections = Selections(loader.num_examples)
        self._picked: list[Tensor] = []  # not yet counted, to spare the clock
        self._gradient_errors: list[dict[str, Any]] = []
        self._excluded: list[dict[str, Any]] = []

    def is_due(self, step: int) -> bool:
        """Tell whether to stop the clock and measure, and remember what was picked.

        Args:
            step: Steps taken so far; call it after each.

        Returns:
            Whether there is something to measure.
        """
        if not self._names:
            return False
        if self._names & {"forgetting", "selections"} and self._loader.handed_out is not None:
            self._picked.append(self._loader.handed_out.indices)
        return step in self._look_at or step in self._gradients_at

    def measure(self, step: int) -> None:
        """Measure what is due at a step, without a trace.

        Args:
            step: Steps taken so far.
        """
        if "gradient_error" in self._names and step in self._gradients_at:
            enough = max(_GRADIENT_EXAMPLES, 2 * self._loader.batch_size)
            error = measure_gradient_error(
                self._loader,
                num_examples=min(enough, self._loader.num_examples),
                subset_size=self._subset_size,
                seed=step,
            )
            self._gradient_errors.append({"step": step, **dataclasses.asdict(error)})
        if step not in self._look_at:
            return
        for indices in self._picked:
            self._selections.observe(indices)
        self._picked.clear()
        self._selections.close_period(step)
        if self._names & {"forgetting", "excluded"}:
            correct = self._look().cpu()
            self._forgetting.observe(torch.arange(len(correct)), correct)
            self._excluded.append({"step": step, **excluded_accuracy(self._loader.active, correct)})

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            "picked": list(self._picked),
            "gradient_errors": self._gradient_errors,
            "excluded": self._excluded,
            "forgetting": self._forgetting.state_dict(),
            "selections": self._selections.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._picked = list(state["picked"])
        self._gradient_errors = state["gradient_errors"]
        self._excluded = state["excluded"]
        self._forgetting.load_state_dict(state["forgetting"])
        self._selections.load_state_dict(state["selections"])

    def to_record(self) -> dict[str, Any]:
        """Collect the results, primitives only.

        Returns:
            For each name that was asked for: `gradient_error`, a list of `step` and the fields of
            `GradientError`; `loss_model`, see `loss_model_errors`; `forgetting`, with `selected`
            (for each period its last `step`, the mean final `score` of its picks and the share of
            them that were `never_learned`), `histogram` of the scores of all examples,
            `selected_histogram` of those of all picks, and `mean` and `never_learned` over all
            examples; `selections`, with the `histogram` of how often examples were trained
            on; `excluded`, a list of `step`, `excluded`, `accuracy` and `active_accuracy`;
            `label_issues`, a list of `index`, `given` and `predicted` label of what looks wrong in
            the end, surest first, for strategies that tell; `label_scores`, the `label_score` of
            `CoresetLoader.examples` of all examples, in ten-thousandths, None if unknown.
        """
        forgetting, selections = self._forgetting, self._selections
        results = {
            "gradient_error": self._gradient_errors,
            "loss_model": loss_model_errors(self._loader.history),
            "forgetting": {
                "selected": forgetting.of_selected(selections),
                "histogram": forgetting.histogram(),
                "selected_histogram": forgetting.histogram(selections),
                "mean": float(forgetting.scores.float().mean()),
                "never_learned": float((~forgetting.was_ever_correct).float().mean()),
            },
            "selections": {"histogram": selections.histogram()},
            "excluded": self._excluded,
            "label_issues": self._label_issues() if "label_issues" in self._names else None,
            "label_scores": self._label_scores() if "label_scores" in self._names else None,
        }
        return {name: results[name] for name in DIAGNOSTICS if name in self._names}

    def _label_issues(self) -> list[dict[str, int]]:
        table = self._loader.examples()
        found = np.flatnonzero(np.asarray(table["is_label_issue"]))
        order = np.argsort(np.asarray(table["label_score"])[found], kind="stable")
        given, predicted = (np.asarray(table[name]) for name in ("given_label", "predicted_label"))
        return [
            {"index": int(k), "given": int(given[k]), "predicted": int(predicted[k])}
            for k in found[order]
        ]

    def _label_scores(self) -> list[int | None]:
        scores = np.asarray(self._loader.examples()["label_score"])
        return [None if math.isnan(score) else round(10_000 * score) for score in scores.tolist()]


def check_diagnostics(names: Sequence[str]) -> None:
    """Refuse an unknown name.

    Args:
        names: What was asked for.

    Raises:
        ValueError: If one is not among `DIAGNOSTICS`.
    """
    for name in names:
        check_choice("diagnostic", name, DIAGNOSTICS)


def evenly_spaced(num_steps: int, count: int) -> set[int]:
    """Choose steps to measure at, the last one among them.

    Args:
        num_steps: N >= 1.
        count: How many, if there are as many steps.

    Returns:
        Steps in [1, N].

    Example:
        >>> sorted(evenly_spaced(10, 4))
        [3, 5, 8, 10]
    """
    return {math.ceil(num_steps * part / count) for part in range(1, count + 1)}
