"""A loop of your own: the loader takes the place of the DataLoader, the loss takes its weights."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest

EPOCHS = 5

torch.manual_seed(0)
inputs = torch.randn(2000, 20)
targets = (inputs @ torch.randn(20, 5)).argmax(1)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
criterion = nn.CrossEntropyLoss(reduction="none")

loader = crest.CoresetLoader(
    DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True),
    model,
    loss_fn=criterion,
    strategy=crest.GreedyMiniBatch(),
    budget=0.5,
)
print(loader)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
# len(loader) is the short epoch: a schedule spans that many steps.
scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=0.2, total_steps=EPOCHS * len(loader)
)
for _ in range(EPOCHS):
    for x, y, weights in loader:
        loss = crest.weighted_mean(criterion(model(x), y), weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

accuracy = (model(inputs).argmax(1) == targets).float().mean()
history = loader.history
print(f"{accuracy:.1%} right after {history.steps} steps that cost {history.cost:.0f} random ones")
