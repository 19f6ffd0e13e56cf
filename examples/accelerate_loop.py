"""Accelerate: accumulation, and several processes under `accelerate launch`."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.adapters.accelerate import prepare

torch.manual_seed(0)
criterion = nn.CrossEntropyLoss(reduction="none")
data = TensorDataset(torch.randn(800, 10), torch.randint(4, (800,)))
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Linear(10, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = crest.CoresetLoader(
    DataLoader(data, batch_size=16, shuffle=True),
    model,
    loss_fn=criterion,
    strategy=crest.OnlineSelection(),
    budget=0.5,
    accumulation_steps=2,
)
loader = prepare(accelerator, loader)
model, optimizer = accelerator.prepare(model, optimizer)

for _ in range(4):
    for x, y, weights in loader:
        with accelerator.accumulate(model):
            accelerator.backward(crest.weighted_mean(criterion(model(x), y), weights))
            optimizer.step()
            optimizer.zero_grad()
print(f"{loader.history.steps} steps, {loader.history.updates} selections")
