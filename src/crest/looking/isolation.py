"""What a pass of our own must give back, and what makes it compute what training computes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from crest.looking.traces import Memory, every_module, is_of_torch, reach
from crest.own_passes import own_pass
from crest.randomness import preserved_random_state

__all__ = [
    "dense_gradients",
    "has_batch_norm",
    "has_settled_statistics",
    "structured_as_in_training",
    "undisturbed",
]

_TOO_FEW = "Expected more than 1 value per channel when training"  # of torch
_MOST_PARAMETERS = 2**28  # that are copied, once
_MOST_OF_THE_START = (
    0.05  # in running statistics, where they began with means of 0 and variances of 1
)
_RANDOM_OR_MOVING = (_NormBase, _DropoutNd, nn.RNNBase, nn.RReLU, nn.MultiheadAttention)


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
        ValueError: If the pass has changed a parameter in place, or holds too little for statistics
            of its own.
    """
    reached = reach(model, loss_fn)
    in_training = [module for module in reached.modules if module.training]
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
            stack.enter_context(own_pass())
            stack.enter_context(preserved_random_state(device))
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(_attention_of_training())
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            if "torch._dynamo" in sys.modules:  # else nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            _set_training(in_training, False)
            for norm in norms:
                norm.training, norm.track_running_stats = True, False  # else it is updated
            yield
    except ValueError as error:
        if norms and _TOO_FEW in str(error):
            raise ValueError(
                "batch statistics need more than one value of each channel in a pass; got a pass "
                "of one example. Take larger batches, chunks and checks, or leave batch_statistics "
                "of look= and strategy out."
            ) from error
        raise
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
        _set_training(in_training, True)
        memory.give_back()
    changed = memory.changed_for_good()
    if changed:
        raise ValueError(
            "a forward pass in eval mode must leave the parameters as they are; it changed "
            f"{', '.join(changed)} in place. Write `if self.training:` before the update."
        )


def _set_training(modules: Iterable[nn.Module], flag: bool) -> None:
    """Set the flags past `nn.Module.__setattr__`, which takes a tenth of a small net's pass."""
    for module in modules:
        attributes = module.__dict__
        if "training" in attributes:
            attributes["training"] = flag
        else:  # of a scripted module
            module.training = flag


@contextmanager
def _attention_of_training() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def structured_as_in_training(model: nn.Module, loss_fn: Callable[..., Tensor]) -> Iterator[None]:
    """Let a model do what it does in training but for dropout and normalization.

    Within `undisturbed`. Parameters are copies, as a second encoder may follow the first with every
    pass.

    Args:
        model: The model.
        loss_fn: The loss.

    Yields:
        Nothing.

    Raises:
        MemoryError: If the parameters are too many to be copied.
    """
    modules = reach(model, loss_fn).modules
    distinct = {id(p): p for module in modules for p in module._parameters.values()}
    if sum(p.numel() for p in distinct.values() if p is not None) > _MOST_PARAMETERS:
        raise MemoryError(f"a copy of more than {_MOST_PARAMETERS} parameters would be needed")
    own = [module for module in modules if _follows_its_flag(module)]
    parameters: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []
    copies: dict[int, nn.Parameter] = {}  # of a tied one, the same
    try:
        for module in modules:
            if module._parameters:
                parameters.append((module, dict(module._parameters)))
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    copied = copies.get(id(parameter))
                    if copied is None:
                        copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                        copies[id(parameter)] = copied
                    module._parameters[name] = copied
        _set_training(own, True)
        yield
    finally:
        _set_training(own, False)
        for module, before in parameters:
            module._parameters.update(before)


def _follows_its_flag(module: nn.Module) -> bool:
    """Tell whether a module is the user's own, or one whose flag only the user's code asks for."""
    if is_of_torch(type(module)):
        harmless = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Linear)
        return isinstance(module, harmless) and not module._forward_pre_hooks
    return not isinstance(module, _RANDOM_OR_MOVING)


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


def has_settled_statistics(model: nn.Module) -> bool:
    """Tell whether running statistics have seen enough batches to be those of the data.

    Args:
        model: The model. Layers that are in eval mode while it is in training mode are frozen, and
            their statistics what they are meant to be.

    Returns:
        Whether the initial statistics weigh less than 5 % in those of each layer that has some.
    """
    for module in every_module(model):
        if not isinstance(module, _BatchNorm) or module.num_batches_tracked is None:
            continue
        is_frozen = model.training and not module.training
        left = 0.0 if module.momentum is None else 1 - module.momentum
        if is_frozen or left == 1:
            continue
        if left ** int(module.num_batches_tracked) > _MOST_OF_THE_START:
            return False
    return True


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether a model has batch normalization."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
