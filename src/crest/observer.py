"""Losses and last-layer gradients at the current parameters, without side effects, Sec. 3."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

__all__ = ["LastLayerGradients", "Observer"]


@dataclass(frozen=True)
class LastLayerGradients:
    """What one pass over k examples tells.

    `...` stands for the positions of a head that is applied at several places of one example (the
    tokens of a text); it is empty for a classifier.

    Attributes:
        losses: Loss of each example, float32, shape (k,).
        errors: Derivative of each example's loss by the output of the head, shape (k, ..., c):
            p - y for cross-entropy. Feature `"logits"`.
        inputs: Input of the head, h, shape (k, ..., d).
        input_gradients: Derivative by the input of the head, dL/dh, shape (k, ..., d), the paper's
            wording. Feature `"input"`.
        bias: Whether gradients by the bias of the head count: not where it has none, or a frozen
            one beside a trained weight. The weight counts in any case. Gradients by a linear head
            have d' = d + 1 columns with the bias, else d' = d.
    """

    losses: Tensor
    errors: Tensor
    inputs: Tensor
    input_gradients: Tensor
    bias: bool = True

    def weight_gradients(self) -> Tensor:
        """Form the gradients by weight and bias of a linear head, the feature `"weight"`.

        The gradient of an example is the sum over its positions of e (x) [h, 1], or e (x) h without
        a bias.

        Returns:
            Shape (k, c * d').
        """
        errors, inputs = self._by_position()
        return torch.einsum("ktc,ktd->kcd", errors, inputs).flatten(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Add up the gradients by weight and bias of a linear head, without forming them.

        Args:
            weights: One factor for each example, shape (k,).

        Returns:
            Shape (c, d').
        """
        errors, inputs = self._by_position()
        return torch.einsum("k,ktc,ktd->cd", weights.to(errors), errors, inputs)

    def squared_norms(self) -> Tensor:
        """Measure ||g_i||^2 of the gradients by weight and bias of a linear head.

        Returns:
            Shape (k,).
        """
        errors, inputs = self._by_position()
        if errors.shape[1] ** 2 > errors.shape[2] * inputs.shape[2]:  # many positions
            return self.weight_gradients().square().sum(1)
        return ((errors @ errors.mT) * (inputs @ inputs.mT)).sum((1, 2))

    def inputs_with_bias(self) -> Tensor:
        """Give what e is multiplied with in each gradient: h, with a 1 behind it for the bias.

        Returns:
            Shape (k, ..., d').
        """
        if not self.bias:
            return self.inputs
        return torch.cat([self.inputs, self.inputs.new_ones(*self.inputs.shape[:-1], 1)], dim=-1)

    def _by_position(self) -> tuple[Tensor, Tensor]:
        """Give e and h, with a 1 for the bias, at each position: (k, t, c) and (k, t, d')."""
        errors = self.errors.reshape(len(self.errors), -1, self.errors.shape[-1])
        inputs = self.inputs_with_bias()
        return errors, inputs.reshape(len(inputs), -1, inputs.shape[-1])

    @staticmethod
    def concatenate(parts: list[LastLayerGradients]) -> LastLayerGradients:
        """Join the results of several passes, in order.

        Positions that a shorter part lacks are filled with zero gradient.

        Args:
            parts: At least one.

        Returns:
            All examples of all parts.
        """
        whole = {
            name: _concatenate([getattr(part, name) for part in parts])
            for name in ("losses", "errors", "inputs", "input_gradients")
        }
        return LastLayerGradients(**whole, bias=parts[0].bias)


class Observer:
    """Looks at a model from outside.

    After each call `.grad`, buffers, the training flag of every module, hooks, grad mode, autocast
    and the random states of torch, numpy and Python are what they were. Everything is measured in
    eval mode and in the precision of the parameters, but for what `dtype` and
    `batch_statistics` say.

    Args:
        model: The model. A compiled model is observed through its original.
        loss_fn: Either `loss_fn(output, target)` for batches `(inputs, targets)`, or, if its first
            argument is called `model`, `loss_fn(model, batch)`. Returns one loss per example.
        head: The last layer, as a module or its name in `model`. By default what
            `get_output_embeddings()` or `get_classifier()` return, else the last `nn.Linear` that
            runs.
        dtype: Of autocast on the way to the head; the head itself keeps the precision of its
            parameters. None: autocast off.
        transform: `transform(batch)` makes a collated batch cheaper to look at. None: as it is.
        batch_statistics: Whether batch normalization takes the statistics of the pass, as in
            training, and not the running ones, which lag behind at a large learning rate and are
            not those of a transformed batch. Losses then depend on what else is in the pass. A
            layer in eval mode within a model in training mode stays so.

    Raises:
        ValueError: If `batch_statistics` is set for a model without batch normalization.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        *,
        head: nn.Module | str | None = None,
        dtype: torch.dtype | None = None,
        transform: Callable[[Any], Any] | None = None,
        batch_statistics: bool = False,
    ) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self._batch_statistics = batch_statistics
        if batch_statistics and not any(
            isinstance(module, _BatchNorm) for module in self.model.modules()
        ):
            raise ValueError(
                "batch statistics need a model with batch normalization; got "
                f"{type(self.model).__name__} without. Leave them out."
            )
        self._loss_fn = loss_fn
        self._dtype = dtype
        self._transform = transform
        self._takes_model = _first_argument(loss_fn) == "model"
        if isinstance(head, str):
            modules = dict(self.model.named_modules())
            if head not in modules:
                linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
                raise ValueError(
                    f"head must name a module of the model; got {head!r}. "
                    f"Its linear layers are {', '.join(linear) or 'none'}."
                )
            self._head: nn.Module | None = modules[head]
        else:
            self._head = head

    @property
    def has_head(self) -> bool:
        """Whether the last layer was named, or found already."""
        return self._head is not None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def losses(self, batch: Any) -> Tensor:
        """Measure the loss of each example.

        Args:
            batch: A collated batch of k examples, on the device of the model.

        Returns:
            Float32, shape (k,).

        Raises:
            ValueError: If `loss_fn` does not return one loss per example.
        """
        if self._dtype is not None:
            return self.last_layer_gradients(batch).losses
        with self._undisturbed(), torch.no_grad():
            return self._per_example_losses(self._seen(batch)).float()

    def last_layer_gradients(self, batch: Any) -> LastLayerGradients:
        """Measure losses and exact per-example gradients at the last layer.

        One forward pass without a graph up to the head, whose input is detached and requires grad;
        then one backward pass through the head alone.

        Args:
            batch: A collated batch of k examples, on the device of the model.

        Returns:
            Losses, errors, inputs and input gradients, all detached.

        Raises:
            ValueError: If the model has no linear layer and `head` was not given; if the head did
                not run exactly once, has no row for each example, is a convolution over more than
                a pixel, or does not reach the loss; or if `loss_fn` does not return one loss per
                example.
        """
        with self._undisturbed(), self._autocast(), torch.no_grad():
            batch = self._seen(batch)
            head = self.find_head(batch)
            inputs: list[Tensor] = []
            outputs: list[Tensor] = []

            def detach_input(head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
                inputs.append(self._end_autocast(head, arguments[0].detach()).requires_grad_())
                torch.set_grad_enabled(True)  # until torch.no_grad() above ends
                return (inputs[-1], *arguments[1:])

            def keep_output(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
                outputs.append(output)

            hooks = [
                head.register_forward_pre_hook(detach_input),
                head.register_forward_hook(keep_output),
            ]
            try:
                losses = self._per_example_losses(batch)
            finally:
                for hook in hooks:
                    hook.remove()
            if len(outputs) != 1:
                raise ValueError(
                    f"the head must run exactly once in a forward pass; it ran {len(outputs)} "
                    "times. Name another module with head=."
                )
            errors = input_gradients = None
            if losses.requires_grad:
                errors, input_gradients = torch.autograd.grad(
                    losses.sum(), [outputs[0], inputs[0]], allow_unused=True
                )
            if errors is None:
                raise ValueError(
                    f"the loss must depend on the head; it does not on {self._name(head)}, the "
                    "last linear layer that runs. Name the last layer with head=."
                )
            if input_gradients is None:  # a head that does not use its input
                input_gradients = torch.zeros_like(inputs[0])
        hidden = inputs[0].detach()
        for part in (errors, hidden, input_gradients):
            if len(part) != len(losses):
                raise ValueError(
                    "the head must have a row for each example, batch first; "
                    f"{self._name(head)} has one of shape {tuple(part.shape)} for {len(losses)} "
                    "examples. Leave it the shape (k, ..., features), or name another with head=."
                )
        if isinstance(head, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            sizes = {*head.kernel_size, *head.stride, head.groups}
            if sizes != {1} or errors.shape[2:] != inputs[0].shape[2:]:
                raise ValueError(
                    "a convolution can be the head if it is a linear layer at each pixel, with "
                    f"kernel_size, stride and groups of 1 and no padding; {self._name(head)} is "
                    f"{head}. Name another with head=."
                )
            errors, hidden, input_gradients = (
                part.movedim(1, -1)  # pixels before channels
                for part in (errors, hidden, input_gradients)
            )
        return LastLayerGradients(
            losses.detach().float(), errors, hidden, input_gradients, _trains_bias(head)
        )

    @contextmanager
    def differentiable_losses(self, batch: Any, scope: str = "trainable") -> Iterator[Tensor]:
        """Give the losses with a graph that can be differentiated twice.

        Attention runs under the MATH backend, the only one with a second derivative.

        Args:
            batch: A collated batch of k examples, on the device of the model.
            scope: `"trainable"` for a graph to all parameters, `"head"` for one to those of the
                last layer alone, which spares the graph of all that comes before it.

        Yields:
            Losses, shape (k,), with their graph.

        Raises:
            ValueError: If `loss_fn` does not return one loss per example.
        """

        def enter_head(head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = arguments[0].detach() if scope == "head" else arguments[0]
            torch.set_grad_enabled(True)  # until torch.set_grad_enabled() below ends
            return (self._end_autocast(head, hidden), *arguments[1:])

        with (
            self._undisturbed(),
            self._autocast(),
            torch.set_grad_enabled(scope != "head"),
            sdpa_kernel(SDPBackend.MATH),
        ):
            if scope != "head" and self._dtype is None:
                yield self._per_example_losses(batch)
                return
            hook = self.find_head(batch).register_forward_pre_hook(enter_head)
            try:
                losses = self._per_example_losses(batch)
            finally:
                hook.remove()
            yield losses

    def parameters(self, scope: str, batch: Any = None) -> list[nn.Parameter]:
        """List the parameters that a quadratic model is made of.

        Args:
            scope: `"trainable"` for all that require grad, `"head"` for those of the last layer.
            batch: Needed to find the head if it was not named.

        Returns:
            Distinct parameters that require grad.

        Raises:
            ValueError: If there are none.
        """
        module = self.find_head(batch) if scope == "head" else self.model
        found = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not found:
            raise ValueError(
                f"curvature={scope!r} needs parameters that require grad; got none. "
                "Unfreeze some or choose curvature='none'."
            )
        return found

    def find_head(self, batch: Any) -> nn.Module:
        """Find the last layer, once.

        Args:
            batch: A collated batch; run to see which linear layer comes last.

        Returns:
            The head.

        Raises:
            ValueError: If no linear layer runs.
        """
        if self._head is None:
            self._head = self._declared_head()
        if self._head is None:
            self._head = self._last_linear(batch)
        return self._head

    def _autocast(self) -> torch.autocast:
        enabled = self._dtype is not None
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=enabled)

    def _end_autocast(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """Give the head its input in the precision of its parameters, and go on in that."""
        if self._dtype is None:
            return hidden
        torch.set_autocast_enabled(self.device.type, False)  # until `_autocast` ends
        parameter = next(head.parameters(), None)
        return hidden if parameter is None else hidden.to(parameter.dtype)

    def _name(self, module: nn.Module) -> str:
        names = {id(one): name for name, one in self.model.named_modules()}
        return repr(names.get(id(module), type(module).__name__))

    def _declared_head(self) -> nn.Module | None:
        for name in ("get_output_embeddings", "get_classifier"):
            method = getattr(self.model, name, None)
            try:
                head = method() if callable(method) else None
            except NotImplementedError:
                head = None
            if isinstance(head, nn.Linear):
                return head
        return None

    def _last_linear(self, batch: Any) -> nn.Module:
        ran: list[nn.Module] = []
        hooks = [
            module.register_forward_hook(lambda module, *_: ran.append(module))
            for module in self.model.modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            with self._undisturbed(), self._autocast(), torch.no_grad():
                self._per_example_losses(batch)
        finally:
            for hook in hooks:
                hook.remove()
        if not ran:
            raise ValueError(
                "the model must have a linear layer that runs, or name its last layer with head=; "
                f"got {type(self.model).__name__} without one."
            )
        return ran[-1]

    def _seen(self, batch: Any) -> Any:
        return batch if self._transform is None else self._transform(batch)

    def _per_example_losses(self, batch: Any) -> Tensor:
        if self._takes_model:
            losses = self._loss_fn(self.model, batch)
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            losses = self._loss_fn(self.model(batch[0]), batch[1])
        else:
            raise ValueError(
                "loss_fn(output, target) needs batches (inputs, targets); got a "
                f"{type(batch).__name__}{_length(batch)}. Write loss_fn(model, batch) instead."
            )
        lengths = set(_lengths(batch))
        if not isinstance(losses, Tensor):
            raise ValueError(
                f"loss_fn must return a tensor of one loss per example; got {type(losses).__name__}"
            )
        if losses.ndim == 0:
            raise ValueError(
                "loss_fn must return one loss per example, not their mean; got a scalar. "
                'Set reduction="none".'
            )
        if losses.ndim != 1 or (lengths and len(losses) not in lengths):
            raise ValueError(
                f"loss_fn must return one loss per example, shape "
                f"({'k' if len(lengths) != 1 else lengths.pop()},); "
                f"got {tuple(losses.shape)}. Take the mean over the other dimensions."
            )
        return losses

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        modules = list(self.model.modules())
        if isinstance(self._loss_fn, nn.Module):
            modules += self._loss_fn.modules()
        training = [module.training for module in modules]
        buffers = [
            (module, name, buffer, buffer.clone(), buffer._version)
            for module in self.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        norms: list[_BatchNorm] = []
        if self._batch_statistics:
            norms = [
                module
                for module in self.model.modules()
                if isinstance(module, _BatchNorm)
                and module.track_running_stats
                and (module.training or not self.model.training)  # not frozen in training, too
            ]
        device = self.device
        try:
            with (
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


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Give back the random states of torch (CPU and `device`), numpy and Python on leaving.

    Args:
        device: A device whose generator may be drawn from, beside the CPU's.

    Yields:
        Nothing.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and Python inside, and give their states back on leaving.

    Args:
        seed: In [0, 2**63).

    Yields:
        Nothing.
    """
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    with preserved_random_state(device):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def _lengths(batch: Any) -> Iterator[int]:
    """Give the lengths of all tensors of a batch: one of them is the number of its examples."""
    if isinstance(batch, Tensor):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, (tuple, list, Mapping)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _lengths(value)


def _first_argument(function: Callable[..., Any]) -> str | None:
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        return next(iter(inspect.signature(target).parameters), None)
    except (TypeError, ValueError):  # a builtin without a signature
        return None


def _trains_bias(head: nn.Module) -> bool:
    """Tell whether gradients by the bias count: not of a frozen bias beside a trained weight."""
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    biases = [parameter for parameter in head.parameters() if parameter.ndim == 1]
    return any(bias.requires_grad or frozen for bias in biases)


def _length(batch: Any) -> str:
    return f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""


def _concatenate(parts: list[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    if all(list(part.shape[1:]) == shape for part in parts):
        return torch.cat(parts)
    padded = []
    for part in parts:
        full = part.new_zeros(len(part), *shape)
        full[tuple(slice(size) for size in part.shape)] = part
        padded.append(full)
    return torch.cat(padded)


def order_generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """List the generators of its own that a loader draws its order from; none: the global one.

    Args:
        loader: The user's loader.

    Returns:
        At most two, which may be the same.
    """
    found = [loader.generator, getattr(loader.sampler, "generator", None)]
    return [generator for generator in found if generator is not None]


@contextmanager
def preserved_order(loader: DataLoader[Any]) -> Iterator[None]:
    """Give back the states of the generators that a loader draws its order from.

    Args:
        loader: The user's loader.

    Yields:
        Nothing.
    """
    generators = order_generators(loader)
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
