"""The last layer that was found is said once, by name and shape."""

import logging

import pytest
from torch import nn

import crest
from crest.looking.observer import Observer
from toys import CRITERION, make_loader, make_model, make_tensors

BATCH = make_tensors(12)


def said(caplog):
    return [record.getMessage() for record in caplog.records if "looking" in record.name]


def test_it_is_said_once(caplog):
    caplog.set_level(logging.INFO, logger="crest")
    observer = Observer(make_model(), CRITERION)
    assert observer.head == "not known yet"
    for _ in range(3):
        observer.last_layer_gradients(BATCH)
    assert said(caplog) == ["the last layer is '4', Linear(32 -> 5)"]
    assert observer.head == "'4', Linear(32 -> 5)"


def test_a_layer_that_takes_its_place_is_said(caplog):
    caplog.set_level(logging.INFO, logger="crest")
    model = make_model()
    observer = Observer(model, CRITERION)
    observer.last_layer_gradients(BATCH)
    model[-1] = nn.Linear(32, 7)
    observer.last_layer_gradients(BATCH)
    assert said(caplog)[1:] == ["the last layer is '4', Linear(32 -> 7)"]


def test_a_loader_says_it_too(caplog):
    caplog.set_level(logging.INFO, logger="crest")
    loader = make_loader(crest.GreedyMiniBatch())
    next(iter(loader))
    assert said(caplog) == ["the last layer is '4', Linear(32 -> 5)"]


def test_an_adapter_of_low_rank_is_called_one(caplog):
    peft = pytest.importorskip("peft")
    caplog.set_level(logging.INFO, logger="crest")
    config = peft.LoraConfig(r=2, target_modules=["0", "4"])
    observer = Observer(peft.get_peft_model(make_model(), config), CRITERION)
    observer.last_layer_gradients(BATCH)
    (message,) = said(caplog)
    assert "lora_B.default', Linear(2 -> 5), a low-rank adapter" in message
    assert "modules_to_save=" in message
