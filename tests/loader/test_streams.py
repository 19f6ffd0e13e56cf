"""Whatever breaks the reading, the next loop goes on, and batches stay under their own indices."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

import crest
from crest.reader import Reader, Request
from toys import CRITERION, make_model

N, M = 96, 8
STRATEGIES = {
    "random": crest.Random(),
    "full": crest.Full(),
    "greedy": crest.GreedyMiniBatch(subset_size=32),
    "paper": crest.Crest.paper(subset_size=16, error_threshold=1.0, interval_multiplier=3.0),
    "craig": crest.Craig(subset_fraction=0.3),
}


class Places(Dataset):
    """Gives away which example it is; `trouble` may raise at any read."""

    def __init__(self, trouble=lambda reads: None):
        self.reads = 0
        self.trouble = trouble

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.reads += 1
        self.trouble(self.reads)
        return torch.full((20,), index / N), index % 5


class InLists(Places):
    """Reads whole lists of examples, as `Subset` does."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def make(dataset, strategy=None, *, seed=0, budget=1, **options):
    train_loader = DataLoader(dataset, M, shuffle=True, **options)
    return crest.CoresetLoader(
        train_loader,
        make_model(),
        loss_fn=CRITERION,
        strategy=strategy or crest.Random(),
        budget=budget,
        seed=seed,
    )


def epoch_of(loader, check=lambda batch: None):
    """Train for an epoch, see each batch under its indices, and count the batches."""
    count = 0
    for inputs, targets, weights in loader:
        assert (inputs[:, 0] * N).round().long().tolist() == loader.handed_out.indices.tolist()
        assert torch.equal(weights, loader.handed_out.weights)
        assert torch.equal(targets, loader.handed_out.indices % 5)
        count += 1
        with torch.no_grad():
            loader._model[0].weight.mul_(0.999)
        check(count)
    return count


