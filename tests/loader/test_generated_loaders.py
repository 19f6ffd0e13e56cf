"""Over loaders, failures and interrupts made at random: a batch holds what its indices name."""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

import crest
from toys import CRITERION, make_model

N = 64


class Trouble(Exception):
    """Of the dataset, of the user's loop, or an interrupt."""


class Places(Dataset):
    """Its items are their own places, read one by one or in lists; some reads fail once."""

    def __init__(self, failing, error):
        self.failing, self.error = failing, error
        self.reads = torch.zeros(1, dtype=torch.int64).share_memory_()  # by all workers

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.reads += 1
        if int(self.reads) in self.failing:
            raise self.error
        return torch.full((20,), float(index)), index % 5


def collate(items):
    """Takes its items apart and writes to them, where it may."""
    for x, _ in items:
        array = x.numpy()
        array += 0.25
    return default_collate(items)


def strategies(m):
    return [
        crest.Random(),
        crest.Full(),
        crest.GreedyMiniBatch(subset_size=3 * m),
        crest.Crest(subset_size=2 * m, switch_off=False),
        crest.Crest.paper(subset_size=2 * m, error_threshold=1.0, interval_multiplier=3.0),
        crest.Craig(subset_fraction=0.6),
        crest.LossPruning(),
        crest.SelectiveBackprop(),
    ]


def samplers(dataset, draw):
    """Samplers that leave the choice to the strategy, and others, which `Full` follows."""
    generator = torch.Generator().manual_seed(draw.randrange(99))
    n = len(dataset)
    plain = [RandomSampler(dataset), SequentialSampler(dataset)]
    plain.append(RandomSampler(range(n), generator=generator))
    choosing = [
        SubsetRandomSampler(range(0, n, 2)),
        WeightedRandomSampler(torch.ones(n), n),
        RandomSampler(range(n // 2)),
        RandomSampler(dataset, replacement=True),
    ]
    return plain, choosing


def make(draw):
    """Make a loader of random parts; return it with the place that each example is, and workers."""
    m, num_workers = draw.choice([4, 8]), draw.choice([0, 0, 0, 1, 2])
    failing = set(draw.sample(range(1, 400), draw.randrange(4)))
    error = KeyboardInterrupt() if num_workers == 0 and draw.random() < 0.3 else Trouble()
    data = Places(failing, error)
    places = list(range(N))
    if draw.random() < 0.3:
        places = sorted(draw.sample(places, 48))
        data = Subset(data, places)
    strategy = draw.choice(strategies(m))
    plain, choosing = samplers(data, draw)
    keeps_order = isinstance(strategy, crest.Full)
    sampler = draw.choice(plain + choosing if keeps_order else plain)
    options = {
        "num_workers": num_workers,
        "collate_fn": draw.choice([None, collate]),
        "persistent_workers": num_workers > 0 and draw.random() < 0.3,
    }
    if draw.random() < 0.5:
        options["batch_sampler"] = BatchSampler(sampler, m, draw.random() < 0.5)
    else:
        options |= {"batch_size": m, "sampler": sampler}
    model = make_model()
    loader = crest.CoresetLoader(
        DataLoader(data, **options),
        model,
        loss_fn=CRITERION,
        strategy=strategy,
        budget=draw.choice([0.3, 1]),
        seed=draw.randrange(99),
    )
    return loader, torch.tensor(places), num_workers


@contextlib.contextmanager
def ours():
    """Suppress what was thrown in, in whatever form it comes out."""
    try:
        yield
    except (Trouble, KeyboardInterrupt):
        pass
    except RuntimeError as error:
        if "it raised Trouble" not in str(error) and "DataLoader worker" not in str(error):
            raise


def end_workers():
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:a region was planned before")  # steps are not always taken
@pytest.mark.parametrize("seed", range(60))
def test_each_batch_holds_the_examples_that_its_indices_name(seed):
    draw = random.Random(seed)
    loader, places, num_workers = make(draw)
    complete = 0
    for epoch in itertools.count():
        stop = draw.randrange(1, 2 * len(loader))
        trouble = draw.choice(["none", "break", "error", "kill" if num_workers else "none"])
        with ours():
            for count, (inputs, targets, weights) in enumerate(loader, 1):
                planned = loader.handed_out
                expected = places[planned.indices]
                assert inputs[:, 0].long().tolist() == expected.tolist()
                assert len(inputs[:, 0].frac().unique()) == 1  # written to once, or never
                assert torch.equal(targets, expected % 5)
                assert torch.equal(weights, planned.weights)
                losses = CRITERION(loader._model(inputs), targets)
                loader.observe(losses)
                crest.weighted_mean(losses, weights).backward()
                with torch.no_grad():
                    loader._model[0].weight.mul_(0.999)
                if count == stop and trouble == "error":
                    raise Trouble
                if count == stop and trouble == "kill":
                    end_workers()
                if count == stop and trouble == "break":
                    break
            else:
                assert count == len(loader)
                complete += 1
        if complete == 2 or epoch == 8:
            break
    assert complete  # what fails once does not fail for ever
    loader._region._reader.end_workers()  # and not when some traceback goes
