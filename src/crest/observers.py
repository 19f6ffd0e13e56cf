"""Which observers a loader looks at its model with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from crest.looking.isolation import has_batch_norm
from crest.looking.observer import Observer
from crest.options import LoaderOptions, Look

__all__ = ["cheaper_observer", "exact_observer", "with_statistics_of_strategy"]


def with_statistics_of_strategy(options: LoaderOptions, model: nn.Module) -> LoaderOptions:
    """Let the strategy choose batch statistics, where what it looks at has any.

    Args:
        options: Of a loader; a strategy may have a field `batch_statistics`.
        model: The model that is trained.

    Returns:
        The options, with that choice in `look`.
    """
    seen = model if options.look.model is None else options.look.model
    if not getattr(options.strategy, "batch_statistics", False) or not has_batch_norm(seen):
        return options
    return dataclasses.replace(
        options, look=dataclasses.replace(options.look, batch_statistics=True)
    )


def exact_observer(
    look: Look, plain: Observer, loss_fn: Callable[..., Tensor], head: nn.Module | str | None
) -> Observer:
    """Make what looks at losses and curvature, and at all there is where the look is exact.

    Args:
        look: How to look.
        plain: Looks at the model that is trained, by its running statistics.
        loss_fn: One loss per example.
        head: The last layer of that model or its name, if known.

    Returns:
        `plain`, or one that takes the statistics of each pass.
    """
    if not look.is_exact or not look.batch_statistics:
        return plain
    return Observer(plain.model, loss_fn, head=head, dtype=look.dtype, batch_statistics=True)


def cheaper_observer(
    look: Look,
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    head: nn.Module | str | None,
) -> Observer | None:
    """Make what looks at last-layer gradients, if that is not the model on its data.

    Args:
        look: How to look.
        model: The model that is trained.
        loss_fn: One loss per example.
        head: The last layer of that model or its name, if known.

    Returns:
        The observer, or None where the look is exact.
    """
    if look.is_exact:
        return None
    return Observer(
        model if look.model is None else look.model,
        loss_fn,
        head=head if look.model is None else None,
        dtype=look.dtype,
        transform=look.transform,
        batch_statistics=look.batch_statistics,
    )
