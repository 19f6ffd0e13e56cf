"""Batches that are dicts, as of text: weights and indices come under keys of their own."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import crest

torch.manual_seed(0)
WORDS, CLASSES = 50, 3
words = torch.randint(WORDS, (600, 12))
examples = [{"words": row, "label": int(row[0]) % CLASSES} for row in words]


class Bag(nn.Module):
    """The mean of word vectors, and a linear layer on top."""

    def __init__(self):
        super().__init__()
        self.vectors, self.head = nn.Embedding(WORDS, 16), nn.Linear(16, CLASSES)

    def forward(self, words):
        return self.head(self.vectors(words).mean(1))


def loss_fn(model, batch):  # two arguments, the first called model: it runs the model itself
    return cross_entropy(model(batch["words"]), batch["label"], reduction="none")


model = Bag()
loader = crest.CoresetLoader(
    DataLoader(examples, batch_size=16, shuffle=True), model, loss_fn=loss_fn, budget=0.5
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for _ in range(4):
    for batch in loader:
        losses = loss_fn(model, batch)
        optimizer.zero_grad()
        crest.weighted_mean(losses, batch["sample_weight"]).backward()
        optimizer.step()

print("the last batch held the examples", batch["sample_index"].tolist())
