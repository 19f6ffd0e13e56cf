"""Accelerate: a loader that `accelerator.accumulate` and several processes get on with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.state import GradientState

from crest.checks import check, instance
from crest.loader import CoresetLoader
from crest.reader import place

__all__ = ["PreparedLoader", "prepare"]

_ACCELERATOR = instance(Accelerator, text="an accelerate.Accelerator")
_LOADER = instance(CoresetLoader, text="a CoresetLoader")


class PreparedLoader:
    """Hands out the batches of a `CoresetLoader` as one that Accelerate prepared would.

    Batches come on the device of the accelerator, and its last step of an epoch is taken even if a
    group of accumulation is not full. Nothing is fetched ahead, and nothing is split: the loader
    shares the work by itself.

    Attributes:
        end_of_dataloader: Whether the batch handed out last was the last of its epoch.
        remainder: -1, as no batch was filled up.

    Args:
        accelerator: Whose device and accumulation.
        loader: The loader.
    """

    def __init__(self, accelerator: Accelerator, loader: CoresetLoader) -> None:
        self._accelerator = accelerator
        self._loader = loader
        self.end_of_dataloader = False
        self.remainder = -1

    def __len__(self) -> int:
        """Return the number of batches in a short epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over a short epoch, or what is left of one.

        Yields:
            Batches with weights, on the device of the accelerator.
        """
        state = GradientState()
        self.end_of_dataloader = False
        state._add_dataloader(self)
        try:
            for batch in self._loader:
                self.end_of_dataloader = self._loader._epoch.is_over
                yield place(batch, self._accelerator.device)
        finally:
            state._remove_dataloader(self)

    def __getattr__(self, name: str) -> Any:
        """Ask the loader for what else it has, such as `history`."""
        return getattr(self._loader, name)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader, for `accelerator.save_state`; all processes call it."""
        state = self._loader.state_dict()
        # Accelerate keeps what the first process returns.
        return {**state, "seen_by_each": self._loader._ranks.gather("a state", state["seen"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, this process from what it had seen itself."""
        seen = state.get("seen_by_each", ())[self._loader._ranks.rank :]
        self._loader.load_state_dict({**state, "seen": seen[0]} if seen else state)


def prepare(accelerator: Accelerator, loader: CoresetLoader) -> PreparedLoader:
    """Prepare a loader; model and optimizer go to `accelerator.prepare` as ever.

    It is registered for `accelerator.save_state` and `load_state`, too.

    Args:
        accelerator: The accelerator.
        loader: Made from a plain DataLoader, of the model before or after it was prepared.

    Returns:
        What to iterate over.

    Raises:
        TypeError: If an argument is of a wrong kind.
        ValueError: If the accelerator accumulates over another number of batches than the loader,
            or is of another number of processes.
    """
    check("accelerator", accelerator, _ACCELERATOR)
    check("loader", loader, _LOADER)
    steps, own = accelerator.gradient_accumulation_steps, loader._options.accumulation_steps
    if steps != own:
        raise ValueError(
            f"accumulation_steps of the loader must be that of the accelerator, {steps}; got "
            f"{own}. Give both the same."
        )
    world = loader._ranks.world
    if loader._options.shard and accelerator.num_processes != world:
        raise ValueError(
            f"the loader must be made for as many processes as the accelerator has, "
            f"{accelerator.num_processes}; got {world}. Make the Accelerator first, and start the "
            "processes by accelerate launch or torchrun."
        )
    prepared = PreparedLoader(accelerator, loader)
    accelerator.register_for_checkpointing(prepared)
    return prepared
