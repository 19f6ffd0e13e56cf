"""One training run, through the public loader as a user would write it."""

from __future__ import annotations

import copy
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Subset

import crest
from crest.experiments.checkpoint import Checkpoint, Paused
from crest.experiments.learning_rate import learning_rate_factor
from crest.experiments.protocol import LabelledData, Views
from crest.experiments.settings import VALIDATION_FRACTION, RunSettings

__all__ = ["count_steps", "train"]

_EVALUATION_BATCH = 250  # test examples in one forward pass; more do not fit a cache


def train(
    settings: RunSettings,
    data: LabelledData,
    *,
    on_step: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train once and measure. Seeds torch's global generator and sets its threads.

    Measuring accuracy costs no time: clocks stand still meanwhile. One step on a copy of the model
    comes before the clock starts, so that what is compiled or allocated once counts for no run.

    Args:
        settings: What to train and how.
        data: Train and test examples.
        on_step: Called with the number of steps taken, after each.
        checkpoint: Where the run is saved now and then; if it was, the run goes on from there and
            ends as if it had never stopped. Clocks count the seconds of all parts.

    Returns:
        The record of the run, primitives only: `data`, `network`, `strategy`, `seed`,
        `equal_time` (whether N was given in place of a budget) and `settings`; `steps`, test
        `accuracy` as a fraction, `seconds`, `cost` in random steps, `overhead` as a fraction and
        `updates`; `curve`, a list of `step`, `seconds` and `accuracy`; `parameters`, `history`,
        `versions` and `machine`.

    Raises:
        Paused: If the time of the checkpoint is up.
        ValueError: If settings and data do not fit, or the loss is not finite.
    """
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model = data.build_network(settings.network).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    views = data.make_views(device, augment=settings.augment)
    _rehearse(settings, data, views, model)

    num_steps = count_steps(settings, data)
    schedule_steps = settings.count_schedule_steps(_steps_per_epoch(settings, data))
    evaluate_at = {
        math.ceil(num_steps * part / settings.evaluations)
        for part in range(1, settings.evaluations)
    } - {num_steps}
    criterion = nn.CrossEntropyLoss(reduction="none")
    loader, order = _make_loader(settings, data, views, model)
    optimizer = _make_optimizer(settings, model)
    scheduler = LambdaLR(
        optimizer,
        lambda step: (
            1.0 if settings.optimizer == "adamw" else learning_rate_factor(step, schedule_steps)
        ),
    )
    run = _Run(model, optimizer, scheduler, loader, order, device)
    saved = None if checkpoint is None else checkpoint.load()
    seconds = 0.0 if saved is None else run.load_state_dict(saved)
    curve, step = run.curve, run.step
    clock = _Clock(device, seconds)
    while step < num_steps:
        for inputs, targets, weights in loader:
            losses = criterion(model(inputs), targets.to(device))
            loader.observe(losses)
            loss = crest.weighted_mean(losses, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step = run.step = step + 1
            if on_step is not None:
                on_step(step)
            if step == num_steps:
                break
            saves = checkpoint is not None and checkpoint.is_due
            if step in evaluate_at or saves:
                seconds = clock.stop()
                _check_finite(loss, step)
                if step in evaluate_at:
                    accuracy = _accuracy(model, views)
                    curve.append({"step": step, "seconds": seconds, "accuracy": accuracy})
                if checkpoint is not None and saves:
                    checkpoint.save(run.state_dict(seconds))
                    if checkpoint.time_is_up:
                        raise Paused
                # The loader books the time between two batches as training; this was none.
                loader.history.seconds["train"] -= clock.start()
    seconds = clock.stop()
    _check_finite(loss, step)
    curve.append({"step": step, "seconds": seconds, "accuracy": _accuracy(model, views)})
    return {
        "data": settings.data,
        "network": settings.network,
        "strategy": settings.strategy,
        "seed": settings.seed,
        "equal_time": settings.num_steps is not None,
        "settings": settings.to_record(data.fingerprint),
        "steps": step,
        "accuracy": curve[-1]["accuracy"],
        "seconds": seconds,
        "cost": loader.history.cost,
        "overhead": loader.history.overhead,
        "updates": loader.history.updates,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "curve": curve,
        "history": loader.history.to_dict(),
        "versions": {
            "crest": crest.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": _machine(device),
    }


def count_steps(settings: RunSettings, data: LabelledData) -> int:
    """Compute the steps of a run.

    Args:
        settings: Gives epochs, budget and batch size.
        data: Gives n.

    Returns:
        N.

    Raises:
        ValueError: If a batch is larger than the data.
    """
    return settings.count_steps(_steps_per_epoch(settings, data))


def _steps_per_epoch(settings: RunSettings, data: LabelledData) -> int:
    n = data.num_train
    if settings.batch_size > n:
        raise ValueError(
            f"batch_size must be at most the number of train examples, {n}; "
            f"got {settings.batch_size}."
        )
    return n // settings.batch_size


def _make_loader(
    settings: RunSettings, data: LabelledData, views: Views, model: nn.Module
) -> tuple[crest.CoresetLoader, torch.Generator]:
    """Make the loader, and the generator of the order that full training takes."""
    dataset = cast(Dataset[Any], views)
    generator = torch.Generator().manual_seed(settings.seed)
    validation_loader = None
    if settings.strategy == "glister":
        n = len(views)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(settings.seed)).tolist()
        num_held_out = max(round(VALIDATION_FRACTION * n), 1)
        clean = cast(Dataset[Any], data.make_views(settings.device, augment=False))
        validation_loader = DataLoader(
            Subset(clean, order[:num_held_out]), batch_size=settings.batch_size
        )
        dataset = Subset(dataset, order[num_held_out:])
    train_loader = DataLoader(
        dataset,
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,  # every step of every strategy has m examples
        generator=generator,
    )
    loader = crest.CoresetLoader(
        train_loader,
        model,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        strategy=settings.make_strategy(
            validation_loader=validation_loader, num_steps=count_steps(settings, data)
        ),
        budget=settings.budget,
        seed=settings.seed,
    )
    return loader, generator


def _make_optimizer(settings: RunSettings, model: nn.Module) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def _rehearse(settings: RunSettings, data: LabelledData, views: Views, model: nn.Module) -> None:
    """Take one step on a copy, leaving model and random states as they are."""
    device = torch.device(settings.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        actor = copy.deepcopy(model)
        optimizer = _make_optimizer(settings, actor)
        for inputs, targets, weights in _make_loader(settings, data, views, actor)[0]:
            losses = nn.functional.cross_entropy(
                actor(inputs), targets.to(device), reduction="none"
            )
            crest.weighted_mean(losses, weights).backward()
            optimizer.step()
            break


def _check_finite(loss: Tensor, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise ValueError(
            f"the training loss must be finite; got {loss.item()} at step {step}. Lower --lr."
        )


def _accuracy(model: nn.Module, views: Views) -> float:
    """Measure accuracy on all test examples, in eval mode."""
    model.eval()
    correct = count = 0
    with torch.inference_mode():
        for inputs, labels in views.test_batches(_EVALUATION_BATCH):
            correct += int((model(inputs).argmax(1) == labels).sum())
            count += len(labels)
    model.train()
    return correct / count


@dataclass
class _Run:
    """All that changes while a run is under way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    loader: crest.CoresetLoader
    order: torch.Generator
    device: torch.device
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def state_dict(self, seconds: float) -> dict[str, Any]:
        on_cuda = self.device.type == "cuda"
        return {
            "step": self.step,
            "curve": self.curve,
            "seconds": seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "loader": self.loader.state_dict(),
            "records": self.loader.history.records,  # all; the loader keeps the newest
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if on_cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> float:
        """Go on from there, and return the seconds that it took to get there."""
        self.step, self.curve = state["step"], state["curve"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.loader.load_state_dict(state["loader"])
        self.loader.history.records = state["records"]
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        seconds: float = state["seconds"]
        return seconds


class _Clock:
    """Wall time with pauses, once the device has done what it was given."""

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._seconds = seconds
        self._turned = self._now()

    def stop(self) -> float:
        """Return the seconds that the clock ran in all."""
        now = self._now()
        self._seconds += now - self._turned
        self._turned = now
        return self._seconds

    def start(self) -> float:
        """Go on, and return the seconds since `stop`."""
        now = self._now()
        pause = now - self._turned
        self._turned = now
        return pause

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _machine(device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_cuda else device.type,
    }
