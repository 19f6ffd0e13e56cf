"""The diagonal of a Hessian from random probes, Eq. (7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["flatten", "gradient_and_hessian_diagonal", "rademacher_probes"]


def rademacher_probes(
    parameters: Sequence[Tensor], num_probes: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """Draw probes z whose entries are +1 or -1 with equal chance.

    They are drawn on the generator's device and then moved, so that a seed means the same probe
    everywhere.

    Args:
        parameters: Tensors whose shapes, dtypes and devices the probes take.
        num_probes: How many probes to draw, at least 0.
        generator: Source of randomness.

    Returns:
        One list of tensors shaped like `parameters` for each probe.
    """

    def signs(like: Tensor) -> Tensor:
        bits = torch.randint(
            2, like.shape, generator=generator, device=generator.device, dtype=torch.int8
        )
        return bits.to(like.device, like.dtype).mul_(2).sub_(1)

    return [[signs(parameter) for parameter in parameters] for _ in range(num_probes)]


def gradient_and_hessian_diagonal(
    loss: Tensor, parameters: Sequence[Tensor], probes: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """Differentiate a loss once and, along each probe, twice.

    Implements Eq. (7): the mean of z * (H z) over the probes is an unbiased estimate of diag(H),
    and exact for one probe if H is diagonal. H z is the derivative of g . z. The estimate is
    linear in the loss, so that the mean over mini-batches may be taken after the call as long as
    they share the probes.

    Args:
        loss: Scalar with a graph that reaches `parameters`.
        parameters: The q values to differentiate by, as tensors that require grad. Those which
            the loss does not use count as zero.
        probes: Probes shaped like `parameters`, see `rademacher_probes`; none gives a zero
            diagonal and spares the second derivative.

    Returns:
        The gradient and the estimated diagonal, both flat, shape (q,), float32 or wider.
    """
    gradients = torch.autograd.grad(
        loss, parameters, create_graph=bool(probes), allow_unused=True, materialize_grads=True
    )
    diagonal = torch.zeros_like(flatten(gradients))
    varying = [k for k, gradient in enumerate(gradients) if gradient.requires_grad]
    if varying:  # constant ones, of a hinge loss say, add nothing to H z
        for probe in probes:
            products = torch.autograd.grad(
                [gradients[k] for k in varying],
                parameters,
                grad_outputs=[probe[k] for k in varying],
                retain_graph=probe is not probes[-1],
                allow_unused=True,
                materialize_grads=True,
            )
            diagonal += flatten([z * product for z, product in zip(probe, products, strict=True)])
    return flatten(gradients), diagonal / max(len(probes), 1)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Copy tensors into one flat, detached vector.

    Args:
        tensors: Tensors with q values in all, on one device.

    Returns:
        Shape (q,), float32 or wider.
    """
    return torch.cat(
        [
            tensor.detach().reshape(-1).to(torch.promote_types(tensor.dtype, torch.float32))
            for tensor in tensors
        ]
    )
