"""Whether last-layer gradients are what autograd says, whatever form a model has."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from crest.looking.call import HeadCall, graph_behind
from crest.looking.gradients import LastLayerGradients

__all__ = ["verify"]

_ADVICE = (
    "Name a linear layer with head=, or choose a strategy that does not look at the model, such as "
    "crest.Random()."
)
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}  # relative, of sums
_COARSE = 5e-2  # in fewer bits
_RESHAPING = ("TBackward", "Transpose", "Permute", "View", "Reshape", "Squeeze", "ToCopy", "Expand")
_ROWS = 3  # looked at one by one where losses depend on each other


def verify(
    seen: LastLayerGradients,
    call: HeadCall,
    losses: Tensor,
    errors: Tensor,
    name: str,
    *,
    within: nn.Module | None,
    may_couple: bool,
) -> bool:
    """Compare last-layer gradients with autograd.

    All rows are compared at once, by the sum of their gradients under random signs: one backward
    pass from the losses to the output of the head, and one through the head.

    Note:
        Where losses depend on each other, as with batch statistics after the head or a contrastive
        loss, there is no gradient of one example. What is told is then its part in the gradient of
        the sum of all, and the sum is compared. The gradient by the weight is the one that reaches
        it through the head: a weight that is used elsewhere, too, such as a tied embedding, has
        others beside.

    Args:
        seen: What is to be verified, k rows.
        call: The call of the head that it was measured at, with `test`.
        losses: With their graph, shape (k,).
        errors: Derivative of their sum by the output of the head, as it came.
        name: Of the head, for messages.
        within: The module whose trained weights must not come after the head. None: the head was
            named by the user, whatever comes after.
        may_couple: Whether it is known that losses depend on each other.

    Returns:
        Whether there was something to compare: not where all errors are zero, nor, between rows,
        where there is one.

    Raises:
        ValueError: If they differ by more than rounding, or a trained weight comes after the head.
    """
    if within is not None:
        _refuse_later_weights(losses, call, within, name)
    k = len(losses)
    scale = float(errors.double().norm() if errors.is_cpu else errors.float().norm())
    if not 0 < scale < float("inf"):
        return False
    signs = _signs(k, errors)
    (signed,) = torch.autograd.grad(
        losses @ signs.to(losses.dtype), call.outputs, retain_graph=True
    )
    expected = errors * signs.view(-1, *[1] * (errors.ndim - 1))
    tolerance = _tolerance(errors, seen.inputs, call.own_outputs)
    if float((signed - expected).float().norm()) > tolerance * scale:
        _refuse_other_rows(losses, call.outputs, name, may_couple=may_couple)
        signs, signed = torch.ones_like(signs), errors
    _compare_parameters(seen, call, signs, signed, name, tolerance)
    return k > 1


def _signs(k: int, like: Tensor) -> Tensor:
    """Draw k signs, always the same."""
    bits = torch.randint(2, (k,), generator=torch.Generator().manual_seed(0))
    return (2 * bits - 1).to(like.device, like.dtype)


def _tolerance(*tensors: Tensor) -> float:
    most = max(_ROUNDING.get(tensor.dtype, _COARSE) for tensor in tensors)
    on_cpu = all(tensor.is_cpu for tensor in tensors)
    return most if on_cpu or most == _COARSE else max(most, 1e-2)  # products may be in TF32


def _refuse_other_rows(losses: Tensor, outputs: Tensor, name: str, *, may_couple: bool) -> None:
    """Tell losses that depend on each other from rows that are not those of the examples."""
    k = len(losses)
    own_rows, transposed = [], outputs.ndim > 2 and outputs.shape[1] == k
    for i in sorted({0, k // 2, k - 1})[:_ROWS]:
        (gradient,) = torch.autograd.grad(losses[i], outputs, retain_graph=True)
        gradient = gradient.float()
        whole = float(gradient.norm())
        if whole > 0:
            own_rows.append(float(gradient[i].norm()) / whole)
            transposed &= float(gradient[:, i].norm()) > 0.999 * whole if transposed else False
    if own_rows and (min(own_rows) < 1e-3 or transposed):
        raise ValueError(
            f"the rows of the head must be those of the examples, batch first; the loss of one "
            f"example does not depend on its row of {name}, of shape {tuple(outputs.shape)}, alone "
            f"but on others, in eval mode. Leave it the shape (k, ..., features), in the order of "
            f"the batch. {_ADVICE}"
        )
    if not may_couple:
        warnings.warn(
            "the loss of an example depends on the other examples of its batch: its gradient at "
            "the last layer is its part in that of their sum, which changes with the batch.",
            stacklevel=2,
        )


def _compare_parameters(
    seen: LastLayerGradients,
    call: HeadCall,
    signs: Tensor,
    signed: Tensor,
    name: str,
    tolerance: float,
) -> None:
    mine = seen.weighted_sum(signs)
    if not call.tested:  # no parameter that could have a gradient, such as one of few bits
        return
    true = torch.autograd.grad(
        call.own_outputs, call.tested, signed, retain_graph=True, allow_unused=True
    )
    width = mine.shape[1] - seen.bias
    shape = (len(mine), width)
    found = _pick(call.tested, true, shape, transposed=False)
    if not found:
        found = _pick(call.tested, true, shape, transposed=True)
    applied = getattr(call.head, "bias", None)  # made of others, if these are reparametrized
    biases = [
        _filled(gradient, tensor)
        for tensor, gradient in zip(call.tested, true, strict=True)
        if tensor.shape == (len(mine),) and (applied is None or tensor is applied)
    ]
    if not found or (seen.bias and len(biases) != 1):
        shapes = [tuple(tensor.shape) for tensor in call.tested]
        raise ValueError(
            f"the head must be a linear layer, with a weight of shape {shape} and perhaps a bias; "
            f"{name} has parameters of shapes {shapes}. {_ADVICE}"
        )
    distances = []
    for weight in found:
        expected = torch.cat([weight, biases[0].unsqueeze(1)], 1) if seen.bias else weight
        whole = max(float(expected.float().norm()), float(mine.float().norm()))
        if not 0 < whole < float("inf"):  # beyond what a narrow dtype can say
            return
        distances.append(float((mine.float() - expected.float()).norm()) / whole)
    if not min(distances) <= tolerance:  # nan, too
        raise ValueError(
            "last-layer gradients must be those of autograd, e (x) [h, 1] for a layer W h + b; "
            f"those of {name}, a {_kind(seen, call)}, differ from autograd's by its weight and "
            f"bias by {100 * min(distances):.2g} % (in sum, in eval mode). {_ADVICE}"
        )


def _kind(seen: LastLayerGradients, call: HeadCall) -> str:
    return f"layer from {tuple(call.inputs.shape)} to {tuple(call.own_outputs.shape)}"


def _pick(
    tensors: list[Tensor],
    gradients: tuple[Tensor | None, ...],
    shape: tuple[int, int],
    *,
    transposed: bool,
) -> list[Tensor]:
    """Find the gradient by the weight: by the first of its shape, ones behind it left out."""
    c, d = shape
    for tensor, gradient in zip(tensors, gradients, strict=True):
        sizes = list(tensor.shape)
        if len(sizes) >= 2 and sizes[:2] == ([d, c] if transposed else [c, d]):
            if any(size != 1 for size in sizes[2:]):
                continue
            flat = _filled(gradient, tensor).reshape(sizes[:2])
            both = [flat, flat.T] if c == d else [flat.T if transposed else flat]
            return both  # a square weight may be the other way around
    return []


def _filled(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _meets(node: Any, users: dict[Any, list[Any]], depending: set[Any]) -> bool:
    """Tell whether a weight, in whatever shape, is combined with what depends on the head."""
    stack = [node]
    while stack:
        for user in users.get(stack.pop(), []):
            if user in depending:
                return True
            if any(word in user.name() for word in _RESHAPING):
                stack.append(user)
    return False


def _refuse_later_weights(losses: Tensor, call: HeadCall, within: nn.Module, name: str) -> None:
    """Refuse a trained matrix that meets, as it is, what was made of the output of the head.

    A weight that the loss has in a penalty does so as a number.

    Args:
        losses: With their graph.
        call: Of the head.
        within: The module whose weights count.
        name: Of the head.

    Raises:
        ValueError: If there is one.
    """
    names = {id(parameter): key for key, parameter in within.named_parameters()}
    own = {id(tensor) for tensor in call.tested}
    users: dict[Any, list[Any]] = {}
    weights, depending = [], set()
    for node in graph_behind(losses):
        for parent, _ in node.next_functions:
            users.setdefault(parent, []).append(node)
        variable = getattr(node, "variable", None)
        if variable is call.outputs:
            depending.add(node)
        elif variable is not None and id(variable) in names and id(variable) not in own:
            is_matrix = sum(size > 1 for size in variable.shape) > 1  # no scale of channels
            weights += [node] if is_matrix else []
    stack = list(depending)
    while stack:
        new = [user for user in users.get(stack.pop(), []) if user not in depending]
        depending.update(new)
        stack += new
    later = sorted(names[id(node.variable)] for node in weights if _meets(node, users, depending))
    if later:
        raise ValueError(
            f"the head must be the last layer that is trained; after {name}, the last linear layer "
            f"that runs as a module, {', '.join(later[:3])} is used. Call its module, so that it "
            f"is seen (self.fc(h), not functional.linear(h, self.fc.weight)), or name the head "
            "with head=."
        )
