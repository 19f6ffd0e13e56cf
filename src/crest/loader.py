"""CoresetLoader: asks for a plan, fetches it, hands it out, and passes on what training showed."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast
from weakref import proxy

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from crest.batches import Attach, with_weights
from crest.checks import check, instance, many, whole
from crest.data_view import DataView
from crest.epoch import Epoch
from crest.feed import Feed
from crest.first_batch import FirstBatch
from crest.history import History
from crest.insight import Insight
from crest.labels import known_labels
from crest.ledger import Ledger
from crest.looking.observer import Observer
from crest.observers import cheaper_observer, exact_observer, with_statistics_of_strategy
from crest.open_region import OpenRegion
from crest.options import BUDGET, LoaderOptions, Look
from crest.order import (
    check_length,
    check_loader,
    default_batch_size,
    epoch_length,
    make_task,
    processes_of,
    set_epoch,
)
from crest.randomness import preserved_order, preserved_random_state
from crest.reader import Reader, place
from crest.resume import GeneratorState, NotCopied, OrderState, check_state, new_state, take_up
from crest.strategies import OnlineSelection, Strategy
from crest.strategies.protocol import Excludes, MiniBatch
from crest.strategies.registry import make_strategy
from crest.trackers import Tracker
from crest.watching.parameters import ParameterWatch
from crest.watching.told import check_told

__all__ = ["CoresetLoader"]

_MODEL = instance(nn.Module, text="a torch.nn.Module")


class CoresetLoader(Insight, NotCopied):
    """A short epoch of weighted mini-batches in place of the epoch of an ordinary loader.

    Batches are those of the user's loader (dataset, collate_fn, workers, pin_memory) with weights
    attached: appended to a tuple or list, `sample_weight` and `sample_index` in a dict. Batches are
    planned in finite regions; nothing is fetched beyond the end of a region before its last step
    was taken. Randomness of dataset and collate_fn is seeded at each read, so that a run depends on
    `seed` alone and not on the number of workers; the global random states are left alone. Workers
    end with each epoch and see what was changed in the dataset before the next; short epochs start
    sooner with `persistent_workers=True` in the user's loader.

    A loader belongs to its model: it is neither copied nor pickled, see `state_dict`. A module that
    holds it and is copied itself, for averaged weights say, can hold `weakref.ref(loader)`.

    Attributes:
        history: Records, seconds and costs, see `crest.history.History`.
        observer: Looks at the model without a trace, see `crest.looking.observer.Observer`.

    Args:
        train_loader: An ordinary DataLoader over a map-style dataset, with shuffling or without. A
            sampler that does more is followed by `Full` alone, and refused elsewhere.
        model: The model that is trained; the loader only looks at it.
        loss_fn: `loss_fn(output, target)` for batches `(inputs, targets)`, or `loss_fn(model,
            batch)`, told by the name of the first argument. Returns one loss per example.
        strategy: How mini-batches are picked, as an object or by its word, such as `"greedy"`:
            `crest.registered_strategies()` lists them, a word takes the defaults, and subsets of
            the size of the budget. None: `OnlineSelection(if_unseen="go on")`.
        budget: Share of the batches of `train_loader` in one epoch of this loader, in (0, 1].
        batch_size: m. None: that of `train_loader`.
        accumulation_steps: Batches accumulated for one optimizer step; an epoch is a whole number
            of such groups, unless the budget is 1.
        seed: Seed of all random choices.
        labels: Class of each example, integers from 0, shape (n,), for stratified strategies.
        head: The last layer or its name; found by itself if None, see `Observer`.
        selection_dataset: Other views of the same examples, without augmentation say, to select on;
            training then reads the loader's dataset as usual. By default the view that is selected
            is the view that is trained on, but for what collate_fn draws at random: a weight is
            right for the pixels that were measured.
        look: How the strategy looks at the model, for a cheaper look than a forward pass of
            training, see `crest.Look`. None: at the model as it is.
        attach: `attach(batch, weights, indices)` returns the batch to hand out, for batches that
            are no tuple, list or dict.
        record: Whether to record what training shows of every example, whatever the strategy: for
            `examples()` and `report()`.
        tracker: Takes the numbers of each region, such as `JsonLines("run.jsonl")`, see `Tracker`;
            of several processes that of the first.
        shard: Whether the processes of `torch.distributed` share the work: each trains on m
            examples of its own, and all plan alike, see `crest.ranks`. Length, budget, history and
            what is known of examples are those of the whole run. False leaves this process by
            itself.

    Raises:
        TypeError: If an argument is of a wrong kind, such as a dataset in place of a DataLoader, or
            the dataset is iterable-style.
        ValueError: If the dataset is empty, the sampler chooses examples by itself, a value is out
            of its range, or two settings contradict each other.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from crest import weighted_mean
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
        strategy: Strategy | str | None = None,
        budget: float = 0.1,
        batch_size: int | None = None,
        accumulation_steps: int = 1,
        seed: int = 0,
        labels: Tensor | Sequence[int] | None = None,
        head: nn.Module | str | None = None,
        selection_dataset: Any = None,
        look: Look | None = None,
        attach: Attach | None = None,
        record: bool = False,
        tracker: Tracker | None = None,
        shard: bool = True,
    ) -> None:
        length = self._dataset_length = check_loader(train_loader)
        check("model", model, _MODEL)
        if isinstance(strategy, str):
            strategy = make_strategy(strategy, budget=check("budget", budget, BUDGET))
        options = LoaderOptions(
            loss_fn=loss_fn,
            strategy=OnlineSelection(if_unseen="go on") if strategy is None else strategy,
            budget=budget,
            batch_size=default_batch_size(train_loader) if batch_size is None else batch_size,
            accumulation_steps=accumulation_steps,
            seed=seed,
            labels=labels,
            head=head,
            selection_dataset=selection_dataset,
            look=Look() if look is None else look,
            attach=attach,
            record=record,
            tracker=tracker,
            shard=shard,
        )
        options = self._options = with_statistics_of_strategy(options, model)
        ranks = self._ranks = processes_of(train_loader, options)
        options.check_against(length, ranks.world)
        look, batch_size = options.look, options.batch_size
        self._settings = options.to_settings() | {"batch_size": batch_size * ranks.world}
        self._keeps_user_epochs = options.keeps_user_order and options.budget == 1
        self._train_loader = train_loader
        self._model = model
        self._epoch = Epoch(epoch_length(train_loader, options, ranks))
        self._plan_generator = torch.Generator().manual_seed(options.seed)
        self._view_generator = torch.Generator().manual_seed(options.seed + 1)
        self.observer = Observer(model, loss_fn, head=head, dtype=look.dtype)
        step = batch_size * ranks.world * options.accumulation_steps
        self.history = History(step, self.observer.device)
        tracker = None if ranks.rank else options.tracker
        self._ledger = Ledger(length, self.history, records=options.record, tracker=tracker)
        reader = Reader(train_loader)
        self._examples = DataView(
            reader if selection_dataset is None else Reader(train_loader, selection_dataset),
            exact_observer(look, self.observer, loss_fn, head),
            self.history,
            self._view_generator,
            max(batch_size, 128) if look.chunk is None else look.chunk,
            known_labels(cast(Tensor | None, options.labels), length),
            cheaper_observer(look, model, loss_fn, head),
            ranks,
        )
        holds = selection_dataset is None
        self._region = OpenRegion(reader, self._examples, self.history, ranks, trains_on_held=holds)
        task = make_task(train_loader, options, self._plan_generator, self._examples.labels, ranks)
        this = proxy(self)  # no cycle: the last reference ends the workers
        self._task = dataclasses.replace(task, explain_silence=lambda: this._feed.explain())
        self._planner = options.strategy.start(self._task)
        name = type(options.strategy).__name__
        self._feed = Feed(self._planner, self._ledger, model, self.observer, loss_fn, name, ranks)
        self._training = ParameterWatch(model, options.accumulation_steps)
        self._first = FirstBatch(self.observer, self.history)
        self._total = 0  # batches of the run handed out

    def __repr__(self) -> str:
        """Say what is trained on, how much of it, and how it is picked."""
        options, data = self._options, type(self._train_loader.dataset).__name__
        of = f" on {self._ranks.world} processes" if self._ranks.world > 1 else ""
        return (
            f"CoresetLoader({self._dataset_length} examples of {data}, {len(self)} batches of "
            f"{options.batch_size} an epoch{of}, budget={options.budget:g}, "
            f"strategy={options.strategy!r})"
        )

    def __len__(self) -> int:
        """Return the number of batches in a short epoch."""
        return self._epoch.length

    @property
    def num_examples(self) -> int:
        """Number of examples in the data set, n."""
        return self._dataset_length

    @property
    def batch_size(self) -> int:
        """Examples in a mini-batch, m, of this process."""
        return self._options.batch_size

    @property
    def handed_out(self) -> MiniBatch | None:
        """Examples and weights of the batch that was handed out last, None before the first."""
        return self._region.last

    @property
    def active(self) -> Tensor:
        """Which examples are in play, bool, shape (n,): all, but for strategies that exclude."""
        if isinstance(self._planner, Excludes):
            return self._planner.active.clone()
        return torch.ones(self._dataset_length, dtype=torch.bool)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over one short epoch; after `load_state_dict`, over what is left of it.

        One iteration at a time: when another one begins, this one raises at its next batch. A loop
        that is left early, by `break` or an error, ends its epoch, and the next one begins anew.

        Yields:
            Batches with weights.
        """
        self._ranks.check_present()
        if self._keeps_user_epochs and not self._epoch.resumes:
            self._region.drop()  # what a loop left early
        iteration = self._epoch.begin()
        try:
            self._region.begin_epoch(self._epoch.seed(self._options.seed, self._total))
            while self._epoch.goes_on(iteration):
                self._feed.look()
                planned, batch = self._fetch()
                self._first.check(batch, len(planned.indices))
                self._feed.hand_out(planned, batch)
                batch = with_weights(batch, planned.weights, planned.indices, self._options.attach)
                self._epoch.position += 1
                with self.history.timed_on_host("train"):
                    yield batch
            self._feed.settle()
            self._feed.exchange()
        finally:  # a loop that counts batches does not ask for one more
            if self._epoch.end(iteration):
                self._region.end_epoch()
            self._feed.settle()
            self._feed.note_refused()

    def observe(
        self, losses: Tensor, outputs: Tensor | None = None, *, indices: Tensor | None = None
    ) -> None:
        """Tell the strategy what training computed for a batch.

        A strategy that learns from training sees it by itself, in the forward and backward passes
        of the loop; this is for loops that it cannot see, and ends the watching. Strategies that do
        not learn from training ignore it.

        Args:
            losses: One loss per example, shape (m,), before weights and before `backward()`.
            outputs: What the losses were computed from, such as logits, shape (m, ...), of one
                shape in all batches. Not needed where losses alone are learned from.
            indices: Of the examples, int64, shape (m,), as they came with the batch: a batch that
                is a mapping has them as `"sample_index"`, any other with `attach=`. None: those of
                the batch that was handed out last, which is another one where batches are fetched
                ahead of training, as Accelerate does.

        Raises:
            TypeError: If an argument is no tensor.
            ValueError: If there was no batch yet, the shape is not that of its indices, or the
                strategy needs outputs and the losses were not computed from those given.
        """
        last = None if self.handed_out is None else self.handed_out.indices
        indices = check_told(losses, outputs, indices, last)
        self._feed.tell(indices, losses, outputs)

    def preview(self, count: int) -> list[tuple[MiniBatch, Any]]:
        """Look at the mini-batches that would come next if the parameters stayed as they are.

        They are the rest of the region, and then what the strategy plans at the present
        parameters; of several processes all ask. Loader, model, history and random states stay as
        they are; samplers of your own do if all their randomness comes from `sampler.generator` or
        the global states.

        Args:
            count: How many, >= 1.

        Returns:
            Examples and weights of each, and the batch without weights, on the device of the model.

        Raises:
            TypeError: If `count` is no integer.
            ValueError: If it is out of its range.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
            >>> model, criterion = nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="none")
            >>> loader = CoresetLoader(DataLoader(data, batch_size=8), model, loss_fn=criterion)
            >>> sum(len(planned.indices) for planned, batch in loader.preview(3))
            24
        """
        count = check("count", count, many())
        branch = CoresetLoader(self._train_loader, self._model, **self._options.to_arguments())
        self._feed.exchange()
        task = dataclasses.replace(branch._task, is_preview=True)
        branch._planner = self._options.strategy.start(task)
        branch._ledger.silence()
        state = self.state_dict()
        del state["settings"]  # of any type, and the same by construction
        branch.load_state_dict({**copy.deepcopy(state), "settings": branch._settings})
        branch._examples.share_views(self._examples)
        branch._region.begin_epoch(self._epoch.seed(self._options.seed, self._total))
        found = []
        with preserved_random_state(self.observer.device), preserved_order(self._train_loader):
            for _ in range(count):
                branch._training.untrained = 0  # that nothing is trained is no lag here
                planned, batch = branch._fetch()
                found.append((planned, place(batch, self.observer.device)))
        return found

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the samplers of the user's loader that want to know.

        Args:
            epoch: Number of the epoch that starts, >= 0.

        Raises:
            TypeError: If it is no integer.
            ValueError: If it is negative.
        """
        set_epoch(self._train_loader, check("epoch", epoch, whole(0)))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` continues from, bit for bit.

        Call it anywhere in the loop: the batch that was handed out last counts as trained. Of
        several processes that of the first does, but for what others saw since the last region.
        Save it beside model, optimizer and scheduler, and beside the global random states if
        something draws from them: dropout, or under `Full()` the order, if the loader of your own
        has no `generator=`, and the dataset without workers. To save on Ctrl-C, let a signal
        handler set a flag, and look at it after each step: an exception may come in the midst of
        one.

        Returns:
            Tensors and primitives, fit for `torch.load(..., weights_only=True)`.
        """
        self._feed.settle()
        return {
            **new_state(self._settings, self._dataset_length, self._parts),
            "position": self._epoch.position,
            "in_epoch": self._epoch.is_open,
            "total": self._total,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called.

        The next iteration gives the batches that were left of the epoch, if the state was saved
        inside the loop, and a new epoch if it was saved at its last batch or after it, `break`
        included: an epoch is over with its last batch. Views that were held are read again under
        their seeds, which gives the same pixels as long as the dataset draws its randomness from
        torch, numpy or `random`.

        Args:
            state: What `state_dict` returned.

        Raises:
            TypeError: If it is no state of a loader.
            ValueError: If it comes from another version, data set length or setting, or an entry is
                damaged; names it, and leaves the loader as it was.
        """
        check_state(state, self._settings, self._dataset_length, self._parts)
        take_up(self._parts, state)
        self._epoch.load(state["position"], state["in_epoch"])
        self._total = state["total"]
        self._training.begin_anew()

    @property
    def _parts(self) -> dict[str, Any]:
        """What keeps a state of its own, by its entry."""
        return {
            "region": self._region,
            "plan_generator": GeneratorState(self._plan_generator),
            "view_generator": GeneratorState(self._view_generator),
            "order_generators": OrderState(self._train_loader),
            "examples": self._examples,
            "planner": self._planner,
            "history": self.history,
            "ledger": self._ledger,
            "seen": self._feed,  # the last one: planner and ledger may be told of it
        }

    def _fetch(self) -> tuple[MiniBatch, Any]:
        self._training.look(self._epoch.position)
        if self._region.is_used_up:
            self._plan()
        planned, batch = self._region.fetch()
        self._total += 1
        self._training.untrained += 1
        self.history.steps = math.ceil(self._total / self._options.accumulation_steps)
        of_all = self._region.all_of_last
        self.history.count("train", forward=len(of_all), backward=len(of_all))
        self._ledger.hand_out(of_all)
        return planned, batch

    def _plan(self) -> None:
        """Ask the strategy for the next region, now that every step of the last one is taken."""
        check_length(self._train_loader, self._dataset_length)
        self.history.await_training()
        self._feed.settle()
        settings = {**self._settings, "record": self._options.record}
        self._ranks.meet({"dataset_length": self._dataset_length, **settings})
        self._feed.exchange()
        step = self._total // self._options.accumulation_steps
        region = self._planner.next_region(self._examples, step)
        self._ranks.check_plan(region.batches)
        self._region.open(region)
        self._ledger.open(region, self._planner, step)
        if region.held and self._training.untrained:
            lag = math.ceil(self._training.untrained / self._options.accumulation_steps)
            self.history.report_lag(lag)
        steps = math.ceil(len(region.batches) / self._options.accumulation_steps)
        self.history.add_record({"step": step, "length": steps, **region.record})
