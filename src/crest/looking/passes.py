"""Passes that find something out about a model: which layers run, and what training would do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from crest.items import Copier
from crest.looking.call import nothing_saved, replaced_forward
from crest.looking.head import Mode, Run
from crest.looking.isolation import structured_as_in_training, undisturbed
from crest.looking.traces import reach

__all__ = ["Passes"]

_ROUNDING = 1e-2  # of losses, relative


class Passes:
    """Passes a batch forward, without a trace and without keeping a graph.

    Args:
        model: The model.
        loss_fn: The loss.
        per_example_losses: Calls both on a batch.
        device: Tells where the model lives.
        dtype: Of autocast; None: off.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        per_example_losses: Callable[[Any], Tensor],
        device: Callable[[], torch.device],
        dtype: torch.dtype | None,
    ) -> None:
        self._model, self._loss_fn = model, loss_fn
        self._per_example_losses = per_example_losses
        self._device, self._dtype = device, dtype
        self._has_compared = False

    def autocast(self) -> torch.autocast:
        """Give the precision of a pass, up to the head."""
        enabled = self._dtype is not None
        return torch.autocast(self._device().type, dtype=self._dtype, enabled=enabled)

    def runs(self, batch: Any, modules: Iterable[nn.Module], mode: Mode) -> list[Run]:
        """Tell which modules run.

        Args:
            batch: A collated batch of k examples.
            modules: Those to tell of.
            mode: How to pass.

        Returns:
            Those that ran, in the order in which they ended; none if the pass is not possible as in
            training.

        Raises:
            Exception: What model or loss raise in eval mode.
        """
        runs: list[Run] = []

        def note(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **named: Any) -> Any:
                returned = forward(*arguments, **named)
                is_tensor = isinstance(returned, Tensor)
                receives = torch.is_grad_enabled() and is_tensor and returned.requires_grad
                runs.append(Run(module, receives, Tensor if is_tensor else type(returned)))
                return returned

            return run

        try:
            with self._passing(mode), replaced_forward(modules, note):
                self._per_example_losses(Copier().copy(batch))  # a loss may write to it
        except Exception:
            if mode != "training":
                raise
            return []  # what it needs in training is not known here
        return runs

    def compare_with_training(self, batch: Any) -> None:
        """Warn of a model or loss that computes something else in eval mode, once.

        Args:
            batch: A collated batch of k examples.
        """
        if self._has_compared:
            return
        self._has_compared = True
        if not reach(self._model, self._loss_fn).name("training"):
            return
        found: list[Tensor] = []
        modes: tuple[Mode, ...] = ("plain", "training", "training")
        for mode in modes:
            try:
                with self._passing(mode):
                    torch.rand(len(found))  # so that dropout of the user's own draws anew
                    losses = self._per_example_losses(Copier().copy(batch))
                    found.append(losses.detach().float())
            except Exception:  # what it needs in training is not known here
                return
        here, in_training, again = found
        difference, scale = float((here - in_training).norm()), float(in_training.norm())
        if torch.equal(in_training, again) and difference > _ROUNDING * scale:
            warnings.warn(
                "the model or its loss computes something else in eval mode, in which it is looked "
                "at, than in training, beyond dropout and normalization: losses differ by "
                f"{100 * difference / max(scale, 1e-12):.2g} %. Selection goes by those of eval "
                "mode; see what asks for self.training.",
                stacklevel=2,
            )

    @contextmanager
    def _passing(self, mode: Mode) -> Iterator[None]:
        as_training = structured_as_in_training(self._model, self._loss_fn)
        with (
            undisturbed(self._model, self._loss_fn, self._device()),
            self.autocast(),
            as_training if mode == "training" else nullcontext(),
            torch.no_grad() if mode == "plain" else torch.enable_grad(),
            nothing_saved(),
        ):
            yield
