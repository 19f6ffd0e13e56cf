"""The data set as strategies see it: held views, fresh views, and what a model makes of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from crest.history import COMPONENTS, History
from crest.items import Copier
from crest.labels import label_of
from crest.looking.gradients import LastLayerGradients
from crest.looking.observer import Observer
from crest.pool import UNKNOWN_CLASS
from crest.ranks import Ranks, refuse_spread
from crest.reader import Reader, Request, place
from crest.strategies.protocol import MiniBatch

__all__ = ["DataView"]

Result = TypeVar("Result")

_SEEDS = 2**62  # view seeds are drawn below this


class DataView:
    """Joins reader, observer and history behind the protocol `strategies.protocol.Examples`.

    Attributes:
        labels: Class of each example, or `pool.UNKNOWN_CLASS`, int64, shape (n,). Those that are
            read from the data are read anew with each view, as a loop may correct them.
        reader: Reads the examples.

    Args:
        reader: As the attribute.
        observer: Looks at the model.
        history: Is told seconds and passes.
        generator: CPU generator of view seeds.
        chunk: Examples in one forward pass and in one request to the reader.
        labels: As the attribute.
        cheaper: Looks at last-layer gradients in place of `observer`, if given.
        ranks: The processes that share the looks. Each reads all examples that are held, so that it
            has the views that it trains on, and passes its part of them forward.
    """

    def __init__(
        self,
        reader: Reader,
        observer: Observer,
        history: History,
        generator: torch.Generator,
        chunk: int,
        labels: Tensor,
        cheaper: Observer | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = Ranks(shares=False) if ranks is None else ranks
        self.labels = labels
        self._reads_labels = bool((labels == UNKNOWN_CLASS).all())
        self._cheaper = cheaper
        self._price: float = 1 if cheaper is None else 0  # of an example; 0 before it was counted
        self._counted_on = 0  # examples of the pass that counted it
        self.reader = reader
        self._observer = observer
        self._history = history
        self._generator = generator
        self._chunk = chunk
        self._indices = torch.empty(0, dtype=torch.int64)
        self._seeds: list[int] = []
        self._kept = self._indices
        self._held: dict[int, Any] = {}
        self._halved = False
        self._collation_known = self._warned_of_collation = False

    @property
    def passes_beside_training(self) -> float:
        """Passes of single examples that training did not ask for, in forward passes, so far.

        Without the one that counted the operations of the model, which does not come again.
        """
        every = sum(self._history.forward_passes(name) for name in COMPONENTS if name != "train")
        return every - self._counted_on

    def hold(self, indices: Tensor) -> None:
        """Read one view of each example and keep it until the next call.

        Args:
            indices: Distinct example indices, int64, shape (k,).
        """
        self._indices = self._kept = indices
        self._held = {}  # before the new come: all views of a data set may be held
        self._seeds = self.draw_seeds(math.ceil(len(indices) / self._chunk))
        self._read_held()

    def release(self, keep: Tensor) -> None:
        """Forget held views but those of `keep`, int64, shape (j,)."""
        self._kept = keep
        self._held = {index: self._held[index] for index in keep.tolist()}

    def share_views(self, other: DataView) -> None:
        """Hold what another one of the same data set and state holds, instead of reading it again.

        Args:
            other: Whose views to take; they stay its own, too.
        """
        self._held = other._held

    def last_layer_gradients(self, indices: Tensor) -> LastLayerGradients:
        """Observe held views.

        Args:
            indices: Example indices, int64, shape (k,).

        Returns:
            Losses and gradients in the order of `indices`.
        """
        parts = self._observe(self._gradients, self._views(), self._ranks.share(indices))
        for part, some in parts:
            self._check_losses(part.losses, some)
        return self._gathered([part for part, _ in parts], len(indices))

    def outside_gradients(self, loader: DataLoader[Any], indices: Tensor) -> LastLayerGradients:
        """Observe examples that are not of this data set, such as those of a validation loader.

        Args:
            loader: Gives the dataset, collate_fn and workers.
            indices: Example indices in its dataset, int64, shape (k,).

        Returns:
            Losses and gradients in the order of `indices`.
        """
        share = self._ranks.share(indices)
        chunks = share.split(self._chunk) if len(share) else ()
        seeds = self.draw_seeds(math.ceil(len(indices) / self._chunk))
        requests = [
            Request(some.tolist(), seed, collate=True)
            for some, seed in zip(chunks, seeds, strict=False)
        ]
        parts = []
        stream = Reader(loader, worker_seed=seeds[0]).stream(requests)
        for some, batch in zip(chunks, stream, strict=True):
            part = self._gradients(place(batch, self._observer.device))
            self._check_losses(part.losses, some)
            parts.append(part)
        return self._gathered(parts, len(indices))

    def fresh_losses(self, indices: Tensor) -> Tensor:
        """Read new views and measure their losses.

        Args:
            indices: Distinct example indices, int64, shape (k,).

        Returns:
            Losses on the CPU, shape (k,), float32.
        """
        items = self._read(indices, self.draw_seeds(math.ceil(len(indices) / self._chunk)))
        return self._losses(items, indices)

    def held_losses(self, indices: Tensor) -> Tensor:
        """Measure the losses of held views.

        Args:
            indices: Held example indices, int64, shape (k,).

        Returns:
            Losses on the CPU, shape (k,), float32.
        """
        return self._losses(self._views(), indices)

    @contextmanager
    def weighted_loss(self, batch: MiniBatch, num_probes: int, scope: str) -> Iterator[Tensor]:
        """Give the weighted mean loss of a held batch, with a graph for two derivatives.

        Args:
            batch: A mini-batch of held examples.
            num_probes: Hessian products that will be taken, for the books.
            scope: Parameters that it will be differentiated by, as in `parameters`. Derivatives by
                the last layer alone count for nothing beside the forward pass.

        Yields:
            Scalar, sum of weight times loss over m.
        """
        k = len(batch.indices)
        self._history.count("quadratic", forward=k)
        if scope != "head":
            self._history.count("quadratic", backward=k, hessian=num_probes * k)
        part = self._ranks.batch(batch)
        collated = self._batch(self._views(), part.indices)
        with self._observer.differentiable_losses(collated, scope) as losses:
            yield (losses * part.weights.to(losses)).sum() / len(part.indices)

    def mean_over_processes(self, values: Tensor) -> Tensor:
        """Average over the processes, see `strategies.protocol.Examples`.

        Args:
            values: Of any shape.

        Returns:
            The mean, on the device of `values`.
        """
        return self._ranks.mean(values.to(self._observer.device)).to(values.device)

    def parameters(self, scope: str) -> list[nn.Parameter]:
        """List the parameters of a scope, see `Observer.parameters`.

        Args:
            scope: `"trainable"` or `"head"`.

        Returns:
            Parameters that require grad.
        """
        batch = None
        if scope == "head" and not self._observer.has_head:
            batch = self._batch(self._views(), self._kept[: self._chunk])
        return self._observer.parameters(scope, batch)

    def statistics_are_settled(self) -> bool:
        """Tell whether a look goes by statistics of data, see `Observer.statistics_are_settled`."""
        return self._observer.statistics_are_settled

    def timed(self, component: str) -> AbstractContextManager[None]:
        """Book the seconds spent inside under a component of the history.

        Args:
            component: One of `history.COMPONENTS`.

        Returns:
            A context manager.
        """
        return self._history.timed(component)

    def held_batch(self, indices: Tensor, seed: int) -> Any:
        """Collate held views for training.

        Args:
            indices: Held example indices, int64, shape (m,).
            seed: Seeds a collate function that draws at random.

        Returns:
            The batch, where the dataset put it.
        """
        items = self._items(self._views(), indices)
        with self._history.timed_on_host("data"):
            batch = self.reader.collate(items, seed)
        self._warn_of_random_collation(items)
        return batch

    def draw_seeds(self, count: int) -> list[int]:
        """Draw seeds for `count` requests.

        Args:
            count: How many.

        Returns:
            Integers in [0, 2**62).
        """
        seeds: list[int] = torch.randint(_SEEDS, (count,), generator=self._generator).tolist()
        return seeds

    def check_labels(self, saved: Tensor) -> None:
        """Refuse a checkpoint of other labels than the loader was told.

        Args:
            saved: `labels` of the checkpoint.

        Raises:
            ValueError: If an example has another one, which tells that the data set has changed.
        """
        if self._reads_labels or saved.shape != self.labels.shape:
            return
        others = (saved != self.labels) & (saved != UNKNOWN_CLASS) & (self.labels != UNKNOWN_CLASS)
        if others.any():
            first = int(others.nonzero()[0])
            raise ValueError(
                f"labels must be those of the checkpoint; {int(others.sum())} examples have "
                f"another one, such as example {first}: {int(saved[first])} then, "
                f"{int(self.labels[first])} now. Make a new loader for other data, or give the "
                "data set its order back."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return which views are held: they are read again, not stored."""
        return {
            "indices": self._indices,
            "seeds": list(self._seeds),
            "kept": self._kept,
            "labels": self.labels.clone(),
            "price": self._price,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; held views are read when first needed."""
        self._indices = state["indices"]
        self._seeds = list(state["seeds"])
        self._kept = state["kept"]
        self.labels.copy_(state["labels"])
        self._price = state["price"]
        self._held = {}

    def _views(self) -> dict[int, Any]:
        if not self._held and len(self._kept):  # after load_state_dict
            kept = self._kept
            self._read_held()
            self.release(kept)
        return self._held

    def _losses(self, items: dict[int, Any], indices: Tensor) -> Tensor:
        self._history.count("check", forward=len(indices))
        parts = self._observe(self._observer.losses, items, self._ranks.share(indices))
        for losses, some in parts:
            self._check_losses(losses, some)
        own = torch.cat([losses for losses, _ in parts]).cpu() if parts else torch.empty(0)
        return torch.cat(self._ranks.gather("losses", own))

    def _gathered(self, parts: list[LastLayerGradients], total: int) -> LastLayerGradients:
        """Join what all processes have seen of `total` examples, in their order."""
        if self._ranks.world == 1:
            return LastLayerGradients.concatenate(parts)
        own = LastLayerGradients.concatenate(parts).to("cpu") if parts else None
        told = self._ranks.gather("gradients", (self._price, own))
        self._price = next(price for price, _ in told if price)  # one for all
        seen = 0 if own is None else len(own.losses)
        self._history.count("features", forward=self._price * (total - seen))
        found = [part for _, part in told if part is not None]
        return LastLayerGradients.concatenate(found).to(self._observer.device)

    def _gradients(self, batch: Any) -> LastLayerGradients:
        if not self._price:
            self._price = self._count_price(batch)
        gradients = (self._cheaper or self._observer).last_layer_gradients(batch)
        self._history.count("features", forward=self._price * len(gradients.losses))
        return gradients

    def _count_price(self, batch: Any) -> float:
        """Count what one example costs the cheaper observer, in forward passes of the model."""
        from torch.utils.flop_counter import FlopCounterMode  # which imports Triton, if it is there

        assert self._cheaper is not None
        flops = []
        for observer in (self._cheaper, self._observer):
            observer.prepare(batch)
            with FlopCounterMode(display=False) as counter:
                losses = observer.losses(Copier().copy(batch))  # a loss may write to its batch
            flops.append(counter.get_total_flops())
        self._history.count("features", forward=len(losses))
        self._counted_on = len(losses)
        return flops[0] / flops[1] if all(flops) else 1.0

    def _observe(
        self, look: Callable[[Any], Result], items: dict[int, Any], indices: Tensor
    ) -> list[tuple[Result, Tensor]]:
        """Look at examples in equal chunks; one too large for the memory is halved once."""
        refuse_spread(self._observer.model)
        parts: list[tuple[Result, Tensor]] = []
        left = indices
        while len(left):
            most = self._chunk // (2 if self._halved else 1)
            some = left[: math.ceil(len(left) / math.ceil(len(left) / most))]
            try:
                parts.append((look(self._batch(items, some)), some))
            except torch.OutOfMemoryError:
                if self._halved or len(some) < 2:
                    raise
                self._halved = True
                warnings.warn(
                    f"a forward pass of {len(some)} examples ran out of memory; from now on "
                    f"passes hold {self._chunk // 2}.",
                    ResourceWarning,
                    stacklevel=2,
                )
                continue
            left = left[len(some) :]
        return parts

    def _read_held(self) -> None:
        self._held = self._read(self._indices, self._seeds)

    def _read(self, indices: Tensor, seeds: list[int]) -> dict[int, Any]:
        with self._history.timed("data"):
            items = self.reader.items(indices, seeds, self._chunk)
        if self._reads_labels:
            found = [label_of(items[index]) for index in indices.tolist()]
            self.labels[indices] = torch.tensor(found, dtype=torch.int64)
        return items

    def _batch(self, items: dict[int, Any], indices: Tensor) -> Any:
        with self._history.timed("data"):
            batch = self.reader.collate(self._items(items, indices), seed=int(indices[0]))
            return place(batch, self._observer.device)

    def _items(self, items: dict[int, Any], indices: Tensor) -> list[Any]:
        numbers = indices.tolist()
        try:
            return [items[index] for index in numbers]
        except KeyError:
            # A plan that was broken off has held others in their place: these views are gone.
            if not self._held.keys() >= set(numbers):
                self.hold(torch.unique(torch.cat([self._kept, indices])))
            return [self._held[index] for index in numbers]

    def _warn_of_random_collation(self, items: list[Any]) -> None:
        collate = self.reader.collate
        if self._collation_known and not collate.draws:
            return
        is_random = collate.draws or collate.is_random(items)
        if is_random and not self._warned_of_collation:
            self._warned_of_collation = True
            warnings.warn(
                "collate_fn draws at random, each time anew: a batch that is trained on is not the "
                "view that was selected, but another of the same examples. Draw in the dataset's "
                "__getitem__ to train on what was selected.",
                stacklevel=2,
            )
        self._collation_known = True

    def _check_losses(self, losses: Tensor, indices: Tensor) -> None:
        if len(losses) != len(indices):
            raise ValueError(
                f"loss_fn must return one loss per example, shape ({len(indices)},); got "
                f"{tuple(losses.shape)}. Take the mean over the other dimensions."
            )
        finite = torch.isfinite(losses).cpu()
        if not finite.all():
            bad = (~finite).nonzero().squeeze(1)
            raise ValueError(
                f"losses must be finite; got {float(losses[bad[0]])} at step {self._history.steps} "
                f"for examples {indices[bad][:10].tolist()}. Lower the learning rate, add a "
                "warm-up, or look at these examples."
            )
