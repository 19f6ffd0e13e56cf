"""The learning rate over a run, as in the paper."""

from __future__ import annotations

__all__ = ["learning_rate_factor"]


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Give the share of the peak learning rate that a step takes.

    Linear warm-up over the first 10 % of the steps, then 1, a tenth from 60 % and a hundredth
    from 85 %. A budget compresses the whole curve into its fewer steps.

    Args:
        step: Steps taken before this one, in [0, num_steps).
        num_steps: N >= 1.

    Returns:
        In (0, 1].

    Example:
        >>> [learning_rate_factor(step, 20) for step in (0, 1, 11, 12, 17)]
        [0.5, 1.0, 1.0, 0.1, 0.01]
    """
    warmup = round(0.1 * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    percent = 100 * step / num_steps
    if percent < 60:
        return 1.0
    return 0.1 if percent < 85 else 0.01
