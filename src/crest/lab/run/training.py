"""One training run, through the public loader as a user would write it."""

from __future__ import annotations

import copy
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Subset

import crest
from crest.lab.data.image_data import ImageData
from crest.lab.data.protocol import LabelledData, Views
from crest.lab.data.recipes import Drawing, ViewRecipes
from crest.lab.run.checkpoint import Checkpoint, Paused
from crest.lab.run.clock import Clock
from crest.lab.run.diagnosis import Diagnosis, check_diagnostics, evenly_spaced
from crest.lab.run.freed_memory import keep_freed_memory
from crest.lab.run.learning_rate import learning_rate_factor
from crest.lab.run.machine import describe_machine
from crest.lab.run.settings import VALIDATION_FRACTION, WHOLE_STEP, RunSettings
from crest.lab.run.step import CapturedStep, Step, plain_step
from crest.strategies.online.rules import pick_cover

__all__ = ["check", "count_steps", "make_untrained_loader", "train"]

_STEPS_TO_COMPILE = 3  # with CUDA graphs: one to warm up, one to record, one to see
_EVALUATION_BATCH = 250  # test examples in one forward pass; more do not fit a cache


def train(
    settings: RunSettings,
    data: LabelledData,
    *,
    on_step: Callable[[int], None] | None = None,
    diagnostics: Sequence[str] = (),
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train once and measure. Seeds torch's global generator and sets its threads.

    Measuring costs no time, as clocks stand still meanwhile, and changes nothing else: runs with
    and without diagnostics end with the same parameters. A rehearsal comes before the clock
    starts, so that what is compiled or allocated once counts for no run.

    Args:
        settings: What to train and how.
        data: Train and test examples.
        on_step: Called with the number of steps taken, after each.
        diagnostics: What else to measure, some of `diagnosis.DIAGNOSTICS`.
        checkpoint: Where the run is saved now and then; if it was, the run goes on from there and
            ends as if it had never stopped. Clocks count the seconds of all parts.

    Returns:
        The record of the run, primitives only: `data`, `network`, `strategy`, `seed`,
        `equal_time` (whether N was given in place of a budget) and `settings`; `steps`, test
        `accuracy` as a fraction, `seconds`, `cost` in random steps, `overhead` as a fraction and
        `updates`; `curve`, a list of `step`, `seconds` and `accuracy`; `diagnostics`, see
        `Diagnosis.to_record`; `parameters`, `history`, `versions` and `machine`.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM; with a checkpoint the run is saved first.
        OSError: If the run cannot be saved, such as on a full disk.
        Paused: If the time of the checkpoint is up.
        ValueError: If settings and data do not fit, a diagnostic is unknown, the checkpoint is of
            something else, or the loss is not finite.
    """
    check_diagnostics(diagnostics)
    if checkpoint is None:
        return _train(settings, data, on_step, diagnostics, None)
    with checkpoint.interrupts:
        return _train(settings, data, on_step, diagnostics, checkpoint)


def _train(
    settings: RunSettings,
    data: LabelledData,
    on_step: Callable[[int], None] | None,
    diagnostics: Sequence[str],
    checkpoint: Checkpoint | None,
) -> dict[str, Any]:
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(settings.seed)
    model = data.build_network(settings.network).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    views = _make_views(settings, data, augment=settings.augment)
    called = Drawing(model, views) if isinstance(views, ViewRecipes) else model
    forward = _make_forward(settings, called)
    _rehearse(settings, data, views, called, forward)
    if checkpoint is not None:
        checkpoint.interrupts.check()

    num_steps = count_steps(settings, data)
    schedule_steps = settings.count_schedule_steps(_steps_per_epoch(settings, data))
    evaluate_at = evenly_spaced(num_steps, settings.evaluations)
    loader, order = _make_loader(settings, data, views, called, "label_scores" in diagnostics)
    optimizer = _make_optimizer(settings, model)
    scheduler = LambdaLR(
        optimizer,
        lambda step: (
            1.0 if settings.optimizer == "adamw" else learning_rate_factor(step, schedule_steps)
        ),
    )
    diagnosis = _make_diagnosis(diagnostics, settings, views, model, loader, num_steps)
    run = _Run(model, optimizer, scheduler, loader, order, diagnosis, device)
    seconds = 0.0
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        with checkpoint.naming_faults():
            seconds = run.load_state_dict(saved)
    curve, step = run.curve, run.step
    take_step = _make_step(settings, views, forward, run)
    clock = Clock(device, seconds)
    while step < num_steps:
        for inputs, targets, weights in loader:
            loss = take_step(inputs, targets, weights)
            scheduler.step()
            step = run.step = step + 1
            if on_step is not None:
                on_step(step)
            measures = diagnosis.is_due(step) or step in evaluate_at
            saves = checkpoint is not None and (
                checkpoint.interrupts.came or (step < num_steps and checkpoint.is_due)
            )
            if measures or saves:
                seconds = clock.stop()
                _check_finite(loss, step)
                if step in evaluate_at:
                    correct = _correct(settings, model, views.test_batches(_EVALUATION_BATCH))
                    accuracy = float(correct.mean())
                    curve.append({"step": step, "seconds": seconds, "accuracy": accuracy})
                diagnosis.measure(step)
                if checkpoint is not None and (saves or checkpoint.interrupts.came):
                    checkpoint.save(run.state_dict(seconds))
                    checkpoint.interrupts.check()
                    if checkpoint.time_is_up:
                        raise Paused
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
            **{module.__name__: module.__version__ for module in (crest, torch, np)},
            "python": platform.python_version(),
        },
        "machine": describe_machine(device),
    }


def check(settings: RunSettings, data: LabelledData) -> None:
    """Refuse what does not fit the data, without training.

    Args:
        settings: What to train and how.
        data: Train and test examples.

    Raises:
        ValueError: If settings and data do not fit, or there is no compiler to compile with.
    """
    count_steps(settings, data)
    if settings.torch_mode is not None and torch.device(settings.device).type == "cpu":
        _check_compiler()
    _make_loader(settings, data, data.make_views("cpu", augment=False), nn.Linear(1, 1))


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


def make_untrained_loader(settings: RunSettings, data: LabelledData) -> crest.CoresetLoader:
    """Make the loader of a run and its model, to be looked at before anything is trained.

    Args:
        settings: What to train and how.
        data: Train examples.

    Returns:
        The loader.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model = data.build_network(settings.network).to(settings.device)
    views = data.make_views(settings.device, augment=settings.augment)
    loader, _ = _make_loader(settings, data, views, model)
    return loader


def _steps_per_epoch(settings: RunSettings, data: LabelledData) -> int:
    n = data.num_train
    if settings.batch_size > n:
        raise ValueError(
            f"batch_size must be at most the number of train examples, {n}; "
            f"got {settings.batch_size}."
        )
    return n // settings.batch_size


def _make_loader(
    settings: RunSettings, data: LabelledData, views: Views, model: nn.Module, record: bool = False
) -> tuple[crest.CoresetLoader, torch.Generator]:
    """Make the loader, and the generator of the order that full training takes."""
    dataset = cast(Dataset[Any], views)
    generator = torch.Generator().manual_seed(settings.seed)
    validation_loader = None
    held_out, trained = _split(settings, len(views))
    if held_out:
        clean = cast(Dataset[Any], _make_views(settings, data, augment=False))
        validation_loader = DataLoader(Subset(clean, held_out), batch_size=settings.batch_size)
        dataset = Subset(dataset, trained)
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
        labels=data.train_labels[trained],
        look=crest.Look(dtype=settings.autocast_dtype),
        record=record,
    )
    return loader, generator


