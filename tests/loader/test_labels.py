"""Classes: what `labels=` takes, and that those of the data are read anew."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import crest
from crest.options import LoaderOptions, Look
from toys import CRITERION, make_loader, make_tensors, train

N = 200


def checked(labels, n=3):
    options = LoaderOptions(
        loss_fn=CRITERION,
        strategy=crest.Random(),
        budget=1,
        batch_size=1,
        accumulation_steps=1,
        seed=0,
        labels=labels,
        head=None,
        selection_dataset=None,
        look=Look(),
        attach=None,
        record=False,
        tracker=None,
        shard=True,
    )
    options.check_against(n, 1)
    return options.labels


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog", "cat"],
        np.array(["cat", "dog", "cat"]),
        [b"a", b"b", b"c"],
        [0, None, 1],
        [[0], [1, 2], [0]],
        {0, 1, 2},
        {"a": 0, "b": 1, "c": 2},
        (label for label in range(3)),
        "012",
        [2**70, 0, 1],
        np.array(["2020-01-01"] * 3, dtype="datetime64[D]"),
    ],
    ids=repr,
)
def test_labels_that_are_no_numbers_are_refused_by_name(labels):
    with pytest.raises(TypeError, match=r"labels must be integers from 0.* got a .*np\.unique"):
        checked(labels)


def test_labels_of_words_are_refused_by_the_loader_with_the_odd_one():
    message = "in a tensor, array or list; got a list with 'cat'. Number the classes"
    with pytest.raises(TypeError, match=f"labels must be .*{re.escape(message)}"):
        make_loader(crest.Random(), labels=["cat"] * 400)


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0], [0j, 1, 2], torch.zeros(3), [0, -1, 2]])
def test_numbers_that_are_no_classes_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be integers from 0"):
        checked(labels)


class Column:
    """As a pandas.Series whose rows were shuffled: [i] finds the row that is called i."""

    def __init__(self, values, names):
        self.values, self.names = values, names

    def __len__(self):
        return len(self.values)

    def __getitem__(self, name):
        return self.values[self.names.index(name)]

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1],
        (2, 0, 1),
        np.array([2, 0, 1], dtype=np.uint8),
        np.array([2, 0, 1], dtype=np.uint16),
        np.array([2, 0, 1], dtype=object),
        [np.int32(2), np.int64(0), 1],
        [torch.tensor(2), torch.tensor(0), torch.tensor(1)],
        torch.tensor([2, 0, 1], dtype=torch.int8),
        Column([2, 0, 1], [1, 2, 0]),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_integers_of_any_kind_are_taken_in_their_order(labels):
    assert checked(labels).to(torch.int64).tolist() == [2, 0, 1]


class Corrected(Dataset):
    """Its labels are corrected in the run."""

    def __init__(self, as_item):
        self.inputs, _ = make_tensors(N)
        self.targets = (torch.arange(N) % 5 == 0).long()
        self.as_item = as_item

    def __len__(self):
        return N

    def __getitem__(self, index):
        return self.inputs[index], self.as_item(self.targets[index])


def picked_classes(loader, data):
    picked = set()
    for _ in loader:
        picked |= set(loader.handed_out.indices.tolist())
    return data.targets[sorted(picked)].bincount(minlength=4).tolist()


@pytest.mark.parametrize("as_item", [int, lambda label: label, lambda label: label.numpy()])
@pytest.mark.parametrize("keep_views", [True, False])
def test_classes_that_were_read_from_the_data_follow_corrections(as_item, keep_views):
    data = Corrected(as_item)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    strategy = crest.Craig(subset_fraction=0.2, per_class=True, keep_views=keep_views)
    loader = make_loader(strategy, model=model, dataset=data, budget=0.2)
    train(loader, model)
    data.targets = torch.arange(N) % 4
    assert picked_classes(loader, data) == [10, 10, 10, 10]


def test_classes_that_were_given_stay():
    data = Corrected(int)
    given = torch.arange(N) % 4
    loader = make_loader(
        crest.Craig(subset_fraction=0.2), dataset=data, budget=0.2, labels=given.tolist()
    )
    next(iter(loader))
    assert torch.equal(loader._examples.labels, given)


def test_an_example_whose_class_was_taken_away_has_none():
    data = Corrected(int)
    loader = make_loader(crest.Craig(subset_fraction=0.2), dataset=data, budget=0.2)
    train(loader, loader._model)
    data.as_item = float
    loader._examples.hold(torch.arange(N))
    assert (loader._examples.labels == torch.iinfo(torch.int64).min).all()
