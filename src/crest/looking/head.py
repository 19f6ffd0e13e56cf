"""The last layer of a model: which it is, and what of it is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["declared_head", "last_linear", "named_head", "trains_bias"]


def named_head(model: nn.Module, name: str) -> nn.Module:
    """Look up the last layer by its name.

    Args:
        model: The model.
        name: As in `model.named_modules()`.

    Returns:
        The module.

    Raises:
        ValueError: If there is none of that name; lists the linear layers.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        linear = [known for known, module in modules.items() if isinstance(module, nn.Linear)]
        raise ValueError(
            f"head must name a module of the model; got {name!r}. "
            f"Its linear layers are {', '.join(linear) or 'none'}."
        )
    return modules[name]


def declared_head(model: nn.Module) -> nn.Module | None:
    """Ask a model of Hugging Face or timm for its last layer.

    Args:
        model: The model.

    Returns:
        What `get_output_embeddings()` or `get_classifier()` return, if that is linear.
    """
    for name in ("get_output_embeddings", "get_classifier"):
        method = getattr(model, name, None)
        try:
            head = method() if callable(method) else None
        except NotImplementedError:
            head = None
        if isinstance(head, nn.Linear):
            return head
    return None


def last_linear(model: nn.Module, run: Callable[[], object]) -> nn.Module:
    """Find the linear layer that runs last.

    Args:
        model: The model.
        run: Passes a batch through it.

    Returns:
        The module.

    Raises:
        ValueError: If no linear layer runs.
    """
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise ValueError(
            "the model must have a linear layer that runs, or name its last layer with head=; "
            f"got {type(model).__name__} without one."
        )
    return ran[-1]


def trains_bias(head: nn.Module) -> bool:
    """Tell whether gradients by the bias count: not of a frozen bias beside a trained weight."""
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    biases = [parameter for parameter in head.parameters() if parameter.ndim == 1]
    return any(bias.requires_grad or frozen for bias in biases)
