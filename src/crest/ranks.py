"""The processes of a run: what each of them trains on, and what they tell each other.

Under `torch.distributed` (DDP, FSDP, Accelerate, torchrun) every process plans the same regions
from the same seed and the same knowledge, and trains on its own part of each batch. All that they
tell each other they tell where a batch is fetched, on all of them in the same order: never in the
midst of a forward or backward pass, so that no process waits for one that waits for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_map

from crest.strategies.protocol import MiniBatch

__all__ = ["Ranks", "is_spread", "refuse_spread"]

Value = TypeVar("Value")

_ODD = 0x1E3779B97F4A7C15  # spreads the processes over all seeds
_SEEDS = 2**62


class Ranks:
    """This process among those that share the work; one alone if there are no others.

    Attributes:
        rank: Number of this process, in [0, world).
        world: How many share the work.

    Args:
        shares: Whether the work is shared at all. If not, this is a process by itself.
    """

    def __init__(self, *, shares: bool = True) -> None:
        self._shares = shares
        self.rank, self.world = _present() if shares else (0, 1)
        self._count = 0  # of what was told
        self._has_met = False

    def check_present(self) -> None:
        """Refuse a run whose processes were started after the loader was made.

        Raises:
            RuntimeError: If there are more or fewer processes than then.
        """
        world = _present()[1] if self._shares else self.world
        if world != self.world:
            raise RuntimeError(
                f"the CoresetLoader must be made after torch.distributed was initialised; it was "
                f"made for {self.world} process(es), and now there are {world}. Make it in "
                "train_dataloader() under Lightning, or pass shard=False to share nothing."
            )

    def share(self, indices: Tensor) -> Tensor:
        """Take the part of what is looked at that this process looks at.

        Args:
            indices: Shape (k,).

        Returns:
            k / world of them in a row, rounded up or down; the parts of all processes, one after
            the other, are the whole.
        """
        return indices.tensor_split(self.world)[self.rank]

    def batch(self, whole: MiniBatch) -> MiniBatch:
        """Take the part of a batch that this process trains on.

        Where parts differ in size their weights make up for it: the mean over all processes of the
        weighted mean loss of a part is the weighted mean loss of the whole. A batch of fewer
        examples than processes is filled up with examples of weight 0, so that each has a step.

        Args:
            whole: What all processes train on together, k examples.

        Returns:
            The part.
        """
        if self.world == 1:
            return whole
        k, part = len(whole.indices), slice(self.rank, None, self.world)
        indices = whole.indices[part]
        if not len(indices):
            return MiniBatch(whole.indices[:1], torch.zeros(1))
        return MiniBatch(indices, whole.weights[part] * (self.world * len(indices) / k))

    def seed(self, seed: int) -> int:
        """Give each process a seed of its own, the first one the seed itself."""
        return seed if not self.rank else (seed + self.rank * _ODD) % _SEEDS

    def gather(self, what: str, value: Value) -> list[Value]:
        """Tell the others something, and hear the same of them; all call it together.

        Args:
            what: Names it, to see that all are at the same place.
            value: Tensors on the CPU and primitives.

        Returns:
            The values of all processes, in their order.

        Raises:
            RuntimeError: If a process has ended, does not come in time, or is elsewhere.
        """
        if self.world == 1:
            return [value]
        self._count += 1
        place = f"{what}, number {self._count}"
        found: list[Any] = [None] * self.world
        with self._waiting():
            dist.all_gather_object(found, (place, tree_map(_without_rest, value)))
        for rank, (other, _) in enumerate(found):
            if other != place:
                raise RuntimeError(
                    "all processes must take the same batches; process "
                    f"{self.rank} is at {place!r}, process {rank} at {other!r}. End loops on all "
                    "of them at the same batch, and ask preview() on all of them."
                )
        return [one for _, one in found]

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over the processes, where the model lives; all call it together.

        Args:
            values: Of any shape, on a device of the process group.

        Returns:
            The mean, the same to the last bit on all processes.

        Raises:
            RuntimeError: If a process has ended or does not come in time.
        """
        if self.world == 1:
            return values
        total = values.clone()
        with self._waiting():
            dist.all_reduce(total)
        return total / self.world

    def meet(self, settings: Mapping[str, Any]) -> None:
        """See once that all processes have a loader of the same settings.

        Args:
            settings: Primitives by name.

        Raises:
            ValueError: If one is another on another process; names it.
        """
        if self._has_met:
            return
        self._has_met = True
        for rank, others in enumerate(self.gather("settings", dict(settings))):
            for name in settings:
                if others.get(name) != settings[name]:
                    raise ValueError(
                        f"{name} must be the same on all processes; process {self.rank} has "
                        f"{settings[name]!r}, process {rank} {others.get(name)!r}."
                    )

    def check_plan(self, batches: Sequence[MiniBatch]) -> None:
        """See that all processes have planned the same batches.

        Args:
            batches: Of the region.

        Raises:
            RuntimeError: If not.
        """
        if self.world == 1:
            return
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(batch.indices.numpy().tobytes() + b";")
        plans = self.gather("plan", digest.hexdigest())
        if len(set(plans)) > 1:
            raise RuntimeError(
                "all processes must plan the same batches; their plans differ. A strategy of your "
                "own must draw from task.generator alone, and the data set must give the same "
                "examples under the same numbers on all processes."
            )

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.world} waited for the others at the next region, "
                "and not all of them came: one has ended, or takes other batches. The first error "
                "of the other processes says why."
            ) from error


def _without_rest(value: Any) -> Any:
    """Copy a part of a tensor, which would travel with all that it is a part of."""
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def _present() -> tuple[int, int]:
    """Give rank and number of the processes that there are now."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_spread(model: nn.Module) -> bool:
    """Tell whether parameters of a model are spread over the processes, as FSDP does it.

    Args:
        model: The model that is trained.

    Returns:
        Whether it has parameters of which this process holds a part alone.
    """
    return any(type(parameter).__name__ == "DTensor" for parameter in model.parameters())


def refuse_spread(model: nn.Module) -> None:
    """Refuse to look at a model whose parameters are spread over the processes.

    Each of its passes is a message to the others, which may look at fewer examples.

    Args:
        model: The model that is trained.

    Raises:
        ValueError: If it has parameters of which this process holds a part alone.
    """
    if is_spread(model):
        raise ValueError(
            "the strategy must learn from training, and not look at the model, where FSDP spreads "
            "it over the processes. Take crest.OnlineSelection() or crest.RememberedGradients()."
        )