def _split(settings: RunSettings, n: int) -> tuple[list[int], list[int]]:
    """Divide the train examples into those held out and those trained on."""
    if not settings.entry.needs_validation:
        return [], list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    num_held_out = max(round(VALIDATION_FRACTION * n), 1)
    return order[:num_held_out], order[num_held_out:]


def _make_diagnosis(
    names: Sequence[str],
    settings: RunSettings,
    views: Views,
    model: nn.Module,
    loader: crest.CoresetLoader,
    num_steps: int,
) -> Diagnosis:
    def look() -> Tensor:
        _, trained = _split(settings, len(views))
        return _correct(settings, model, views.plain_batches(trained, _EVALUATION_BATCH)).bool()

    subset_size = getattr(settings.make_strategy(), "subset_size", None)
    return Diagnosis(names, loader, look, num_steps, settings.evaluations, subset_size)


def _make_views(settings: RunSettings, data: LabelledData, *, augment: bool) -> Views:
    if settings.compile == WHOLE_STEP:
        return ViewRecipes(cast(ImageData, data), settings.device, augment=augment)
    return data.make_views(settings.device, augment=augment)


def _make_optimizer(settings: RunSettings, model: nn.Module) -> torch.optim.Optimizer:
    lr: Any = settings.lr
    options: dict[str, Any] = {"weight_decay": settings.weight_decay}
    if settings.compile == WHOLE_STEP:  # a number would be part of the graph
        lr = torch.tensor(settings.lr, device=settings.device)
        options["fused"] = True
    if settings.optimizer == "adamw":
        options["capturable"] = isinstance(lr, Tensor) and lr.device.type == "cuda"
        options["fused"] = True  # word vectors are many: one pass over them
        return torch.optim.AdamW(model.parameters(), lr=lr, **options)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=settings.momentum, **options)


