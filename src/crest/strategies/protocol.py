"""What a strategy is, what it may ask for, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from crest.looking.gradients import LastLayerGradients

__all__ = [
    "Examples",
    "Excludes",
    "Knows",
    "LearnsFromTraining",
    "MiniBatch",
    "Planner",
    "Region",
    "RemembersGradients",
    "SelectsLater",
    "Strategy",
    "Task",
    "call_observe",
]


@dataclass(frozen=True)
class MiniBatch:
    """Examples of one batch and their weights.

    Attributes:
        indices: Example indices, int64, shape (m,).
        weights: Weights of mean 1, in each batch or over many, float32, shape (m,).
    """

    indices: Tensor
    weights: Tensor

    @classmethod
    def unweighted(cls, indices: Tensor) -> MiniBatch:
        """Give each example the weight 1."""
        return cls(indices, torch.ones(len(indices)))


@dataclass(frozen=True)
class Region:
    """A finite list of mini-batches, fully known before the first is fetched.

    Attributes:
        batches: What to train on, in order.
        held: Whether the batches are made of the views that `Examples.hold` has read, so that the
            view that was selected is the view that is trained on.
        seeded: Whether reading is seeded, so that views do not depend on the process that reads.
            If not, a dataset without workers draws from the global random state, as in a plain
            loop.
        record: What the plan wants to see in the history; primitives only.
    """

    batches: list[MiniBatch]
    held: bool = False
    seeded: bool = True
    record: dict[str, Any] = field(default_factory=dict)


def call_observe() -> str:
    """Say what a loop does that tells by itself."""
    return "Call loader.observe(losses, outputs) after each forward pass."


@dataclass(frozen=True)
class Task:
    """What a strategy must know before the first region.

    Attributes:
        num_examples: n, the size of the data set.
        batch_size: m, examples in a mini-batch.
        batches_per_step: Mini-batches accumulated for one optimizer step.
        drop_last: Whether a pass over the data leaves out its incomplete last batch.
        generator: CPU generator for all random choices of the plan. The loader keeps its state.
        labels: Class of each example, int64, shape (n,), if known beforehand.
        user_order: Draws the batches of the next epoch as the user's own loader would.
        batches_per_pass: Batches of an epoch of the user's own loader.
        dataset: The data set itself, to tell whether another one shares examples with it; not to
            be read from. None if there is nothing to tell.
        exact_losses: Whether the losses beside last-layer gradients are those of the model on its
            data, and not of a cheaper view or a cheaper model.
        batch_statistics: Whether batch normalization takes the statistics of each pass that looks
            at the model, so that a loss depends on what else is in the pass.
        is_preview: Whether nothing is trained on, so that the planner hears of no loss.
        explain_silence: Says in words why nothing was seen of training, for messages.
    """

    num_examples: int
    batch_size: int
    batches_per_step: int
    drop_last: bool
    generator: torch.Generator
    labels: Tensor | None
    user_order: UserOrder
    batches_per_pass: int
    dataset: Any = None
    exact_losses: bool = True
    batch_statistics: bool = False
    is_preview: bool = False
    explain_silence: Callable[[], str] = call_observe

    @property
    def steps_of_a_pass(self) -> int:
        """Optimizer steps in which every example is trained on once."""
        return math.ceil(self.num_examples / (self.batch_size * self.batches_per_step))

    def refuse_cheaper_looks(self, strategy: str) -> None:
        """Refuse what makes looks at the model cheaper, for a strategy that cannot use it.

        Args:
            strategy: Its name.

        Raises:
            ValueError: If the losses are not those of eval mode on the data.
        """
        if not self.exact_losses or self.batch_statistics:
            raise ValueError(
                "transform, model and batch_statistics of look= must be left out with "
                f"{strategy}, which looks at the model on its own data; got one of them."
            )


class UserOrder(Protocol):
    """Draws the batches of one epoch from the sampler of the user's loader."""

    def __call__(self) -> list[Tensor]:
        """Return the example indices of each batch, int64."""
        ...


