"""Items of any make are collated again and again, each time as if it were the first."""

import collections
import dataclasses
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import crest
from crest.items import Copier, pack, unpack
from toys import CRITERION, make_model, make_tensors

N, M = 64, 8
INPUTS, TARGETS = make_tensors(N)
STRATEGIES = {
    "random": crest.Random(),
    "greedy": crest.GreedyMiniBatch(subset_size=32),
    "paper": crest.Crest.paper(subset_size=16, error_threshold=10.0, interval_multiplier=3.0),
    "craig": crest.Craig(subset_fraction=0.5),
}
strategies = pytest.mark.parametrize("name", STRATEGIES)


class Made(Dataset):
    """Items of eights, made anew at each read by a function of (input, target, index)."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.make(torch.full((20,), 8.0), int(TARGETS[index]), index)


def loader_of(make, collate, name, *, num_workers=0, loss_fn=CRITERION, **options):
    train_loader = DataLoader(
        Made(make), M, shuffle=True, collate_fn=collate, num_workers=num_workers
    )
    return crest.CoresetLoader(
        train_loader,
        make_model(),
        loss_fn=loss_fn,
        strategy=STRATEGIES[name],
        budget=1,
        **options,
    )


def values_seen(loader, change=lambda inputs: None):
    seen = set()
    for _ in range(2):
        for inputs, *_ in loader:
            change(inputs)
            seen |= {float(row[0]) for row in inputs}
            with torch.no_grad():
                loader._model[0].weight.mul_(0.99)
    return seen


class Thing:
    def __init__(self, x, y):
        self.x, self.y = x, y


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: object
    y: int


def by_data(item):
    item[0].data.div_(2)
    return item


def by_numpy(item):
    array = item[0].numpy()
    array /= 2
    return item


def array(item):
    x, y = item
    x /= 2
    return torch.from_numpy(x), y


def attribute(item):
    item.x = item.x / 2
    return item.x, item.y


def field(item):
    item.x[:] /= 2
    return torch.from_numpy(item.x), item.y


def in_dict(item):
    item["deep"][0]["x"] /= 2
    return torch.from_numpy(item["deep"][0]["x"]), item["y"]


def in_object_array(item):
    item[0] /= 2
    return torch.from_numpy(item[0]), item[1]


def object_array(x, y):
    made = np.empty(2, dtype=object)
    made[0], made[1] = x.numpy(), y
    return made


CHANGES = {
    "tensor.data": (lambda x, y, _: (x, y), by_data),
    "tensor.numpy()": (lambda x, y, _: (x, y), by_numpy),
    "array": (lambda x, y, _: (x.numpy(), y), array),
    "attribute": (lambda x, y, _: Thing(x, y), attribute),
    "slot": (lambda x, y, _: Slotted(x, y), attribute),
    "field of a frozen dataclass": (lambda x, y, _: Frozen(x.numpy(), y), field),
    "deep in a dict": (lambda x, y, _: {"deep": [{"x": x.numpy()}], "y": y}, in_dict),
    "object array": (lambda x, y, _: object_array(x, y), in_object_array),
}


@strategies
@pytest.mark.parametrize("change", CHANGES)
def test_a_collate_function_that_halves_fresh_items_in_place_halves_them_once(change, name):
    make, halve = CHANGES[change]

    def collate(items):
        return default_collate([halve(item) for item in items])

    assert values_seen(loader_of(make, collate, name)) == {4.0}


def in_a_list(items):
    return [x for x, _ in items], torch.tensor([y for _, y in items])


def shared_array(items):
    (x, _), *_ = items
    whole = torch.from_numpy(x)
    return [whole, *(torch.from_numpy(x) for x, _ in items[1:])], torch.tensor(
        [y for _, y in items]
    )


@strategies
@pytest.mark.parametrize("look", [None, crest.Look(transform=tuple)], ids=["plain", "cheaper"])
@pytest.mark.parametrize("as_array", [False, True], ids=["tensor", "array"])
def test_batches_that_loss_and_loop_write_to_are_their_own(name, as_array, look):
    if look is not None and name == "paper":
        pytest.skip("the quadratic model needs exact losses")
    looked_at = set()

    def loss_fn(model, batch):
        for x in batch[0]:
            looked_at.add(float(x[0]))
            x.div_(2)
        return CRITERION(model(torch.stack(list(batch[0]))), batch[1])

    loader = loader_of(
        lambda x, y, _: (x.numpy() if as_array else x, y),
        shared_array if as_array else in_a_list,
        name,
        loss_fn=loss_fn,
        look=look,
    )
    assert values_seen(loader, lambda inputs: [x.div_(2) for x in inputs]) == {4.0}
    assert looked_at <= {8.0}


class Pair(tuple):
    """Two parts and a note, made in a way of its own."""

    def __new__(cls, x, y, note):
        made = super().__new__(cls, (x, y))
        made.note = note
        return made

    def __reduce__(self):
        return Pair, (*self, self.note)

    x = property(lambda self: self[0])


class Rows(list):
    note = None


class Notes(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Selfish(dict):
    """Its keys are its attributes."""

    def __init__(self, **parts):
        super().__init__(parts)
        self.__dict__ = self


class WithUnits(torch.Tensor):
    pass


def rows(x, y):
    made = Rows([x, y])
    made.note = [y]
    return made


def noted(x, y):
    x.note = y
    return x


class Point(collections.namedtuple("Point", "x y")):
    @property
    def total(self):
        return self.x.sum()


KEPT = {
    "tuple with attributes": (lambda x, y, _: Pair(x, y, [y]), lambda i: (i.x, i.note[0])),
    "namedtuple": (lambda x, y, _: Point(x, y), lambda i: (i.x + 0 * i.total, i.y)),
    "list with attributes": (lambda x, y, _: rows(x, y), lambda i: (i[0], i.note[0])),
    "dict with attributes": (lambda x, y, _: Notes(x=x, y=y), lambda i: (i.x, i.y)),
    "dict that is its attributes": (lambda x, y, _: Selfish(x=x, y=y), lambda i: (i.x, i["y"])),
    "user dict": (
        lambda x, y, _: collections.UserDict(x=x, y=y),
        lambda i: (i.data["x"], i["y"]),
    ),
    "deque": (lambda x, y, _: collections.deque([x, y], 2), lambda i: (i.popleft(), i.pop())),
    "default dict": (
        lambda x, y, _: collections.defaultdict(lambda: y, x=x),
        lambda i: (i["x"], i["absent"]),
    ),
    "tensor of a subclass": (
        lambda x, y, _: (x.as_subclass(WithUnits), y),
        lambda i: (i[0].as_subclass(torch.Tensor), i[1] * isinstance(i[0], WithUnits)),
    ),
    "tensor with an attribute": (lambda x, y, _: (noted(x, y), y), lambda i: (i[0], i[0].note)),
    "object with a lock": (
        lambda x, y, _: Thing(x, [y, threading.Lock()]),
        lambda i: (i.x, i.y[0] + 0 * i.y[1].locked()),
    ),
    "set": (lambda x, y, _: (x, {y}), lambda i: (i[0], i[1].pop())),
}
UNPICKLED = {"object with a lock", "default dict"}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", KEPT)
def test_an_item_keeps_its_type_on_its_way_into_collate_fn(kind, num_workers):
    if num_workers and kind in UNPICKLED:
        pytest.skip("cannot leave a worker")
    make, read = KEPT[kind]

    def collate(items):
        return default_collate([read(item) for item in items])

    loader = loader_of(make, collate, "greedy", num_workers=num_workers)
    assert values_seen(loader) == {8.0}


def tree(depth):
    made = ()
    for _ in range(depth):
        made = (made,)
    return made


def lists(depth):
    made = []
    for _ in range(depth):
        made = [made]
    return made


def family(x):
    parent = {"x": x}
    parent["child"] = {"parent": parent}
    return parent


def ring(x):
    one, other = Thing(x, None), Thing(x, None)
    one.y, other.y = other, one
    return one


def knot(x):
    made = []
    made.append((made, x))
    return made


DEEP = {
    "tuples": (lambda x: (tree(1500), x), lambda i: i[1]),
    "lists": (lambda x: (lists(1500), x), lambda i: i[1]),
    "dicts in a circle": (family, lambda i: i["child"]["parent"]["child"]["parent"]["x"]),
    "objects in a circle": (ring, lambda i: i.y.y.x),
    "a list in its own tuple": (knot, lambda i: i[0][0][0][1]),
}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", DEEP)
def test_items_may_be_deep_or_cyclic(kind, num_workers):
    make, read = DEEP[kind]

    def collate(items):
        return default_collate([(read(item), y) for item, y in items])

    loader = loader_of(lambda x, y, _: (make(x), y), collate, "greedy", num_workers=num_workers)
    assert (next(iter(loader))[0] == 8).all()


def test_a_copy_is_as_connected_as_its_original():
    shared, parent = [1], family(torch.ones(2))
    copier = Copier()
    one, other = copier.copy((shared, parent)), copier.copy((shared, shared))
    assert one[0] is other[0] is other[1]
    assert one[0] is not shared
    assert one[1]["child"]["parent"] is one[1]
    tied = copier.copy(knot(5))
    assert tied[0][0] is tied
    again = Copier()
    assert again.copy(parent) is not again.copy(parent)  # two examples that are the same one


def test_what_is_not_an_items_own_is_shared():
    dataset, module = TensorDataset(torch.ones(3)), torch.nn.Linear(1, 1)
    copied = Copier().copy(Thing([dataset, module, len, Thing], Thing.__init__))
    assert copied.x[0] is dataset
    assert copied.x[1] is module
    assert copied.x[2:] == [len, Thing]
    assert copied.y is Thing.__init__


def test_an_item_that_copies_itself_does():
    class Own(Thing):
        def __deepcopy__(self, memo):
            return Own(self.x.clone(), "copied")

    assert Copier().copy(Own(torch.ones(1), "made")).y == "copied"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool])
def test_a_row_of_a_large_tensor_leaves_a_worker_alone(dtype):
    large = torch.zeros(100_000, 4).to(dtype)
    large[3] = 1
    packed = pack([[large[3], "a"], [large[4], "b", "c"]])  # not of one length: pickled
    assert len(packed.columns[0]) < 10_000
    (row, _), _ = unpack(packed)
    assert torch.equal(row, large[3])
    assert row.dtype == dtype


def draws_by_torch(x):
    return x * (torch.rand(x.shape) < 0.5)


def draws_by_numpy(x):
    return x + float(np.random.randn())


OWN = np.random.default_rng(0)
OWN_TORCH = torch.Generator()


def draws_by_its_own(x):
    return x + float(OWN.normal())


def draws_by_its_own_of_torch(x):
    return x + torch.rand(x.shape, generator=OWN_TORCH)


@pytest.mark.parametrize(
    "draw", [draws_by_torch, draws_by_numpy, draws_by_its_own, draws_by_its_own_of_torch]
)
def test_a_collate_function_that_draws_is_noticed_where_views_are_held(draw):
    def collate(items):
        inputs, targets = default_collate(items)
        return draw(inputs), targets

    greedy = loader_of(lambda x, y, _: (x, y), collate, "greedy")
    with pytest.warns(UserWarning, match="collate_fn draws at random") as caught:
        values_seen(greedy)
    assert len(caught) == 1
    values_seen(loader_of(lambda x, y, _: (x, y), collate, "random"))  # claims nothing


def test_a_collate_function_that_draws_for_some_items_is_noticed_at_the_first():
    calls = []

    def collate(items):
        calls.append(1)
        inputs, targets = default_collate(items)
        return (draws_by_torch(inputs) if len(calls) > 12 else inputs), targets

    with pytest.warns(UserWarning, match="collate_fn draws at random"):
        values_seen(loader_of(lambda x, y, _: (x, y), collate, "greedy"))


class Bag:
    def __init__(self, items):
        self.inputs, targets = default_collate(items)
        self.targets, self.note = targets, np.array([np.nan])


def test_a_collate_function_that_does_not_draw_is_not_warned_of():
    loader = loader_of(
        lambda x, y, _: (x, y),
        Bag,
        "greedy",
        loss_fn=lambda model, bag: CRITERION(model(bag.inputs), bag.targets),
        attach=lambda bag, weights, indices: (bag.inputs, bag.targets, weights),
    )
    assert values_seen(loader) == {8.0}
