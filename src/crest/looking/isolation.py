"""What a pass of our own must give back: flags, buffers, random states, autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crest.passes import ours
from crest.randomness import preserved_random_state

__all__ = ["has_batch_norm", "undisturbed"]


@contextmanager
def undisturbed(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    device: torch.device,
    *,
    batch_statistics: bool = False,
) -> Iterator[None]:
    """Put a model into eval mode, and leave model, loss and random states as they were.

    Args:
        model: The model.
        loss_fn: The loss; if it is a module, it is in eval mode, too.
        device: Where the model lives.
        batch_statistics: Whether batch normalization takes the statistics of the pass. A layer in
            eval mode within a model in training mode stays so.

    Yields:
        Nothing.
    """
    modules = list(model.modules())
    if isinstance(loss_fn, nn.Module):
        modules += loss_fn.modules()
    training = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone(), buffer._version)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    norms: list[_BatchNorm] = []
    if batch_statistics:
        norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            and module.track_running_stats
            and (module.training or not model.training)  # not frozen in training, too
        ]
    try:
        with (
            ours(),
            preserved_random_state(device),
            torch.autocast(device.type, enabled=False),
        ):
            for module in modules:
                module.training = False
            for module in norms:
                module.training, module.track_running_stats = True, False  # else it is updated
            yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag
        for module in norms:
            module.track_running_stats = True
        with torch.no_grad():
            for module, name, buffer, before, version in buffers:
                module._buffers[name] = buffer
                if buffer._version != version:
                    buffer.copy_(before)


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether a model has batch normalization."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