class Examples(Protocol):
    """The data set as a strategy sees it: examples by index, at the current parameters.

    Attributes:
        labels: Class of each example, or `pool.UNKNOWN_CLASS`, int64, shape (n,).
    """

    labels: Tensor

    @property
    def passes_beside_training(self) -> float:
        """Passes of single examples that training did not ask for, in forward passes, so far."""
        ...

    def hold(self, indices: Tensor) -> None:
        """Read one view of each example and keep it until the next call.

        Args:
            indices: Distinct example indices, int64, shape (k,).
        """
        ...

    def release(self, keep: Tensor) -> None:
        """Forget held views but those of `keep`, int64, shape (j,)."""
        ...

    def last_layer_gradients(self, indices: Tensor) -> LastLayerGradients:
        """Observe held views of `indices`, int64, shape (k,)."""
        ...

    def outside_gradients(self, loader: DataLoader[Any], indices: Tensor) -> LastLayerGradients:
        """Observe examples of another loader's dataset, `indices` of shape (k,), in their order."""
        ...

    def fresh_losses(self, indices: Tensor) -> Tensor:
        """Read new views of `indices`, shape (k,), and return their losses on the CPU."""
        ...

    def held_losses(self, indices: Tensor) -> Tensor:
        """Return the losses of held views of `indices`, shape (k,), on the CPU."""
        ...

    def weighted_loss(
        self, batch: MiniBatch, num_probes: int, scope: str
    ) -> AbstractContextManager[Tensor]:
        """Give the weighted mean loss of a held batch, with a graph for `num_probes` probes.

        Of several processes each has a part; the mean over them is that of the batch.
        """
        ...

    def mean_over_processes(self, values: Tensor) -> Tensor:
        """Average what was derived from `weighted_loss`, of which each process has its part.

        What a plan depends on and not every process computes from the same numbers goes through
        here, too. All processes call it together; one alone gets `values` back.
        """
        ...

    def parameters(self, scope: str) -> list[nn.Parameter]:
        """List the parameters of a scope, see `Observer.parameters`."""
        ...

    def statistics_are_settled(self) -> bool:
        """Tell whether a look goes by statistics of data, see `Observer.statistics_are_settled`."""
        ...

    def timed(self, component: str) -> AbstractContextManager[None]:
        """Book the seconds spent inside under a component of the history."""
        ...


class Planner(Protocol):
    """A strategy at work on one run: what must survive a step."""

    def next_region(self, examples: Examples, step: int) -> Region:
        """Plan what follows, once every step of the last region has been taken.

        Args:
            examples: The data set at the current parameters.
            step: Optimizer steps taken so far.

        Returns:
            At least one mini-batch; whole accumulation groups.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives that `load_state_dict` continues from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        ...


@runtime_checkable
class LearnsFromTraining(Protocol):
    """A planner that makes use of the losses that the user's loop computed."""

    def observe(self, indices: Tensor, losses: Tensor) -> None:
        """Hear of a mini-batch that was trained on.

        Args:
            indices: Example indices, int64, shape (m,).
            losses: Their losses, detached, on any device, shape (m,).
        """
        ...


@runtime_checkable
class RemembersGradients(Protocol):
    """A planner that makes use of the gradients that the user's loop computed."""

    def remember(self, indices: Tensor, errors: Tensor) -> None:
        """Hear of a mini-batch that was trained on.

        Args:
            indices: Example indices, int64, shape (m,).
            errors: Derivative of each loss by the outputs, on any device, shape (m, ...).
        """
        ...


@runtime_checkable
class Excludes(Protocol):
    """A planner that takes examples out of play."""

    @property
    def active(self) -> Tensor:
        """Which examples are in play, bool, shape (n,)."""
        ...


@runtime_checkable
class Knows(Protocol):
    """A planner that can tell what it knows of each example."""

    def knowledge(self) -> dict[str, Tensor]:
        """Tell, without changing what is planned.

        Returns:
            What is known, of `num_observations`, `last_loss`, `smoothed_loss`, `given_label`,
            `predicted_label`, `p_given` and `p_other`, the probabilities of the given class and of
            its strongest rival, `label_score`, 0 to 1, low = suspicious, and `is_label_issue`, for
            examples that were left out as suspicious; each of shape (n,), NaN or -1 where unknown.
        """
        ...


@runtime_checkable
class SelectsLater(Protocol):
    """A planner whose first batches are random."""

    @property
    def first_selected_step(self) -> int:
        """Optimizer step from which on it selects, if all of training is seen."""
        ...


class Strategy(Protocol):
    """A method to pick mini-batches, as a frozen dataclass of its settings."""

    def start(self, task: Task) -> Planner:
        """Begin a run.

        Args:
            task: Sizes, labels and randomness of the run.

        Returns:
            A planner at step 0.

        Raises:
            ValueError: If the settings do not fit the task, or the loader looks at a cheaper model
                or view that the strategy has no use for.
        """
        ...
