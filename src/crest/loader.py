"""CoresetLoader: fetches planned regions and attaches the weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from crest.examples import ObservedExamples
from crest.history import History
from crest.observer import (
    Observer,
    order_generators,
    preserved_order,
    preserved_random_state,
)
from crest.pool import UNKNOWN_CLASS
from crest.reader import Reader, Request, place
from crest.strategies import Crest, Full, Strategy
from crest.strategies.protocol import (
    Excludes,
    LearnsFromTraining,
    MiniBatch,
    Region,
    RemembersGradients,
    Task,
)

__all__ = ["CoresetLoader", "weighted_mean"]

_STATE_VERSION = 2


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Average per-example losses with the weights of a batch.

    The sum is divided by m, not by the sum of the weights: both agree, as weights have mean 1.

    Args:
        losses: One loss per example, shape (m,).
        weights: Weights from the loader, shape (m,).

    Returns:
        Scalar to call `backward()` on.

    Raises:
        ValueError: If the shapes differ, or the losses are a scalar.

    Example:
        >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.5, 0.5]))
        tensor(1.5000)
    """
    if losses.ndim == 0:
        raise ValueError(
            "losses must be one per example, not their mean; got a scalar. "
            'Set reduction="none" in the loss.'
        )
    if losses.shape != weights.shape:
        raise ValueError(
            f"losses must have the shape of the weights, {tuple(weights.shape)}; "
            f"got {tuple(losses.shape)}."
        )
    return (losses * weights.to(losses)).mean()


