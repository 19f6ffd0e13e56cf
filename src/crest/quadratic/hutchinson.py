"""The diagonal of a Hessian from random probes, Eq. (7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ["flat_size", "flatten", "gradient_and_hessian_diagonal", "rademacher_probes"]


def rademacher_probes(
    parameters: Sequence[Tensor], num_probes: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """Draw probes z whose entries are +1 or -1 with equal chance.

    They are drawn on the generator's device and then moved, so that a seed means the same probe
    everywhere. A complex entry counts as two real ones, of which each has its own sign.

    Args:
        parameters: Tensors whose shapes, dtypes and devices the probes take.
        num_probes: How many probes to draw, at least 0.
        generator: Source of randomness.

    Returns:
        One list of tensors shaped like `parameters` for each probe.
    """

    def signs(like: Tensor) -> Tensor:
        shape = (*like.shape, 2) if like.is_complex() else like.shape
        bits = torch.randint(
            2, shape, generator=generator, device=generator.device, dtype=torch.int8
        )
        drawn = bits.to(like.device, like.real.dtype).mul_(2).sub_(1)
        return torch.view_as_complex(drawn) if like.is_complex() else drawn

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

    Raises:
        OutOfMemoryError: As it came.
        ValueError: If the loss cannot be differentiated once, or twice.
    """
    try:
        return _differentiate(loss, parameters, probes)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        times = "twice" if probes else "once"
        raise ValueError(
            f"a loss must be differentiable {times} for a model of its curvature; got "
            f"{type(error).__name__}: {error} Of Crest, choose curvature='head', which needs the "
            "last layer alone, curvature='none', or error_threshold=0 with it."
        ) from error


def _differentiate(
    loss: Tensor, parameters: Sequence[Tensor], probes: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    gradients = torch.autograd.grad(
        loss, parameters, create_graph=bool(probes), allow_unused=True, materialize_grads=True
    )
    if probes and any(isinstance(node, BackwardCFunction) for node in _graph_behind([loss])):
        # Behind a function that is differentiable once, autograd takes zero without a word.
        for node in _graph_behind(gradients):
            if node.name() == "torch::autograd::Error":
                raise RuntimeError("a function of the model is marked with @once_differentiable.")
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
            diagonal += flatten(probe) * flatten(products)
    return flatten(gradients), diagonal / max(len(probes), 1)


def _graph_behind(tensors: Sequence[Tensor]) -> Iterator[Any]:
    seen: set[Any] = {None}
    stack: list[Any] = [tensor.grad_fn for tensor in tensors]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack.extend([parent for parent, _ in node.next_functions])


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Copy tensors into one flat, detached vector.

    Args:
        tensors: Tensors with q values in all, on one device, sparse ones, too. A complex value
            counts as two, its real and its imaginary part.

    Returns:
        Shape (q,), float32 or wider.
    """
    return torch.cat(
        [
            part.reshape(-1).to(torch.promote_types(part.dtype, torch.float32))
            for part in map(_real, tensors)
        ]
    )


def flat_size(tensors: Sequence[Tensor]) -> int:
    """Count q, the length of what `flatten` returns."""
    return sum(tensor.numel() * (2 if tensor.is_complex() else 1) for tensor in tensors)


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
