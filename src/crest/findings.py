"""What was found by looking a loader over, and what to change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Checkup", "Finding"]

_MARKS = {"good": "ok", "note": "note", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: `"good"`, `"note"`, or `"problem"`, for what keeps the strategy from its work.
        topic: What it is about, in a word or two.
        found: A sentence or two.
        change: What to do about it; empty if nothing.
    """

    level: Literal["good", "note", "problem"]
    topic: str
    found: str
    change: str = ""


@dataclass
class Checkup:
    """What `doctor` found; print it.

    Attributes:
        findings: In the order in which they were made.
        numbers: What was measured or counted, by name: `num_steps`, `first_selected_step` (None:
            never), `seconds_per_step`, `watching_seconds`, `bytes_per_example`, and others.
    """

    findings: list[Finding] = field(default_factory=list)
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)

    @property
    def problems(self) -> list[Finding]:
        """Findings that keep the strategy from its work."""
        return [finding for finding in self.findings if finding.level == "problem"]

    def add(
        self, level: Literal["good", "note", "problem"], topic: str, found: str, change: str = ""
    ) -> None:
        """Add a finding.

        Args:
            level: As the attribute of `Finding`.
            topic: What it is about.
            found: A sentence or two.
            change: What to do about it.
        """
        self.findings.append(Finding(level, topic, found, change))

    def __str__(self) -> str:
        """Write one line a finding, and what to change below it."""
        lines = []
        for finding in self.findings:
            lines.append(f"{_MARKS[finding.level]:>7}  {finding.topic}: {finding.found}")
            if finding.change:
                lines.append(f"{'':>7}  -> {finding.change}")
        return "\n".join(lines)
