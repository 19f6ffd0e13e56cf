"""Looks at a model at its current parameters, without a trace, Sec. 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crest.items import Copier
from crest.looking.gradients import LastLayerGradients
from crest.looking.head import declared_head, last_linear, named_head, trains_bias
from crest.looking.isolation import has_batch_norm, undisturbed
from crest.looking.losses import PerExampleLoss

__all__ = ["Observer"]


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
        if batch_statistics and not has_batch_norm(self.model):
            raise ValueError(
                "batch statistics need a model with batch normalization; got "
                f"{type(self.model).__name__} without. Leave them out."
            )
        self._loss_fn = loss_fn
        self._dtype = dtype
        self._transform = transform
        self._per_example_losses = PerExampleLoss(self.model, loss_fn)
        self._head = named_head(self.model, head) if isinstance(head, str) else head

    @property
    def has_head(self) -> bool:
        """Whether the last layer was named, or found already."""
        return self._head is not None

    @property
    def takes_model(self) -> bool:
        """Whether the loss is of the form `loss_fn(model, batch)`."""
        return self._per_example_losses.takes_model

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
            losses.detach().float(), errors, hidden, input_gradients, trains_bias(head)
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
            self._head = declared_head(self.model)
        if self._head is None:

            def run() -> None:
                with self._undisturbed(), self._autocast(), torch.no_grad():
                    self._per_example_losses(Copier().copy(batch))  # a loss may write to it

            self._head = last_linear(self.model, run)
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

    def _seen(self, batch: Any) -> Any:
        return batch if self._transform is None else self._transform(batch)

    def _undisturbed(self) -> AbstractContextManager[None]:
        return undisturbed(
            self.model, self._loss_fn, self.device, batch_statistics=self._batch_statistics
        )