class CoresetLoader:
    """A short epoch of weighted mini-batches in place of the epoch of an ordinary loader.

    Batches are those of the user's loader (dataset, collate_fn, workers, pin_memory) with weights
    attached: appended to a tuple or list, `sample_weight` and `sample_index` in a dict. Batches are
    planned in finite regions; nothing is fetched beyond the end of a region before its last step
    was taken. Randomness of dataset and collate_fn is seeded at each read, so that a run depends on
    `seed` alone and not on the number of workers; the global random states are left alone.

    Attributes:
        history: Records, seconds and costs, see `crest.history.History`.
        observer: Looks at the model without a trace, see `crest.observer.Observer`.

    Args:
        train_loader: An ordinary DataLoader over a map-style dataset, with shuffling or without.
        model: The model that is trained; the loader only looks at it.
        loss_fn: `loss_fn(output, target)` for batches `(inputs, targets)`, or `loss_fn(model,
            batch)`, told by the name of the first argument. Returns one loss per example.
        strategy: How mini-batches are picked; `Crest()` if None.
        budget: Share of the batches of `train_loader` in one epoch of this loader, in (0, 1].
        batch_size: m. None: that of `train_loader`.
        accumulation_steps: Batches accumulated for one optimizer step; an epoch is a whole number
            of such groups, unless the budget is 1.
        seed: Seed of all random choices.
        labels: Class of each example, integers from 0, shape (n,), for stratified strategies.
        head: The last layer or its name; found by itself if None, see `Observer`.
        selection_dataset: Other views of the same examples, without augmentation say, to select on;
            training then reads the loader's dataset as usual. By default the view that is selected
            is the view that is trained on: a weight is right for the pixels that were measured.
        observer_transform: `observer_transform(batch)` makes a collated batch cheaper to select on,
            by lower resolution or truncated text; it is trained on as it is.
        observer_model: A cheaper model to select with, on the device of `model`: an early exit that
            shares its layers, or a small network that your loop trains beside it. Its head is found
            by itself.
        observer_dtype: Dtype of autocast for all passes that look at the model, but for its head,
            such as `torch.bfloat16`. None: the precision of the parameters.
        observer_batch_statistics: Whether batch normalization takes the statistics of each of these
            passes, as in training, and not the running ones. These lag behind at a large learning
            rate, and are not those of a transformed batch.
        observer_chunk: Most examples in one of these passes, >= 1; large ones suit a GPU. None: m,
            or 128 if that is more.
        attach: `attach(batch, weights, indices)` returns the batch to hand out, for batches that
            are no tuple, list or dict.

    Raises:
        TypeError: If the dataset is iterable-style, `strategy` is no strategy, or `observer_dtype`
            no dtype.
        ValueError: If the dataset is empty, the sampler chooses examples by itself, a value is out
            of its range, or two settings contradict each other.

    Note:
        The losses that `observer_transform`, `observer_model` and `observer_batch_statistics` give
        are not those of the model on its data. With one of them `Crest` excludes no example, and
        refuses to check a quadratic model.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
        >>> model, criterion = nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="none")
        >>> loader = CoresetLoader(
        ...     DataLoader(data, batch_size=8, shuffle=True), model, loss_fn=criterion, budget=0.25
        ... )
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for inputs, targets, weights in loader:
        ...     loss = weighted_mean(criterion(model(inputs), targets), weights)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> len(loader), loader.history.steps
        (2, 2)
    """

    def __init__(
        self,
        train_loader: DataLoader[Any],
        model: nn.Module,
        *,
        loss_fn: Callable[..., Tensor],
        strategy: Strategy | None = None,
        budget: float = 0.1,
        batch_size: int | None = None,
        accumulation_steps: int = 1,
        seed: int = 0,
        labels: Tensor | Sequence[int] | None = None,
        head: nn.Module | str | None = None,
        selection_dataset: Any = None,
        observer_transform: Callable[[Any], Any] | None = None,
        observer_model: nn.Module | None = None,
        observer_dtype: torch.dtype | None = None,
        observer_batch_statistics: bool = False,
        observer_chunk: int | None = None,
        attach: Callable[[Any, Tensor, Tensor], Any] | None = None,
    ) -> None:
        strategy = Crest() if strategy is None else strategy
        labels = None if labels is None else torch.as_tensor(labels)
        self._dataset_length = _check_arguments(
            train_loader, strategy, budget, accumulation_steps, labels
        )
        batch_size = _batch_size(train_loader) if batch_size is None else batch_size
        if not 1 <= batch_size <= self._dataset_length:
            raise ValueError(
                f"batch_size must be in [1, {self._dataset_length}], the number of examples; "
                f"got {batch_size}."
            )
        if observer_dtype is not None and not isinstance(observer_dtype, torch.dtype):
            raise TypeError(
                f"observer_dtype must be a torch.dtype or None; got {observer_dtype!r}. Write "
                "torch.bfloat16."
            )
        if observer_chunk is not None and observer_chunk < 1:
            raise ValueError(f"observer_chunk must be >= 1 or None; got {observer_chunk}.")
        self._train_loader = train_loader
        self._model = model
        self._arguments: dict[str, Any] = {
            "loss_fn": loss_fn,
            "strategy": strategy,
            "budget": budget,
            "batch_size": batch_size,
            "accumulation_steps": accumulation_steps,
            "seed": seed,
            "labels": labels,
            "head": head,
            "selection_dataset": selection_dataset,
            "observer_transform": observer_transform,
            "observer_model": observer_model,
            "observer_dtype": observer_dtype,
            "observer_batch_statistics": observer_batch_statistics,
            "observer_chunk": observer_chunk,
            "attach": attach,
        }
        self._accumulation_steps = accumulation_steps
        self._attach = attach
        self._trains_on_held = selection_dataset is None
        self._settings = {
            "strategy": type(strategy).__name__,
            **{f"strategy.{k}": v for k, v in dataclasses.asdict(cast(Any, strategy)).items()},
            "budget": budget,
            "batch_size": batch_size,
            "accumulation_steps": accumulation_steps,
            "seed": seed,
            "selection_dataset": selection_dataset is not None,
            "observer_transform": observer_transform is not None,
            "observer_model": observer_model is not None,
            "observer_dtype": None if observer_dtype is None else str(observer_dtype),
            "observer_batch_statistics": observer_batch_statistics,
            "observer_chunk": observer_chunk,
        }
        self._length = _epoch_length(len(train_loader), budget, accumulation_steps)

        self._plan_generator = torch.Generator().manual_seed(seed)
        self._view_generator = torch.Generator().manual_seed(seed + 1)
        self.observer = Observer(model, loss_fn, head=head, dtype=observer_dtype)
        cheaper = None
        if (
            observer_model is not None
            or observer_transform is not None
            or observer_batch_statistics
        ):
            cheaper = Observer(
                model if observer_model is None else observer_model,
                loss_fn,
                head=head if observer_model is None else None,
                dtype=observer_dtype,
                transform=observer_transform,
                batch_statistics=observer_batch_statistics,
            )
        self.history = History(batch_size * accumulation_steps, self.observer.device)
        self._reader = Reader(train_loader)
        known_labels = torch.full((self._dataset_length,), UNKNOWN_CLASS)
        if labels is not None:
            known_labels.copy_(labels)
        if selection_dataset is not None and len(selection_dataset) != self._dataset_length:
            raise ValueError(
                f"selection_dataset must have the examples of the dataset, {self._dataset_length}; "
                f"it has {len(selection_dataset)}."
            )
        self._examples = ObservedExamples(
            self._reader if selection_dataset is None else Reader(train_loader, selection_dataset),
            self.observer,
            self.history,
            self._view_generator,
            max(batch_size, 128) if observer_chunk is None else observer_chunk,
            known_labels,
            cheaper,
        )
        self._task = Task(
            num_examples=self._dataset_length,
            batch_size=batch_size,
            batches_per_step=accumulation_steps,
            drop_last=train_loader.drop_last,
            generator=self._plan_generator,
            labels=None if labels is None else known_labels,
            user_order=functools.partial(_user_order, train_loader),
            batches_per_pass=len(train_loader),
            dataset=train_loader.dataset,
            exact_losses=cheaper is None,
        )
        self._planner = strategy.start(self._task)
        self._region = Region([])
        self._seeds: list[int] = []
        self._cursor = 0  # batches of the region handed out
        self._stream: Iterator[Any] | None = None
        self._position = 0  # batches of the epoch handed out
        self._total = 0  # batches of the run handed out
        self._in_epoch = False
        self._resuming = False
        self._version = -1  # of the parameters when the last batch was handed out
        self._smallest = torch.empty(0)  # the values of one of them
        self._untrained = 0  # batches handed out since the parameters last changed

    def __len__(self) -> int:
        """Return the number of batches in a short epoch."""
        return self._length

    @property
    def num_examples(self) -> int:
        """Number of examples in the data set, n."""
        return self._dataset_length

    @property
    def batch_size(self) -> int:
        """Examples in a mini-batch, m."""
        size: int = self._arguments["batch_size"]
        return size

    @property
    def handed_out(self) -> MiniBatch | None:
        """Examples and weights of the batch that was handed out last, None before the first."""
        return self._region.batches[self._cursor - 1] if self._cursor else None

    @property
    def active(self) -> Tensor:
        """Which examples are in play, bool, shape (n,): all, but for strategies that exclude."""
        if isinstance(self._planner, Excludes):
            return self._planner.active.clone()
        return torch.ones(self._dataset_length, dtype=torch.bool)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over one short epoch; after `load_state_dict`, over what is left of it."""
        if not self._resuming:
            self._position = 0
        self._resuming = False
        self._in_epoch = True
        try:
            while self._position < self._length:
                batch = self._next_batch()
                self._position += 1
                with self.history.timed_on_host("train"):
                    yield batch
        finally:  # a loop that counts batches does not ask for one more
            self._in_epoch = self._position < self._length

    def observe(
        self, losses: Tensor, outputs: Tensor | None = None, *, indices: Tensor | None = None
    ) -> None:
        """Tell the strategy what training computed for a batch.

        `LossPruning` then needs no pass of its own, and `RememberedGradients` lives on it.
        Strategies that do not learn from training ignore it, so that the loop can stay as it is.

        Args:
            losses: One loss per example, shape (m,), before weights and before `backward()`.
            outputs: What the losses were computed from, such as logits, shape (m, ...), of one
                shape in all batches. Only `RememberedGradients` needs them.
            indices: Of the examples, int64, shape (m,), as they came with the batch: a batch that
                is a mapping has them as `"sample_index"`, any other with `attach=`. None: those of
                the batch that was handed out last, which is another one where batches are fetched
                ahead of training, as Accelerate does.

        Raises:
            ValueError: If there was no batch yet, the shape is not that of its indices, or the
                strategy needs outputs and the losses were not computed from those given.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
            >>> model, criterion = nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="none")
            >>> loader = CoresetLoader(DataLoader(data, batch_size=8), model, loss_fn=criterion)
            >>> for inputs, targets, weights in loader:
            ...     outputs = model(inputs)
            ...     losses = criterion(outputs, targets)
            ...     loader.observe(losses, outputs)
            ...     weighted_mean(losses, weights).backward()
        """
        if self.handed_out is None:
            raise ValueError("observe needs a batch that was handed out; got none so far.")
        if indices is None:
            indices, whose = self.handed_out.indices, "the batch that was handed out last"
        else:
            whose = "indices"
        if losses.shape != indices.shape:
            raise ValueError(
                f"losses must be one per example of {whose}, shape {tuple(indices.shape)}; got "
                f"{tuple(losses.shape)}."
            )
        if isinstance(self._planner, LearnsFromTraining):
            # A copy: the loop may weight the losses in place, a CUDA graph write over them.
            self._planner.observe(indices, losses.detach().clone())
        if isinstance(self._planner, RemembersGradients):
            self._planner.remember(indices, _errors(losses, outputs))

    def preview(self, count: int) -> list[tuple[MiniBatch, Any]]:
        """Look at the mini-batches that would come next if the parameters stayed as they are.

        They are the rest of the region, and then what the strategy plans at the present
        parameters. Loader, model, history and random states stay as they are; samplers of your own
        do if all their randomness comes from `sampler.generator` or the global states.

        Args:
            count: How many, >= 1.

        Returns:
            Examples and weights of each, and the batch without weights, on the device of the model.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
            >>> model, criterion = nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="none")
            >>> loader = CoresetLoader(DataLoader(data, batch_size=8), model, loss_fn=criterion)
            >>> [float(planned.weights.sum()) for planned, batch in loader.preview(3)]
            [8.0, 8.0, 8.0]
        """
        branch = CoresetLoader(self._train_loader, self._model, **self._arguments)
        task = dataclasses.replace(branch._task, is_preview=True)
        branch._planner = self._arguments["strategy"].start(task)
        state = self.state_dict()
        del state["settings"]  # of any type, and the same by construction
        branch.load_state_dict({**copy.deepcopy(state), "settings": branch._settings})
        branch._examples.share_views(self._examples)
        found = []
        with preserved_random_state(self.observer.device), preserved_order(self._train_loader):
            for _ in range(count):
                branch._untrained = 0  # that nothing is trained is no lag here
                planned, batch = branch._fetch()
                found.append((planned, place(batch, self.observer.device)))
        return found

    def read(self, batches: Sequence[Tensor], seed: int) -> Iterator[Any]:
        """Read views of any examples, as training would.

        Args:
            batches: Example indices of each batch, int64.
            seed: Seeds the views; the random states stay as they are.

        Returns:
            The batches without weights, on the device of the model.
        """
        generator = torch.Generator().manual_seed(seed)
        seeds: list[int] = torch.randint(2**62, (len(batches),), generator=generator).tolist()
        requests = [
            Request(indices.tolist(), view_seed, collate=True)
            for indices, view_seed in zip(batches, seeds, strict=True)
        ]
        stream = Reader(self._train_loader).stream(requests)
        return (place(batch, self.observer.device) for batch in stream)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler of the user's loader, if it wants to know.

        Args:
            epoch: Number of the epoch that starts.
        """
        set_epoch = getattr(self._train_loader.sampler, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` continues from, bit for bit.

        Call it anywhere in the loop: the batch that was handed out last counts as trained. Save it
        beside model, optimizer and scheduler, and beside the global random states if something
        draws from them: dropout, or under `Full()` the order, if the loader of your own has no
        `generator=`, and the dataset without workers.

        Returns:
            Tensors and primitives, fit for `torch.load(..., weights_only=True)`.
        """
        rest = slice(self._cursor, None)
        return {
            "version": _STATE_VERSION,
            "settings": dict(self._settings),
            "dataset_length": self._dataset_length,
            "position": self._position,
            "in_epoch": self._in_epoch,
            "total": self._total,
            "region": {
                "indices": [batch.indices for batch in self._region.batches[rest]],
                "weights": [batch.weights for batch in self._region.batches[rest]],
                "seeds": self._seeds[rest],
                "held": self._region.held,
                "seeded": self._region.seeded,
            },
            "plan_generator": self._plan_generator.get_state(),
            "view_generator": self._view_generator.get_state(),
            "order_generators": [
                generator.get_state() for generator in order_generators(self._train_loader)
            ],
            "examples": self._examples.state_dict(),
            "planner": self._planner.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called.

        The next iteration gives the batches that were left of that epoch, one that was broken off
        included. Views that were held are
        read again under their seeds, which gives the same pixels as long as the dataset draws its
        randomness from torch, numpy or `random`.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If it comes from another version, data set length or setting; names it.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"the checkpoint must be of version {_STATE_VERSION}; got {state.get('version')}. "
                "Continue it with the crest that it was saved with."
            )
        _check_same("dataset_length", state["dataset_length"], self._dataset_length)
        for name in sorted(self._settings.keys() | state["settings"].keys()):
            _check_same(name, state["settings"].get(name), self._settings.get(name))
        generators = order_generators(self._train_loader)
        _check_same("generators of the order", len(state["order_generators"]), len(generators))
        self._position = state["position"]
        self._in_epoch = self._resuming = state["in_epoch"]
        self._total = state["total"]
        region = state["region"]
        batches = [
            MiniBatch(indices, weights)
            for indices, weights in zip(region["indices"], region["weights"], strict=True)
        ]
        self._region = Region(batches, held=region["held"], seeded=region["seeded"])
        self._seeds = list(region["seeds"])
        self._cursor = 0
        self._stream = None
        self._version, self._untrained = -1, 0
        self._plan_generator.set_state(state["plan_generator"].cpu())
        self._view_generator.set_state(state["view_generator"].cpu())
        for generator, saved in zip(generators, state["order_generators"], strict=True):
            generator.set_state(saved.cpu())
        self._examples.load_state_dict(state["examples"])
        self._planner.load_state_dict(state["planner"])
        self.history.load_state_dict(state["history"])

    def _next_batch(self) -> Any:
        planned, batch = self._fetch()
        return self._with_weights(batch, planned)

    def _fetch(self) -> tuple[MiniBatch, Any]:
        self._watch_parameters()
        if self._cursor == len(self._region.batches):
            self._plan()
        planned, seed = self._region.batches[self._cursor], self._seeds[self._cursor]
        if self._region.held and self._trains_on_held:
            batch = self._examples.held_batch(planned.indices, seed)
        else:
            with self.history.timed_on_host("data"):
                batch = self._next_in_stream()
        self._cursor += 1
        self._total += 1
        self._untrained += 1
        self.history.steps = math.ceil(self._total / self._accumulation_steps)
        m = len(planned.indices)
        self.history.count("train", forward=m, backward=m)
        return planned, batch

    def _next_in_stream(self) -> Any:
        if self._stream is None:
            unseeded = not self._region.seeded and not self._reader.has_workers
            self._stream = self._reader.stream(
                [
                    Request(batch.indices.tolist(), None if unseeded else seed, collate=True)
                    for batch, seed in zip(
                        self._region.batches[self._cursor :],
                        self._seeds[self._cursor :],
                        strict=True,
                    )
                ]
            )
        return next(self._stream)

    def _plan(self) -> None:
        """Ask the strategy for the next region, now that every step of the last one is taken."""
        length = len(cast(Any, self._train_loader.dataset))
        if length != self._dataset_length:
            raise ValueError(
                f"the dataset must keep its length, {self._dataset_length}; it has {length} now. "
                "Make a new loader for other data."
            )
        self.history.await_training()
        step = self._total // self._accumulation_steps
        self._region = self._planner.next_region(self._examples, step)
        self._seeds = self._examples.draw_seeds(len(self._region.batches))
        self._cursor = 0
        self._stream = None
        if self._region.held and self._untrained:
            self._report_lag()
        steps = math.ceil(len(self._region.batches) / self._accumulation_steps)
        self.history.add_record({"step": step, "length": steps, **self._region.record})

    def _watch_parameters(self) -> None:
        """Count batches handed out since the parameters last changed.

        Optimizers change a parameter's version, or, if they write to `.data`, its values alone.
        """
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        version = sum(parameter._version for parameter in trainable)
        smallest = min(trainable, key=Tensor.numel, default=torch.empty(0)).detach()
        if version != self._version or not torch.equal(smallest, self._smallest):
            self._untrained = 0
        self._version, self._smallest = version, smallest.clone()

    def _report_lag(self) -> None:
        lag = math.ceil(self._untrained / self._accumulation_steps)
        if self.history.lag == 0:
            warnings.warn(
                f"a region was planned before {lag} step(s) on the last one were taken: batches "
                "are fetched ahead of training, or optimizer steps were skipped. Selection works "
                "on older parameters; history.lag tells how far.",
                stacklevel=4,
            )
        self.history.lag = max(self.history.lag, lag)

    def _with_weights(self, batch: Any, planned: MiniBatch) -> Any:
        weights = planned.weights.to(_device(batch))
        if self._attach is not None:
            return self._attach(batch, weights, planned.indices)
        if isinstance(batch, (tuple, list)):
            return (*batch, weights)
        if isinstance(batch, MutableMapping):
            batch = copy.copy(batch)
            batch["sample_weight"] = weights
            batch["sample_index"] = planned.indices.to(weights.device)
            return batch
        raise TypeError(
            "batches must be tuples, lists or dicts to take weights; got "
            f"{type(batch).__name__}. Pass attach=, a function of (batch, weights, indices)."
        )


def _user_order(loader: DataLoader[Any]) -> list[Tensor]:
    """Draw the batches of an epoch as `for batch in loader` would."""
    # iter(loader) draws a seed for its workers before the sampler draws its own.
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    return [torch.tensor(indices) for indices in cast(Any, loader.batch_sampler)]


def _check_arguments(
    train_loader: DataLoader[Any],
    strategy: Strategy,
    budget: float,
    accumulation_steps: int,
    labels: Tensor | None,
) -> int:
    """Refuse what cannot work, and return the number of examples."""
    dataset = train_loader.dataset
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "the dataset must be map-style, with examples by index; got an IterableDataset, "
            f"{type(dataset).__name__}. Load it into a list or an indexed file first."
        )
    if not callable(getattr(strategy, "start", None)) or isinstance(strategy, type):
        raise TypeError(
            "strategy must be a strategy of crest, such as crest.Crest(), crest.Craig() or "
            f"crest.Random(); got {strategy!r}."
        )
    length = len(cast(Any, dataset))
    if length == 0:
        raise ValueError("the dataset must hold at least one example; got an empty one.")
    if not 0 < budget <= 1:
        raise ValueError(
            f"budget must be in (0, 1], the share of steps to take; got {budget}. "
            "Write 0.1 for 10 %."
        )
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps must be >= 1; got {accumulation_steps}.")
    if labels is not None:
        _check_labels(labels, length)
    if train_loader.batch_sampler is None:
        raise ValueError(
            "train_loader must batch its examples; got one with batch_size=None. "
            "Set batch_size in the DataLoader."
        )
    plain = (RandomSampler, SequentialSampler)
    if not isinstance(strategy, Full) and not isinstance(train_loader.sampler, plain):
        raise ValueError(
            "the sampler of train_loader must leave the choice of examples to the strategy; got "
            f"{type(train_loader.sampler).__name__}. Wrap the examples in torch.utils.data.Subset "
            "and use shuffle=True."
        )
    return length


def _check_labels(labels: Tensor, length: int) -> None:
    if tuple(labels.shape) != (length,):
        raise ValueError(
            f"labels must have one class per example, shape ({length},); got {tuple(labels.shape)}."
        )
    least = int(labels.to(torch.int64).min())  # not every integer type has a minimum
    if labels.is_floating_point() or labels.is_complex() or least < 0:
        what = str(labels.dtype) if labels.is_floating_point() else str(least)
        raise ValueError(f"labels must be integers from 0, the class of each example; got {what}.")


def _errors(losses: Tensor, outputs: Tensor | None) -> Tensor:
    """Differentiate each loss by its outputs, and leave the graph for `backward()`."""
    errors, given = None, "none" if outputs is None else type(outputs).__name__
    if isinstance(outputs, Tensor):
        given = str(tuple(outputs.shape))
        if losses.requires_grad and outputs.requires_grad and len(outputs) == len(losses):
            try:
                (errors,) = torch.autograd.grad(
                    losses.sum(), [outputs], retain_graph=True, allow_unused=True
                )
            except RuntimeError as error:
                if "second time" not in str(error):  # else the graph is gone
                    raise
    if errors is None:
        raise ValueError(
            "RememberedGradients needs the outputs that the losses were computed from, a tensor "
            f"with one row per example; got {given}. Write loader.observe(losses, outputs) before "
            "backward()."
        )
    return errors


def _batch_size(train_loader: DataLoader[Any]) -> int:
    sampler = train_loader.batch_sampler
    if type(sampler) is not BatchSampler:
        raise ValueError(
            "batch_size must be given for a loader with a batch sampler of its own, "
            f"{type(sampler).__name__}, in whose place the strategy chooses examples; got None."
        )
    return sampler.batch_size


def _epoch_length(full_length: int, budget: float, accumulation_steps: int) -> int:
    """Count the batches of a short epoch: whole groups of accumulation, at least one."""
    if budget == 1:
        return full_length
    steps = math.floor(budget * full_length / accumulation_steps + 0.5)
    return max(steps, 1) * accumulation_steps


def _check_same(name: str, saved: Any, present: Any) -> None:
    if saved != present:
        raise ValueError(
            f"{name} must be that of the checkpoint, {saved!r}; got {present!r}. "
            "Make the loader with the settings it was saved with."
        )


def _device(batch: Any) -> torch.device:
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, (tuple, list, Mapping)):
        for value in values:
            if isinstance(value, Tensor):
                return value.device
    return torch.device("cpu")
