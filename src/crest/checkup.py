"""Looks a loader over before training: what it will see, when it selects, and what that costs."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from crest.checks import check, instance, optional, whole
from crest.findings import Checkup
from crest.loader import CoresetLoader
from crest.looking.head import unwrapped
from crest.looking.losses import PerExampleLoss
from crest.looking.observer import Observer
from crest.randomness import preserved_random_state
from crest.ranks import is_spread, refuse_spread
from crest.strategies.protocol import LearnsFromTraining, RemembersGradients, SelectsLater
from crest.strategies.registry import StrategyEntry, registered_strategies
from crest.watching.hook import Watch
from crest.watching.record import ExampleRecord
from crest.watching.replay import Replay

__all__ = ["doctor"]

_LOADER = instance(CoresetLoader, text="a CoresetLoader")
_TIMED = 5  # steps that are timed, after one that is not
_COPIES = 5  # of its parameters, in float32, that a quadratic model keeps


def doctor(loader: CoresetLoader, *, num_steps: int | None = None) -> Checkup:
    """Look a loader over before training, on a few batches and a copy of the model.

    Loader, model and random states stay as they are. Steps and passes are those of the whole run,
    the time of a step and its batch those of this process; each of several may ask alone.

    Args:
        loader: As it will be trained with.
        num_steps: Optimizer steps of the whole run, epochs times `len(loader)` say. None: unknown,
            and nothing is said of the run as a whole.

    Returns:
        Findings: the head; what will be observed, and how; batch normalization, dropout, attention,
        compilation; memory for each example; the cost of a step on this machine; and from which
        step on batches are selected.

    Raises:
        TypeError: If an argument is of a wrong kind.
        ValueError: If `num_steps` is out of its range.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
        >>> model, criterion = nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="none")
        >>> loader = CoresetLoader(
        ...     DataLoader(data, 8), model, loss_fn=criterion, strategy="online", budget=0.25
        ... )
        >>> (problem,) = doctor(loader, num_steps=6).problems
        >>> problem.found
        'batches are never selected in this run: it has 6 steps, and the first 8 are random.'
    """
    check("loader", loader, _LOADER)
    num_steps = check("num_steps", num_steps, optional(whole(1, 10**15, ">= 1 and <= 10**15")))
    examination = _Examination(loader, num_steps)
    with preserved_random_state(loader.observer.device):
        examination.run()
    return examination.checkup


class _Examination:
    def __init__(self, loader: CoresetLoader, num_steps: int | None) -> None:
        self.checkup = Checkup()
        self._loader = loader
        self._options = loader._options
        self._strategy = loader._options.strategy
        self._name = type(self._strategy).__name__
        self._entry = _entry_of(self._strategy)
        self._num_steps = num_steps
        task = loader._task
        generator = torch.Generator().manual_seed(0)
        self._task = dataclasses.replace(task, generator=generator, is_preview=True)
        self._planner = self._strategy.start(self._task)
        self._looks = self._entry is not None and "passes" in self._entry.needs

    def run(self) -> None:
        self._look_at_budget()
        batch = self._read()
        if batch is None:
            return
        indices, data = batch
        self._look_at_head(data)
        self._look_at_modules()
        seen = self._try_step(indices, data)
        self._look_at_memory(indices, seen)

    # One finding each

    def _look_at_budget(self) -> None:
        loader, options = self._loader, self._options
        add, numbers = self.checkup.add, self.checkup.numbers
        group = options.accumulation_steps
        steps = math.ceil(len(loader) / group)
        m = self._task.batch_size  # of all processes together
        passes = len(loader) * m / loader.num_examples
        numbers |= {"steps_per_epoch": steps, "passes_per_epoch": passes}
        found = (
            f"an epoch is {steps} steps, {passes:.2f} passes over {loader.num_examples} examples"
        )
        if self._num_steps is not None:
            in_all = self._num_steps * group * m / loader.num_examples
            numbers |= {"num_steps": self._num_steps, "passes": in_all}
            found += f"; the run is {self._num_steps} steps, {in_all:.2f} passes"
        add("good", "budget", f"{found}.", "Give the learning-rate schedule that many steps.")
        first = self._first_selected_step()
        numbers["first_selected_step"] = first
        if first is None:
            add("good", "selection", f"{self._name} selects nothing, by design.")
        elif self._num_steps is not None and first >= self._num_steps:
            numbers["first_selected_step"] = None
            epochs = math.ceil(2 * first / steps)
            add(
                "problem",
                "selection",
                f"batches are never selected in this run: it has {self._num_steps} steps, and the "
                f"first {first} are random.",
                f"Train for {epochs} epochs or more at budget={options.budget:g}, raise the budget,"
                " or take a strategy that needs no pass before, at the cost of passes of its own.",
            )
        elif first:
            add(
                "good",
                "selection",
                f"batches are selected from step {first} on, in epoch {first // steps + 1}; those "
                "before are random.",
            )
        else:
            add("good", "selection", "batches are selected from the first step on.")

    def _read(self) -> tuple[Tensor, Any] | None:
        n, m = self._loader.num_examples, self._options.batch_size
        indices = torch.arange(m) * (n // m)
        try:
            (data,) = self._loader.read([indices], seed=0)
        except Exception as error:
            self.checkup.add(
                "problem", "data", f"a batch cannot be read: {_told(error)}", "Mend the data set."
            )
            return None
        return indices, data

    def _new_observer(self) -> Observer:
        options = self._options
        return Observer(
            self._loader._model, options.loss_fn, head=options.head, dtype=options.look.dtype
        )

    def _look_at_head(self, data: Any) -> None:
        add, numbers = self.checkup.add, self.checkup.numbers
        observer = self._new_observer()
        try:
            refuse_spread(self._loader._model)
            seen = observer.last_layer_gradients(data)
            seconds = _least_seconds(lambda: observer.last_layer_gradients(data))
        except Exception as error:
            add(
                "problem" if self._looks else "note",
                "head",
                f"no last layer can be looked at: {_told(error)}"
                + ("" if self._looks else f" {self._name} does not need it."),
                "Name it with head=, or mend what the message says." if self._looks else "",
            )
            return
        head = observer.find_head(data)
        model = unwrapped(self._loader._model)
        name = next((name for name, one in model.named_modules() if one is head), "")
        numbers["head"] = name or type(head).__name__
        outputs = tuple(seen.errors.shape[1:])
        add(
            "good",
            "head",
            f"{numbers['head']}, {head}; outputs of shape {outputs} for each example.",
        )
        numbers["look_seconds"] = seconds
        if self._looks:
            add(
                "note",
                "looks",
                f"{self._name} makes forward passes of its own; one over {len(seen.losses)} "
                f"examples takes {1000 * seconds:.2g} ms here.",
            )

    def _look_at_modules(self) -> None:
        add = self.checkup.add
        model, look = self._loader._model, self._options.look
        modules = list(unwrapped(model).modules())
        norms = sum(isinstance(module, _BatchNorm) for module in modules)
        dropouts = sum(isinstance(one, _DropoutNd) and one.p > 0 for one in modules)
        if norms and self._looks and not look.batch_statistics:
            add(
                "note",
                "batch norm",
                f"{norms} layers; looks take their running statistics, which lag behind at a large "
                "learning rate.",
                "look=crest.Look(batch_statistics=True) takes those of each pass.",
            )
        elif norms:
            add("good", "batch norm", f"{norms} layers; training alone updates them.")
        if dropouts:
            where = "looks are made without it" if self._looks else "losses are those with it"
            add("good", "dropout", f"{dropouts} layers; {where}.")
        attention = sum("attention" in type(module).__name__.lower() for module in modules)
        if attention:
            slow = getattr(self._strategy, "curvature", "none") != "none"
            found = f"{attention} modules"
            found += "; curvature runs them under the slower MATH backend." if slow else "."
            change = "curvature='head' or 'none' spares it." if slow else ""
            add("note" if slow else "good", "attention", found, change)
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            add(
                "good",
                "compile",
                "the model is compiled; looks go to the original, and training is seen by an "
                "operation within the graph.",
                "Make the loader before the first compiled step: what was compiled before is not "
                "seen.",
            )
        frozen = [p for p in model.parameters() if not p.requires_grad]
        if frozen:
            count = sum(p.numel() for p in frozen)
            add("good", "frozen", f"{count} parameters are not trained.")

    def _try_step(self, indices: Tensor, data: Any) -> tuple[Tensor, Tensor] | None:
        """Take steps on a copy, with and without hooks; give losses and derivatives if seen."""
        add, numbers = self.checkup.add, self.checkup.numbers
        if is_spread(self._loader._model):
            found = (
                "not tried: each process holds a part of the model, and a step takes all of them."
            )
            add("note", "observing", found)
            return None
        try:
            model = copy.deepcopy(unwrapped(self._loader._model))
        except Exception as error:
            add("note", "observing", f"not tried, as the model cannot be copied: {_told(error)}")
            return None
        model.train()
        losses_of = PerExampleLoss(model, self._options.loss_fn)

        def step() -> None:
            with torch.autocast(self._loader.observer.device.type, enabled=False):
                loss = losses_of(data).mean()
            loss.backward()

        try:
            seconds = numbers["seconds_per_step"] = _least_seconds(step)
        except Exception as error:
            add(
                "problem" if self._hears else "note",
                "loss",
                f"loss_fn on a batch fails: {_told(error)}",
                "Give loss_fn what the loop computes, one loss per example.",
            )
            return None
        add(
            "good",
            "step",
            f"forward and backward of {len(indices)} examples take {1000 * seconds:.3g} ms here, "
            "without optimizer and reading.",
        )
        if not self._hears:
            add(
                "good",
                "observing",
                f"{self._name} does not learn from training; nothing is watched.",
                "record=True records every example all the same.",
            )
            return None
        return self._try_watching(model, losses_of.takes_model, step, indices, data)

    @property
    def _hears(self) -> bool:
        return self._options.record or isinstance(
            self._planner, (LearnsFromTraining, RemembersGradients)
        )

    def _try_watching(
        self,
        model: nn.Module,
        takes_model: bool,
        step: Callable[[], None],
        indices: Tensor,
        data: Any,
    ) -> tuple[Tensor, Tensor] | None:
        add, numbers = self.checkup.add, self.checkup.numbers
        found: list[tuple[Tensor, Tensor]] = []
        replay = Replay(model, self._options.loss_fn, takes_model=takes_model)
        watch = Watch(model, replay, lambda _, __, losses, errors: found.append((losses, errors)))
        weights = torch.ones(len(indices))

        def watched() -> None:
            watch.hand_out(0, indices, weights, data)
            step()
            watch.settle()

        with_hooks = _least_seconds(watched)
        why = watch.explain() if not found else ""
        watch.close()
        more = max(with_hooks - float(numbers["seconds_per_step"] or 0), 0.0)
        numbers["watching_seconds"] = more
        if not found:
            add(
                "problem",
                "observing",
                f"nothing of training would be seen by hooks. {why}",
                "Call loader.observe(losses, outputs) in the loop.",
            )
            return None
        losses, errors = found[-1]
        add(
            "good",
            "observing",
            f"by hooks, without a line in the loop: losses, and derivatives of shape "
            f"{tuple(errors.shape[1:])}; {1000 * more:.2g} ms a step.",
            "It must be loss_fn that the loop minimizes: label smoothing or mixup in the loop "
            "alone are refused.",
        )
        return losses, errors

    def _look_at_memory(self, indices: Tensor, seen: tuple[Tensor, Tensor] | None) -> None:
        n = self._loader.num_examples
        per_example = 12.0  # three counts
        if seen is not None:
            losses, errors = seen
            if isinstance(self._planner, LearnsFromTraining):
                self._planner.observe(indices, losses)
            if isinstance(self._planner, RemembersGradients):
                self._planner.remember(indices, errors)
        per_example += _bytes(self._planner.state_dict()) / n
        if self._options.record:
            per_example += _bytes(ExampleRecord(1).state_dict())
        self.checkup.numbers["bytes_per_example"] = per_example
        self.checkup.add(
            "good",
            "memory",
            f"about {per_example:.0f} bytes an example, {per_example * n / 2**20:.1f} MiB in all.",
        )
        scope = getattr(self._strategy, "curvature", "none")
        if scope != "none":
            model = unwrapped(self._loader._model)
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
            if scope == "trainable":
                self.checkup.add(
                    "note",
                    "memory",
                    f"the quadratic model keeps {_COPIES} copies of {count} parameters, "
                    f"{4 * _COPIES * count / 2**20:.1f} MiB.",
                    "curvature='head' keeps those of the last layer alone.",
                )

    def _first_selected_step(self) -> int | None:
        if isinstance(self._planner, SelectsLater):
            return self._planner.first_selected_step
        needs_nothing = self._entry is not None and not self._entry.needs
        return None if needs_nothing else 0


def _entry_of(strategy: Any) -> StrategyEntry | None:
    entries = registered_strategies().values()
    return next((entry for entry in entries if entry.settings is type(strategy)), None)


def _least_seconds(call: Callable[[], object]) -> float:
    """Time a call some times after one that is not timed, and take the least."""
    call()
    seconds = []
    for _ in range(_TIMED):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        since = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - since)
    return min(seconds)  # others may share the processor


def _bytes(state: Any) -> int:
    """Count the bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(_bytes(value) for value in state.values())
    return sum(_bytes(value) for value in state) if isinstance(state, (list, tuple)) else 0


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text or type(error).__name__
