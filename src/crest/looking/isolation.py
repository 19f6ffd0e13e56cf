"""What a pass of our own must give back, and what makes it compute what training computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crest.looking.traces import Memory, every_module, is_of_torch, reach
from crest.randomness import preserved_random_state

__all__ = ["dense_gradients", "has_batch_norm", "structured_as_in_training", "undisturbed"]


@contextmanager
def undisturbed(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    device: torch.device,
    *,
    batch_statistics: bool = False,
) -> Iterator[None]:
    """Put a model into eval mode, and leave model, loss and random states as they were.

    Attention takes the path that it takes in training: the fast one of eval mode gives other
    outputs at padding. Compiled parts run as they were written: a compiled one would not see the
    head being watched.

    Args:
        model: The model.
        loss_fn: The loss; modules that it is made of are in eval mode, too.
        device: Where the model lives.
        batch_statistics: Whether batch normalization takes the statistics of the pass. A layer in
            eval mode within a model in training mode stays so.

    Yields:
        Nothing.

    Raises:
        ValueError: If the pass has changed a parameter in place.
    """
    reached = reach(model, loss_fn)
    training = [module.training for module in reached.modules]
    norms: list[_BatchNorm] = []
    if batch_statistics:
        norms = [
            module
            for module in every_module(model)
            if isinstance(module, _BatchNorm)
            and module.track_running_stats
            and (module.training or not model.training)  # not frozen in training, too
        ]
    memory = Memory(reached)
    try:
        with ExitStack() as stack:
            stack.enter_context(preserved_random_state(device))
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(_attention_of_training())
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            if "torch._dynamo" in sys.modules:  # else nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module in reached.modules:
                module.training = False
            for norm in norms:
                norm.training, norm.track_running_stats = True, False  # else it is updated
            yield
    finally:
        for module, flag in zip(reached.modules, training, strict=True):
            module.training = flag
        for norm in norms:
            norm.track_running_stats = True
        memory.give_back()
    changed = memory.changed_for_good()
    if changed:
        raise ValueError(
            "a forward pass in eval mode must leave the parameters as they are; it changed "
            f"{', '.join(changed)} in place. Write `if self.training:` before the update."
        )


@contextmanager
def _attention_of_training() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def structured_as_in_training(model: nn.Module) -> Iterator[None]:
    """Let modules of the user's own do what they do in training, within `undisturbed`.

    Layers of torch stay in eval mode, dropout and normalization among them; but for containers and
    linear layers, whose flag only the user's code asks for. Parameters are copies, as a second
    encoder may follow the first with every pass.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    harmless = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Linear)
    own = [
        module
        for module in every_module(model)
        if isinstance(module, harmless) or not is_of_torch(type(module))
    ]
    parameters: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []
    copies: dict[int, nn.Parameter] = {}  # of a tied one, the same
    try:
        for module in every_module(model):
            if module._parameters:
                parameters.append((module, dict(module._parameters)))
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    copied = copies.get(id(parameter))
                    if copied is None:
                        copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                        copies[id(parameter)] = copied
                    module._parameters[name] = copied
        for module in own:
            module.training = True
        yield
    finally:
        for module in own:
            module.training = False
        for module, before in parameters:
            module._parameters.update(before)


@contextmanager
def dense_gradients(model: nn.Module) -> Iterator[None]:
    """Let embeddings with sparse gradients have dense ones, which have a second derivative.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    sparse = [
        module
        for module in every_module(model)
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
    ]
    for module in sparse:
        module.sparse = False
    try:
        yield
    finally:
        for module in sparse:
            module.sparse = True


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether a model has batch normalization."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
