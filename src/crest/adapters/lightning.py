"""Lightning: what its own checkpoints leave out, and what a selection tells its logger."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from crest.loader import CoresetLoader

__all__ = ["CoresetCallback"]


class CoresetCallback(Callback):
    """Keeps the global random states in checkpoints, and logs what was selected.

    Nothing is subclassed: return a `CoresetLoader` from `train_dataloader()`, where the processes
    of a run are known, and Lightning keeps its state. With this callback a run that is resumed goes
    on bit for bit where something draws from the random states of torch, NumPy or Python, as
    dropout does. The progress bar and the logger get `crest_cost`, the cost of the run so far in
    steps of random batches, and `crest_updates`, how often examples were picked anew.

    Raises:
        TypeError: At the start of training, if there is no `CoresetLoader`.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the random states, tensors and primitives."""
        version, words, gauss = random.getstate()
        of_numpy: Any = np.random.get_state()
        name, keys, position, has_gauss, cached = of_numpy
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [
                str(name),
                torch.from_numpy(keys.astype(np.int64)),
                position,
                has_gauss,
                cached,
            ],
            "python": [version, list(words), gauss],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep states to go on from when training starts."""
        self._states = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the random states of a checkpoint."""
        _loader_of(trainer)
        if self._states is None:
            return
        states, self._states = self._states, None
        torch.set_rng_state(states["torch"].cpu())
        if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
        name, keys, *rest = states["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Log what the selection has cost, and how often it picked."""
        history = _loader_of(trainer).history
        found = {"crest_cost": history.cost, "crest_updates": float(history.updates)}
        pl_module.log_dict(found, prog_bar=True)


def _loader_of(trainer: Trainer) -> CoresetLoader:
    loader = trainer.train_dataloader
    if not isinstance(loader, CoresetLoader):
        raise TypeError(
            "train_dataloader() must return a CoresetLoader where a CoresetCallback is used; got "
            f"{type(loader).__name__}. Leave the callback out, or make a CoresetLoader there."
        )
    return loader