def _make_step(
    settings: RunSettings, views: Views, forward: Callable[[Tensor], Tensor], run: _Run
) -> Step:
    """Make the step as the settings say, once the state of the run is what it begins with."""
    if not isinstance(views, ViewRecipes):
        return plain_step(forward, run.optimizer, run.device)  # the loader watches
    learns = {"losses", "outputs"} & {*settings.entry.needs}
    observe = run.loader.observe if learns else None
    inputs = views.of_first(settings.batch_size)
    return CapturedStep(forward, run.model, run.optimizer, run.device, observe, inputs)


def _make_forward(settings: RunSettings, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model as training calls it, with outputs in float32."""
    called: Callable[[Tensor], Tensor] = model
    if settings.torch_mode is not None:
        called = torch.compile(model, mode=settings.torch_mode)

    def forward(inputs: Tensor) -> Tensor:
        with _autocast(settings):
            return called(inputs).float()

    return forward


def _check_compiler() -> None:
    """Refuse what torch would after a page of its own calls."""
    name = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if shutil.which(name) is None:
        raise ValueError(
            f"compile must be None where there is no C++ compiler; {name} is not found. "
            "Install it, or name another in the environment variable CXX."
        )


def _autocast(settings: RunSettings) -> torch.autocast:
    dtype = settings.autocast_dtype
    device = torch.device(settings.device).type
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def _rehearse(
    settings: RunSettings,
    data: LabelledData,
    views: Views,
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
) -> None:
    """Take a step or some, then set model and random states back to what they were."""
    device = torch.device(settings.device)
    before = copy.deepcopy(model.state_dict())
    steps = 1 if settings.torch_mode is None else _STEPS_TO_COMPILE
    # Of strategies that select later than in the first steps, from four mini-batches.
    m = settings.batch_size
    pick_cover(torch.zeros(1, 4 * m, len(data.classes), device=device), m)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        optimizer = _make_optimizer(settings, model)
        loader, _ = _make_loader(settings, data, views, model)
        for inputs, targets, weights in islice(chain.from_iterable(repeat(loader)), steps):
            losses = nn.functional.cross_entropy(
                forward(inputs), targets.to(device), reduction="none"
            )
            crest.weighted_mean(losses, weights).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.load_state_dict(before)


def _check_finite(loss: Tensor, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise ValueError(
            f"the training loss must be finite; got {loss.item()} at step {step}. Lower the "
            "learning rate."
        )


def _correct(
    settings: RunSettings, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Tensor:
    """Tell which examples the model has right, in eval mode: 1.0 or 0.0 for each."""
    model.eval()
    with torch.inference_mode(), _autocast(settings):
        correct = [model(inputs).argmax(1) == labels for inputs, labels in batches]
    model.train()
    return torch.cat(correct).double()


@dataclass
class _Run:
    """All that changes while a run is under way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    loader: crest.CoresetLoader
    order: torch.Generator
    diagnosis: Diagnosis
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
            "diagnosis": self.diagnosis.state_dict(),
            "order": self.order.get_state(),
            "cpu_random": torch.get_rng_state(),
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
        self.diagnosis.load_state_dict(state["diagnosis"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["cpu_random"])
        if state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        seconds: float = state["seconds"]
        return seconds
