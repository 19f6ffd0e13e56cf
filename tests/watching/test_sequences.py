"""Language models: one loss of each sequence is seen, and outputs of all words are not kept."""

import gc

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import crest
from processes import run_on

VOCABULARY, IGNORED, N, M = 50, -100, 48, 4


def make_data():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(N):
        words = torch.randint(VOCABULARY, (5 + index % 7,), generator=generator)
        rows.append({"words": words, "labels": words.clone()})
        rows[-1]["labels"][: 1 + index % 3] = IGNORED  # the prompt
    return rows


def collate(rows):
    return {
        name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)
        for name, fill in (("words", 0), ("labels", IGNORED))
    }


def loss_fn(model, batch):
    targets = batch["labels"][:, 1:]
    logits = model(batch["words"])[:, :-1].transpose(1, 2)
    losses = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY))
    base = DataLoader(make_data(), batch_size=M, shuffle=True, collate_fn=collate)
    loader = crest.CoresetLoader(base, model, loss_fn=loss_fn, budget=1.0, record=True)
    return model, loader


def take_step(model, batch):
    losses = loss_fn(model, batch)
    crest.weighted_mean(losses, batch["sample_weight"]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.5 * parameter.grad
            parameter.grad = None
    return losses.detach()


def num_held():
    """Tensors over a vocabulary that are alive: outputs, their gradients, or copies of them."""
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    return sum(one.ndim == 3 and one.shape[-1] == VOCABULARY and len(one) > 0 for one in alive)


def test_the_loss_of_each_sequence_is_seen_over_its_supervised_tokens():
    model, loader = build()
    last = torch.full((N,), torch.nan)
    for _ in range(2):
        for batch in loader:
            last[batch["sample_index"]] = take_step(model, batch)
    columns = loader.examples()
    assert (columns["num_observations"] == 2).all()
    torch.testing.assert_close(torch.tensor(columns["last_loss"]), last)
    assert (columns["given_label"] == -1).all()  # tokens are no classes of an example


def test_nothing_over_the_vocabulary_outlives_the_step():
    model, loader = build()
    for step, batch in enumerate(loader):
        assert num_held() == 0, f"at step {step}"
        take_step(model, batch)
    assert loader.examples()["num_observations"].sum() == N


@pytest.mark.parametrize("held", [1, 10**9])
def test_batches_that_were_fetched_ahead_are_not_held_together(monkeypatch, held):
    monkeypatch.setattr("crest.watching.hook._MOST_HELD", held)
    model, loader = build()
    batches = list(loader)  # all of them, before the first step
    most = 0
    for batch in batches:
        take_step(model, batch)
        most = max(most, num_held())
    if held == 1:
        assert most == 2  # output and gradient of the last batch
    else:
        assert most == 2 * len(batches)
    assert (loader.examples()["num_observations"] == 1).all()


def test_large_gradients_are_compared_piece_by_piece(monkeypatch):
    seen = []
    for at_once in (1, 1 << 22):
        monkeypatch.setattr("crest.watching.guard._AT_ONCE", at_once)
        model, loader = build()
        for batch in loader:
            take_step(model, batch)
        seen.append(torch.tensor(loader.examples()["last_loss"]))
    assert torch.equal(*seen)
    monkeypatch.setattr("crest.watching.guard._AT_ONCE", 1)
    model, loader = build()
    for batch in loader:  # a loss that is not the one of the loader
        (loss_fn(model, batch) * torch.arange(1, M + 1)).mean().backward()
    with pytest.warns(UserWarning, match="rows count otherwise than loss_fn"):
        assert loader.examples()["num_observations"].sum() == 0


def part_of_a_process():
    model, loader = build()
    iterator = iter(loader)
    for _ in range(3):
        take_step(model, next(iterator))
    pending = [seen.errors for seen in loader._feed._pending]
    sizes = [errors.numel() for errors in pending]
    for batch in iterator:
        take_step(model, batch)
    for _ in loader:
        break
    return sizes, loader.examples()["num_observations"].tolist()


def test_processes_keep_and_tell_losses_alone():
    for sizes, times in run_on(2, part_of_a_process):
        assert sizes
        assert not any(sizes)
        assert times == [1] * N
