"""Lightning: what its own checkpoints leave out, and what a selection tells its logger."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from crest.loader import CoresetLoader

__all__ = ["CoresetCallback"]

_ENTRY = "crest"


class CoresetCallback(Callback):
    """Keeps the global random states in checkpoints, and logs what was selected.

    Nothing is subclassed: return a `CoresetLoader` from `train_dataloader()`, where the processes
    of a run are known, and Lightning keeps its state. With this callback a run that is resumed goes
    on bit for bit where something draws from the random states of torch, NumPy or Python, as
    dropout does, and on several processes, of which Lightning keeps the state of the first alone:
    each gets back its random states, and what it had seen of training.

    The progress bar gets `crest_cost`, the cost of the run so far in steps of random batches, and
    `crest_updates`, how often examples were picked anew. The trainer's loggers get these, and at
    the start of each region what a `crest.Tracker` gets.

    Raises:
        TypeError: At the start of training, if there is no `CoresetLoader`.
    """

    def __init__(self) -> None:
        self._of_each: list[dict[str, Any]] = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put what each process needs into a checkpoint, tensors and primitives."""
        loader = trainer.train_dataloader
        if isinstance(loader, CoresetLoader):  # there is none in a validation by itself
            loader._feed.settle()
            own = {"seen": loader._feed.state_dict(), **_random_states()}
            checkpoint[_ENTRY] = loader._ranks.gather("a checkpoint", own)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what was put there until training starts."""
        self._of_each = checkpoint.get(_ENTRY, [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from what this process put into the checkpoint, and tell the trainer's loggers."""
        loader = _loader_of(trainer)
        if not loader._ranks.rank and trainer.loggers:
            loader._ledger.tell_also(_Loggers(trainer))
        own, self._of_each = self._of_each[loader._ranks.rank :], []
        if own:
            loader._feed.load_state_dict(own[0]["seen"])
            _set_random_states(own[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Log what the selection has cost, and how often it picked."""
        history = _loader_of(trainer).history
        found = {"crest_cost": history.cost, "crest_updates": float(history.updates)}
        pl_module.log_dict(found, prog_bar=True)


class _Loggers:
    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def log(self, metrics: dict[str, float], step: int) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(metrics, step)

    def close(self) -> None: ...


def _random_states() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    of_numpy: Any = np.random.get_state()
    name, keys, *rest = of_numpy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(words), gauss],
    }


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))


def _loader_of(trainer: Trainer) -> CoresetLoader:
    loader = trainer.train_dataloader
    if not isinstance(loader, CoresetLoader):
        raise TypeError(
            "train_dataloader() must return a CoresetLoader where a CoresetCallback is used; got "
            f"{type(loader).__name__}. Leave the callback out, or make a CoresetLoader there."
        )
    return loader
