"""The loader reads what the user's own samplers would hand out, or says why not."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import crest
from toys import CRITERION, make_model, make_tensors

N, M = 40, 8
DATA = TensorDataset(*make_tensors(N))


def make(train_loader, strategy=None, **options):
    options.setdefault("batch_size", M)
    return crest.CoresetLoader(
        train_loader,
        make_model(),
        loss_fn=CRITERION,
        strategy=strategy or crest.Random(),
        budget=1,
        **options,
    )


class Even(RandomSampler):
    def __iter__(self):
        return (index for index in super().__iter__() if index % 2 == 0)


class Half(SequentialSampler):
    def __iter__(self):
        return iter(range(N // 2))


class Hard(Sampler):
    def __iter__(self):
        return iter(range(N))

    def __len__(self):
        return N


class OwnBatches(BatchSampler):
    def __iter__(self):
        yield list(range(M))


class Named(RandomSampler):
    """Iterates as `RandomSampler` does."""


def batched(sampler):
    return BatchSampler(sampler, M, drop_last=False)


def distributed(num_replicas):
    return DistributedSampler(DATA, num_replicas=num_replicas, rank=0)


CHOOSING = {
    "subset": SubsetRandomSampler(range(10)),
    "weighted": WeightedRandomSampler(torch.ones(N), N),
    "weighted without replacement": WeightedRandomSampler(torch.ones(N), 9, replacement=False),
    "subclass that leaves out": Even(DATA),
    "sequential subclass": Half(DATA),
    "own": Hard(),
    "of a part": RandomSampler(range(10)),
    "sequence of a part": SequentialSampler(range(10)),
    "of more": RandomSampler(range(2 * N)),
    "with replacement": RandomSampler(DATA, replacement=True),
    "a number": RandomSampler(DATA, num_samples=10),
    "twice": RandomSampler(DATA, num_samples=2 * N),
    "of two processes": distributed(2),
}
SHUFFLING = {
    "random": RandomSampler(DATA),
    "sequential": SequentialSampler(DATA),
    "subclass": Named(DATA),
    "of as many": RandomSampler(range(N)),
    "of one process": distributed(1),
}


@pytest.mark.parametrize("in_batches", [False, True], ids=["sampler", "batch sampler"])
@pytest.mark.parametrize("name", CHOOSING)
def test_a_sampler_that_chooses_is_refused_wherever_it_stands(name, in_batches):
    sampler = CHOOSING[name]
    if in_batches:
        train_loader = DataLoader(DATA, batch_sampler=batched(sampler))
    else:
        train_loader = DataLoader(DATA, M, sampler=sampler)
    with pytest.raises(ValueError, match=f"got {type(sampler).__name__}. Wrap .*data.Subset"):
        make(train_loader)
    crest.CoresetLoader(
        train_loader, make_model(), loss_fn=CRITERION, strategy=crest.Full(), batch_size=M
    )


@pytest.mark.parametrize("in_batches", [False, True], ids=["sampler", "batch sampler"])
@pytest.mark.parametrize("name", SHUFFLING)
def test_a_sampler_that_gives_each_example_once_is_taken(name, in_batches):
    sampler = SHUFFLING[name]
    if in_batches:
        train_loader = DataLoader(DATA, batch_sampler=batched(sampler))
    else:
        train_loader = DataLoader(DATA, M, sampler=sampler)
    loader = make(train_loader)
    seen = torch.cat([loader.handed_out.indices for _ in loader])
    assert sorted(seen.tolist()) == list(range(N))


@pytest.mark.parametrize(
    "batches",
    [OwnBatches(RandomSampler(DATA), M, drop_last=False), [[0, 1, 2], [3, 4]]],
    ids=["subclass", "list"],
)
def test_batches_of_ones_own_are_refused_where_the_strategy_chooses(batches):
    with pytest.raises(ValueError, match="not make batches in a way of its own.* crest.Full"):
        make(DataLoader(DATA, batch_sampler=batches))


@pytest.mark.parametrize("strategy", [crest.Random(), crest.Full()], ids=lambda s: type(s).__name__)
def test_a_batch_sampler_that_drops_the_last_batch_is_followed(strategy):
    train_loader = DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 16, True))
    loader = make(train_loader, strategy, batch_size=None)
    assert [len(weights) for _ in range(3) for *_, weights in loader] == [16] * 6


@pytest.mark.parametrize("name", [name for name in CHOOSING if name != "of more"])
def test_full_hands_out_what_the_users_own_loader_would(name):
    sampler = CHOOSING[name]
    orders = []
    for run in ("plain", "crest"):
        train_loader = DataLoader(DATA, batch_sampler=batched(sampler))
        loader = train_loader if run == "plain" else make(train_loader, crest.Full())
        torch.manual_seed(3)
        orders.append([batch[0] for _ in range(2) for batch in loader])
    if name in {"subclass that leaves out", "sequential subclass"}:
        orders = [found[:3] for found in orders]  # they announce more batches than they have
    assert len(orders[0]) == len(orders[1])
    assert all(map(torch.equal, *orders))


def test_full_begins_a_new_order_after_an_epoch_that_was_left():
    orders = []
    for run in ("plain", "crest"):
        train_loader = DataLoader(DATA, M, shuffle=True)
        loader = train_loader if run == "plain" else make(train_loader, crest.Full())
        torch.manual_seed(3)
        found = []
        for stop in (2, 5, 1, 5):
            for inputs, *_ in loader:
                found.append(inputs)
                stop -= 1
                if stop == 0:
                    break
        orders.append(found)
    assert all(map(torch.equal, *orders))


class Endless:
    """Begins anew for ever, so that workers of its loader stay (as timm and ultralytics do)."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        while True:
            yield from self.batches

    def __len__(self):
        return len(self.batches)


