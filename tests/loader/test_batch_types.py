"""Batches keep their type and fields, in the loop and where the model is looked at."""

import collections
import dataclasses
import pickle
import types

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

import crest
from crest.batches import with_weights
from crest.reader import place
from toys import CRITERION, make_model, make_tensors

M = 8
DATA = TensorDataset(*make_tensors(64))
STRATEGIES = [
    crest.Random(),
    crest.GreedyMiniBatch(),
    crest.Crest.paper(),
    crest.Craig(subset_fraction=0.5),
]
WEIGHTS, INDICES = torch.ones(3), torch.arange(3)
ELSEWHERE = torch.device("meta")  # any device that tensors can be moved to

Pair = collections.namedtuple("Pair", "x y")


class Point(Pair):
    """A namedtuple with something more."""

    @property
    def both(self):
        return self.x, self.y


class Noted(tuple):
    note = None

    def __new__(cls, x, y):
        return super().__new__(cls, (x, y))


class Rows(list):
    note = None


class Notes(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Selfish(dict):
    def __init__(self, **parts):
        super().__init__(parts)
        self.__dict__ = self


class Naive(dict):
    """Raises a KeyError for an attribute that it lacks."""

    __getattr__ = dict.__getitem__


class Encoding(collections.UserDict):
    """A mapping with `.to`, as that of transformers."""

    def __getattr__(self, name):
        return self.data[name]

    def to(self, device):
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


class InPlace(Encoding):
    def to(self, device):
        super().to(device)


@dataclasses.dataclass(frozen=True)
class Record:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "record"


def noted(x, y):
    made = Noted(x, y)
    made.note = "kept"
    return made


def rows(x, y):
    made = Rows([x, y])
    made.note = "kept"
    return made


def fields(batch):
    return batch.x, batch.y


def keys(batch):
    return batch["x"], batch["y"]


def parts(batch):
    return batch[0], batch[1]


BATCHES = {
    "tuple": (lambda x, y: (x, y), parts),
    "list": (lambda x, y: [x, y], parts),
    "namedtuple": (Pair, fields),
    "namedtuple with more": (Point, lambda batch: batch.both),
    "tuple with attributes": (noted, lambda batch: parts(batch) if batch.note == "kept" else None),
    "list with attributes": (rows, lambda batch: parts(batch) if batch.note == "kept" else None),
    "dict": (lambda x, y: {"x": x, "y": y}, keys),
    "dict with attributes": (lambda x, y: Notes(x=x, y=y), fields),
    "dict that is its attributes": (lambda x, y: Selfish(x=x, y=y), fields),
    "dict without AttributeErrors": (lambda x, y: Naive(x=x, y=y), fields),
    "ordered dict": (lambda x, y: collections.OrderedDict(x=x, y=y), keys),
    "user dict": (lambda x, y: collections.UserDict(x=x, y=y), lambda batch: keys(batch.data)),
    "encoding": (lambda x, y: Encoding(x=x, y=y), fields),
    "encoding that moves itself": (lambda x, y: InPlace(x=x, y=y), fields),
}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", BATCHES)
def test_loss_and_loop_get_batches_of_the_users_type(kind, strategy):
    make, read = BATCHES[kind]

    def loss_fn(model, batch):
        inputs, targets = read(batch)
        return CRITERION(model(inputs), targets)

    train_loader = DataLoader(
        DATA, M, shuffle=True, collate_fn=lambda items: make(*default_collate(items))
    )
    model = make_model()
    loader = crest.CoresetLoader(train_loader, model, loss_fn=loss_fn, strategy=strategy)
    expected = type(make(1, 2))
    for batch in loader:
        weights = batch[-1] if isinstance(batch, (tuple, list)) else batch["sample_weight"]
        assert torch.equal(weights, loader.handed_out.weights)
        crest.weighted_mean(loss_fn(model, batch), weights).backward()
        assert isinstance(batch, tuple if expected is list else expected)
        if isinstance(batch, (tuple, list)):
            inputs, _, also_weights = batch
            assert also_weights is weights
            assert inputs is batch[0]


def test_a_namedtuple_gains_a_field_and_stays_what_it_was():
    batch = with_weights(Point(torch.ones(3), torch.zeros(3)), WEIGHTS, INDICES, None)
    assert isinstance(batch, Point)
    assert batch._fields == ("x", "y", "sample_weight")
    assert batch.sample_weight is WEIGHTS
    assert list(batch._asdict()) == ["x", "y", "sample_weight"]
    assert type(batch)(*batch).both == batch.both  # as accelerate moves namedtuples
    assert type(batch)._make(batch).sample_weight is WEIGHTS
    assert batch._replace(x=1).x == 1
    other = with_weights(Point(torch.ones(3), torch.zeros(3)), WEIGHTS, INDICES, None)
    assert type(other) is type(batch)


def test_a_namedtuple_with_weights_can_be_pickled():
    batch = with_weights(torch_pair(), WEIGHTS, INDICES, None)
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is type(batch)
    assert torch.equal(again.sample_weight, WEIGHTS)


def torch_pair():
    """A namedtuple that a module has, as `pickle` wants it."""
    return torch.nn.utils.rnn.PackedSequence(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize("name", ["sample_weight", "sample_index"])
@pytest.mark.parametrize("kind", [dict, Notes, collections.UserDict])
def test_a_column_of_the_users_own_is_not_overwritten(kind, name):
    batch = kind({"x": torch.ones(3), name: torch.full((3,), 5.0)})
    with pytest.raises(ValueError, match=f"leave the name {name} to the loader.*Rename.*attach="):
        with_weights(batch, WEIGHTS, INDICES, None)
    assert with_weights(batch, WEIGHTS, INDICES, lambda *parts: parts)[0] is batch


def test_a_field_of_the_users_own_is_not_overwritten():
    kind = collections.namedtuple("Weighted", "x sample_weight")
    with pytest.raises(ValueError, match="leave the name sample_weight to the loader"):
        with_weights(kind(torch.ones(3), torch.ones(3)), WEIGHTS, INDICES, None)


@pytest.mark.parametrize(
    "batch",
    [
        types.MappingProxyType({"x": torch.ones(3)}),
        torch.ones(3, 2).max(1),
        Record(torch.ones(3), torch.ones(3)),
    ],
    ids=["read-only", "of a fixed length", "dataclass"],
)
def test_a_batch_that_cannot_take_weights_is_refused(batch):
    with pytest.raises(TypeError, match=f"got {type(batch).__name__}. Pass attach="):
        with_weights(batch, WEIGHTS, INDICES, None)


@pytest.mark.parametrize(
    "make",
    [make for make, _ in BATCHES.values()]
    + [Record, lambda x, y: types.MappingProxyType({"x": x, "y": y}), lambda x, y: {"d": [x, y]}],
    ids=[*BATCHES, "dataclass", "read-only", "nested"],
)
def test_a_batch_keeps_its_type_on_its_way_to_a_device(make):
    batch = make(torch.ones(3), torch.zeros(3))
    moved = place(batch, ELSEWHERE)
    assert type(moved) is type(batch)
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    if isinstance(batch, (Noted, Rows)):
        assert moved.note == "kept"


def tensors_of(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    if dataclasses.is_dataclass(batch):
        return [batch.x, batch.y]
    values = batch.values() if hasattr(batch, "values") else batch
    return [tensor for value in values for tensor in tensors_of(value)]


def test_what_is_moved_is_a_copy_unless_it_moves_itself():
    batch = Notes(x=torch.ones(3))
    place(batch, ELSEWHERE)
    assert batch.x.device.type == "cpu"
