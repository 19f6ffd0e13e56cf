"""Labels made wrong on purpose."""

import pytest
import torch

from crest.lab.data.wrong_labels import make_wrong, with_wrong_labels


@pytest.mark.parametrize("moved", [False, True])
def test_a_share_is_made_wrong_and_the_same_one_each_time(moved):
    labels = torch.arange(20_000) % 10
    wrong = make_wrong(labels, 10, 0.2, moved=moved)
    assert float((wrong != labels).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(wrong, make_wrong(labels, 10, 0.2, moved=moved))
    steps = ((wrong - labels) % 10)[wrong != labels].unique()
    assert steps.tolist() == ([1] if moved else [*range(1, 10)])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_can_be_wrong(share):
    labels = torch.arange(100) % 10
    assert float((make_wrong(labels, 10, share) != labels).float().mean()) == share


def test_test_labels_are_left_alone(tmp_path):
    from crest.lab.data.datasets import load_dataset

    pytest.importorskip("sklearn")
    data = load_dataset("digits", tmp_path)
    other = with_wrong_labels(data, 0.2)
    assert torch.equal(other.test_labels, data.test_labels)
    assert not torch.equal(other.train_labels, data.train_labels)
    assert other.fingerprint != data.fingerprint