def test_a_batch_sampler_without_an_end_gives_the_announced_number():
    loader = make(
        DataLoader(DATA, batch_sampler=Endless(batched(RandomSampler(DATA)))), crest.Full()
    )
    with pytest.warns(UserWarning, match="Endless hands out more than the 5 batches"):
        rows = [loader.handed_out.indices for _ in loader]
    assert sorted(torch.cat(rows).tolist()) == list(range(N))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([[(0, 224), (1, 224)]], "must hand out lists of integers.*got .*224"),
        ([["a", "b"]], "must hand out lists of integers"),
        ([[0.5]], "must hand out lists of integers"),
    ],
    ids=["pairs", "words", "fractions"],
)
def test_a_batch_sampler_of_other_things_than_places_is_refused(batches, message):
    loader = make(DataLoader(DATA, batch_sampler=batches), crest.Full())
    with pytest.raises(ValueError, match=message):
        next(iter(loader))


def test_a_sampler_that_gives_nothing_is_refused():
    class Silent(Hard):
        def __iter__(self):
            return iter([])

    loader = make(DataLoader(DATA, M, sampler=Silent()), crest.Full())
    with pytest.raises(ValueError, match="Silent must hand out a batch in each epoch; got none"):
        next(iter(loader))


@pytest.mark.parametrize("where", ["sampler", "in batches", "batches"])
def test_the_epoch_reaches_samplers_wherever_they_stand(where):
    class Told(RandomSampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

    class ToldBatches(BatchSampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

    if where == "sampler":
        told = Told(DATA)
        train_loader = DataLoader(DATA, M, sampler=told)
    elif where == "in batches":
        told = Told(DATA)
        train_loader = DataLoader(DATA, batch_sampler=batched(told))
    else:
        told = ToldBatches(RandomSampler(DATA), M, drop_last=False)
        train_loader = DataLoader(DATA, batch_sampler=told)
    make(train_loader, crest.Full()).set_epoch(4)
    assert told.epoch == 4


def test_the_order_of_a_sampler_inside_a_batch_sampler_resumes():
    def loader():
        sampler = RandomSampler(DATA, generator=torch.Generator().manual_seed(5))
        return make(DataLoader(DATA, batch_sampler=batched(sampler)), crest.Full())

    one, other = loader(), loader()
    list(one)
    other.load_state_dict(one.state_dict())
    for _ in zip(one, other, strict=True):
        assert torch.equal(one.handed_out.indices, other.handed_out.indices)


def test_a_loader_that_iterates_in_a_way_of_its_own_is_told_that_it_is_not_asked():
    class Moving(DataLoader):
        def __iter__(self):
            return (batch for batch in super().__iter__())

    with pytest.warns(UserWarning, match="Moving iterates in a way of its own.*collate_fn"):
        make(Moving(DATA, M))


def test_a_subset_keeps_the_others_out():
    part = list(range(0, N, 3))
    loader = make(DataLoader(Subset(DATA, part), 4, shuffle=True), batch_size=None)
    allowed = DATA.tensors[0][part]
    for inputs, *_ in loader:
        assert all((allowed == row).all(1).any() for row in inputs)


def test_the_random_sampler_of_accelerate_leaves_the_choice_to_the_strategy():
    accelerate = pytest.importorskip("accelerate")
    sampler = accelerate.data_loader.SeedableRandomSampler(DATA, data_seed=3)
    loader = make(DataLoader(DATA, batch_size=M, sampler=sampler))
    assert len(list(loader)) == N // M


def test_a_loader_that_accelerate_prepared_is_refused():
    accelerate = pytest.importorskip("accelerate")
    prepared = accelerate.Accelerator(cpu=True).prepare(DataLoader(DATA, batch_size=M))
    with pytest.raises(TypeError, match="as it was before accelerator.prepare.*plain DataLoader"):
        make(prepared, crest.Full())


def test_batches_are_not_skipped_in_another_order():
    accelerate = pytest.importorskip("accelerate")
    loader = make(DataLoader(DATA, batch_size=M))
    assert not hasattr(loader, "dataset")
    with pytest.raises(AttributeError, match="resumes from its own state"):
        accelerate.skip_first_batches(loader, 2)
    with pytest.raises(AttributeError, match="'CoresetLoader' object has no attribute 'nothing'"):
        loader.nothing  # noqa: B018
