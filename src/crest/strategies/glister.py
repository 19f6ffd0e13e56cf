"""GLISTER: the examples that lower the loss on a held-out set (Killamsetty et al., AAAI 2021)."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from crest.checks import ArgumentTypeError, check_fields, number, whole
from crest.looking.gradients import LastLayerGradients
from crest.randomness import preserved_order, seeded
from crest.strategies.protocol import Examples, Planner, Task
from crest.strategies.registry import Paper, register_strategy
from crest.strategies.subsets import Share, SubsetPlanner, SubsetSettings

__all__ = ["Glister"]

_RULES = {"lr": number(0, above=True), "rounds": whole(1)}

_ROUNDING = 1e-3  # of probabilities that are told from losses and errors in float32


@register_strategy(
    "glister",
    line="The examples for each epoch that lower the loss on a held-out set most",
    needs=("passes", "validation_loader", "lr"),
    paper=Paper(
        "GLISTER: Generalization based Data Subset Selection for Efficient and Robust Learning",
        "Killamsetty, Sivasubramanian, Ramakrishnan, Iyer",
        "AAAI",
        2021,
    ),
    follows={"subset_fraction": "budget", "lr": "lr"},
    is_baseline=True,
)
@dataclass(frozen=True)
class Glister(SubsetSettings):
    """Pick greedily what lowers the validation loss most, looking one pass of training ahead.

    A pass over the subset in mini-batches moves the last layer, to first order, by lr / m times the
    sum of all gradients: example j adds lr / m times the inner product of its gradient with that of
    the validation set. After each round of picks the last layer moves by their part, in thought,
    and the validation gradient is computed anew from the moved outputs. All weights are 1. The
    loss must be cross-entropy with one class for each example.

    Note:
        A single step on the mean of the subset is k / m times shorter. The validation gradient then
        hardly changes from pick to pick, and training on the picks raises the validation loss; few
        rounds overshoot (docs/results/baselines.md).

    Args:
        validation_loader: Loader over a map-style dataset that shares no example with training; all
            that its sampler chooses is observed at each selection. Parts of one dataset made by
            `Subset` or `random_split` are told apart; copies of an example are not.
        lr: Learning rate of the pass, > 0; as a rule that of the training.
        rounds: How often the validation gradient is computed during a selection, >= 1; at most
            after every pick.

    `subset_fraction`, `reselect_steps`, `per_class` and `keep_views` are those of `SubsetSettings`.

    Raises:
        TypeError: If there is no validation loader, or it is over an iterable dataset; or if a
            value is of a wrong kind.
        ValueError: If one is out of its range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> held_out = TensorDataset(torch.randn(8, 4), torch.randint(2, (8,)))
        >>> Glister(DataLoader(held_out, batch_size=4), lr=0.01).rounds
        200
    """

    validation_loader: InitVar[DataLoader[Any] | None] = None
    lr: float = 0.1
    rounds: int = 200

    def __post_init__(self, validation_loader: DataLoader[Any] | None) -> None:
        super().__post_init__()
        if not isinstance(validation_loader, DataLoader):
            raise ArgumentTypeError(
                "Glister needs a DataLoader over held-out examples; got "
                f"{type(validation_loader).__name__}. Write Glister(validation_loader)."
            )
        if isinstance(validation_loader.dataset, IterableDataset):
            raise ArgumentTypeError(
                "the dataset of validation_loader must be map-style; got an IterableDataset, "
                f"{type(validation_loader.dataset).__name__}. Load it into a list first."
            )
        check_fields(self, _RULES)
        # Not a field: a checkpoint stores and compares the settings, not the data.
        object.__setattr__(self, "validation_loader", validation_loader)

    def start(self, task: Task) -> Planner:
        """Begin a run, see `Strategy.start`; refuses validation examples that are trained on."""
        loader = cast("DataLoader[Any]", vars(self)["validation_loader"])
        # Should a sampler draw them, the same examples in every process.
        with seeded(0), preserved_order(loader):
            indices = torch.tensor(_examples_of(loader), dtype=torch.int64)
        if len(indices) == 0:
            raise ValueError("validation_loader must hold at least one example; got an empty one.")
        shared = _num_shared(loader.dataset, indices, task.dataset, task.num_examples)
        if shared:
            raise ValueError(
                "validation_loader must share no example with training; it shares "
                f"{shared} of {len(indices)}. Hold some out: torch.utils.data.random_split."
            )

        def pick(
            examples: Examples, gradients: LastLayerGradients, shares: list[Share]
        ) -> tuple[Tensor, Tensor]:
            with examples.timed("features"):
                validation = _Outlook(examples.outside_gradients(loader, indices))
            step_of_one = self.lr / (task.batch_size * task.batches_per_step)
            picks = _greedy(gradients, shares, validation, step_of_one, self.rounds)
            return picks, torch.full((len(picks),), task.num_examples / len(picks))

        return SubsetPlanner(self, task, pick)


class _Outlook:
    """Outputs on the validation set, up to a constant, as the last layer moves in thought.

    Args:
        seen: The validation set at the current parameters.

    Raises:
        ValueError: If the loss is not cross-entropy.
    """

    def __init__(self, seen: LastLayerGradients) -> None:
        if seen.errors.ndim != 2:
            raise ValueError(
                "Glister needs one output for each example; got several positions, shape "
                f"{tuple(seen.errors.shape)}. Use another strategy."
            )
        errors, classes = seen.errors.float(), seen.errors.argmin(1, keepdim=True)
        self._truth = torch.zeros_like(errors).scatter_(1, classes, 1.0)  # p - y < 0 there alone
        probabilities = errors + self._truth
        off = torch.stack(
            [
                errors.sum(1).abs(),
                -probabilities.amin(1),
                (probabilities.gather(1, classes).squeeze(1) - (-seen.losses).exp()).abs(),
            ]
        )
        if float(off.max()) > max(_ROUNDING, 8 * torch.finfo(seen.errors.dtype).eps):
            raise ValueError(
                "Glister needs cross-entropy with one class for each example, without smoothing or "
                "weights; got losses and gradients of another loss. Use another strategy."
            )
        self._outputs = (
            probabilities.clamp(min=1e-30).log().scatter_(1, classes, -seen.losses.unsqueeze(1))
        )
        self._inputs = seen.inputs_with_bias().float()

    def gradient(self) -> Tensor:
        """Differentiate the mean validation loss by the last layer, (c, d')."""
        errors = self._outputs.softmax(1) - self._truth
        return errors.T @ self._inputs / len(errors)

    def move(self, step: Tensor) -> None:
        """Take a step, (c, d'), from the parameters of the last layer."""
        self._outputs -= self._inputs @ step.T


def _greedy(
    gradients: LastLayerGradients,
    shares: list[Share],
    validation: _Outlook,
    step_of_one: float,
    rounds: int,
) -> Tensor:
    errors, inputs = gradients.errors.float(), gradients.inputs_with_bias().float()
    rounds = min(rounds, max(size for _, size in shares))
    picks: list[Tensor] = []
    picked = torch.zeros(len(errors), dtype=torch.bool, device=errors.device)
    for turn in range(rounds):
        gains = ((errors @ validation.gradient()) * inputs).sum(1)
        gains.masked_fill_(picked, -math.inf)
        new = torch.cat(
            [
                _largest(gains, rows, size * (turn + 1) // rounds - size * turn // rounds)
                for rows, size in shares
            ]
        )
        validation.move(step_of_one * (errors[new].T @ inputs[new]))
        picked[new] = True
        picks.append(new)
    return torch.cat(picks)


def _examples_of(loader: DataLoader[Any]) -> list[int]:
    """List the examples of a pass, ascending."""
    batches = loader.batch_sampler
    if batches is None or loader.drop_last:  # incomplete batches count, too
        return sorted(set(loader.sampler))
    return sorted({index for batch in batches for index in batch})


def _largest(gains: Tensor, rows: Tensor, count: int) -> Tensor:
    return rows[gains[rows].argsort(descending=True, stable=True)[:count]]


def _num_shared(one: Any, indices: Tensor, other: Any, other_length: int) -> int:
    """Count the examples that both take from the same dataset, through any `Subset`."""
    one, indices = _origin(one, indices)
    other, other_indices = _origin(other, torch.arange(other_length))
    return int(torch.isin(indices, other_indices).sum()) if one is other else 0


def _origin(dataset: Any, indices: Tensor) -> tuple[Any, Tensor]:
    while isinstance(dataset, Subset):
        indices = torch.as_tensor(dataset.indices)[indices]
        dataset = dataset.dataset
    return dataset, indices
