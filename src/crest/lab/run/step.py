"""One step of training: forward pass, loss, what is observed, backward pass and update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import crest

__all__ = ["CapturedStep", "Observe", "Step", "plain_step"]

# Takes inputs, targets and weights of m examples; returns the loss.
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
# Hears losses, with their graph, and the outputs that they were computed from.
Observe = Callable[[Tensor, Tensor], None]

_STEPS_TO_WARM_UP = 3  # before a CUDA graph is captured: libraries choose and allocate


def plain_step(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    observe: Observe | None = None,
) -> Step:
    """Make the step that launches each of its operations by itself.

    Args:
        forward: From inputs to float32 outputs.
        optimizer: Of the parameters.
        device: Of the model.
        observe: Hears of each step before its backward pass; None: nobody.

    Returns:
        The step.
    """
    criterion = nn.CrossEntropyLoss(reduction="none")

    def step(inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        outputs = forward(inputs)
        losses = criterion(outputs, targets.to(device))
        if observe is not None:
            observe(losses, outputs)
        loss = crest.weighted_mean(losses, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


class CapturedStep:
    """The plain step on buffers that stay, on a GPU as one CUDA graph.

    A graph does the same at each replay, with the same memory. So batches are copied into buffers,
    the learning rate must be a tensor on the device, and what is observed is differentiated inside
    and told afterwards. On a CPU the plain step runs on the buffers.

    Before the capture the step is taken some times; model, optimizer and random states are then set
    back to what they were. An optimizer state that did not exist is zero, which is what it begins
    with. So it is made after a checkpoint was loaded.

    Args:
        forward: From inputs to float32 outputs.
        model: Whose parameters and buffers change.
        optimizer: Of its parameters, see above.
        device: Of the model.
        observe: Hears of each step, after it was taken; None: nobody.
        inputs: Of any batch, shape (m, ...); the like of it on the device is the buffer.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        observe: Observe | None,
        inputs: Tensor,
    ) -> None:
        m = len(inputs)
        self._inputs = inputs.to(device, copy=True)
        self._targets = torch.zeros(m, dtype=torch.int64, device=device)
        self._weights = torch.ones(m, device=device)
        self._observe = observe
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self._plain = plain_step(forward, optimizer, device, self._note)
        self._loss = torch.zeros((), device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        on_gpu = device.type == "cuda"
        with (
            torch.random.fork_rng(devices=[device] if on_gpu else []),
            _unchanged(model, optimizer),
        ):
            if on_gpu:
                stream = torch.cuda.Stream(device)
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    self._warm_up()
                torch.cuda.current_stream(device).wait_stream(stream)
            else:
                self._warm_up()
        if on_gpu:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._take()

    def __call__(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Take a step.

        Args:
            inputs: Shape (m, ...), on any device.
            targets: Classes, shape (m,).
            weights: Shape (m,).

        Returns:
            The loss, until the next step.
        """
        buffers = (self._inputs, self._targets, self._weights)
        for buffer, values in zip(buffers, (inputs, targets, weights), strict=True):
            buffer.copy_(values, non_blocking=True)
        if self._graph is None:
            self._take()
        else:
            self._graph.replay()
        if self._observe is not None and self._seen is not None:
            losses, outputs, errors = self._seen
            outputs = outputs.detach().requires_grad_()
            told: Tensor = _Known.apply(outputs, losses, errors)  # type: ignore[no-untyped-call]
            self._observe(told, outputs)
        return self._loss

    def _take(self) -> None:
        self._loss = self._plain(self._inputs, self._targets, self._weights)

    def _warm_up(self) -> None:
        for _ in range(_STEPS_TO_WARM_UP):
            self._take()

    def _note(self, losses: Tensor, outputs: Tensor) -> None:
        if self._observe is not None:
            (errors,) = torch.autograd.grad(losses.sum(), outputs, retain_graph=True)
            self._seen = losses.detach(), outputs.detach(), errors


class _Known(torch.autograd.Function):
    """Losses whose derivatives by the outputs are known already, shape (m, c)."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, losses: Tensor, errors: Tensor) -> Tensor:
        ctx.save_for_backward(errors)
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        (errors,) = ctx.saved_tensors
        return errors * scale.unsqueeze(1), None, None


@contextmanager
def _unchanged(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Set model and optimizer back, in place, to what they were."""
    state = copy.deepcopy(model.state_dict())
    known = {
        parameter: {name: copy.deepcopy(value) for name, value in values.items()}
        for parameter, values in optimizer.state.items()
    }
    yield
    model.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        before = known.get(parameter, {})
        for name, value in values.items():
            if isinstance(value, Tensor):
                value.zero_() if before.get(name) is None else value.copy_(before[name])
