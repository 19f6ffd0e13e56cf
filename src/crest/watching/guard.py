"""Whether a gradient that was seen is that of a batch: the one test that lets anything in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Verdict", "compare", "compare_together"]

_TINY = 1e-5  # of a derivative of a loss: below it a row tells nothing
_TOLERANCE = 1e-3  # of a row, in float32; true matches miss by 2e-7
_TOLERANCE_HALF = 5e-2  # true matches in bfloat16 miss by up to 3e-2
_AT_ONCE = 1 << 22  # numbers that are held in float64, 32 MiB of each side
_UNDERFLOW_HALF = 6.1e-5  # smallest normal number of float16


class Verdict(NamedTuple):
    """What a comparison found.

    Attributes:
        reason: None if the gradient is that of the batch, else a key of `reasons.REASONS`.
        note: Numbers for the message.
        share: Rows that fit.
        scale: The factor of all rows: 1 / m of a mean, times accumulation and loss scaling.
    """

    reason: str | None
    note: str = ""
    share: float = 0.0
    scale: float = 0.0


def compare(
    gradient: Tensor, errors: Tensor, weights: Tensor, *, half: bool, known_scale: float | None
) -> Verdict:
    """Test |G_i - r w_i E_i| <= tol r w_i |E_i| + 1e-5 r in every row, r by least squares.

    A test of the angle would let label smoothing, temperatures and bonus terms in.

    Args:
        gradient: G, what came back to the output in training, shape (k, ...).
        errors: E, derivative of each loss by the output, shape (k, ...).
        weights: w, shape (k,).
        half: Whether the output was in 16 bits.
        known_scale: r of an earlier batch, for one in which every E_i is tiny. None: 1.

    Returns:
        The verdict. Waits for the device once.
    """
    found = _Comparison(gradient[None], errors[None], weights[None], half=half)
    if not found.is_finite[0]:
        return Verdict("not finite")
    of_gradient, of_errors = found.of_gradients[0], found.of_errors[0]
    scale = float(found.scales[0])
    if not (of_errors > _TINY).any():  # nothing to compare: are the gradients nothing, too?
        known = 1.0 if known_scale is None else known_scale
        if bool((of_gradient <= known * 10 * _TINY).all()):
            return Verdict(None, "", 1.0, known)
        return Verdict("direction", "all of loss_fn's gradients are nearly 0")
    share = float(found.rows_fit[0].mean())
    if scale > 0 and share == 1:
        return Verdict(None, "", 1.0, scale)
    k = len(weights)
    given, wanted = gradient.reshape(k, -1).double(), errors.reshape(k, -1).double()
    return _what_differs(given, wanted, of_gradient, of_errors, weights, share)


def compare_together(
    gradients: Tensor, errors: Tensor, weights: Tensor, *, half: bool
) -> tuple[list[bool], list[float]]:
    """Make the test of `compare` for several batches.

    Args:
        gradients: Shape (b, k, ...).
        errors: Shape (b, k, ...).
        weights: Shape (b, k).
        half: Whether the outputs were in 16 bits.

    Returns:
        Which batches fit, of those that tell something, and r of each. Waits for the device once.
    """
    found = _Comparison(gradients, errors, weights, half=half)
    tells = (found.of_errors > _TINY).any(axis=1)
    fits = found.is_finite & tells & (found.scales > 0) & found.rows_fit.all(axis=1)
    return fits.tolist(), found.scales.tolist()


class _Comparison:
    """Norms of G_i and w_i E_i in each row of b batches, r of each, and which rows fit."""

    def __init__(self, gradients: Tensor, errors: Tensor, weights: Tensor, *, half: bool) -> None:
        b, k = weights.shape
        width = max(_AT_ONCE // (b * k), 1)
        sums = torch.zeros(b, k, 2, 2, dtype=torch.float64, device=gradients.device)
        for given, wanted in zip(
            gradients.reshape(b, k, -1).split(width, dim=2),
            errors.reshape(b, k, -1).split(width, dim=2),
            strict=True,
        ):
            # In float64, (b, k, 2, width): squares are subtracted.
            rows = torch.stack([given.double(), wanted.double() * weights.double()[..., None]], 2)
            sums += rows @ rows.mT
        products = sums.cpu().numpy()
        self.is_finite = np.isfinite(products).all(axis=(1, 2, 3))
        products = np.where(self.is_finite[:, None, None, None], products, 0)
        squares, overlaps = products[..., 0, 0], products[..., 0, 1]
        wanted_squares = products[..., 1, 1]
        self.scales = overlaps.sum(1) / np.maximum(wanted_squares.sum(1), 1e-60)
        scale = self.scales[:, None]
        missed_squares = squares - 2 * scale * overlaps + scale**2 * wanted_squares
        self.of_gradients, self.of_errors = np.sqrt(squares), np.sqrt(wanted_squares)
        tolerance = _TOLERANCE_HALF if half else _TOLERANCE
        allowed = tolerance * scale * self.of_errors + _TINY * scale
        allowed += _UNDERFLOW_HALF if half else 0.0
        self.rows_fit = np.sqrt(np.maximum(missed_squares, 0)) <= allowed


def _what_differs(
    given: Tensor,
    errors: Tensor,
    of_gradient: np.ndarray,
    of_errors: np.ndarray,
    weights: Tensor,
    share: float,
) -> Verdict:
    """Find the words for a gradient that does not fit."""
    live = (of_errors > _TINY) & (of_gradient > _TINY * of_gradient.max())
    if not live.any():
        return Verdict("direction", "the gradient of training is 0", share)
    sizes = errors.norm(dim=1).cpu().numpy()
    products = (given * errors).sum(1).cpu().numpy()
    cosines = products[live] / (of_gradient * sizes)[live]
    if (cosines < 1 - 1e-6).any():
        note = f"cosine {np.median(cosines):.4f} at the median row, {cosines.min():.4f} at worst"
        return Verdict("direction", note, share)
    plain = (of_gradient / np.maximum(sizes, 1e-30))[live]
    weighed = weights.numpy(force=True)
    middle = np.median(plain)
    same_for_all = bool((np.abs(plain - middle) <= 1e-3 * middle).all())
    if same_for_all and np.ptp(weighed) > 0:
        return Verdict("weights", "", share)
    ratios = (of_gradient / np.maximum(of_errors, 1e-30))[live]
    return Verdict("scale", f"factors {ratios.min():.3g} to {ratios.max():.3g}", share)
