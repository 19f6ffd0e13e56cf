"""One training run, through the public loader as a user would write it."""

from __future__ import annotations

import copy
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import crest
from crest.experiments.diagnosis import Diagnosis, check_diagnostics, evenly_spaced
from crest.experiments.image_data import ImageData
from crest.experiments.learning_rate import learning_rate_factor
from crest.experiments.memory import keep_freed_memory
from crest.experiments.networks import build_network
from crest.experiments.settings import VALIDATION_FRACTION, RunSettings
from crest.experiments.views import ImageViews

__all__ = ["count_steps", "train"]

_EVALUATION_BATCH = 250  # test images in one forward pass; more do not fit a cache


def train(
    settings: RunSettings,
    data: ImageData,
    *,
    on_step: Callable[[int], None] | None = None,
    diagnostics: Sequence[str] = (),
) -> dict[str, Any]:
    """Train once and measure. Seeds torch's global generator and sets its threads.

    Measuring costs no time, as clocks stand still meanwhile, and changes nothing else: runs with
    and without diagnostics end with the same parameters. One step on a copy of the model comes
    before the clock starts, so that what is compiled or allocated once counts for no run.

    Args:
        settings: What to train and how.
        data: Train and test images.
        on_step: Called with the number of steps taken, after each.
        diagnostics: What else to measure, some of `diagnosis.DIAGNOSTICS`.

    Returns:
        The record of the run, primitives only: `data`, `network`, `strategy`, `seed`,
        `equal_time` (whether N was given in place of a budget) and `settings`; `steps`, test
        `accuracy` as a fraction, `seconds`, `cost` in random steps, `overhead` as a fraction and
        `updates`; `curve`, a list of `step`, `seconds` and `accuracy`; `diagnostics`, see
        `Diagnosis.to_record`; `parameters`, `history`, `versions` and `machine`.

    Raises:
        ValueError: If settings and data do not fit, a diagnostic is unknown, or the loss is not
            finite.
    """
    check_diagnostics(diagnostics)
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(settings.seed)
    model = build_network(
        settings.network, data.in_channels, data.image_size, len(data.classes)
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    views = ImageViews(data, device, augment=settings.augment)
    _rehearse(settings, data, views, model)

    num_steps = count_steps(settings, data)
    schedule_steps = settings.count_schedule_steps(_steps_per_epoch(settings, data))
    evaluate_at = evenly_spaced(num_steps, settings.evaluations)
    evaluator = _Evaluator(views, data.test_images, data.test_labels, device)
    criterion = nn.CrossEntropyLoss(reduction="none")
    loader = _make_loader(settings, data, views, model)
    optimizer = _make_optimizer(settings, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, schedule_steps)
    )
    diagnosis = _make_diagnosis(diagnostics, settings, data, views, model, loader)
    curve: list[dict[str, float]] = []
    clock = _Clock(device)
    step = 0
    while step < num_steps:
        for inputs, targets, weights in loader:
            losses = criterion(model(inputs), targets.to(device))
            loader.observe(losses)
            loss = crest.weighted_mean(losses, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            if on_step is not None:
                on_step(step)
            if diagnosis.is_due(step) or step in evaluate_at:
                seconds = clock.stop()
                _check_finite(loss, step)
                if step in evaluate_at:
                    accuracy = evaluator.accuracy(model)
                    curve.append({"step": step, "seconds": seconds, "accuracy": accuracy})
                diagnosis.measure(step)
                if step == num_steps:
                    break
                # The loader books the time between two batches as training; this was none.
                loader.history.seconds["train"] -= clock.start()
    return {
        "data": settings.data,
        "network": settings.network,
        "strategy": settings.strategy,
        "seed": settings.seed,
        "equal_time": settings.num_steps is not None,
        "settings": settings.to_record(data.fingerprint),
        "steps": step,
        "accuracy": curve[-1]["accuracy"],
        "seconds": curve[-1]["seconds"],
        "cost": loader.history.cost,
        "overhead": loader.history.overhead,
        "updates": loader.history.updates,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "curve": curve,
        "history": loader.history.to_dict(),
        "diagnostics": diagnosis.to_record(),
        "versions": {
            "crest": crest.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": _machine(device),
    }


def count_steps(settings: RunSettings, data: ImageData) -> int:
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


def _steps_per_epoch(settings: RunSettings, data: ImageData) -> int:
    n = len(data.train_images)
    if settings.batch_size > n:
        raise ValueError(
            f"batch_size must be at most the number of train images, {n}; "
            f"got {settings.batch_size}."
        )
    return n // settings.batch_size


def _make_loader(
    settings: RunSettings, data: ImageData, views: ImageViews, model: nn.Module
) -> crest.CoresetLoader:
    dataset: Dataset[Any] = views
    validation_loader = None
    if settings.strategy == "glister":
        held_out, trained = _split(settings, len(views))
        clean = ImageViews(data, settings.device, augment=False)
        validation_loader = DataLoader(Subset(clean, held_out), batch_size=settings.batch_size)
        dataset = Subset(views, trained)
    train_loader = DataLoader(
        dataset,
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,  # every step of every strategy has m examples
        generator=torch.Generator().manual_seed(settings.seed),
    )
    return crest.CoresetLoader(
        train_loader,
        model,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        strategy=settings.make_strategy(
            validation_loader=validation_loader, num_steps=count_steps(settings, data)
        ),
        budget=settings.budget,
        seed=settings.seed,
    )


def _split(settings: RunSettings, n: int) -> tuple[list[int], list[int]]:
    """Divide the train images into those held out and those trained on."""
    if settings.strategy != "glister":
        return [], list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    num_held_out = max(round(VALIDATION_FRACTION * n), 1)
    return order[:num_held_out], order[num_held_out:]


def _make_diagnosis(
    names: Sequence[str],
    settings: RunSettings,
    data: ImageData,
    views: ImageViews,
    model: nn.Module,
    loader: crest.CoresetLoader,
) -> Diagnosis:
    def look() -> Tensor:
        _, trained = _split(settings, len(views))
        images, labels = data.train_images[trained], data.train_labels[trained]
        return _Evaluator(views, images, labels, torch.device(settings.device)).correct(model)

    return Diagnosis(
        names,
        loader,
        look,
        count_steps(settings, data),
        settings.evaluations,
        getattr(settings.make_strategy(), "subset_size", None),
    )


def _make_optimizer(settings: RunSettings, model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def _rehearse(settings: RunSettings, data: ImageData, views: ImageViews, model: nn.Module) -> None:
    """Take one step on a copy, leaving model and random states as they are."""
    device = torch.device(settings.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        actor = copy.deepcopy(model)
        optimizer = _make_optimizer(settings, actor)
        for inputs, targets, weights in _make_loader(settings, data, views, actor):
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


class _Evaluator:
    """Looks at all of some images without augmentation, in eval mode."""

    def __init__(
        self, views: ImageViews, images: Tensor, labels: Tensor, device: torch.device
    ) -> None:
        self._views = views
        self._images = images.to(device)
        self._labels = labels.to(device)

    def accuracy(self, model: nn.Module) -> float:
        """Measure the fraction of the images that the model has right."""
        return int(self.correct(model).sum()) / len(self._labels)

    def correct(self, model: nn.Module) -> Tensor:
        """Tell which images the model has right."""
        model.eval()
        with torch.inference_mode():
            correct = [
                model(self._views.normalize(images)).argmax(1) == labels
                for images, labels in zip(
                    self._images.split(_EVALUATION_BATCH),
                    self._labels.split(_EVALUATION_BATCH),
                    strict=True,
                )
            ]
        model.train()
        return torch.cat(correct)


class _Clock:
    """Wall time with pauses, once the device has done what it was given."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
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
