"""Facility location that never waits for the device, for callers that look at its values later."""

from __future__ import annotations

import torch
from torch import Tensor

from crest.selection.distances import products_of_scaled
from crest.selection.facility_location import Coreset, pick_checked

__all__ = ["cover_features", "cover_last_layer"]

_LEAST, _MOST = 2.0**-20, 2.0**20  # largest values that are squared as they are


def cover_features(features: Tensor, batch_size: int) -> Coreset:
    """Pick as `facility_location` does, without a check that reads a value.

    Args:
        features: Floating-point rows, shape (P, r, d).
        batch_size: m, in [1, r].

    Returns:
        Picked rows and cluster sizes, (P, m). Picks are -1 in all subsets if a value of any is not
        finite.
    """
    scaled, is_finite = _scale_down(features)
    return _known_by(is_finite, pick_checked(scaled, batch_size, are_features=True))


def cover_last_layer(errors: Tensor, inputs: Tensor, batch_size: int, *, bias: bool) -> Coreset:
    """Pick by the distances of `last_layer_distances`, without a check that reads a value.

    Args:
        errors: Shape (P, r, c).
        inputs: Shape (P, r, d), same device.
        batch_size: m, in [1, r].
        bias: As there.

    Returns:
        As `cover_features`.
    """
    scaled, is_finite = _scale_down(errors)
    distances = products_of_scaled(scaled, inputs, bias=bias)
    is_finite = is_finite & inputs.isfinite().all()
    return _known_by(is_finite, pick_checked(distances, batch_size, are_features=False))


def _scale_down(features: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `distances.scale_down`, and tell whether all values are finite, bool, shape ()."""
    features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    least, most = torch.aminmax(features)
    largest = torch.maximum(-least, most)
    limit = 126 if features.dtype == torch.float32 else 1022
    exponent = torch.frexp(largest).exponent.clamp(-limit, limit)
    as_it_is = (largest >= _LEAST) & (largest <= _MOST)
    scale = torch.ldexp(torch.ones_like(largest), -exponent.masked_fill(as_it_is, 0))
    return features * scale, largest.isfinite()


def _known_by(is_finite: Tensor, coreset: Coreset) -> Coreset:
    return Coreset(coreset.indices.masked_fill(~is_finite, -1), coreset.cluster_sizes)
