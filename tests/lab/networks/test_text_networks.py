"""Networks for text see words alone, and each of them in its place."""

import pytest
import torch

from crest.lab.data.text_data import TextData
from crest.lab.networks.text import build_text_network
from crest.lab.run.planning import plan_runs
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import train

TOKENS = {"vocabulary_size": 9, "padding": 0, "separator": 2}


def build(name):
    torch.manual_seed(0)
    return build_text_network(name, num_classes=3, **TOKENS)


@pytest.mark.parametrize("name", ["bag", "encoder"])
@pytest.mark.parametrize("mode", [True, False])
def test_padding_changes_nothing(name, mode):
    network = build(name).train(mode)
    short = torch.tensor([[3, 4, 2, 5]])
    padded = torch.tensor([[3, 4, 2, 5, 0, 0]])
    beside_a_longer_one = torch.tensor([[3, 4, 2, 5, 0, 0], [3, 3, 4, 2, 5, 5]])
    torch.testing.assert_close(network(short), network(padded))
    torch.testing.assert_close(network(short), network(beside_a_longer_one)[:1])


@pytest.mark.parametrize("name", ["bag", "encoder"])
def test_the_sentences_of_a_pair_are_told_apart(name):
    network = build(name)
    swapped = torch.tensor([[5, 2, 3, 4]])
    assert not torch.allclose(network(torch.tensor([[3, 4, 2, 5]])), network(swapped))


def test_the_encoder_sees_the_order_of_words_and_the_bag_does_not():
    one, other = torch.tensor([[3, 4, 5]]), torch.tensor([[5, 4, 3]])
    assert not torch.allclose(build("encoder")(one), build("encoder")(other))
    torch.testing.assert_close(build("bag")(one), build("bag")(other))


def test_a_text_without_words_and_one_too_long_have_logits():
    network = build("encoder")
    assert network(torch.zeros(2, 4, dtype=torch.int32)).isfinite().all()
    mixed = torch.tensor([[3, 4, 5], [0, 0, 0]])
    assert network(mixed).isfinite().all()
    long = torch.randint(3, 9, (2, 64))
    torch.testing.assert_close(network(torch.cat([long, long], dim=1)), network(long))


def test_columns_of_padding_alone_cost_nothing():
    network, seen = build("encoder"), []
    network.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    network(torch.tensor([[3, 4, 0, 0, 0], [3, 4, 5, 0, 0]]))
    assert seen == [(2, 3, 128)]


@pytest.mark.parametrize("strategy", ["online", "random"])
def test_an_encoder_learns_texts_that_differ_in_order_alone(strategy):
    rows = torch.tensor([[3, 4, 0], [4, 3, 0]], dtype=torch.int32).repeat(40, 1)
    labels = torch.tensor([0, 1]).repeat(40)
    data = TextData("sst2", rows, labels, rows[:8], labels[:8], ("a", "b"), **TOKENS)
    settings = RunSettings(
        "sst2", "encoder", strategy, epochs=6, batch_size=8, lr=5e-3, budget=1.0, threads=1,
        optimizer="adamw", evaluations=1,
    )  # fmt: skip
    record = train(settings, data)
    assert record["accuracy"] == 1.0
    assert record["steps"] == 60


def test_an_encoder_takes_a_rate_of_its_own_unless_told():
    (run,) = plan_runs("sst2", ["random"], [0], network="encoder")
    assert (run.lr, run.optimizer, run.batch_size) == (5e-4, "adamw", 32)
    (run,) = plan_runs("sst2", ["random"], [0], network="encoder", lr=0.01)
    assert run.lr == 0.01
    (run,) = plan_runs("sst2", ["random"], [0])
    assert (run.network, run.lr) == ("bag", 1e-3)
