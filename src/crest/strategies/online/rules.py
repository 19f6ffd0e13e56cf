"""How mini-batches are picked from candidates, and how often each example becomes one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crest.selection import facility_location

__all__ = ["class_shares", "draw_by_norm", "pick_cover", "repeats"]

_AT_ONCE = 64  # picks from one part of the candidates


def pick_cover(sketches: Tensor, batch_size: int) -> Tensor:
    """Pick the candidates whose remembered gradients cover those of all best, Eq. (5).

    Derivatives of losses by outputs that were kept up during training are Salaun et al. (2023).
    A cover of r candidates takes time and memory in proportion to r^2, so that a large mini-batch
    is picked in parts of at most 64, each from as large a part of the candidates, as they come.

    Args:
        sketches: Of each group of candidates, shape (groups, r, d).
        batch_size: m <= r.

    Returns:
        Rows, int64, shape (groups, m): the first picks of all parts, then the second ones, and so
        on, as far as they go.
    """
    groups, r, d = sketches.shape
    parts = math.ceil(batch_size / _AT_ONCE)
    while r // parts < math.ceil(batch_size / parts):  # hardly more candidates than picks
        parts -= 1
    size, picks = r // parts, math.ceil(batch_size / parts)
    some = sketches[:, : parts * size].reshape(groups * parts, size, d)
    rows = facility_location(some.float(), picks).indices.view(groups, parts, picks)
    rows = rows + size * torch.arange(parts, device=rows.device).view(-1, 1)
    return rows.transpose(1, 2).flatten(1)[:, :batch_size]


def draw_by_norm(
    norms: Tensor, batch_size: int, exponent: float, generator: torch.Generator
) -> Tensor:
    """Draw candidates in proportion to a power of the norm of their remembered gradients.

    Importance sampling as of Katharopoulos & Fleuret (ICML 2018), without its weights; the largest
    of Gumbel-perturbed log-probabilities, which draws without replacement.

    Args:
        norms: Shape (groups, r).
        batch_size: m.
        exponent: Of the norm, >= 0.
        generator: CPU generator.

    Returns:
        Rows, int64, shape (groups, m).
    """
    uniform = torch.rand(norms.shape, generator=generator).clamp_(1e-12, 1 - 1e-7)
    gumbel = -torch.log(-torch.log(uniform))
    keys = exponent * norms.clamp(min=1e-12).log() + gumbel
    return keys.topk(batch_size, dim=1).indices


def class_shares(counts: Tensor, strength: float) -> Tensor:
    """Say how often an example of each class is drawn, relative to the mean over all examples.

    Class-balanced sampling at strength 1, in proportion to the data at 0.

    Args:
        counts: Examples of each class, shape (classes,).
        strength: In [0, 1].

    Returns:
        Shape (classes,), whose mean weighted by `counts` is 1.
    """
    weights = counts.double().clamp(min=1) ** -strength
    return weights * (counts.sum() / (weights * counts).sum())


def repeats(rates: Tensor, generator: torch.Generator) -> Tensor:
    """Turn rates into whole numbers, by chance where they are not.

    Args:
        rates: How often each example shall come in a pass, >= 0, shape (k,).
        generator: CPU generator.

    Returns:
        int64, shape (k,), whose expectation is `rates`.
    """
    chance = torch.rand(rates.shape, generator=generator, dtype=torch.float64)
    return (rates.double() + chance).floor().long()
