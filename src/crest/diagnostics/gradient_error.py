"""Bias and variance of mini-batch gradients, Figures 1, 6 and 9, and epsilon of Theorem 4.1."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crest.checks import SEED, check, instance, many, whole
from crest.loader import CoresetLoader
from crest.looking.observer import Observer
from crest.quadratic import flatten
from crest.strategies.protocol import MiniBatch

__all__ = ["GradientError", "measure_gradient_error"]

_LOADER = instance(CoresetLoader, text="a CoresetLoader")
_STREAM = 0x9E3779B9  # any number of 32 bits, which is what a CPU generator takes of a seed


@dataclass(frozen=True)
class GradientError:
    """How far the gradients g_M of mini-batches are from the full gradient g.

    Squared norms over all trainable parameters, in eval mode. With a sample in place of the whole
    data set, its own expected error is subtracted from all of them.

    Note:
        E||xi|| of Theorem 4.1 may be read in two ways. Appendix A.1 calls gradients unbiased where
        "E[||zeta||] = 0", which can only mean ||E[zeta]||; so does "normalized bias", Figure 6b.
        Hence epsilon is `normalized_bias`, ||E[g_M] - g|| / ||g||. The literal reading, with the
        norm inside, is bounded by `normalized_error`, E||g_M - g|| / ||g||, which contains zeta,
        the error of V_p, as well.

    Attributes:
        num_examples: Examples that g is the mean of.
        num_batches: Distinct mini-batches that expectations are taken over, k.
        gradient_norm: ||g||.
        variance: E||g_M - g||^2 as in Figures 1d and 9: around g, not around E[g_M].
        random_variance: The same of random mini-batches of size m, whose bias is 0: sigma^2 / m.
        subset_variance: The same of random subsets of size r, sigma^2 / r.
        union_error: ||1/k sum_i g_Mi - g||^2 of the k mini-batches together, Figures 1b and 6a.
        squared_bias: Estimate of ||E[g_M] - g||^2, Figure 1c; unbiased for independent
            mini-batches, so that it may be below 0. None for a single mini-batch.
        normalized_bias: epsilon, from `squared_bias`, at least 0. None as well if ||g|| is 0.
        normalized_error: E||g_M - g|| / ||g||.
        nearly_unbiased: Whether epsilon < 1, as Case 1 of Theorem 4.1 asks where coresets are
            picked. Its conditions on the gradient at the end of a region are not tested.
        effective_size: Mean of (sum w)^2 / sum w^2 over mini-batches: how many equal weights would
            average as much, at most m.
        subset_size: r.
    """

    num_examples: int
    num_batches: int
    gradient_norm: float
    variance: float
    random_variance: float
    subset_variance: float
    union_error: float
    squared_bias: float | None
    normalized_bias: float | None
    normalized_error: float | None
    nearly_unbiased: bool | None
    effective_size: float
    subset_size: int


def measure_gradient_error(
    loader: CoresetLoader,
    *,
    num_examples: int | None = None,
    num_batches: int = 20,
    subset_size: int | None = None,
    seed: int = 0,
) -> GradientError:
    """Measure the gradients of the mini-batches that come next, at the present parameters.

    The mini-batches are those of `loader.preview`: coresets in use have the age that they are used
    at, and what the strategy would pick next is picked at the present parameters. g is the mean
    gradient of one view of each example; sigma^2 comes from the same passes, in blocks of m. Model,
    loader and random states stay as they are. One backward pass over all this is the price.

    Args:
        loader: At any step of a run.
        num_examples: Random examples that g is measured on, in [2 m, n]. None: all.
        num_batches: Mini-batches to look at, >= 1; those that come twice count once.
        subset_size: r, for comparison, in [m, n]. None: 1 % of the data set, at least three
            mini-batches.
        seed: Of the random examples and the views.

    Returns:
        Errors of the mini-batches, and of random ones for comparison.

    Raises:
        TypeError: If an argument is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> import crest
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
        >>> model, criterion = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss(reduction="none")
        >>> loader = CoresetLoader(
        ...     DataLoader(data, batch_size=8), model, loss_fn=criterion, strategy=crest.Random()
        ... )
        >>> error = measure_gradient_error(loader, num_batches=4)
        >>> error.num_examples, error.num_batches, error.effective_size
        (64, 4, 8.0)
    """
    check("loader", loader, _LOADER)
    n, m = loader.num_examples, loader.batch_size
    if num_examples is None:
        num_examples = n
    if subset_size is None:
        subset_size = min(max(round(0.01 * n), 3 * m), n)
    num_examples = check("num_examples", num_examples, whole(min(2 * m, n), n))
    subset_size = check("subset_size", subset_size, whole(m, n))
    num_batches = check("num_batches", num_batches, many())
    seed = check("seed", seed, SEED)
    # Another stream than that of a loader with this seed, whose first pass it would be else.
    generator = torch.Generator().manual_seed(seed ^ _STREAM)
    order = torch.randperm(n, generator=generator)[:num_examples]
    full, sigma_squared = _full_gradient(loader, order.split(m), seed)

    def variance_of_random(size: int) -> float:
        return sigma_squared / size * (1 - size / n)  # without replacement

    sampling_error = variance_of_random(num_examples)
    errors: list[float] = []
    sizes: list[float] = []
    mean_error = torch.zeros_like(full)
    for planned, batch in _distinct(loader.preview(num_batches)):
        error = _gradient(loader.observer, batch, planned.weights).to(full) - full
        errors.append(float(error.square().sum()) - sampling_error)
        mean_error += error
        sizes.append(float(planned.weights.sum().square() / planned.weights.square().sum()))
    k = len(errors)
    union_error = float((mean_error / k).square().sum()) - sampling_error
    variance = sum(errors) / k
    # Over pairs of different mini-batches, E[(g_M - g) . (g_M' - g)] is the squared bias.
    squared_bias = (k * union_error - variance) / (k - 1) if k > 1 else None
    gradient_norm = math.sqrt(max(float(full.square().sum()) - sampling_error, 0.0))
    normalized_bias = normalized_error = None
    if gradient_norm > 0:
        normalized_error = sum(math.sqrt(max(e, 0.0)) for e in errors) / k / gradient_norm
        if squared_bias is not None:
            normalized_bias = math.sqrt(max(squared_bias, 0.0)) / gradient_norm
    return GradientError(
        num_examples=num_examples,
        num_batches=k,
        gradient_norm=gradient_norm,
        variance=variance,
        random_variance=variance_of_random(m),
        subset_variance=variance_of_random(subset_size),
        union_error=union_error,
        squared_bias=squared_bias,
        normalized_bias=normalized_bias,
        normalized_error=normalized_error,
        nearly_unbiased=None if normalized_bias is None else normalized_bias < 1,
        effective_size=sum(sizes) / k,
        subset_size=subset_size,
    )


def _full_gradient(
    loader: CoresetLoader, blocks: tuple[Tensor, ...], seed: int
) -> tuple[Tensor, float]:
    """Measure g, shape (q,), and sigma^2, the variance of the gradient of one example."""
    total: Tensor | float = 0.0
    squares = 0.0
    for block, batch in zip(blocks, loader.read(blocks, seed), strict=True):
        gradient = _gradient(loader.observer, batch, torch.ones(len(block))).double()
        total = total + len(block) * gradient
        squares += len(block) * float(gradient.square().sum())
    assert isinstance(total, Tensor)
    # Over random blocks of m_b examples, E[sum_b m_b ||g_b - g||^2] is sigma^2 per block but one.
    count = sum(len(block) for block in blocks)
    full = total / count
    scatter = squares - count * float(full.square().sum())
    return full, max(scatter, 0.0) / max(len(blocks) - 1, 1)


def _gradient(observer: Observer, batch: Any, weights: Tensor) -> Tensor:
    parameters = observer.parameters("trainable")
    with observer.differentiable_losses(batch) as losses:
        loss = (losses * weights.to(losses)).mean()
        return flatten(
            torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        )


def _distinct(batches: Iterable[tuple[MiniBatch, Any]]) -> list[tuple[MiniBatch, Any]]:
    """Leave out mini-batches that came before, in any order of their examples."""
    found: dict[tuple[float, ...], tuple[MiniBatch, Any]] = {}
    for planned, batch in batches:
        order = planned.indices.argsort()
        key = (*planned.indices[order].tolist(), *planned.weights[order].tolist())
        found.setdefault(key, (planned, batch))
    return list(found.values())