def raising_at(at, error):
    def trouble(reads):
        if reads == at:
            raise error

    return trouble


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("kind", [Places, InLists], ids=["examples", "lists"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_read_that_fails_once_shifts_nothing(name, kind, num_workers):
    if kind is InLists and name != "random":
        pytest.skip("one strategy is enough for the other way of reading")
    dataset = kind(raising_at(29, OSError("connection lost")))
    loader = make(dataset, STRATEGIES[name], num_workers=num_workers)
    complete = caught = 0
    epochs = 4
    for _ in range(epochs):
        try:
            complete += epoch_of(loader) == len(loader)
        except RuntimeError as error:
            caught += "OSError: connection lost" in str(error)
    assert caught >= 1
    assert caught + complete == epochs
    if num_workers == 0:
        assert caught == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_interrupt_while_reading_shifts_nothing(name):
    loader = make(Places(raising_at(45, KeyboardInterrupt())), STRATEGIES[name])
    with pytest.raises(KeyboardInterrupt):
        [epoch_of(loader) for _ in range(4)]
    assert [epoch_of(loader) for _ in range(2)] == [len(loader)] * 2


@pytest.mark.parametrize("name", ["greedy", "paper", "craig"])
def test_a_plan_that_is_broken_off_is_made_anew(name):
    """The views that were held are gone by then; others of the right examples take their place."""
    loader = make(Places(), STRATEGIES[name])
    epoch_of(loader)
    look, looks = loader.observer.last_layer_gradients, []

    def broken(batch):
        looks.append(batch)
        if len(looks) == 2:
            raise KeyboardInterrupt
        return look(batch)

    loader.observer.last_layer_gradients = broken
    with contextlib.suppress(KeyboardInterrupt):
        for _ in range(6):
            epoch_of(loader)
    assert [epoch_of(loader) for _ in range(3)] == [len(loader)] * 3


@pytest.mark.parametrize("error", [OSError("lost"), StopIteration("over")], ids=["error", "end"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_collate_function_that_fails_once_shifts_nothing(num_workers, error):
    calls = []

    def collate(items):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return torch.utils.data.default_collate(items)

    loader = make(Places(), num_workers=num_workers, collate_fn=collate)
    with pytest.raises((OSError, RuntimeError), match="lost|collate_fn .* raised StopIteration"):
        epoch_of(loader)
    if num_workers == 0:
        assert [epoch_of(loader) for _ in range(2)] == [len(loader)] * 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["interrupt", "kill"])
@pytest.mark.parametrize("name", ["random", "greedy"])
def test_workers_that_ended_are_followed_by_new_ones(name, sent, persistent):
    loader = make(
        Places(), STRATEGIES[name], num_workers=2, persistent_workers=persistent, budget=0.5
    )

    def end_workers(count):
        if count == 3:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, sent)
            deadline = time.monotonic() + 10
            while multiprocessing.active_children() and time.monotonic() < deadline:
                time.sleep(0.01)

    with contextlib.suppress(RuntimeError):  # torch tells of it wherever it is
        epoch_of(loader, end_workers)
    assert [epoch_of(loader) for _ in range(2)] == [len(loader)] * 2
    gc.collect()  # iterators that torch could not finish complain here, and not in another test


@pytest.mark.parametrize("name", ["random", "greedy"])
def test_a_loop_that_fails_in_its_body_is_followed_by_a_whole_epoch(name):
    loader = make(Places(), STRATEGIES[name], num_workers=1)
    with pytest.raises(ZeroDivisionError):
        epoch_of(loader, lambda count: 1 / (3 - count))
    assert epoch_of(loader) == len(loader)


class Epochs(Places):
    epoch = 0

    def __getitem__(self, index):
        return torch.full((20,), float(self.epoch)), index % 5


def epochs_seen(loader):
    return {int(value) for inputs, *_ in loader for value in inputs[:, 0].tolist()}


@pytest.mark.parametrize("budget", [1, 0.3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_see_what_is_changed_in_the_dataset_between_epochs(num_workers, budget):
    dataset = Epochs()
    loader = make(dataset, num_workers=num_workers, budget=budget)
    for dataset.epoch in range(3):
        assert epochs_seen(loader) == {dataset.epoch}


def test_workers_see_it_after_a_loop_that_was_left():
    dataset = Epochs()
    loader = make(dataset, num_workers=1)
    next(iter(loader))
    dataset.epoch = 1
    assert epochs_seen(loader) == {1}


def test_a_selection_dataset_is_read_anew_each_epoch():
    dataset, seen = Epochs(), []

    def loss_fn(model, batch):
        seen.append(int(batch[0][0, 0]))
        return CRITERION(model(batch[0]), batch[1])

    train_loader = DataLoader(Places(), M, shuffle=True, num_workers=1)
    loader = crest.CoresetLoader(
        train_loader,
        make_model(),
        loss_fn=loss_fn,
        strategy=crest.GreedyMiniBatch(subset_size=16),
        selection_dataset=dataset,
    )
    for dataset.epoch in (0, 5):
        with torch.no_grad():
            loader._model[0].weight.mul_(0.9)
        next(iter(loader))
    assert seen[0] == 0
    assert seen[-1] == 5


def test_persistent_workers_stay():
    dataset = Epochs()
    loader = make(dataset, num_workers=1, persistent_workers=True)
    for dataset.epoch in range(2):
        assert epochs_seen(loader) == {0}  # as with a DataLoader


def test_workers_end_with_the_loop():
    loader = make(Places(), num_workers=2)
    before = {*multiprocessing.active_children()}  # of other tests, which may end meanwhile
    for _ in loader:
        assert len({*multiprocessing.active_children()} - before) == 2
    assert not {*multiprocessing.active_children()} - before


class Informed(Places):
    path = "somewhere"

    def __getitem__(self, index):
        info = get_worker_info()
        assert info.dataset is self
        return torch.tensor([float(info.seed % 100003), float(self.path == "opened")]), index % 5


def open_file(worker_id):
    get_worker_info().dataset.path = "opened"


def informed(seed=0, epochs=1, **options):
    """Seeds of the workers of each epoch, and whether they opened their file."""
    loader = crest.CoresetLoader(
        DataLoader(Informed(), M, num_workers=1, worker_init_fn=open_file, **options),
        torch.nn.Linear(2, 5),
        loss_fn=CRITERION,
        strategy=crest.Random(),
        budget=1,
        seed=seed,
    )
    return [next(iter(loader))[0][0].tolist() for _ in range(epochs)]


def test_a_worker_init_fn_finds_the_users_dataset():
    assert informed()[0][1] == 1


def test_workers_can_be_spawned():
    """A worker that is no fork gets pickles of what it needs."""
    options = Reader(DataLoader(TensorDataset(torch.ones(4)), num_workers=1))._options
    needed = [options[name] for name in ("dataset", "collate_fn", "worker_init_fn")]
    dataset, as_it_is, _ = pickle.loads(pickle.dumps(needed))
    (answer,) = as_it_is(dataset[Request([2], seed=0, collate=True)])
    assert answer.tolist() == [1]


def test_seeds_of_workers_follow_the_seed_of_the_run_and_its_epochs():
    seeds = {seed: [found for found, _ in informed(seed, epochs=3)] for seed in (0, 1, 2)}
    assert len({found for run in seeds.values() for found in run}) == 9
    assert seeds[1] == [found for found, _ in informed(1, epochs=3)]


def test_a_resumed_epoch_has_workers_of_the_same_seed():
    def loader():
        return crest.CoresetLoader(
            DataLoader(Informed(), M, num_workers=1),
            torch.nn.Linear(2, 5),
            loss_fn=CRITERION,
            strategy=crest.Random(),
            budget=1,
        )

    one, other = loader(), loader()
    list(one)
    stream = iter(one)
    next(stream), next(stream)
    other.load_state_dict(one.state_dict())
    assert next(stream)[0][0, 0] == next(iter(other))[0][0, 0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_views_that_are_held_keep_no_file_open(num_workers):
    class Small(Places):
        def __len__(self):
            return 2000

    loader = make(Small(), crest.Craig(subset_fraction=0.1), num_workers=num_workers, budget=0.02)
    before = len(os.listdir("/proc/self/fd"))
    stream = iter(loader)
    next(stream)
    assert len(os.listdir("/proc/self/fd")) < before + 15  # 16 chunks of two columns were read
