"""A run that is killed in the middle of an epoch goes on as if it had not been."""

import io

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest

CRITERION = nn.CrossEntropyLoss(reduction="none")
DATA = TensorDataset(torch.randn(800, 10), torch.randint(4, (800,)))


def train(until=None, checkpoint=None):
    """Two epochs; stop after `until` batches with a checkpoint, or go on from one."""
    torch.manual_seed(0)
    model = nn.Linear(10, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_loader = DataLoader(DATA, batch_size=16, shuffle=True)
    loader = crest.CoresetLoader(train_loader, model, loss_fn=CRITERION, budget=0.4)
    parts = {"model": model, "optimizer": optimizer, "loader": loader}
    done = 0
    if checkpoint is not None:
        saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
        done = saved["done"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for _ in range(done // len(loader), 2):
        for x, y, weights in loader:
            optimizer.zero_grad()
            crest.weighted_mean(CRITERION(model(x), y), weights).backward()
            optimizer.step()
            done += 1
            # In a loop of your own: every few minutes, into a file; and after Ctrl-C, if a signal
            # handler sets a flag, as an exception may come in the midst of a step.
            if done == until:
                states = {name: part.state_dict() for name, part in parts.items()}
                file = io.BytesIO()
                torch.save({**states, "done": done}, file)
                return file.getvalue()
    return model.weight.detach()


unbroken, resumed = train(), train(checkpoint=train(until=7))
print("the same to the last bit:", torch.equal(unbroken, resumed))
