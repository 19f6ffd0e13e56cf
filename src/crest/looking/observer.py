"""Looks at a model at its current parameters, without a trace, Sec. 3."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crest.items import Copier
from crest.looking.call import HeadCall, depends_on
from crest.looking.gradients import LastLayerGradients
from crest.looking.head import CALL_THE_MODULE, LastLayer, Structure, unwrapped
from crest.looking.isolation import (
    dense_gradients,
    has_batch_norm,
    has_settled_statistics,
    undisturbed,
)
from crest.looking.losses import PerExampleLoss
from crest.looking.passes import Passes
from crest.looking.traces import every_module
from crest.looking.verification import verify

__all__ = ["Observer"]

_PATIENCE = 10  # looks at which there was nothing to compare with autograd, such as zero gradients


class Observer:
    """Looks at a model from outside.

    After each call `.grad`, buffers and attributes of model and loss, the training flag of every
    module, hooks, grad mode, autocast and the random states of torch, numpy and Python are what
    they were. Everything is measured in eval mode and in the precision of the parameters, but for
    what `dtype` and `batch_statistics` say.

    Args:
        model: The model. A compiled one, or one in `DistributedDataParallel`, is observed through
            its original.
        loss_fn: Either `loss_fn(output, target)` for batches `(inputs, targets)`, or, if its first
            argument is called `model`, `loss_fn(model, batch)`, see `PerExampleLoss`. Returns one
            loss per example.
        head: The last layer, as a module or its name in `model`; one that consists of several
            stands for the last linear one that runs within. By default what
            `get_output_embeddings()` or `get_classifier()` return, else the last `nn.Linear` that
            gradients of training reach. It is looked for again where the model changes.
        dtype: Of autocast on the way to the head; the head itself keeps the precision of its
            parameters. None: autocast off.
        transform: `transform(batch)` makes a collated batch cheaper to look at. None: as it is.
        batch_statistics: Whether batch normalization takes the statistics of the pass, as in
            training, and not the running ones, which lag behind at a large learning rate and are
            not those of a transformed batch. Losses then depend on what else is in the pass. A
            layer in eval mode within a model in training mode stays so.

    Raises:
        ValueError: If `batch_statistics` is set for a model without batch normalization, or there
            is no module of the name of `head`.
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
        self.model = unwrapped(model)
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
        self._passes = Passes(
            self.model, loss_fn, self._per_example_losses, lambda: self.device, dtype
        )
        self._last_layer = LastLayer(self.model, head)
        self._keeps_graph = False  # before the head, see `HeadCall.watching`
        self._looks = 0  # since the last layer was found
        self._next_test = 1
        self._tested_version = 0
        self._structure: Structure | None = None  # whose gradients were seen to be on in eval mode

    @property
    def has_head(self) -> bool:
        """Whether it takes no batch to know the last layer: it was named, or found already."""
        return not self._last_layer.needs_pass

    @property
    def head(self) -> str:
        """The last layer in words, by name and shape, once a look has found it."""
        return self._last_layer.describe()

    @property
    def takes_model(self) -> bool:
        """Whether the loss is of the form `loss_fn(model, batch)`."""
        return self._per_example_losses.takes_model

    @property
    def statistics_are_settled(self) -> bool:
        """Whether batch normalization goes by statistics of data, not by those it began with."""
        return self._batch_statistics or has_settled_statistics(self.model)

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
            return self._look(batch, may_test=False).losses
        with self._undisturbed(), torch.no_grad():
            return self._per_example_losses(self._seen(batch)).float()

    def prepare(self, batch: Any) -> None:
        """Find what `losses` needs, where its operations are counted.

        Args:
            batch: As for `losses`.
        """
        if self._dtype is not None:
            with self._undisturbed():
                self.find_head(self._seen(batch))

    def last_layer_gradients(self, batch: Any) -> LastLayerGradients:
        """Measure losses and exact per-example gradients at the last layer.

        One forward pass without a graph up to the head, whose input is detached and requires grad;
        then one backward pass through the head alone. At the first look, the 10th, the 100th and so
        on, and where the model has changed, the result is compared with autograd.

        Args:
            batch: A collated batch of k examples, on the device of the model.

        Returns:
            Losses, errors, inputs and input gradients, all detached.

        Raises:
            ValueError: If the model has no linear layer and `head` was not given; if the head did
                not run exactly once, has no row for each example, is a convolution over more than
                a pixel, is no linear layer, or does not reach the loss; if a trained layer comes
                after one that was found; if a forward pass in eval mode changes parameters; or if
                `loss_fn` does not return one loss per example.
        """
        return self._look(batch, may_test=True)

    @contextmanager
    def differentiable_losses(self, batch: Any, scope: str = "trainable") -> Iterator[Tensor]:
        """Give the losses with a graph that can be differentiated twice.

        Attention runs under the MATH backend, the only one with a second derivative, and gradients
        of embeddings are dense.

        Args:
            batch: A collated batch of k examples, on the device of the model.
            scope: `"trainable"` for a graph to all parameters, `"head"` for one to those of the
                last layer alone, which spares the graph of all that comes before it.

        Yields:
            Losses, shape (k,), with their graph.

        Raises:
            ValueError: If `loss_fn` does not return one loss per example, or the model switches
                gradients off in eval mode.
        """
        with (
            self._undisturbed(),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            dense_gradients(self.model),
        ):
            if scope == "head":
                yield self._losses_behind_head(batch)
                return
            if self._dtype is None:
                losses = self._per_example_losses(Copier().copy(batch))  # others follow
            else:
                head = self.find_head(batch)
                _, losses = self._pass(batch, head, cut_input=False, cut_output=False)
            self._refuse_switched_off(losses, batch)
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
        """Find the last layer, anew where the model has changed.

        Args:
            batch: A collated batch; run to see which linear layer comes last.

        Returns:
            The head.

        Raises:
            ValueError: If no linear layer runs.
        """
        head = self._find_head(batch)
        if self._last_layer.look_closer(functools.partial(self._passes.runs, batch)):
            head = self._find_head(batch)
        return head

    def _find_head(self, batch: Any) -> nn.Module:
        return self._last_layer.find(functools.partial(self._passes.runs, batch))

    def _look(self, batch: Any, *, may_test: bool) -> LastLayerGradients:
        with self._undisturbed(), torch.no_grad():
            with self._passes.autocast():
                batch = self._seen(batch)
            self._find_head(batch)
            test = may_test and self._is_time_to_test()
            for head in self._attempts(batch):
                call, losses = self._pass(batch, head, test=test)
                try:
                    errors = _errors(call, losses, retain_graph=test)
                    if errors is not None:
                        self._last_layer.confirm()
                        seen = self._gathered(call, losses, errors, retain_graph=test)
                        if test:
                            self._test(seen, call, losses, errors)
                            self._passes.compare_with_training(batch)
                        return seen
                finally:
                    call.end_test()
        self._refuse_unused(call.head)

    def _losses_behind_head(self, batch: Any) -> Tensor:
        """Give the losses with a graph to the last layer."""
        for head in self._attempts(batch):
            call, losses = self._pass(batch, head, cut_output=False)
            if depends_on(losses, call.node):
                return losses
        self._refuse_unused(call.head)

    def _attempts(self, batch: Any) -> Iterator[nn.Module]:
        """Give the last layer, and again in other ways until the loss is seen to depend on it."""
        head = self._find_head(batch)
        yield head
        if self._last_layer.look_closer(functools.partial(self._passes.runs, batch)):
            yield self._find_head(batch)
        if not self._keeps_graph:  # perhaps the model switches gradients off behind the head
            self._keeps_graph = True
            yield self._find_head(batch)
            self._keeps_graph = False

    def _pass(self, batch: Any, head: nn.Module | None, **options: bool) -> tuple[HeadCall, Tensor]:
        """Pass a batch forward, the head being watched; find another one if it does not run."""
        while head is not None:
            call = HeadCall(head, self._end_autocast, self._name, **options)
            keeps_graph = self._keeps_graph or not call.cut_input
            with self._passes.autocast(), call.watching(keeps_graph=keeps_graph):
                losses = self._per_example_losses(Copier().copy(batch))  # another may follow
            if call.count == 1:
                return call, losses
            call.end_test()
            head = None
            if call.count == 0 and self._last_layer.look_further():
                found = self._find_head(batch)
                head = None if found is call.head else found
        hint = "" if call.count else f" {CALL_THE_MODULE}"
        raise ValueError(
            f"the head must run exactly once in a forward pass; it ran {call.count} times in eval "
            f"mode: {self._name(call.head)}. Name another module with head=.{hint}"
        )

    def _gathered(
        self, call: HeadCall, losses: Tensor, errors: Tensor, *, retain_graph: bool
    ) -> LastLayerGradients:
        """Lay out what a pass has told, pixels before channels."""
        head, hidden = call.head, call.inputs.detach()
        input_gradients = None
        if call.own_outputs.requires_grad:
            (input_gradients,) = torch.autograd.grad(
                call.own_outputs, call.inputs, errors, retain_graph=retain_graph, allow_unused=True
            )
        if input_gradients is None:  # a head that does not use its input
            input_gradients = torch.zeros_like(hidden)
        for part in (errors, hidden, input_gradients):
            if part.ndim == 0 or len(part) != len(losses):
                raise ValueError(
                    "the head must have a row for each example, batch first; "
                    f"{self._name(head)} has one of shape {tuple(part.shape)} for {len(losses)} "
                    "examples. Leave it the shape (k, ..., features), or name another with head=."
                )
        if isinstance(head, nn.modules.conv._ConvNd):
            sizes = {*head.kernel_size, *head.stride, head.groups}
            if sizes != {1} or errors.shape[2:] != hidden.shape[2:]:
                raise ValueError(
                    "a convolution can be the head if it is a linear layer at each pixel, with "
                    f"kernel_size, stride and groups of 1 and no padding; {self._name(head)} is "
                    f"{head}. Name another with head=."
                )
            errors, hidden, input_gradients = (
                part.movedim(1, -1) for part in (errors, hidden, input_gradients)
            )
        common = torch.promote_types(errors.dtype, hidden.dtype)  # of autocast within the model
        return LastLayerGradients(
            losses.detach().float(),
            errors.to(common),
            hidden.to(common),
            input_gradients.to(common),
            call.bias,
        )

    def _is_time_to_test(self) -> bool:
        if self._tested_version != self._last_layer.version:
            self._tested_version = self._last_layer.version
            self._looks, self._next_test = 0, 1
        self._looks += 1
        return self._looks >= self._next_test

    def _test(
        self, seen: LastLayerGradients, call: HeadCall, losses: Tensor, errors: Tensor
    ) -> None:
        with torch.enable_grad():
            compared = verify(
                seen,
                call,
                losses,
                errors,
                self._name(call.head),
                within=self._last_layer.searched,
                may_couple=self._batch_statistics,
            )
        if compared or self._looks >= _PATIENCE:
            self._next_test = 10 * self._looks

    def _refuse_unused(self, head: nn.Module) -> NoReturn:
        raise ValueError(
            f"the loss must depend on the head; it does not on {self._name(head)}, the "
            "last linear layer that runs, in eval mode. Name the last layer with head=, and see "
            "that the model does not switch gradients off behind it."
        )

    def _refuse_switched_off(self, losses: Tensor, batch: Any) -> None:
        """Refuse a model that switches gradients off where it would not in training."""
        if losses.requires_grad and self._structure and self._structure.is_as_before():
            return
        owners = [module for module in every_module(self.model) if module._parameters]
        runs = self._passes.runs(batch, owners, "graph")
        off = {id(run.module): run.module for run in runs if not run.receives}
        if off:
            in_training = self._passes.runs(batch, owners, "training")
            receive = {id(run.module) for run in in_training if run.receives}
            off = {number: module for number, module in off.items() if number in receive}
        if off or not losses.requires_grad:
            names = ", ".join(self._name(module) for module in list(off.values())[:3])
            raise ValueError(
                "the loss must have a gradient in eval mode by all that is trained; "
                f"{names or 'the model'} has none there. Switch gradients off for inference "
                "outside of the model, or set error_threshold=0 and curvature='none'."
            )
        self._structure = Structure(self.model)

    def _end_autocast(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """Give the head its input in the precision of its parameters, and go on in that."""
        if self._dtype is None:
            return hidden
        torch.set_autocast_enabled(self.device.type, False)  # until `_autocast` ends
        parameter = next(head.parameters(), None)
        return hidden if parameter is None else hidden.to(parameter.dtype)

    def _name(self, module: nn.Module) -> str:
        names = {id(one): name for name, one in self.model.named_modules()}
        return repr(names.get(id(module)) or type(module).__name__)

    def _seen(self, batch: Any) -> Any:
        return batch if self._transform is None else self._transform(batch)

    def _undisturbed(self) -> AbstractContextManager[None]:
        return undisturbed(
            self.model, self._loss_fn, self.device, batch_statistics=self._batch_statistics
        )


def _errors(call: HeadCall, losses: Tensor, *, retain_graph: bool) -> Tensor | None:
    """Differentiate the losses by the output of the head; None if they do not depend on it."""
    if not losses.requires_grad:
        return None
    with torch.enable_grad():
        total = losses.sum()
    (errors,) = torch.autograd.grad(
        total, call.outputs, retain_graph=retain_graph, allow_unused=True
    )
    return errors
